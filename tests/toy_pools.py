"""The environment of docs/adding_an_environment.md as a module; nothing is registered by importing it here."""

import re

import gymnasium
from places import DOCS

import fleetgym.envs.registry as problems
from fleetgym.baselines import registry as heuristics

PAGE = (DOCS / "adding_an_environment.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
ID = "toy/Pools-v0"

exec(compile(CODE, "adding_an_environment.md", "exec"))  # noqa: S102
problems._problems.pop(ID)
gymnasium.registry.pop(ID)
heuristics._heuristics.pop("emptiest_pool")

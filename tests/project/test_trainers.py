"""The snippets of the page about other trainers run as they stand, where their library is installed."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import DOCS

PAGE = DOCS / "trainers.md"
ALWAYS_THERE = {"fleetgym", "gymnasium", "numpy", "torch", "stable_baselines3", "sb3_contrib"}


def snippets() -> dict[str, str]:
    """Python code of the page by heading and place."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        for index, code in enumerate(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)):
            found[f"{section.splitlines()[0]} {index + 1}"] = code
    return found


SNIPPETS = snippets()


def libraries(code: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def test_every_trainer_of_the_table_has_a_snippet() -> None:
    table = re.findall(r"^\| ([A-Z][^|]*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    trainers = {name for cell in table for name in cell.split(", ")} | {"sb3-contrib"}
    assert trainers == {key.rsplit(" ", 1)[0] for key in SNIPPETS}
    assert {"torchrl", "tianshou", "ray"} == set().union(*map(libraries, SNIPPETS.values())) - ALWAYS_THERE


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet_runs(name: str, tmp_path: Path) -> None:
    missing = sorted(lib for lib in libraries(SNIPPETS[name]) if importlib.util.find_spec(lib) is None)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    script = tmp_path / "snippet.py"
    script.write_text(SNIPPETS[name], encoding="utf-8")
    alone = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, **alone},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]

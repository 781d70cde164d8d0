"""What the environments do is pinned: a changed digest calls for a new version of the environment."""

import json

import gymnasium
import pytest
from places import DATA
from routing_envs import ROUTING_ID

from fleetgym.envs import registered
from fleetgym.envs.fingerprint import fingerprint

PINNED = json.loads((DATA / "fingerprints.json").read_text(encoding="utf-8"))


def test_every_registered_environment_is_listed_and_pinned() -> None:
    known = {env_id for env_id in gymnasium.registry if env_id.startswith("fleetgym/")}
    assert set(PINNED) == set(registered()) == known


@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_routing_does_what_it_did(engine: str) -> None:
    assert fingerprint("fleetgym/Routing-v0", engine) == PINNED[ROUTING_ID], "dynamics changed: register a new version"

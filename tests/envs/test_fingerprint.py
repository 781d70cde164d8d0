"""What the environments do is pinned: a changed digest calls for a new version of the environment."""

import json

import gymnasium
import pytest
from places import DATA

from fleetgym.envs import ENV_IDS, ROUTING_ID
from fleetgym.envs.fingerprint import routing_fingerprint

PINNED = json.loads((DATA / "fingerprints.json").read_text(encoding="utf-8"))


def test_every_registered_environment_is_listed_and_pinned() -> None:
    registered = {env_id for env_id in gymnasium.registry if env_id.startswith("fleetgym/")}
    assert set(PINNED) == set(ENV_IDS) == registered


@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_routing_does_what_it_did(engine: str) -> None:
    assert routing_fingerprint(engine) == PINNED[ROUTING_ID], "dynamics changed: register a new version"

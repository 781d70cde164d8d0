"""Heuristic routing policies, named after their source.

Importing this package registers all of them; `make_heuristic` builds one by name.
"""

from fleetgym.baselines import load, oracle, simple, speed_aware
from fleetgym.baselines.base import REGISTRY, Heuristic, ScorePolicy, make_heuristic, register
from fleetgym.envs.policy import Policy

__all__ = [
    "REGISTRY",
    "Heuristic",
    "Policy",
    "ScorePolicy",
    "load",
    "make_heuristic",
    "oracle",
    "register",
    "simple",
    "speed_aware",
]

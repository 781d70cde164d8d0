"""Heuristics: policies that are not learned.

Importing this package registers all of them; `make_heuristic` builds one by name.
"""

from fleetgym.baselines import anywhere, routing
from fleetgym.baselines.base import REGISTRY, Heuristic, ScorePolicy, make_heuristic, register
from fleetgym.envs.policy import Policy

__all__ = [
    "REGISTRY",
    "Heuristic",
    "Policy",
    "ScorePolicy",
    "anywhere",
    "make_heuristic",
    "register",
    "routing",
]

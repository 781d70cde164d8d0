"""Heuristics: policies that are not learned, a folder for each environment and `anywhere` for all.

Importing this package registers all of them; `make_heuristic` builds one by name.
"""

from fleetgym.baselines import anywhere, routing
from fleetgym.baselines.base import Heuristic, LinearScore, ScorePolicy
from fleetgym.baselines.registry import contenders, find_heuristic, make_heuristic, register, registered
from fleetgym.envs.policy import Policy

__all__ = [
    "Heuristic",
    "LinearScore",
    "Policy",
    "ScorePolicy",
    "anywhere",
    "contenders",
    "find_heuristic",
    "make_heuristic",
    "register",
    "registered",
    "routing",
]

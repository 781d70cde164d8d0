"""Heuristics of routing, named after their source: which instance gets the arriving request."""

from fleetgym.baselines.routing import least_loaded, oracle, power_of_two, speed_aware

__all__ = ["least_loaded", "oracle", "power_of_two", "speed_aware"]

"""The compiled engine."""

from fleetgym.envs.cluster.kernel.engine import KernelEngine

__all__ = ["KernelEngine"]

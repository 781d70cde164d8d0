"""Where requests come from: production traces, generators, arrival processes."""

from fleetgym.envs.workloads.base import Workload
from fleetgym.envs.workloads.kinds import make_workload

__all__ = ["Workload", "make_workload"]

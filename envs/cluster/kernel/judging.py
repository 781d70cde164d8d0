"""`fleetgym.envs.cluster.judging`, compiled."""

from __future__ import annotations

from fleetgym.envs.cluster import judging
from fleetgym.envs.cluster.kernel.jit import jit

since_s = jit(judging.since_s)
tpot_s = jit(judging.tpot_s)
within_slo = jit(judging.within_slo)

"""Offered load as a fraction of what an instance can serve: the saturation rate, measured by simulation."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.requests import FINISHED
from fleetgym.envs.cluster.spec import ClusterSpec, InstanceSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.base import Workload
from fleetgym.envs.workloads.blocks import fit_chains

_PROBE_REQUESTS = 6000


@functools.lru_cache(maxsize=256)
def saturation_rps(instance: InstanceSpec, workload: Workload) -> float:
    """Requests per second that one instance finishes while its queue never empties.

    Requests that stand for all of the workload's arrive at once; the rate is that of the middle three quarters of the
    finishes, which leaves out the initial ramp and the final drain.

    Parameters
    ----------
    instance : InstanceSpec
        Its data-parallel ranks serve together; ``count`` is of no matter.
    workload : Workload
        Its lengths and shared prefixes; its own times are of no matter.

    Raises
    ------
    UserError
        The instance rejects more than half of the requests, so that no rate can be measured; or the trace's blocks do
        not fit its own, or the workload's file cannot be read.
    """
    cluster = ClusterSpec((instance,))
    trace = fit_chains(workload.chain_blocks, cluster)(workload.typical(np.random.default_rng(0), _PROBE_REQUESTS))
    rows = trace.requests.copy()
    rows["arrival_ns"] = 0
    engine = make_engine("kernel", cluster, 1)
    engine.reset(0, replace(trace, requests=rows))
    engine.run(np.zeros((1, len(rows)), np.int64))
    engine.drain(0)
    results = engine.results(0)
    finish_ns = np.sort(results["finish_ns"][results["status"] == FINISHED])
    if len(finish_ns) < 8 or len(finish_ns) < 0.5 * len(rows):
        raise UserError(
            f"load: {instance.gpu}/{instance.model}/tp{instance.tp} can hold only {len(finish_ns)} of {len(rows)} "
            f"requests of {trace.name}: choose a larger KV cache or max_model_len"
        )
    first, last = len(finish_ns) // 8, 7 * len(finish_ns) // 8
    # A rejected request costs nothing, so the rate counts all that arrived.
    share = len(rows) / len(finish_ns)
    return float(share * (last - first) / ((finish_ns[last] - finish_ns[first]) * 1e-9))

"""Sums over the requests of an episode, in the order of `fleetgym.envs.cluster.engine.Engine.episode_totals`."""

from __future__ import annotations

import functools

from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.judging import since_s, tpot_s, within_slo
from fleetgym.envs.cluster.kernel.state import DONE, REFUSED, Array


@functools.partial(jit, _nrt=True, forceinline=False)
def episode_totals(req: Array, slo: Array, out: Array) -> None:
    """Fill ``out`` (9,) from the request rows ``req`` (R,)."""
    for r in range(len(req)):
        row = req[r]
        ttft = 0.0
        if row["first_token_ns"] >= 0:
            ttft = since_s(row["arrival_ns"], row["first_token_ns"])
            out[0] += ttft
            out[1] += 1
        if row["state"] == DONE:
            tpot = tpot_s(row["first_token_ns"], row["last_token_ns"], row["output"])
            if row["output"] > 1:
                out[2] += tpot
                out[3] += 1
            out[4] += since_s(row["arrival_ns"], row["last_token_ns"])
            out[5] += 1
            if within_slo(ttft, tpot, row["prompt"], slo[0], slo[1], slo[2]):
                out[6] += 1
        if row["state"] == REFUSED:
            out[7] += 1
        out[8] += row["preemptions"]

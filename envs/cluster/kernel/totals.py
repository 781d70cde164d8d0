"""Sums over the requests of an episode, in the order of `fleetgym.envs.cluster.engine.Engine.episode_totals`."""

from __future__ import annotations

import functools

from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.state import DONE, REFUSED, Array


@functools.partial(jit, _nrt=True, forceinline=False)
def episode_totals(req: Array, slo: Array, out: Array) -> None:
    """Fill ``out`` (9,) from the request rows ``req`` (R,)."""
    for r in range(len(req)):
        row = req[r]
        ttft_s = 0.0
        if row["first_token_ns"] >= 0:
            ttft_s = (row["first_token_ns"] - row["arrival_ns"]) * 1e-9
            out[0] += ttft_s
            out[1] += 1
        if row["state"] == DONE:
            tpot_s = 0.0
            if row["output"] > 1:
                tpot_s = (row["last_token_ns"] - row["first_token_ns"]) * 1e-9 / (row["output"] - 1)
                out[2] += tpot_s
                out[3] += 1
            out[4] += (row["last_token_ns"] - row["arrival_ns"]) * 1e-9
            out[5] += 1
            if ttft_s <= slo[0] + slo[1] * row["prompt"] / 1000 and tpot_s <= slo[2]:
                out[6] += 1
        if row["state"] == REFUSED:
            out[7] += 1
        out[8] += row["preemptions"]

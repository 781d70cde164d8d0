"""Sums over the requests of an episode, as `fleetgym.envs.cluster.engine.Engine.episode_totals` has them."""

from __future__ import annotations

import functools

from fleetgym.envs.cluster.judging import EpisodeTotals
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.judging import since_s, tpot_s, within_slo
from fleetgym.envs.cluster.kernel.state import FINISHED, REJECTED, Array


@functools.partial(jit, _nrt=True, forceinline=False)
def episode_totals(req: Array, slo: Array) -> EpisodeTotals:
    """Sum up the request rows ``req`` (R,)."""
    sum_ttft_s = sum_tpot_s = sum_e2e_s = 0.0
    with_ttft = with_tpot = finished = slo_met = rejected = preemptions = 0.0
    for r in range(len(req)):
        row = req[r]
        ttft = 0.0
        if row["first_token_ns"] >= 0:
            ttft = since_s(row["arrival_ns"], row["first_token_ns"])
            sum_ttft_s += ttft
            with_ttft += 1
        if row["state"] == FINISHED:
            tpot = tpot_s(row["first_token_ns"], row["last_token_ns"], row["output_tokens"])
            if row["output_tokens"] > 1:
                sum_tpot_s += tpot
                with_tpot += 1
            sum_e2e_s += since_s(row["arrival_ns"], row["last_token_ns"])
            finished += 1
            slo_met += within_slo(ttft, tpot, row["prompt_tokens"], slo)
        rejected += row["state"] == REJECTED
        preemptions += row["preemptions"]
    return EpisodeTotals(
        sum_ttft_s, with_ttft, sum_tpot_s, with_tpot, sum_e2e_s, finished, slo_met, rejected, preemptions
    )

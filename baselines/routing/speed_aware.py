"""Policies that weigh load by the speed of each instance's hardware; they matter on mixed fleets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Columns, ScorePolicy
from fleetgym.baselines.registry import register
from fleetgym.envs.routing import ENV_ID


@register("weighted_inflight", ENV_ID)
class WeightedInflight(ScorePolicy):
    """Fewest in-flight requests per unit of decode speed (weighted least-request)."""

    features = ("in_flight_requests", "decode_tokens_per_s")

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus (in-flight + 1) / speed."""
        return -(s["in_flight_requests"] + 1.0) / np.maximum(s["decode_tokens_per_s"], 1.0)


@register("smg_least_load", ENV_ID)
class SmgLeastLoad(ScorePolicy):
    """The SGLang model gateway's least_load: queued tokens / throughput + 0.15 * k / (1 - k), k = KV usage."""

    features = ("awaiting_first_token_prompt_tokens", "prefill_tokens_per_s", "kv_usage")

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the load."""
        queued = s["awaiting_first_token_prompt_tokens"] / np.maximum(s["prefill_tokens_per_s"], 1.0)
        k = np.minimum(s["kv_usage"], 0.99)
        return -(queued + 0.15 * k / (1.0 - k))


@register("least_latency", ENV_ID)
class LeastLatency(ScorePolicy):
    """Smallest predicted end-to-end latency of the newcomer (AIBrix least-latency, Min-Min).

    Queueing and own prefill at prefill speed, then ``output_tokens`` decode steps whose time grows with
    the resident batch: a batch of b at the instance's decode speed lasts max(b, 32) / speed.

    Parameters
    ----------
    output_tokens : float
        Guess of the answer's length (the Azure conversation trace's mean).
    """

    features = (
        "awaiting_first_token_prompt_tokens",
        "prompt_tokens",
        "in_flight_requests",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
    )

    def __init__(self, output_tokens: float = 211.0) -> None:
        super().__init__()
        self.output_tokens = output_tokens

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the predicted latency in seconds."""
        prefill = s["awaiting_first_token_prompt_tokens"] + s["prompt_tokens"]
        step_s = np.maximum(s["in_flight_requests"] + 1.0, 32.0) / np.maximum(s["decode_tokens_per_s"], 1.0)
        return -(prefill / np.maximum(s["prefill_tokens_per_s"], 1.0) + self.output_tokens * step_s)

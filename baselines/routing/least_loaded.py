"""Policies that follow a measure of load and take all instances for equally fast."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Columns, ScorePolicy, register


@register("least_inflight")
class LeastInflight(ScorePolicy):
    """Fewest in-flight requests, the router's own count (least-request of Envoy, AIBrix, SGLang)."""

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the in-flight requests."""
        return -s["in_flight_requests"]


@register("least_kv")
class LeastKv(ScorePolicy):
    """Smallest KV-cache usage (AIBrix least-kv-cache, llm-d kv-cache-utilization scorer)."""

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the KV usage."""
        return -s["kv_usage"]


@register("least_pending_tokens")
class LeastPendingTokens(ScorePolicy):
    """Fewest prompt tokens still without a first token (token-JSQ of Splitwise)."""

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the pending prompt tokens."""
        return -s["awaiting_first_token_prompt_tokens"]


@register("vllm_dp")
class VllmDp(ScorePolicy):
    """vLLM's data-parallel front end: smallest ``4 * waiting + running``."""

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus ``4 * waiting + running``."""
        return -(4.0 * s["waiting_requests"] + s["running_requests"])


def _spread(x: NDArray[Any]) -> NDArray[Any]:
    """(max - x) / (max - min) per row, 1 where all are equal (the llm-d scorers' scale)."""
    high, low = x.max(axis=1, keepdims=True), x.min(axis=1, keepdims=True)
    width = high - low
    return np.where(width > 0, (high - x) / np.where(width > 0, width, 1.0), 1.0)


@register("llmd_queue_kv")
class LlmdQueueKv(ScorePolicy):
    """llm-d's scheduler without its prefix scorer: queue scorer + KV-utilisation scorer, weights 1 and 1.

    Parameters
    ----------
    queue, kv : float
        Scorer weights.
    """

    def __init__(self, queue: float = 1.0, kv: float = 1.0) -> None:
        super().__init__()
        self.queue, self.kv = queue, kv

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by the weighted sum of both scorers, each in [0, 1]."""
        return self.queue * _spread(s["waiting_requests"]) + self.kv * (1.0 - s["kv_usage"])


@register("llumnix_freeness")
class LlumnixFreeness(ScorePolicy):
    """Most free KV tokens per request, Llumnix's dispatch rule without migration.

    ``(free - wanted by all waiting) / (running + waiting)``, infinite when empty; the demand of waiting
    requests is estimated from the prompt tokens that have no first token yet.
    """

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by freeness."""
        requests = s["running_requests"] + s["waiting_requests"]
        free = (1.0 - s["kv_usage"]) * s["kv_capacity_tokens"]
        waiting = np.where(s["waiting_requests"] > 0, s["awaiting_first_token_prompt_tokens"], 0.0)
        return np.where(requests > 0, (free - waiting) / np.maximum(requests, 1.0), np.inf)


@register("lmetric")
class LMetric(ScorePolicy):
    """LMetric without a prefix cache: smallest (queued prefill tokens + prompt) x (running + waiting)."""

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the product."""
        tokens = s["awaiting_first_token_prompt_tokens"] + s["prompt_tokens"]
        return -tokens * (s["running_requests"] + s["waiting_requests"])


@register("dynamo_cost")
class DynamoCost(ScorePolicy):
    """Dynamo's KV router without overlap: smallest prefill blocks + decode blocks (block 16).

    Prefill blocks: tokens still to prefill plus the newcomer's prompt; decode blocks: those of the
    resident sequences, estimated from prompts and streamed tokens.
    """

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the cost in blocks."""
        prefill = s["awaiting_first_token_prompt_tokens"] + s["prompt_tokens"]
        resident = s["in_flight_prompt_tokens"] + s["streamed_tokens"] + s["prompt_tokens"]
        return -(prefill + resident) / 16.0

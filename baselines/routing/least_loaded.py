"""Policies that follow a measure of load and take all instances for equally fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Columns, LinearScore, ScorePolicy
from fleetgym.baselines.registry import register
from fleetgym.envs.routing import ENV_ID


@register("least_inflight", ENV_ID)
class LeastInflight(LinearScore):
    """Fewest in-flight requests, the router's own count (least-request of Envoy, AIBrix, SGLang)."""

    weights: ClassVar[Mapping[str, float]] = {"in_flight_requests": -1.0}


@register("least_kv", ENV_ID)
class LeastKv(LinearScore):
    """Smallest KV-cache usage (AIBrix least-kv-cache, llm-d kv-cache-utilization scorer)."""

    weights: ClassVar[Mapping[str, float]] = {"kv_usage": -1.0}


@register("least_pending_tokens", ENV_ID)
class LeastPendingTokens(LinearScore):
    """Fewest prompt tokens still without a first token (token-JSQ of Splitwise)."""

    weights: ClassVar[Mapping[str, float]] = {"awaiting_first_token_prompt_tokens": -1.0}


@register("vllm_dp", ENV_ID)
class VllmDp(LinearScore):
    """vLLM's data-parallel front end: smallest ``4 * waiting + running``."""

    weights: ClassVar[Mapping[str, float]] = {"waiting_requests": -4.0, "running_requests": -1.0}


def _spread(x: NDArray[Any]) -> NDArray[Any]:
    """(max - x) / (max - min) per row, 1 where all are equal (the llm-d scorers' scale)."""
    high, low = x.max(axis=1, keepdims=True), x.min(axis=1, keepdims=True)
    width = high - low
    return np.where(width > 0, (high - x) / np.where(width > 0, width, 1.0), 1.0)


@register("llmd_queue_kv", ENV_ID)
class LlmdQueueKv(ScorePolicy):
    """llm-d's scheduler without its prefix scorer: queue scorer + KV-utilisation scorer, weights 1 and 1.

    Parameters
    ----------
    queue, kv : float
        Scorer weights.
    """

    features = ("waiting_requests", "kv_usage")

    def __init__(self, queue: float = 1.0, kv: float = 1.0) -> None:
        super().__init__()
        self.queue, self.kv = queue, kv

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by the weighted sum of both scorers, each in [0, 1]."""
        return self.queue * _spread(s["waiting_requests"]) + self.kv * (1.0 - s["kv_usage"])


@register("llumnix_freeness", ENV_ID)
class LlumnixFreeness(ScorePolicy):
    """Most free KV tokens per request, Llumnix's dispatch rule without migration.

    ``(free - wanted by all waiting) / (running + waiting)``, infinite when empty; the demand of waiting
    requests is estimated from the prompt tokens that have no first token yet.
    """

    features = (
        "running_requests",
        "waiting_requests",
        "kv_usage",
        "kv_capacity_tokens",
        "awaiting_first_token_prompt_tokens",
    )

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by freeness."""
        requests = s["running_requests"] + s["waiting_requests"]
        free = (1.0 - s["kv_usage"]) * s["kv_capacity_tokens"]
        waiting = np.where(s["waiting_requests"] > 0, s["awaiting_first_token_prompt_tokens"], 0.0)
        return np.where(requests > 0, (free - waiting) / np.maximum(requests, 1.0), np.inf)


@register("lmetric", ENV_ID)
class LMetric(ScorePolicy):
    """LMetric without a prefix cache: smallest (queued prefill tokens + prompt) x (running + waiting)."""

    features = ("awaiting_first_token_prompt_tokens", "prompt_tokens", "running_requests", "waiting_requests")

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the product."""
        tokens = s["awaiting_first_token_prompt_tokens"] + s["prompt_tokens"]
        return -tokens * (s["running_requests"] + s["waiting_requests"])


@register("dynamo_cost", ENV_ID)
class DynamoCost(LinearScore):
    """Dynamo's KV router without overlap: smallest prefill blocks + decode blocks (block 16).

    Prefill blocks: tokens still to prefill plus the newcomer's prompt; decode blocks: those of the
    resident sequences, estimated from prompts and streamed tokens.
    """

    weights: ClassVar[Mapping[str, float]] = {
        "awaiting_first_token_prompt_tokens": -1 / 16,
        "in_flight_prompt_tokens": -1 / 16,
        "streamed_tokens": -1 / 16,
        "prompt_tokens": -2 / 16,
    }

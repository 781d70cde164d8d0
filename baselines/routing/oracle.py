"""Policies that read what no router can know; bounds, not competitors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Columns, ScorePolicy
from fleetgym.baselines.registry import register
from fleetgym.envs.routing import ENV_ID


@register("oracle_least_work", ENV_ID)
class OracleLeastWork(ScorePolicy):
    """Smallest true remaining tokens per unit of decode speed, the newcomer's own answer included."""

    kind = "oracle"
    features = ("prompt_tokens", "output_tokens", "remaining_tokens", "decode_tokens_per_s")

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the remaining work in seconds."""
        own = s["prompt_tokens"] + s["output_tokens"]
        return -(s["remaining_tokens"] + own) / np.maximum(s["decode_tokens_per_s"], 1.0)

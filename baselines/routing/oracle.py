"""Policies that read what no router can know; bounds, not competitors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Columns, ScorePolicy, register
from fleetgym.envs.signals import SIGNAL_NAMES


@register("oracle_least_work")
class OracleLeastWork(ScorePolicy):
    """Smallest true remaining tokens per unit of decode speed, the newcomer's own answer included."""

    kind = "oracle"
    features = SIGNAL_NAMES

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by minus the remaining work in seconds."""
        own = s["prompt_tokens"] + s["output_tokens"]
        return -(s["remaining_tokens"] + own) / np.maximum(s["decode_tokens_per_s"], 1.0)

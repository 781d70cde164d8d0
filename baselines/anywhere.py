"""Heuristics that look at nothing, for any environment: random, round robin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Heuristic
from fleetgym.baselines.registry import register


@register("round_robin")
class RoundRobin(Heuristic):
    """Each choice in turn, those not allowed skipped."""

    features = ()

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Start every environment at the first choice."""
        super().reset(seeds, num_choices)
        self._turn = np.zeros(len(seeds), np.int64)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the first allowed one at or after each environment's turn."""
        n = mask.shape[1]
        order = (self._turn[:, None] + np.arange(n)) % n
        first = np.take_along_axis(mask, order, axis=1).argmax(axis=1)
        action = order[np.arange(len(order)), first]
        self._turn = (action + 1) % n
        return action


@register("random")
class Random(Heuristic):
    """A uniformly random allowed choice."""

    features = ()

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose at random."""
        return np.where(mask, self.noise(), -1.0).argmax(axis=1)

"""Policies that look at nothing or at a sample: random, round robin, power of two choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Heuristic, best, register


@register("random")
class Random(Heuristic):
    """A uniformly random allowed instance."""

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose at random."""
        return np.where(mask, self.noise(), -1.0).argmax(axis=1)


@register("round_robin")
class RoundRobin(Heuristic):
    """Each instance in turn, those not allowed skipped."""

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Start every environment at instance 0."""
        super().reset(seeds, num_choices)
        self._turn = np.zeros(len(seeds), np.int64)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the first allowed instance at or after each environment's turn."""
        n = mask.shape[1]
        order = (self._turn[:, None] + np.arange(n)) % n
        first = np.take_along_axis(mask, order, axis=1).argmax(axis=1)
        action = order[np.arange(len(order)), first]
        self._turn = (action + 1) % n
        return action


@register("power_of_two")
class PowerOfTwo(Heuristic):
    """Two random instances, the one with fewer in-flight requests (Mitzenmacher; SGLang and Envoy routers)."""

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the less loaded of two random allowed instances."""
        noise = np.where(mask, self.noise(), -1.0)
        second_highest = np.partition(noise, -2, axis=1)[:, -2:-1] if mask.shape[1] > 1 else noise
        sample = (noise >= second_highest) & mask
        return best(-self.columns.bind(observation)["in_flight_requests"], sample, noise)

"""Two random instances, the better of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetgym.baselines.base import Heuristic, best
from fleetgym.baselines.registry import register
from fleetgym.envs.routing import ENV_ID


@register("power_of_two", ENV_ID)
class PowerOfTwo(Heuristic):
    """Two random instances, the one with fewer in-flight requests (Mitzenmacher; SGLang and Envoy routers)."""

    features = ("in_flight_requests",)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the less loaded of two random allowed instances."""
        noise = np.where(mask, self.noise(), -1.0)
        second_highest = np.partition(noise, -2, axis=1)[:, -2:-1] if mask.shape[1] > 1 else noise
        sample = (noise >= second_highest) & mask
        return best(-self.columns.bind(observation)["in_flight_requests"], sample, noise)

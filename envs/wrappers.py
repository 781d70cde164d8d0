"""Wrappers for agents that expect scaled inputs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.features import scaled, select


class ScaleObservation(gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.float32]]):
    """Show what this project's own networks see: every feature transformed to about [0, 1].

    Use it with agents that feed observations to a network unchanged (SB3's ``MlpPolicy``, CleanRL).
    """

    def __init__(self, env: gym.Env[NDArray[np.float32], Any]) -> None:
        super().__init__(env)
        self._features = select(env.get_wrapper_attr("config").features, oracle=True)
        box = env.observation_space
        assert isinstance(box, spaces.Box)
        self.observation_space = spaces.Box(
            scaled(self._features, box.low), scaled(self._features, box.high), dtype=np.float32
        )

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform one observation, shape (N, F)."""
        return scaled(self._features, observation)

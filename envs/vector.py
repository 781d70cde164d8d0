"""Many routing environments in one engine call, as a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import TERM_NAMES
from fleetgym.envs.errors import UserError
from fleetgym.envs.rendering import render_rgb
from fleetgym.envs.routing.batch import RoutingBatch, RoutingConfig, resolve


class RoutingVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """B copies of ``fleetgym/Routing-v0`` stepped by one call of the engine.

    Environment ``i`` reset with ``seed=s`` gives the same episode as the single environment reset with
    ``seed=s + i``, whatever B is. Autoreset mode: SAME_STEP, with ``info["final_obs"]`` and
    ``info["final_info"]``.

    Parameters
    ----------
    num_envs : int
        B.
    stagger : bool
        Cut the first episode of each environment to a random length, so that later ends do not coincide.
    episode_metrics : bool
        At an episode's end run its cluster dry and report ``final_info["episode_metrics"]``; without, an
        episode's end costs less.
    render_mode : {"rgb_array"}, optional
        ``render()`` then returns one picture per environment.
    config : RoutingConfig, optional
        A resolved problem, instead of ``arguments``.
    **arguments
        As for `fleetgym.envs.routing.env.RoutingEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        stagger: bool = False,
        episode_metrics: bool = True,
        render_mode: str | None = None,
        config: RoutingConfig | None = None,
        **arguments: Any,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs}: must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode={render_mode!r}: allowed: rgb_array")
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.stagger = stagger
        self.episode_metrics = episode_metrics
        self.config = config or resolve(**arguments)
        self.batch = RoutingBatch(self.config, num_envs, all_signals=render_mode is not None)
        self.single_observation_space = self.batch.observation_space
        self.single_action_space = spaces.Discrete(self.config.cluster.num_instances)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeded = False
        self._never = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in every environment; an int seed gives environment i the seed ``seed + i``."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for index in range(self.num_envs):
            own = None if seeds is None else seeds[index]
            if own is not None or not self._seeded:
                self.batch.rngs[index] = gym.utils.seeding.np_random(own)[0]
            self.batch.start(index, self._first_length(index))
        self._seeded = True
        return self.batch.observations(), {"action_mask": self.action_masks()}

    def _first_length(self, index: int) -> int | None:
        full = self.config.num_requests
        if not self.stagger or full is None:
            return None
        return int(self.batch.rngs[index].integers(2, full + 1))

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Dispatch B requests and advance each environment to its next arrival."""
        rewards = self.batch.step(np.asarray(actions, np.int64))
        engine = self.batch.engine
        truncations = engine.done.copy()
        info: dict[str, Any] = {"reward_terms": dict(zip(TERM_NAMES, engine.terms.T.copy(), strict=True))}
        if truncations.any():
            for index in np.flatnonzero(truncations).tolist():
                final: dict[str, Any] = {
                    "action_mask": engine.mask[index].copy(),
                    "reward_terms": self.batch.terms(index),
                }
                observation = self.batch.observation(index)
                if self.episode_metrics:
                    final["episode_metrics"] = self.batch.finish(index)
                info = self._add_info(info, {"final_obs": observation, "final_info": final}, index)
                self.batch.start(index)
        info["action_mask"] = self.action_masks()
        return self.batch.observations(), rewards, self._never.copy(), truncations, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which instances may be chosen now, shape (B, N)."""
        return self.batch.engine.mask.copy()

    def render(self) -> tuple[Any, ...] | None:
        """Return one RGB array per environment, or None without a render mode."""
        if self.render_mode is None:
            return None
        engine = self.batch.engine
        return tuple(render_rgb(engine.obs[i], int(engine.now_ns[i])) for i in range(self.num_envs))

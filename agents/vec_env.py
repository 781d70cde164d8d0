"""The batched environment as an SB3 ``VecEnv``: a thin adapter, no Python loop per environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from fleetgym.envs.errors import UserError
from fleetgym.envs.vector import FleetVectorEnv


class FleetVecEnv(VecEnv):
    """SB3's view of a `FleetVectorEnv`.

    At an episode's end ``infos[i]`` holds ``terminal_observation``, ``TimeLimit.truncated``, ``episode``
    (return ``r``, length ``l``, as `Monitor` gives them) and, if the environment reports them, ``episode_metrics``.
    ``env_method("action_masks")`` answers for all environments with one array.

    Raises
    ------
    UserError
        ``env`` resets otherwise than SB3 expects, within the step.
    """

    def __init__(self, env: FleetVectorEnv) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise UserError(f"autoreset_mode={env.autoreset_mode.value!r}: SB3 needs SameStep")
        self.env = env
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._actions: NDArray[np.int64] = np.zeros(env.num_envs, np.int64)

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode everywhere; seeds given by ``seed()`` are used once."""
        seeds = None if all(s is None for s in self._seeds) else list(self._seeds)
        options = next((own for own in self._options if own), None)
        observations, _ = self.env.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments; those that end are reset within the step."""
        observations, rewards, _, dones, info = self.env.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones):
            infos[index] = {
                "terminal_observation": info["final_obs"][index],
                "TimeLimit.truncated": True,
                "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": 0.0},
            }
            metrics = info["final_info"].get("episode_metrics")
            if metrics is not None:
                infos[index]["episode_metrics"] = {
                    name: float(values[index]) for name, values in metrics.items() if not name.startswith("_")
                }
            self._returns[index] = 0.0
            self._lengths[index] = 0
        return observations, rewards.astype(np.float32), dones, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which instances may be chosen now, shape (B, N)."""
        return self.env.action_masks()

    def close(self) -> None:
        """Nothing to release."""

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of the batched environment; the answer is an array with one row per environment."""
        answer = getattr(self, method_name, None) or getattr(self.env, method_name)
        rows = answer(*method_args, **method_kwargs)
        return rows if indices is None else rows[list(self._get_indices(indices))]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, the same for every environment."""
        value = getattr(self, attr_name) if attr_name == "action_masks" else getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment."""
        setattr(self.env, attr_name, value)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Episodes are recorded here, so this stands for a `Monitor` around each environment."""
        from stable_baselines3.common.monitor import Monitor

        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        return self.env.render()

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices

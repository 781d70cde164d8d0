"""The batched environment as an SB3 ``VecEnv``: a thin adapter, no Python loop per environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from fleetgym.envs.errors import UserError
from fleetgym.envs.vector import FleetVectorEnv


class FleetVecEnv(VecEnv):
    """SB3's view of one or several `FleetVectorEnv`, one behind the other.

    Several are problems of one environment and one observation. Where some have fewer choices than the widest, rows of
    zeros follow in their observations and False in their masks, as for instances that do not exist.

    At an episode's end ``infos[i]`` holds ``terminal_observation``, ``TimeLimit.truncated``, ``episode``
    (return ``r``, length ``l``, as `Monitor` gives them) and, if the environment reports them, ``episode_metrics``.
    ``env_method("action_masks")`` answers for all environments with one array.

    Parameters
    ----------
    *envs : FleetVectorEnv
        B environments altogether, each reset within the step (``autoreset_mode``).

    Raises
    ------
    UserError
        One resets otherwise than SB3 expects, within the step, or differs from the others in environment or columns.
    """

    def __init__(self, *envs: FleetVectorEnv) -> None:
        for env in envs:
            if env.autoreset_mode is not AutoresetMode.SAME_STEP:
                raise UserError(f"autoreset_mode={env.autoreset_mode.value!r}: SB3 needs SameStep")
            if (env.problem.env_id, env.problem.features) != (envs[0].problem.env_id, envs[0].problem.features):
                raise UserError("envs: must be of one environment id and have the same features")
        self.envs = envs
        self.env = max(envs, key=lambda env: env.problem.num_choices)  # its spaces hold the others'
        self.render_mode = self.env.render_mode
        ends = np.cumsum([0, *(env.num_envs for env in envs)]).tolist()
        self._spans = [slice(*pair) for pair in pairwise(ends)]
        super().__init__(ends[-1], self.env.single_observation_space, self.env.single_action_space)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._actions: NDArray[np.int64] = np.zeros(self.num_envs, np.int64)

    def _stacked(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Put the rows of all environments, shape (B_i, C_i, ...), into one array, shape (B, C, ...)."""
        if len(parts) == 1:
            return parts[0]
        rows = np.zeros((self.num_envs, self.env.problem.num_choices, *parts[0].shape[2:]), parts[0].dtype)
        for span, part in zip(self._spans, parts, strict=True):
            rows[span, : part.shape[1]] = part
        return rows

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode everywhere; seeds given by ``seed()`` are used once.

        Returns
        -------
        ndarray of float32, shape (B, C, F)
            C of the widest.

        Raises
        ------
        UserError
            Options for several problems.
        """
        seeds = None if all(s is None for s in self._seeds) else list(self._seeds)
        options = next((own for own in self._options if own), None)
        if options is not None and len(self.envs) > 1:
            raise UserError(f"options={options}: several problems take none")
        observations = [
            env.reset(seed=None if seeds is None else seeds[span], options=options)[0]
            for env, span in zip(self.envs, self._spans, strict=True)
        ]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._stacked(observations)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions, shape (B,), for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments; those that end are reset within the step."""
        if len(self.envs) == 1:
            observations, rewards, _, dones, info = self.env.step(self._actions)
            ends = [(0, dones, info)]
        else:
            steps = [env.step(self._actions[span]) for env, span in zip(self.envs, self._spans, strict=True)]
            observations = self._stacked([step[0] for step in steps])
            rewards, dones = (np.concatenate([step[k] for step in steps]) for k in (1, 3))
            ends = [(span.start, step[3], step[4]) for span, step in zip(self._spans, steps, strict=True)]
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for first, ended, info in ends:
            for index in np.flatnonzero(ended).tolist():
                infos[first + index] = self._at_end(first + index, index, info)
        return observations, rewards.astype(np.float32), dones, infos

    def _at_end(self, index: int, place: int, info: dict[str, Any]) -> dict[str, Any]:
        """Return what is told at the end of episode ``index``, which is ``place`` of its own environment's."""
        found = {
            "terminal_observation": pad_choices(info["final_obs"][place], self.env.problem.num_choices),
            "TimeLimit.truncated": True,
            "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": 0.0},
        }
        metrics = info["final_info"].get("episode_metrics")
        if metrics is not None:
            found["episode_metrics"] = {
                name: float(values[place]) for name, values in metrics.items() if not name.startswith("_")
            }
        self._returns[index] = 0.0
        self._lengths[index] = 0
        return found

    def action_masks(self) -> NDArray[np.bool_]:
        """Return what may be chosen now, shape (B, C)."""
        return self._stacked([env.action_masks() for env in self.envs])

    def close(self) -> None:
        """Nothing to release."""

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of the batched environments; the answer is an array with one row per environment."""
        own = getattr(self, method_name, None)
        callees = [own] if own is not None else [getattr(env, method_name) for env in self.envs]
        rows = _joined([callee(*method_args, **method_kwargs) for callee in callees])
        return rows if indices is None else rows[list(self._get_indices(indices))]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each environment, the same within a batch."""
        owners = [self if attr_name == "action_masks" else env for env in self.envs for _ in range(env.num_envs)]
        return [getattr(owners[index], attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environments."""
        for env in self.envs:
            setattr(env, attr_name, value)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Episodes are recorded here, so this stands for a `Monitor` around each environment."""
        from stable_baselines3.common.monitor import Monitor

        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        return [picture for env in self.envs for picture in env.render()]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def pad_choices(rows: NDArray[Any], num_choices: int, axis: int = 0) -> NDArray[Any]:
    """Return rows of choices with zeros behind them, up to ``num_choices``: choices that do not exist.

    Parameters
    ----------
    rows : ndarray of any shape
        With the choices along ``axis``, at most ``num_choices``.
    num_choices : int
    axis : int

    Returns
    -------
    ndarray
        Of the same shape, but for ``num_choices`` along ``axis``.
    """
    lacking = num_choices - rows.shape[axis]
    if not lacking:
        return rows
    return np.pad(rows, [(0, lacking if of == axis else 0) for of in range(rows.ndim)])

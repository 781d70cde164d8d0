"""Wrappers for agents that expect scaled inputs, or the mask of allowed actions beside them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError
from fleetgym.envs.features import Transform, scaled


def _scaled_space(env: Any, box: spaces.Space[Any]) -> tuple[Transform, spaces.Space[Any]]:
    """Return the columns of an environment's observations, and the space of one once scaled."""
    features = env.unwrapped.problem.features
    columns = Transform.of(features)
    if not isinstance(box, spaces.Box) or box.shape[1:] != (len(features),):
        raise UserError(f"observation_space={box}: its columns are no features any more; scale before other wrappers")
    return columns, spaces.Box(scaled(columns, box.low), scaled(columns, box.high), dtype=np.float32)


def _masked_space(box: spaces.Space[Any], actions: spaces.Space[Any], keys: tuple[str, str]) -> spaces.Dict:
    """Return the space of an observation and a mask of the actions."""
    if not isinstance(actions, spaces.Discrete):
        raise UserError(f"action_space={actions}: must be Discrete")
    return spaces.Dict(dict(zip(keys, (box, spaces.MultiBinary(int(actions.n))), strict=True)))


class ScaleObservation(gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.float32]], RecordConstructorArgs):
    """Show what this project's own networks see: every feature transformed to about [0, 1].

    Use it with agents that feed observations to a network unchanged (SB3's ``MlpPolicy``, CleanRL).

    Parameters
    ----------
    env : gym.Env
        One of this project, in wrappers that leave its columns as they are.

    Raises
    ------
    UserError
        The columns of its observations are no features any more.
    """

    def __init__(self, env: gym.Env[NDArray[np.float32], Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._columns, self.observation_space = _scaled_space(env, env.observation_space)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform one observation, shape (C, F)."""
        return scaled(self._columns, observation)


class MaskObservation(gym.Wrapper[dict[str, Any], Any, Any, Any], RecordConstructorArgs):
    """Put the mask of allowed actions beside the observation, for agents that see no ``info``.

    Observations become ``{"observation": ..., "action_mask": ...}``; the mask is int8, 1 where the action is
    allowed, as `gymnasium.spaces.Discrete.sample` takes it. Wrap it last: other observation wrappers know no dict.

    Parameters
    ----------
    env : gym.Env
        Its ``info`` holds ``action_mask``, its actions are Discrete.
    observation_key, mask_key : str
        What the agent calls the two.

    Raises
    ------
    UserError
        Its actions are not Discrete.
    """

    def __init__(
        self, env: gym.Env[Any, Any], observation_key: str = "observation", mask_key: str = "action_mask"
    ) -> None:
        RecordConstructorArgs.__init__(self, observation_key=observation_key, mask_key=mask_key)
        gym.Wrapper.__init__(self, env)
        self._keys = (observation_key, mask_key)
        self.observation_space = _masked_space(env.observation_space, env.action_space, self._keys)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Begin an episode; its observation is a dict of observation and mask, int8 of shape (C,)."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._beside(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Take a step; its observation is a dict of observation and mask, int8 of shape (C,)."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._beside(observation, info), reward, terminated, truncated, info

    def _beside(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._keys, (observation, info["action_mask"].astype(np.int8)), strict=True))


class _BatchedWrapper(VectorObservationWrapper):
    """What Gymnasium's vector wrappers lack and trainers ask for (without a subscript: Gymnasium 1.2 has none here)."""

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """When an environment that has ended begins anew."""
        mode: AutoresetMode = self.metadata["autoreset_mode"]
        return mode

    def _show(self, single: spaces.Space[Any]) -> None:
        self.single_observation_space = single
        self.observation_space = batch_space(single, self.num_envs)


class ScaleVectorObservation(_BatchedWrapper):
    """`ScaleObservation` for the batched environment, in NEXT_STEP or DISABLED.

    Parameters
    ----------
    env : VectorEnv
        One of this project, in wrappers that leave its columns as they are; observations have shape (B, C, F).

    Raises
    ------
    UserError
        The columns of its observations are no features any more.
    """

    def __init__(self, env: VectorEnv[NDArray[np.float32], Any, Any]) -> None:
        super().__init__(env)
        self._columns, single = _scaled_space(env, env.single_observation_space)
        self._show(single)

    def observations(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform the observations, shape (B, C, F)."""
        return scaled(self._columns, observations)


class MaskVectorObservation(_BatchedWrapper):
    """`MaskObservation` for the batched environment, in NEXT_STEP or DISABLED.

    Parameters
    ----------
    env : VectorEnv
        One of this project, perhaps wrapped; observations have shape (B, C, F), masks come from ``action_masks()``.
    observation_key, mask_key : str
        What the agent calls the two.

    Raises
    ------
    UserError
        Its actions are not Discrete.
    """

    def __init__(
        self,
        env: VectorEnv[NDArray[np.float32], Any, Any],
        observation_key: str = "observation",
        mask_key: str = "action_mask",
    ) -> None:
        super().__init__(env)
        self._keys = (observation_key, mask_key)
        self._show(_masked_space(env.single_observation_space, env.single_action_space, self._keys))

    def observations(self, observations: NDArray[np.float32]) -> dict[str, Any]:
        """Put the masks, shape (B, C), beside the observations."""
        masks: Any = self.unwrapped.action_masks()  # type: ignore[attr-defined]
        return dict(zip(self._keys, (observations, masks.astype(np.int8)), strict=True))

"""The one `gymnasium.Env`, of any decision problem."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Batch, Problem
from fleetgym.envs.registry import find_problem
from fleetgym.envs.rendering import RENDERERS, check_render_mode
from fleetgym.envs.rewards import RewardTerms
from fleetgym.envs.seeds import as_seed


def given_problem(env_id: str, problem: Problem | None, arguments: Mapping[str, Any]) -> Problem:
    """Return the problem that an environment is made for.

    Parameters
    ----------
    env_id : str
        Of a registered problem, to be resolved from ``arguments``.
    problem : Problem, optional
        A resolved one instead of both.
    arguments : mapping of str to object
        Of the problem (`fleetgym.envs.problem.Problem.resolve`).

    Raises
    ------
    UserError
        Not registered, or an argument that is impossible.
    """
    if problem is None:
        return find_problem(env_id).resolve(**arguments)
    if arguments:
        raise UserError(f"problem: is resolved; {next(iter(arguments))!r} cannot be given beside it")
    return problem


class FleetEnv(gym.Env[NDArray[np.float32], np.int64]):
    """One decision problem on the simulated fleet, one decision a step.

    Made by ``gymnasium.make("fleetgym.envs:fleetgym/Routing-v0", **arguments)``; each problem documents what its
    decisions, rows and arguments are (``fleetgym.envs.find_problem(env_id).__doc__``).

    Parameters
    ----------
    env_id : str
        Of a registered problem.
    problem : Problem, optional
        A resolved problem, instead of ``env_id`` and ``arguments``.
    render_mode : {"ansi", "rgb_array"}, optional
    **arguments
        Of the problem (`fleetgym.envs.problem.Problem.resolve`).

    Raises
    ------
    UserError
        Not registered, or an argument that is impossible.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDERERS), "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self, env_id: str = "", *, problem: Problem | None = None, render_mode: str | None = None, **arguments: Any
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.problem = given_problem(env_id, problem, arguments)
        self._batch = self.problem.make_batch(1)
        self._engine = self._batch.engine
        self._action = np.zeros(1, np.int64)
        self.observation_space = self.problem.observation_space  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self.problem.num_choices)
        self._ready = False
        self._look()

    def _look(self) -> None:
        """Make views of the engine's arrays once: a step takes microseconds, and each indexing is a tenth of one."""
        self._observation = self._batch.reader(0)
        self._mask, self._terms, self._done = self._batch.mask[0], self._engine.terms[0], self._engine.done
        own = type(self._batch).advance is not Batch.advance
        self._advance = self._batch.advance if own else self._engine.step  # one call less

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look()  # a copied or unpickled view would be an array of its own

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode and stop at its first decision.

        Parameters
        ----------
        seed : int, optional
            Fixes the episode and all that follow; None: go on with the generator as it is.
        options : dict, optional
            None or empty.

        Returns
        -------
        observation : ndarray of float32, shape (C, F)
        info : dict
            ``action_mask``: ndarray of bool, shape (C,).

        Raises
        ------
        UserError
            No seed, or ``options`` holds anything: what an episode is like is set where the environment is made.
        """
        if options:
            raise UserError(f"options={options!r}: reset takes no options; set these where the environment is made")
        super().reset(seed=as_seed(seed))
        self._batch.rngs[0] = self.np_random
        self._batch.start(0)
        self._ready = True
        return self._batch.observation(0), {"action_mask": self.action_masks()}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Carry the decision out and advance to the next one.

        Parameters
        ----------
        action : int
            Of Python or numpy, in [0, C).

        Returns
        -------
        observation : ndarray of float32, shape (C, F)
        reward : float
        terminated : bool
            Always False: serving never ends.
        truncated : bool
            Whether that was the last request of the episode.
        info : dict
            ``action_mask``: ndarray of bool, shape (C,); ``reward_terms``: `RewardTerms`, shape (len(TERMS),); where
            truncated, ``episode_metrics``: dict of str to float (see `fleetgym.envs.problem.Batch.finish`).

        Raises
        ------
        UserError
            The action is out of range or names what cannot be chosen in this episode.
        gymnasium.error.ResetNeeded
            The episode is over or has not begun.
        LivelockError
            An instance stopped making progress.
        """
        if not self._ready:
            raise gym.error.ResetNeeded("call reset() before step(): the episode is over or has not begun")
        try:
            self._action[0] = operator.index(action)
        except (TypeError, OverflowError):
            raise UserError(f"action={action!r}: must be an integer in [0, {self.problem.num_choices})") from None
        self._advance(self._action)
        terms = self._terms.tolist()
        reward = self._batch.reward(terms)
        info: dict[str, Any] = {"action_mask": self._mask.copy(), "reward_terms": self._terms.copy().view(RewardTerms)}
        observation = self._observation()
        truncated: bool = self._done.item()
        if truncated:
            self._ready = False
            info["episode_metrics"] = self._batch.finish(0)
        return observation, reward, False, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return what may be chosen now, shape (C,), for sb3-contrib."""
        return self._mask.copy()

    def render(self) -> Any:
        """Draw queue, batch and KV cache of each instance, as text or as an RGB array (H, W, 3)."""
        if self.render_mode is None:
            return None
        return RENDERERS[self.render_mode](self._engine.obs[0], int(self._engine.now_ns[0]))

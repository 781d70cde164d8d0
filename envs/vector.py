"""The one ``gymnasium.vector.VectorEnv``: many environments of any decision problem in one engine call."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from fleetgym.envs.env import given_problem
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.problem import Problem
from fleetgym.envs.rendering import RENDERERS, check_render_mode
from fleetgym.envs.rewards import RewardTerms
from fleetgym.envs.seeds import Seeds, env_seeds

StepResult = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class FleetVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """B copies of one decision problem, stepped by one call of the engine.

    Observations, rewards, ends and ``info`` are those of a `gymnasium.vector.SyncVectorEnv` of B single
    environments, in each autoreset mode. Environment ``i`` reset with ``seed=s`` gives the same episode as the
    single environment reset with ``seed=s + i``, whatever B is.

    Parameters
    ----------
    num_envs : int
        B.
    env_id : str
        Of a registered problem.
    autoreset_mode : AutoresetMode or {"SameStep", "NextStep", "Disabled"}
        When an environment that has ended begins anew: within the same step, with ``info["final_obs"]`` and
        ``info["final_info"]``; in the next step, whose action it ignores; or by
        ``reset(options={"reset_mask": ...})`` only.
    stagger : bool
        Cut the first episode of each environment to a random length, so that later ends do not coincide.
    episode_metrics : bool
        At an episode's end run its cluster dry and report ``episode_metrics``; without, an episode's end costs less.
    render_mode : {"ansi", "rgb_array"}, optional
        ``render()`` then returns one picture per environment.
    problem : Problem, optional
        A resolved problem, instead of ``env_id`` and ``arguments``.
    **arguments
        As for `fleetgym.envs.env.FleetEnv`.

    Raises
    ------
    UserError
        Not registered, or an argument that is impossible.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": list(RENDERERS),
        "render_fps": 10,
    }

    def __init__(
        self,
        num_envs: int = 1,
        env_id: str = "",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        stagger: bool = False,
        episode_metrics: bool = True,
        render_mode: str | None = None,
        problem: Problem | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise UserError(f"num_envs={num_envs!r}: must be an integer of at least 1")
        self.num_envs = int(num_envs)
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.render_mode = check_render_mode(render_mode)
        self.stagger = stagger
        self.episode_metrics = episode_metrics
        self.problem = given_problem(env_id, problem, arguments)
        self.batch = self.problem.make_batch(self.num_envs, all_signals=render_mode is not None)
        self.single_observation_space = self.problem.observation_space
        self.single_action_space = spaces.Discrete(self.problem.num_choices)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rng_seeds = [0] * self.num_envs
        for index in range(self.num_envs):
            self._seed(index, None)
        self._started = False
        self._over = np.zeros(self.num_envs, np.bool_)  # ended and not yet begun anew: none in SAME_STEP
        self._any_over = False
        self._all, self._none = np.ones(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)

    def _seed(self, index: int, seed: int | None) -> None:
        self.batch.rngs[index], self._rng_seeds[index] = seeding.np_random(seed)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each environment."""
        return tuple(self.batch.rngs)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed that each environment's generator began with."""
        return tuple(self._rng_seeds)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in every environment, or in those of a mask.

        Parameters
        ----------
        seed : int or sequence of (int or None), optional
            An int gives environment i the seed ``seed + i``.
        options : dict, optional
            ``{"reset_mask": ndarray of bool, shape (B,)}``: begin an episode in these only; the others stay as
            they are, and ``info`` tells nothing of them.

        Returns
        -------
        observations : ndarray of float32, shape (B, C, F)
        info : dict
            ``action_mask``: ndarray of bool, shape (B, C).

        Raises
        ------
        UserError, TypeError
            Wrong seeds, unknown options, or a mask of wrong type or shape or without a True.
        gymnasium.error.ResetNeeded
            A mask leaves out environments that have never been reset.
        """
        seeds = env_seeds(seed, self.num_envs)
        mask = self._reset_mask(options)
        chosen = self._all if mask is None else mask.copy()
        if not (self._started or chosen.all()):
            left = np.flatnonzero(~chosen).tolist()
            raise ResetNeeded(f"options['reset_mask'] leaves out environments {left}, which have never been reset")
        for index in np.flatnonzero(chosen).tolist():
            if seeds[index] is not None:
                self._seed(index, seeds[index])
            self.batch.start(index, self._first_length(index) if mask is None else None)
        self._started = True
        self._set_over(self._over & ~chosen)
        info = {"action_mask": self.action_masks() & chosen[:, None], "_action_mask": chosen.copy()}
        return self.batch.observations(), info

    def _reset_mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_] | None:
        """Check the options as SyncVectorEnv does; unlike there, the caller's dict keeps its mask."""
        unknown = [key for key in options or {} if key != "reset_mask"]
        if unknown:
            raise UserError(f"options: {unknown[0]!r} is unknown (allowed: reset_mask)")
        if not options:
            return None
        mask, shape = options["reset_mask"], (self.num_envs,)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            given = f"array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"options['reset_mask']: {given}: must be a numpy array of bool")
        if mask.shape != shape or not mask.any():
            raise UserError(f"options['reset_mask']={mask.tolist()}: must have shape {shape} and at least one True")
        return mask

    def _first_length(self, index: int) -> int | None:
        full = self.problem.num_requests
        if not self.stagger or full is None:
            return None
        return int(self.batch.rngs[index].integers(2, full + 1))

    def _set_over(self, over: NDArray[np.bool_]) -> None:
        self._over, self._any_over = over, bool(over.any())

    def step(self, actions: ArrayLike) -> StepResult:
        """Carry B decisions out and advance each environment to its next one.

        Parameters
        ----------
        actions : array_like of int, shape (B,)

        Returns
        -------
        observations : ndarray of float32, shape (B, C, F)
        rewards : ndarray of float64, shape (B,)
        terminations : ndarray of bool, shape (B,)
            Always False.
        truncations : ndarray of bool, shape (B,)
        info : dict
            As of `fleetgym.envs.env.FleetEnv.step`, each array with an axis B in front and a mask ``_name`` beside it;
            in SAME_STEP ``final_obs`` and ``final_info`` of what has ended.

        Raises
        ------
        UserError
            Wrong type or shape, or a choice that does not exist; nothing has moved then.
        gymnasium.error.ResetNeeded
            No reset yet, or an environment has ended and autoreset is disabled.
        LivelockError
            An instance stopped making progress.
        """
        self._check_started()
        if self._any_over and self.autoreset_mode is AutoresetMode.DISABLED:
            ended = np.flatnonzero(self._over).tolist()
            raise ResetNeeded(f"environments {ended} have ended: reset them first, with options={{'reset_mask': ...}}")
        engine = self.batch.engine
        rewards = self.batch.step(self._checked(actions))  # what has ended stays as it is, whatever its action
        begun = self._over
        if self._any_over:
            self._start(begun)
        truncations, terms = engine.done.copy(), engine.terms.copy()
        info: dict[str, Any] = {}
        if np.count_nonzero(truncations):
            for index in np.flatnonzero(truncations).tolist():
                info = self._add_info(info, self._ended(index), index)
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = info["final_info"]
                final["reward_terms"] = final["reward_terms"].view(RewardTerms)
                begun = truncations
                self._start(begun)
                terms[begun] = 0.0  # final_info has them
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._set_over(truncations.copy())
        info["action_mask"], info["_action_mask"] = self.action_masks(), self._all.copy()
        if np.count_nonzero(begun) < self.num_envs:  # a reset reports no terms
            info["reward_terms"], info["_reward_terms"] = terms.view(RewardTerms), ~begun
        return self.batch.observations(), rewards, self._none.copy(), truncations, info

    def _check_started(self) -> None:
        if not self._started:
            raise ResetNeeded("call reset() first")

    def _checked(self, actions: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(actions)
        if chosen.shape != self._all.shape or chosen.dtype.kind not in "iu":
            raise UserError(
                f"actions: {chosen.dtype} of shape {chosen.shape}: must be integers of shape {self._all.shape}"
            )
        return chosen.astype(np.int64, copy=False)

    def _start(self, begun: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(begun).tolist():
            self.batch.start(index)

    def _ended(self, index: int) -> dict[str, Any]:
        """What ``info`` holds of an environment at its end, beside what every step reports."""
        metrics = {"episode_metrics": self.batch.finish(index)} if self.episode_metrics else {}
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            return metrics
        final = {"action_mask": self.batch.mask[index].copy(), "reward_terms": self.batch.engine.terms[index].copy()}
        return {"final_obs": self.batch.observation(index), "final_info": {**final, **metrics}}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return what may be chosen now, shape (B, C)."""
        return self.batch.mask.copy()

    def render(self) -> tuple[Any, ...]:
        """Return a picture of each environment: an RGB array (H, W, 3), a text, or None without a render mode.

        Raises
        ------
        gymnasium.error.ResetNeeded
            No reset yet.
        """
        if self.render_mode is None:
            return (None,) * self.num_envs
        self._check_started()
        engine, draw = self.batch.engine, RENDERERS[self.render_mode]
        return tuple(draw(engine.obs[i], int(engine.now_ns[i])) for i in range(self.num_envs))


def _mode(value: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(value)
    except ValueError:
        allowed = [mode.value for mode in AutoresetMode]
        raise UserError(f"autoreset_mode={value!r}: unknown{did_you_mean(value, allowed)}") from None

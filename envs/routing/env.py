"""The routing environment ``fleetgym/Routing-v0``, single and vectorised by its registration."""

from __future__ import annotations

import operator
from typing import Any, ClassVar, SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError
from fleetgym.envs.rendering import RENDERERS, check_render_mode
from fleetgym.envs.rewards import RewardTerms
from fleetgym.envs.routing.batch import RoutingBatch, resolve
from fleetgym.envs.seeds import as_seed


class RoutingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Send each arriving request to one of N LLM-serving instances.

    Description
    -----------
    A router stands in front of N simulated vLLM instances (continuous batching, chunked prefill, paged KV
    cache, preemption by recompute; possibly of different hardware). Requests arrive one by one; each
    step decides where the arriving request goes. Between two arrivals the instances work on, in int64
    nanoseconds, exactly as the scheduler of vLLM would.

    Observation space
    -----------------
    ``Box(N, F)`` float32, **raw physical units**: one row per instance, request features repeated in each
    row. Columns are the schema of `fleetgym.envs.features` (docs: *Observation*); by default all but the
    privileged ones. Wrap in `fleetgym.envs.wrappers.ScaleObservation` for inputs of about [0, 1].
    An instance that does not exist in this episode has a row of zeros and ``False`` in the mask.

    Action space
    ------------
    ``Discrete(N)``: the index of the instance. ``action_masks()`` and ``info["action_mask"]`` (bool, shape
    (N,), never all False) tell which instances exist and can ever hold the prompt. Sending a request to an
    instance that cannot hold prompt and answer gets it rejected; sending it to one that does not exist is an error.

    Rewards
    -------
    A weighted sum of named terms (`fleetgym.envs.rewards.RewardSpec`), measured between this decision and
    the next; ``info["reward_terms"]`` holds the unweighted terms: an array in the order of
    `fleetgym.envs.cluster.engine.TERM_NAMES` that names index too (``terms["finished"]``). Default: minus the time integral of unfinished requests, minus
    ``failure_s`` for each failed (rejected) request. The return is therefore ``-(request-seconds up to the last
    dispatch) - failure_s * failures``; what is still unfinished at truncation is not in it.

    Starting state
    --------------
    An empty cluster and the first arrival. ``reset(seed=...)`` fixes the episode: slice of the trace or
    generated requests, load, available instances.

    Episode end
    -----------
    *Truncated* after ``num_requests`` decisions: serving never terminates, so values should bootstrap. The
    last observation shows the cluster right after the last dispatch. ``info["episode_metrics"]`` then
    holds the latency metrics of all requests of the episode, the cluster run dry behind the scenes.

    Arguments
    ---------
    A name is one of the command line's (``cluster="a100_llama3_8b_x8"`` here, ``cluster=a100_llama3_8b_x8`` there), and
    the defaults are the command line's too (``conf/routing.yaml``).

    cluster : ClusterSpec, mapping or name
        The fleet; default ``rtxpro6000_x4_rtx4090_x4``: 4 x RTX PRO 6000 and 4 x RTX 4090 with Llama-3.1-8B.
    workload : Workload, mapping or name
        Where requests come from; default ``synthetic``, fitted to the Azure conversation trace.
    num_requests : int or None, default 1000
        Decisions of an episode; None: all requests of the workload.
    load : float, [float, float] or None, default 0.85
        Offered load as a fraction of the measured saturation rate of the available instances, or a range
        to draw from; None: arrival times as the workload has them.
    available : int, [int, int] or None
        How many of the N instances exist in an episode, or a range to draw from; None: all.
    features : sequence of str, optional
        Columns of the observation.
    oracle : bool, default False
        Allow privileged features.
    reward : RewardSpec, mapping or name
        Weights of the terms; default ``default``. A mapping changes some of the default's.
    slo : Slo, mapping or name
        Latency objectives; default ``default``. A mapping changes some of the default's.
    failure_s : float, default 120.0
        Latency in seconds that each failed request is charged, in the default reward and in figures.
    engine : {"kernel", "reference"}, optional
        Compiled or SimPy engine; same numbers, bit for bit. Default: ``kernel``, or what the environment
        variable ``FLEETGYM_ENGINE`` says.
    render_mode : {"ansi", "rgb_array"}, optional

    Version history
    ---------------
    * v0: first version. Defaults have changed since, dynamics have not: they are the command line's (the fleet was of
      tier A), and an instance takes vLLM's own token budget and number of sequences for its GPU (2,048 and 256 on all).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDERERS), "render_fps": 10}  # type: ignore[misc]

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self._batch = RoutingBatch(resolve(**arguments), 1)
        self.config = self._batch.config
        self._engine = self._batch.engine
        self._action = np.zeros(1, np.int64)
        self.observation_space = self._batch.observation_space  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self.config.cluster.num_instances)
        self._ready = False
        self._look()

    def _look(self) -> None:
        """Make views of the engine's arrays once: a step takes microseconds, and each indexing is a tenth of one."""
        self._observation = self._batch.reader(0)
        self._mask, self._terms, self._done = self._engine.mask[0], self._engine.terms[0], self._engine.done

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look()  # a copied or unpickled view would be an array of its own

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode at its first arrival.

        Raises
        ------
        UserError
            ``options`` holds anything: what an episode is like is set where the environment is made.
        """
        if options:
            raise UserError(f"options={options!r}: reset takes no options; set these where the environment is made")
        super().reset(seed=as_seed(seed))
        self._batch.rngs[0] = self.np_random
        self._batch.start(0)
        self._ready = True
        return self._batch.observation(0), {"action_mask": self.action_masks()}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Dispatch the pending request and advance to the next arrival.

        Raises
        ------
        UserError
            The action is out of range or names an instance that does not exist in this episode.
        gymnasium.error.ResetNeeded
            The episode is over or has not begun.
        """
        if not self._ready:
            raise gym.error.ResetNeeded("call reset() before step(): the episode is over or has not begun")
        try:
            self._action[0] = operator.index(action)
        except (TypeError, OverflowError):
            count = self.config.cluster.num_instances
            raise UserError(f"action={action!r}: must be an integer in [0, {count})") from None
        self._engine.step(self._action)
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
        """Return which instances may be chosen now, shape (N,), for sb3-contrib."""
        return self._engine.mask[0].copy()

    def render(self) -> Any:
        """Draw queue, batch and KV cache of each instance, as text or as an RGB array (H, W, 3)."""
        if self.render_mode is None:
            return None
        return RENDERERS[self.render_mode](self._engine.obs[0], int(self._engine.now_ns[0]))

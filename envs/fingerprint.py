"""A digest of what an environment does: equal digests, equal dynamics.

A change of dynamics under the same id would silently void every result obtained with it, so a changed
digest calls for a new version of the environment. Trained policies carry the digest that they saw.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec, Slo
from fleetgym.envs.episodes import play
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import find_problem
from fleetgym.envs.rewards import RewardSpec
from fleetgym.envs.signals import TERM_NAMES
from fleetgym.envs.workloads.base import Workload

_REQUESTS = 160


@dataclass(frozen=True, kw_only=True)
class _Fixed(Workload):
    """Requests from integer arithmetic only, so that no library or processor can change them."""

    @property
    def native_rate_rps(self) -> float:
        return 20.0

    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        index = np.arange(num_requests or _REQUESTS, dtype=np.int64)
        gaps_ns = (index * 7919 + 13) % 97 * 1_000_000
        return make_trace(
            np.cumsum(gaps_ns) - gaps_ns[0], 16 + index * 2654435761 % 3001, 1 + index * 40503 % 307, name="fixed"
        )


class _Fixture:
    """A policy without arithmetic of floats: 0, 1, 4, 9, ... modulo 7 and the choices; the masked are passed over."""

    name, kind = "fixed", "heuristic"

    def __init__(self, features: tuple[str, ...]) -> None:
        self.features = features

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        self._step = 0

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        count = mask.shape[1]
        order = (self._step * self._step % 7 % count + np.arange(count)) % count
        self._step += 1
        return order[mask[:, order].argmax(axis=1)]


def fixed_problem(env_id: str, engine: str = "kernel") -> Problem:
    """Return the problem that a fingerprint is taken of: all that has a default is stated, so that none can change it.

    Parameters
    ----------
    env_id : str
        Of a registered problem.
    engine : {"kernel", "reference"}

    Raises
    ------
    UserError
        Not registered.
    """
    tight = EngineArgs(max_num_batched_tokens=2048, max_num_seqs=256, num_gpu_blocks=700)
    groups = (
        InstanceSpec("RTXPRO6000", "Llama-3.1-8B", tier="A", count=2, engine=tight),
        InstanceSpec("RTX4090", "Llama-3.1-8B", tier="A", engine=tight),
    )
    weights = dict.fromkeys(TERM_NAMES, 0.0) | {"unfinished_request_s": -1.0}
    return find_problem(env_id).resolve(
        cluster=ClusterSpec(groups),
        workload=_Fixed(),
        num_requests=_REQUESTS,
        load=None,
        available=None,
        features=None,
        reward=RewardSpec(**weights, charged_s=-1.0, scale=1.0),
        slo=Slo(ttft_s=1.0, ttft_s_per_1k_prompt_tokens=0.0625, tpot_s=0.1),
        failure_s=60.0,
        engine=engine,
    )


@functools.cache
def fingerprint(env_id: str, engine: str = "kernel") -> str:
    """Digest of observations, rewards, masks and terms of a fixed rollout.

    Parameters
    ----------
    env_id : str
        Of a registered problem.
    engine : {"kernel", "reference"}
        Both give the same.

    Returns
    -------
    str
        The first 16 hexadecimal digits of a SHA-256.

    Raises
    ------
    UserError
        Not registered.
    """
    problem = fixed_problem(env_id, engine)
    batch = problem.make_batch(1)
    batch.start(0)
    digest = hashlib.sha256(batch.observation(0).tobytes() + batch.mask[0].tobytes())

    def watch(_: NDArray[np.float64]) -> None:
        terms = batch.engine.terms[0]
        rewarded = np.array([batch.reward(terms.tolist()), *terms])  # here no zero has a sign
        digest.update(batch.observation(0).tobytes() + batch.mask[0].tobytes() + rewarded.tobytes())

    play(batch, [_Fixture(problem.features)], [0], watch=watch)
    return digest.hexdigest()[:16]

"""The one loop that plays episodes with policies, and what it leaves of each.

Held-out scores of training, evaluation, boards and fingerprints all come from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.metrics import per_request, slo_attainment_curve, summarize
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Batch, Problem

Watch = Callable[[NDArray[np.float64]], None]


class Played(NamedTuple):
    """What a run of `play` was like.

    Attributes
    ----------
    returns : ndarray of float64, shape (B,)
        Sum of the rewards of each episode.
    decision_us : ndarray of float64, shape (P,)
        Wall-clock microseconds per decision of each policy, its episodes decided together.
    """

    returns: NDArray[np.float64]
    decision_us: NDArray[np.float64]


def try_out(policy: Policy, problem: Problem) -> None:
    """Let a policy decide once, all values 0: what it lacks for this problem is known before anything is written.

    Parameters
    ----------
    policy : Policy
        It must be reset before it plays.
    problem : Problem

    Raises
    ------
    UserError
        It needs a column that the problem does not offer, or cannot decide between so many choices.
    """
    _check_columns(policy, problem, problem.offers)
    policy.reset([0], problem.num_choices)
    observation = np.zeros((1, problem.num_choices, len(policy.features)), np.float32)
    try:
        with np.errstate(all="ignore"):
            policy.act(observation, np.ones((1, problem.num_choices), np.bool_))
    except UserError as error:
        raise UserError(f"policy={policy.name!r}: {error}") from None


def _check_columns(policy: Policy, problem: Problem, columns: Sequence[str]) -> None:
    for name in policy.features:
        if name not in columns:
            raise UserError(f"policy={policy.name!r}: needs {name!r}, which {problem.env_id} does not offer")


def play(batch: Batch, policies: Sequence[Policy], seeds: Sequence[int], *, watch: Watch | None = None) -> Played:
    """Play begun episodes to their last decision; what is in flight then is not run dry (see `Episode.of`).

    Parameters
    ----------
    batch : Batch
        Begun, with ``len(seeds)`` episodes for each policy, one policy's behind the other's.
    policies : sequence of Policy, length P
        Reset here.
    seeds : sequence of int
        Of each policy's own randomness, the same for all.
    watch : callable, optional
        Called after each step with the rewards, shape (B,).

    Raises
    ------
    UserError
        A policy needs a column that the problem does not offer, or cannot decide between so many choices.
    LivelockError
        An instance stopped making progress.
    ValueError
        The batch does not hold ``len(policies) * len(seeds)`` episodes.
    """
    problem, count = batch.problem, len(seeds)
    if len(batch) != count * len(policies):
        raise ValueError(f"{len(batch)} episodes for {len(policies)} policies and {count} seeds")
    for policy in policies:
        _check_columns(policy, problem, batch.columns)
        policy.reset(seeds, problem.num_choices)
    rows = [slice(i * count, (i + 1) * count) for i in range(len(policies))]
    places = [batch.places(policy.features) for policy in policies]
    actions = np.zeros(len(batch), np.int64)
    returns = np.zeros(len(batch))
    spent_ns = [0] * len(policies)
    steps = 0
    while not batch.done.all():
        for i, policy in enumerate(policies):
            start_ns = time.perf_counter_ns()
            actions[rows[i]] = policy.act(batch.obs[rows[i], :, places[i]], batch.mask[rows[i]])
            spent_ns[i] += time.perf_counter_ns() - start_ns
        rewards = batch.step(actions)  # what has ended earns nothing more
        returns += rewards
        steps += 1
        if watch is not None:
            watch(rewards)
    return Played(returns, np.array(spent_ns) / 1000.0 / max(1, steps * count))


@dataclass(frozen=True)
class Episode:
    """One policy on one episode, run until the cluster is dry.

    Attributes
    ----------
    problem : Problem
    trace : Trace
    results : ndarray of RESULT_DTYPE, shape (R,)
    instance_stats : ndarray of INSTANCE_STATS_DTYPE, shape (N,)
    gap_histogram : ndarray of int64, shape (GAP_BINS,)
        Token gaps of all requests by `fleetgym.envs.cluster.engine.gap_bin`.
    policy, kind : str
        Name and kind of who decided.
    window : int
        Number of the episode in a comparison.
    decision_us : float
        Wall-clock microseconds per decision, all windows decided together.
    """

    problem: Problem
    trace: Trace
    results: NDArray[np.void]
    instance_stats: NDArray[np.void]
    gap_histogram: NDArray[np.int64]
    policy: str
    kind: str
    window: int
    decision_us: float = 0.0

    @classmethod
    def of(cls, batch: Batch, index: int, policy: Policy, window: int, decision_us: float = 0.0) -> Episode:
        """Run the cluster of a played episode dry and collect what became of its requests.

        Parameters
        ----------
        batch : Batch
            One that keeps its traces.
        index : int
            Which of its episodes.
        policy : Policy
            Who decided.
        window : int
            Number of the episode in a comparison.
        decision_us : float
            Wall-clock microseconds per decision.

        Raises
        ------
        LivelockError
            A request can never be admitted.
        """
        engine, trace = batch.engine, batch.traces[index]
        assert trace is not None
        engine.drain(index)
        found = engine.results(index), engine.instance_stats(index), engine.gap_histogram(index)
        return cls(batch.problem, trace, *found, policy.name, policy.kind, window, decision_us)

    def summary(self) -> dict[str, Any]:
        """Return the metrics of `fleetgym.envs.cluster.metrics.summarize`, nested by group."""
        problem = self.problem
        found = self.results, self.instance_stats, self.gap_histogram
        return summarize(self.trace, *found, problem.cluster, problem.slo, failure_s=problem.failure_s)

    def requests(self) -> dict[str, NDArray[Any]]:
        """Return one column, shape (R,), per quantity of `fleetgym.envs.cluster.metrics.per_request`."""
        return per_request(self.trace, self.results, self.problem.slo, failure_s=self.problem.failure_s)

    def attainment_curve(self) -> list[float]:
        """Return the SLO attainment at each of `fleetgym.envs.cluster.metrics.SLO_SCALES`."""
        return slo_attainment_curve(self.trace.requests, self.results, self.problem.slo)

"""Evaluation: every policy decides on the same arrivals, all of them in one batch of clusters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from fleetgym.baselines import Policy
from fleetgym.envs.cluster.engine import SIGNAL_INDEX
from fleetgym.envs.cluster.metrics import per_request, summarize
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.routing.batch import RoutingBatch, RoutingConfig


@dataclass(frozen=True)
class Episode:
    """One policy on one episode, run until the cluster is dry.

    Attributes
    ----------
    trace : Trace
    results : ndarray of RESULT_DTYPE, shape (R,)
    instance_stats : ndarray of INSTANCE_STATS_DTYPE, shape (N,)
    gap_histogram : ndarray of int64
    decision_us : float
        Wall-clock microseconds per decision, all seeds decided together.
    """

    policy: str
    kind: str
    seed: int
    trace: Trace
    results: NDArray[np.void]
    instance_stats: NDArray[np.void]
    gap_histogram: NDArray[np.int64]
    decision_us: float

    def summary(self, problem: RoutingConfig) -> dict[str, Any]:
        """Return the metrics of `fleetgym.envs.cluster.metrics.summarize`."""
        return summarize(
            self.trace, self.results, self.instance_stats, self.gap_histogram, problem.cluster, problem.slo
        )

    def requests(self, problem: RoutingConfig) -> dict[str, NDArray[Any]]:
        """Return one column per quantity, one row per request."""
        return per_request(self.trace, self.results, problem.slo)


def run_policies(
    problem: RoutingConfig, policies: Sequence[Policy], seeds: Sequence[int], *, progress: bool = True
) -> list[Episode]:
    """Run every policy on the episode of every seed.

    The episode of a seed (requests, load, available instances) is the same for all policies, so that they
    can be compared in pairs.

    Parameters
    ----------
    problem : RoutingConfig
    policies : sequence of Policy
    seeds : sequence of int
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    list of Episode
        Policy by policy, seed by seed.
    """
    names = [policy.name for policy in policies]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"policies: {', '.join(sorted(repeated))} named twice")
    count = len(seeds)
    batch = RoutingBatch(problem, len(policies) * count, keep_traces=True)
    for index in range(len(policies) * count):
        batch.rngs[index] = np.random.default_rng(seeds[index % count])
        batch.start(index)
    for policy in policies:
        policy.reset(seeds, problem.cluster.num_instances)
    decision_us = _run(batch, policies, count, progress)
    return [
        _episode(batch, policies[index // count], seeds[index % count], index, decision_us[index // count])
        for index in range(len(batch.rngs))
    ]


def _columns(features: Sequence[str]) -> Any:
    """Index of ``features`` in the engine's signals; a slice where they are contiguous, which copies nothing."""
    index = [SIGNAL_INDEX[name] for name in features]
    contiguous = index == list(range(index[0], index[0] + len(index)))
    return slice(index[0], index[-1] + 1) if contiguous else index


def _run(batch: RoutingBatch, policies: Sequence[Policy], count: int, progress: bool) -> NDArray[np.float64]:
    """Run all episodes to their ends; return microseconds per decision of each policy."""
    engine = batch.engine
    rows = [slice(i * count, (i + 1) * count) for i in range(len(policies))]
    columns = [_columns(policy.features) for policy in policies]
    actions = np.zeros(len(batch.rngs), np.int64)
    spent_ns = [0] * len(policies)
    total = max(len(trace) for trace in batch.traces if trace is not None)
    steps = 0
    look = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*look, disable=not progress) as bar:
        task = bar.add_task(f"{len(policies)} policies x {count} seeds", total=total)
        while not engine.done.all():
            for i, policy in enumerate(policies):
                start_ns = time.perf_counter_ns()
                actions[rows[i]] = policy.act(engine.obs[rows[i], :, columns[i]], engine.mask[rows[i]])
                spent_ns[i] += time.perf_counter_ns() - start_ns
            engine.step(actions)
            steps += 1
            if steps % 256 == 0:
                bar.update(task, completed=steps)
        bar.update(task, completed=total)
    return np.array(spent_ns) / 1000.0 / (steps * count)


def _episode(batch: RoutingBatch, policy: Policy, seed: int, index: int, decision_us: float) -> Episode:
    engine = batch.engine
    engine.drain(index)
    trace = batch.traces[index]
    assert trace is not None
    return Episode(
        policy.name,
        policy.kind,
        seed,
        trace,
        engine.results(index),
        engine.instance_stats(index),
        engine.gap_histogram(index),
        decision_us,
    )

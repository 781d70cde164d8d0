"""Evaluation: every policy decides on the same arrivals, all of them in one batch of clusters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from fleetgym.baselines import Policy, make_heuristic
from fleetgym.envs.cluster.engine import SIGNAL_INDEX
from fleetgym.envs.cluster.metrics import per_request, slo_attainment_curve, summarize
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.routing.batch import RoutingBatch, RoutingConfig
from fleetgym.experiments.comparison.scenario import Windows

YARDSTICK = "round_robin"
JUDGED = 0x7E57  # what is drawn to judge with is none of the streams that training environments draw from


@dataclass(frozen=True)
class Episode:
    """One policy on one episode, run until the cluster is dry.

    Attributes
    ----------
    window : int
        Number of the episode (`fleetgym.experiments.comparison.scenario.Windows`).
    trace : Trace
    results : ndarray of RESULT_DTYPE, shape (R,)
    instance_stats : ndarray of INSTANCE_STATS_DTYPE, shape (N,)
    gap_histogram : ndarray of int64
    decision_us : float
        Wall-clock microseconds per decision, all windows decided together.
    """

    policy: str
    kind: str
    window: int
    trace: Trace
    results: NDArray[np.void]
    instance_stats: NDArray[np.void]
    gap_histogram: NDArray[np.int64]
    decision_us: float

    def summary(self, problem: RoutingConfig) -> dict[str, Any]:
        """Return the metrics of `fleetgym.envs.cluster.metrics.summarize`."""
        return summarize(
            self.trace,
            self.results,
            self.instance_stats,
            self.gap_histogram,
            problem.cluster,
            problem.slo,
            failure_s=problem.failure_s,
        )

    def requests(self, problem: RoutingConfig) -> dict[str, NDArray[Any]]:
        """Return one column per quantity, one row per request."""
        return per_request(self.trace, self.results, problem.slo, failure_s=problem.failure_s)

    def attainment_curve(self, problem: RoutingConfig) -> list[float]:
        """Return the SLO attainment at each of `fleetgym.envs.cluster.metrics.SLO_SCALES`."""
        return slo_attainment_curve(self.trace.requests, self.results, problem.slo)


def run_policies(
    problem: RoutingConfig, policies: Sequence[Policy], windows: Windows, *, seed: int = 0, progress: bool = True
) -> list[Episode]:
    """Run every policy on every window.

    An episode (requests, load, available instances) is the same for all policies, so that they can be compared in
    pairs.

    Parameters
    ----------
    problem : RoutingConfig
    policies : sequence of Policy
    windows : Windows
    seed : int
        Other seeds give other draws in each window.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    list of Episode
        Policy by policy, window by window.
    """
    names = [policy.name for policy in policies]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"policies: {', '.join(sorted(repeated))} named twice")
    numbers = windows.numbers
    count = len(numbers)
    seeds = [seed + number for number in numbers]
    batch = RoutingBatch(problem, len(policies) * count, keep_traces=True)
    for index in range(len(policies) * count):
        batch.rngs[index] = np.random.default_rng([JUDGED, seed, numbers[index % count]])
        batch.start(index, window=numbers[index % count] if windows.kind == "recorded" else None)
    for policy in policies:
        policy.reset(seeds, problem.cluster.num_instances)
    decision_us = _run(batch, policies, count, progress)
    return [
        _episode(batch, policies[index // count], numbers[index % count], index, decision_us[index // count])
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
        task = bar.add_task(f"{len(policies)} policies x {count} windows", total=total)
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


def _episode(batch: RoutingBatch, policy: Policy, window: int, index: int, decision_us: float) -> Episode:
    engine = batch.engine
    engine.drain(index)
    trace = batch.traces[index]
    assert trace is not None
    return Episode(
        policy.name,
        policy.kind,
        window,
        trace,
        engine.results(index),
        engine.instance_stats(index),
        engine.gap_histogram(index),
        decision_us,
    )


def check_failure_s(problem: RoutingConfig, windows: Windows) -> None:
    """Refuse a charge that round robin exceeds: failing a request would then be better than serving it.

    Always with the compiled engine, as the saturation probe: the two agree bit for bit.

    Raises
    ------
    UserError
        Naming the largest latency that round robin gave to a served request.
    """
    episodes = run_policies(replace(problem, engine="kernel"), [make_heuristic(YARDSTICK)], windows, progress=False)
    slowest_s = slowest_served_s(problem, episodes)
    if slowest_s > problem.failure_s:
        raise UserError(
            f"scenario.failure_s={problem.failure_s:g}: {YARDSTICK} serves a request here in {slowest_s:.1f} s, so that "
            "failing it would cost less; must be larger"
        )


def slowest_served_s(problem: RoutingConfig, episodes: Sequence[Episode]) -> float:
    """Return the largest end-to-end latency of any request that was served, 0 if none was."""
    return max(float(np.nanmax(e.requests(problem)["e2e_s"], initial=0.0)) for e in episodes)

"""Evaluation: every policy decides on the same arrivals, all of them in one batch of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from fleetgym.baselines import make_heuristic
from fleetgym.envs.episodes import Episode, Played, play
from fleetgym.envs.errors import UserError
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Batch, Problem
from fleetgym.experiments.comparison.scenario import Windows

JUDGED = 0x7E57  # what is drawn to judge with is none of the streams that training environments draw from


def run_policies(
    problem: Problem, policies: Sequence[Policy], windows: Windows, *, seed: int = 0, progress: bool = True
) -> list[Episode]:
    """Run every policy on every window.

    An episode (requests, load, available instances) is the same for all policies, so that they can be compared in
    pairs.

    Parameters
    ----------
    problem : Problem
    policies : sequence of Policy
        Each under a name of its own.
    windows : Windows
    seed : int
        Other seeds give other draws in each window.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    list of Episode
        Policy by policy, window by window.

    Raises
    ------
    UserError
        Two policies of one name, or one that cannot decide this problem.
    """
    names = [policy.name for policy in policies]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"policies: {', '.join(sorted(repeated))} named twice")
    numbers = windows.numbers
    count = len(numbers)
    batch = problem.make_batch(len(policies) * count, keep_traces=True)
    for index in range(len(policies) * count):
        batch.rngs[index] = np.random.default_rng([JUDGED, seed, numbers[index % count]])
        batch.start(index, window=numbers[index % count] if windows.kind == "recorded" else None)
    played = _play(batch, policies, [seed + number for number in numbers], progress)
    return [
        Episode.of(batch, index, policies[index // count], numbers[index % count], played.decision_us[index // count])
        for index in range(len(batch))
    ]


def _play(batch: Batch, policies: Sequence[Policy], seeds: Sequence[int], progress: bool) -> Played:
    """Play all episodes, with a progress bar."""
    total = max(len(trace) for trace in batch.traces if trace is not None)
    look = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = 0
    with Progress(*look, disable=not progress) as bar:
        task = bar.add_task(f"{len(policies)} policies x {len(seeds)} windows", total=total)

        def watch(_: NDArray[np.float64]) -> None:
            nonlocal steps
            steps += 1
            if steps % 256 == 0:
                bar.update(task, completed=steps)

        played = play(batch, policies, seeds, watch=watch)
        bar.update(task, completed=total)
    return played


def check_failure_s(problem: Problem, windows: Windows) -> None:
    """Refuse a charge that the problem's yardstick exceeds: failing a request would then be better than serving it.

    Always with the compiled engine, as the saturation probe: the two agree bit for bit.

    Parameters
    ----------
    problem : Problem
        Of the part that is judged; its ``failure_s`` is what is checked.
    windows : Windows
        The episodes that will be judged.

    Raises
    ------
    UserError
        Naming the largest latency that the yardstick gave to a served request.
    """
    episodes = run_policies(
        replace(problem, engine="kernel"), [make_heuristic(problem.yardstick, problem.env_id)], windows, progress=False
    )
    slowest_s = slowest_served_s(episodes)
    if slowest_s > problem.failure_s:
        raise UserError(
            f"scenario.failure_s={problem.failure_s:g}: {problem.yardstick} serves a request here in {slowest_s:.1f} s, so that "
            "failing it would cost less; must be larger"
        )


def slowest_served_s(episodes: Sequence[Episode]) -> float:
    """Return the largest end-to-end latency of any request that was served, in seconds; 0 if none was.

    Parameters
    ----------
    episodes : sequence of Episode
    """
    return max(float(np.nanmax(e.requests()["e2e_s"], initial=0.0)) for e in episodes)

"""What a comparison needs beside a fleet and its traffic: parts, independent test windows, the charge of a failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fleetgym.envs.cluster.metrics import find_ranking
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.envs.workloads.base import WindowKind

PartName = Literal["train", "validate", "test"]
GENERATED_WINDOWS = 10


@dataclass(frozen=True)
class Part:
    """What differs from ``env`` and ``workload`` in one part; null: as there.

    Attributes
    ----------
    load, available, num_requests : optional
        As the environment's arguments of these names.
    workload : mapping
        Fields that replace those of the workload.
    """

    load: float | tuple[float, ...] | None = None
    available: int | tuple[int, ...] | None = None
    num_requests: int | None = None
    workload: Mapping[str, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, Any]:
        """Return the arguments of the environment that this part replaces."""
        own = {"load": self.load, "available": self.available, "num_requests": self.num_requests}
        return {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True)
class Parts:
    """Where a policy learns, where its best model is chosen, and where it is judged; they share no request.

    Attributes
    ----------
    train : Part
    validate : Part
    test : Part
    """

    train: Part
    validate: Part
    test: Part


@dataclass(frozen=True)
class Scenario:
    """What makes two results comparable; one file of ``conf/scenario`` (`conf/scenario/routing/azure.yaml`).

    Attributes
    ----------
    name : str
    failure_s : float
        Latency that every rejected or unfinished request is charged, in figures and in rewards: the same for every
        policy, and larger than what the worst sensible one gives a request that it serves.
    rank_by : str
        Failure-aware figure that decides places and the best model (`fleetgym.envs.cluster.metrics.RANKING`).
    windows : int or None
        Independent test episodes; None: as many disjoint ones as the recorded test part holds, or
        `GENERATED_WINDOWS` draws of a generator.
    beyond_windows : {"refuse", "bootstrap"}
        What to do when more are asked for than the part holds: refuse, or resample all in blocks of its requests.
    parts : Parts
    """

    name: str
    failure_s: float
    rank_by: str
    windows: int | None
    beyond_windows: Literal["refuse", "bootstrap"]
    parts: Parts

    def __post_init__(self) -> None:
        if not 0.0 < self.failure_s < math.inf:
            raise UserError(f"failure_s={self.failure_s!r}: must be a positive number of seconds")
        if self.windows is not None and self.windows < 1:
            raise UserError(f"windows={self.windows!r}: must be at least 1, or null")
        find_ranking(self.rank_by)


@dataclass(frozen=True)
class Windows:
    """The test episodes of a comparison.

    Attributes
    ----------
    numbers : tuple of int
        Each names one episode: a disjoint window of a recording, else the seed of what is drawn.
    kind : {"recorded", "generated", "bootstrap"}
    arrivals : str
        ``recorded``, or the process that replaces a recording's times.
    """

    numbers: tuple[int, ...]
    kind: WindowKind
    arrivals: str = "recorded"

    @property
    def text(self) -> str:
        """What the windows are, for a reader of the figures."""
        count = len(self.numbers)
        plural = "s" if count > 1 else ""
        if self.kind == "recorded":
            times = "" if self.arrivals == "recorded" else f", with {self.arrivals} arrivals"
            return (f"{count} disjoint recorded windows" if plural else "1 recorded window") + times
        if self.kind == "generated":
            return f"{count} generated window{plural}, each drawn afresh"
        return f"{count} window{plural} resampled in blocks from one recording: intervals know no traffic beyond it"


def plan_windows(
    problem: Problem, scenario: Scenario, chosen: Sequence[int] | int | None = None, name: str = "seeds"
) -> tuple[Problem, Windows]:
    """Choose the test episodes, no two of which share a request.

    Parameters
    ----------
    problem : Problem
        Of the test part.
    scenario : Scenario
    chosen : sequence of int or int, optional
        Windows by number, or how many; by default what the scenario says.
    name : str
        What set ``chosen``, for messages.

    Returns
    -------
    problem : Problem
        The same, its workload resampled where that was asked for.
    windows : Windows

    Raises
    ------
    UserError
        More than the test part holds, and the scenario refuses that.
    """
    held = problem.workload.num_windows(problem.num_requests)
    if chosen is None:
        chosen, name = scenario.windows, "scenario.windows"
    if chosen is None:
        chosen = GENERATED_WINDOWS if held is None else held
    numbers = tuple(range(chosen)) if isinstance(chosen, int) else tuple(chosen)
    workload = problem.workload
    if held is None or max(numbers) < held:
        return problem, Windows(numbers, workload.window_kind, workload.arrival_process)
    if scenario.beyond_windows == "refuse":
        length = problem.num_requests or problem.workload.num_requests or "all"
        raise UserError(
            f"{name}={chosen if isinstance(chosen, int) else list(chosen)}: the test part holds {held} disjoint windows "
            f"of {length} requests (numbers 0 to {held - 1}); ask for fewer, lower env.num_requests, or resample its "
            "requests with scenario.beyond_windows=bootstrap"
        )
    resampled = workload.resampled()
    return replace(problem, workload=resampled), Windows(numbers, resampled.window_kind, resampled.arrival_process)

"""What a measurement is, and how one is taken: CPU seconds of repeats, on one core."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fleetgym.envs.cluster.spec import ClusterSpec
from fleetgym.envs.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes
    ----------
    key : str
        Stable name in ``metrics.json``.
    title, unit : str
        What is measured, and what its figures are in.
    better : {"higher", "lower"}
    values : sequence of float
        The figure of each repeat.
    cpu_s : sequence of float
        CPU seconds of each repeat (of the measured side, for a ratio).
    floor : float, optional
        Worst value that is good enough; the median is held against it.
    note : str
        What a reader must know to read the figure.
    """

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    values: Sequence[float]
    cpu_s: Sequence[float]
    floor: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.values)

    @property
    def best(self) -> float:
        """Best of the repeats: the one that other processes disturbed least."""
        return max(self.values) if self.better == "higher" else min(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps the floor; None without a floor."""
        if self.floor is None:
            return None
        return self.median >= self.floor if self.better == "higher" else self.median <= self.floor

    def record(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of the figure."""
        return {
            "title": self.title,
            "figure": self.median,
            "best": self.best,
            "unit": self.unit,
            "better": self.better,
            "floor": self.floor,
            "holds": self.holds,
            "cpu_s": {"min": min(self.cpu_s), "median": statistics.median(self.cpu_s)},
            "repeats": len(self.values),
            "note": self.note,
        }


class NotMeasuredError(Exception):
    """A measurement cannot be taken here, for the reason given."""


@dataclass(frozen=True)
class Bench:
    """Settings that all measurements share.

    Attributes
    ----------
    cluster : ClusterSpec
        The fleet; `fleet` gives the same hardware at another size.
    seed : int
        Of workloads and random actions.
    repeats : int
        How often each figure is measured, at least 1.
    quick : bool
        A smoke run: the same code on a small fraction of the work, whose figures mean nothing.

    Raises
    ------
    UserError
        No repeat.
    """

    cluster: ClusterSpec
    seed: int = 0
    repeats: int = 5
    quick: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats={self.repeats}: must be at least 1")

    def size(self, full: int, quick: int) -> int:
        """Return how much work to measure.

        Parameters
        ----------
        full, quick : int
            How much in a real run, and in a smoke run.
        """
        return quick if self.quick else full

    @property
    def at_least_s(self) -> float:
        """CPU seconds that one repeat of a fast call is looped for."""
        return 0.01 if self.quick else 0.4

    def fleet(self, num_instances: int) -> ClusterSpec:
        """Return ``num_instances`` instances, those of the cluster in turn.

        Parameters
        ----------
        num_instances : int
            N; may be smaller or larger than the cluster.
        """
        specs = self.cluster.expanded
        chosen = [specs[i % len(specs)] for i in range(num_instances)]
        groups = [replace(s, count=chosen.count(s)) for s in dict.fromkeys(chosen)]
        return ClusterSpec(tuple(groups), f"{self.cluster.name} at {num_instances} instances")


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that one call takes, all threads together.

    Parameters
    ----------
    call : callable
        Without arguments.
    """
    start = time.process_time()
    call()
    return time.process_time() - start


def looped(call: Callable[[], object], at_least_s: float) -> float:
    """Return CPU seconds per call, measured over many calls.

    Parameters
    ----------
    call : callable
        Without arguments; called at least once.
    at_least_s : float
        CPU seconds that all calls take together, at least.
    """
    count, spent = 1, cpu_seconds(call)
    while spent < at_least_s:
        more = max(1, math.ceil(count * min(at_least_s / max(spent, 1e-6) - 1.0, 9.0)))
        start = time.process_time()
        for _ in range(more):
            call()
        spent += time.process_time() - start
        count += more
    return spent / count


def in_new_process(function: Callable[..., T], *arguments: Any, **variables: str) -> T:
    """Call ``function`` in a fresh interpreter with these environment variables set.

    Parameters
    ----------
    function : callable
        At the top of a module, so that it can be pickled.
    *arguments : Any
        Its arguments; they must be picklable.
    **variables : str
        Environment variables of the new process by name.

    Returns
    -------
    object
        What the function returns; what it raises is raised here.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def memory_bytes(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Return resident memory of this process now (``VmRSS``) or at its peak (``VmHWM``).

    Parameters
    ----------
    field : {"VmRSS", "VmHWM"}
        Its name in ``/proc/self/status``.

    Raises
    ------
    NotMeasuredError
        The system has no ``/proc``.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise NotMeasuredError("resident memory is read from /proc, which this system does not have") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

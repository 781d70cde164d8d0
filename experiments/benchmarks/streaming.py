"""A trace too long for memory, simulated in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fleetgym.envs.cluster.kernel.long_traces import round_robin, stream
from fleetgym.envs.cluster.requests import FINISHED, Trace
from fleetgym.envs.cluster.spec import ClusterSpec
from fleetgym.envs.problem import stretch
from fleetgym.envs.saturation import saturation_rps
from fleetgym.envs.workloads import make_workload
from fleetgym.experiments.benchmarks.measure import Bench, Figure, in_new_process, memory_bytes

LOAD = 0.7
PART = 100_000  # requests in memory


class _Run(NamedTuple):
    """What one streamed run took."""

    cpu_s: float
    peak_bytes: int
    mean_e2e_s: float


def streaming(bench: Bench) -> Iterator[Figure]:
    """Measure time and peak memory of ten million requests, each run in a new process.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        CPU seconds, then MiB of the process at its peak.

    Raises
    ------
    NotMeasuredError
        The system has no ``/proc``.
    """
    count, part = bench.size(10_000_000, 3000), bench.size(PART, 1000)
    runs = [in_new_process(_streamed, bench.cluster, count, part, bench.seed) for _ in range(bench.repeats)]
    cpu_s = [run.cpu_s for run in runs]
    title = f"{count:,} streamed requests, {bench.cluster.num_instances} instances, {100 * LOAD:.0f} % load"
    note = f"drawing them included, in parts of {part:,}; mean E2E {runs[0].mean_e2e_s:.2f} s"
    yield Figure("stream_s", title, "s", "lower", cpu_s, cpu_s, 30.0, note)
    peaks = [run.peak_bytes / 2**20 for run in runs]
    yield Figure("stream_peak_mib", f"{title}: peak memory", "MiB", "lower", peaks, cpu_s, 1024.0, "whole process")


def _streamed(cluster: ClusterSpec, count: int, part: int, seed: int) -> _Run:
    """Simulate ``count`` synthetic requests; all of them must finish."""
    route = round_robin(cluster.num_instances)
    for _ in stream(cluster, parts(cluster, 20, 10, seed), route):
        pass  # compiled code is loaded now
    finished, e2e_ns = 0, 0
    start = time.process_time()
    for completed in stream(cluster, parts(cluster, count, part, seed), route):
        results = completed.results
        finished += int(np.count_nonzero(results["status"] == FINISHED))
        e2e_ns += int((results["finish_ns"] - completed.requests["arrival_ns"]).sum())
    cpu_s = time.process_time() - start
    if finished != count:
        raise RuntimeError(f"{count - finished} of {count} streamed requests did not finish")
    return _Run(cpu_s, memory_bytes("VmHWM"), e2e_ns * 1e-9 / count)


def parts(cluster: ClusterSpec, count: int, part: int, seed: int) -> Iterator[Trace]:
    """Draw a trace of ``count`` requests in parts, one following the other in time.

    Parameters
    ----------
    cluster : ClusterSpec
        Offered `LOAD` times its saturation rate.
    count : int
        Requests altogether.
    part : int
        Requests of each part but the last.
    seed : int

    Yields
    ------
    Trace
        Arrivals go on ascending from part to part.
    """
    workload, rng = make_workload({"kind": "synthetic"}), np.random.default_rng(seed)
    rate_rps = LOAD * sum(saturation_rps(spec, workload) for spec in cluster.expanded)
    end_ns = 0
    for first in range(0, count, part):
        trace = workload.episode(rng, min(part, count - first))
        stretch(trace, workload.mean_rate_rps / rate_rps)
        trace.requests["arrival_ns"] += end_ns
        end_ns = int(trace.requests["arrival_ns"][-1]) + round(1e9 / rate_rps)
        yield trace

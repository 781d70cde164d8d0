"""How fast the engines simulate, how cost grows, what compiling takes and how much memory a cluster needs."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import Engine
from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.spec import ClusterSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import stretch
from fleetgym.envs.saturation import saturation_rps
from fleetgym.envs.workloads import Workload, make_workload
from fleetgym.experiments.benchmarks.measure import (
    Bench,
    Figure,
    NotMeasuredError,
    cpu_seconds,
    in_new_process,
    looped,
    memory_bytes,
)

LOADS = (0.3, 0.5, 0.7)


def _loaded_trace(workload: Workload, cluster: ClusterSpec, load: float, count: int | None, seed: int) -> Trace:
    """Draw requests that offer ``load`` times the measured saturation rate of ``cluster``."""
    rate_rps = load * sum(saturation_rps(spec, workload) for spec in cluster.expanded)
    trace = workload.episode(np.random.default_rng(seed), count)
    stretch(trace, workload.mean_rate_rps / rate_rps)
    return trace


def round_robin(num_instances: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return actions that cost nothing to choose; each cluster begins at another instance.

    Parameters
    ----------
    num_instances : int
        N.
    shape : (int, int)
        (steps, B) or (B, steps).

    Returns
    -------
    ndarray of int64
        Of that shape, in [0, N).
    """
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % num_instances


def _simulate(engine: Engine, trace: Trace, actions: NDArray[np.int64]) -> None:
    """Run one whole trace until the cluster is dry."""
    engine.reset(0, trace)
    engine.run(actions)
    engine.drain(0)


def kernel_over_reference(bench: Bench) -> Iterator[Figure]:
    """Measure both engines on the same requests and actions; their results must be equal.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        The ratio of CPU times, then requests per CPU second of the reference engine.

    Raises
    ------
    RuntimeError
        The engines disagree.
    """
    count = bench.size(2000, 60)
    kernel, reference = (make_engine(name, bench.cluster, 1) for name in ("kernel", "reference"))
    slow, fast = _in_turn(bench, reference, kernel, count)
    where = f"{bench.cluster.num_instances} instances, 70 % load"
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    note = f"same {count:,} requests and actions, equal results"
    yield Figure("kernel_over_reference", f"kernel over reference, {where}", "x", "higher", ratios, fast, 200.0, note)
    rates = [count / s for s in slow]
    yield Figure("reference_requests_per_s", f"reference engine, {where}", "requests/s", "higher", rates, slow)


def exact_over_plain(bench: Bench) -> Iterator[Figure]:
    """Measure the kernel serving running requests one by one against lock step; the results must be equal.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        The ratio of requests per CPU second.

    Raises
    ------
    RuntimeError
        The results differ.
    """
    count = bench.size(20_000, 200)
    exact, plain = (make_engine("kernel", cluster, 1) for cluster in (_one_by_one(bench.cluster), bench.cluster))
    slow, fast = _in_turn(bench, exact, plain, count)
    where = f"{bench.cluster.num_instances} instances, 70 % load"
    ratios = [f / s for s, f in zip(slow, fast, strict=True)]
    note = f"requests/s of both on the same {count:,} requests and actions, equal results"
    yield Figure("exact_over_plain", f"exact path over plain one, {where}", "x", "higher", ratios, slow, 0.1, note)


def _one_by_one(cluster: ClusterSpec) -> ClusterSpec:
    return ClusterSpec(tuple(replace(group, lockstep=False) for group in cluster.instances), cluster.name)


def _in_turn(bench: Bench, slow: Engine, fast: Engine, count: int) -> tuple[list[float], list[float]]:
    """Return CPU seconds of each repeat of both engines on the same requests at 70 % load."""
    trace = _loaded_trace(make_workload({"kind": "synthetic"}), bench.cluster, 0.7, count, bench.seed)
    actions = round_robin(bench.cluster.num_instances, (1, count))
    _simulate(fast, trace, actions)
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(bench.repeats):
        for engine, cpu_s in zip((slow, fast), spent, strict=True):
            cpu_s.append(looped(functools.partial(_simulate, engine, trace, actions), bench.at_least_s))
    if not np.array_equal(slow.results(0), fast.results(0)):
        raise RuntimeError("two engines disagree: run the differential tests")
    return spent


def requests_per_second(bench: Bench) -> Iterator[Figure]:
    """Measure the kernel at three loads, and the growth of its cost with load and length of the trace.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        Requests and iterations per CPU second at each load, then microseconds per request for traces of growing length.
    """
    workload = make_workload({"kind": "synthetic"})
    n = bench.cluster.num_instances
    engine = make_engine("kernel", bench.cluster, 1)
    count = bench.size(20_000, 200)
    for load in (*LOADS, 0.9):
        trace = _loaded_trace(workload, bench.cluster, load, count, bench.seed)
        cpu_s = _repeat_trace(bench, engine, trace)
        iterations = int(engine.instance_stats(0)["iterations"].sum())
        where, name = f"{n} instances, {load:.0%} load".replace("%", " %"), f"load_{round(100 * load)}"
        floor = 1e6 if load in LOADS else None
        rates = [count / s for s in cpu_s]
        note = f"{count:,} requests: reset, run, drain"
        yield Figure(
            f"requests_per_s.{name}", f"simulated requests, {where}", "requests/s", "higher", rates, cpu_s, floor, note
        )
        rates = [iterations / s for s in cpu_s]
        yield Figure(f"iterations_per_s.{name}", f"iterations, {where}", "iterations/s", "higher", rates, cpu_s)
    for length in (1000, 10_000, 100_000, 1_000_000):
        length = bench.size(length, length // 100)
        trace = _loaded_trace(workload, bench.cluster, 0.7, length, bench.seed)
        cpu_s = _repeat_trace(bench, engine, trace)
        costs = [1e6 * s / length for s in cpu_s]
        title = f"cost per request, trace of {length:,}, 70 % load"
        yield Figure(f"request_us.length_{length}", title, "us", "lower", costs, cpu_s)


def _repeat_trace(bench: Bench, engine: Engine, trace: Trace) -> list[float]:
    actions = round_robin(engine.num_instances, (1, len(trace)))
    _simulate(engine, trace, actions)
    return [looped(lambda: _simulate(engine, trace, actions), bench.at_least_s) for _ in range(bench.repeats)]


def growth(bench: Bench) -> Iterator[Figure]:
    """Measure how the cost of one decision, observation included, grows with the number of instances.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        Microseconds per decision at each N, then the exponent x of cost ~ N^x between neighbours.
    """
    sizes, batch = (8, 64, 512), bench.size(16, 2)
    cost: dict[int, list[float]] = {}
    cpu: dict[int, list[float]] = {}
    for n in sizes:
        steps = bench.size(16_000 // n, 4)
        engine, actions = make_engine("kernel", bench.fleet(n), batch), round_robin(n, (steps, batch))
        workload = make_workload({"kind": "synthetic"})
        # The same number of requests for every instance, so that each N is measured in the same state.
        traces = [
            _loaded_trace(workload, bench.fleet(n), 0.7, steps * 2 + n * bench.size(50, 1), seed)
            for seed in range(batch)
        ]
        cpu[n] = [_cpu_seconds_of_steps(engine, traces, actions) for _ in range(bench.repeats)]
        cost[n] = [1e6 * s / actions.size for s in cpu[n]]
        yield Figure(f"decision_us.n{n}", f"cost per decision, N = {n}, B = {batch}", "us", "lower", cost[n], cpu[n])
    for small, large in itertools.pairwise(sizes):
        exponents = [math.log(b / a) / math.log(large / small) for a, b in zip(cost[small], cost[large], strict=True)]
        yield Figure(
            f"growth_exponent.n{small}_n{large}", f"cost per decision ~ N^x, N = {small} to {large}", "x", "lower",
            exponents, cpu[large], 1.0, "1: linear",
        )  # fmt: skip


def _cpu_seconds_of_steps(engine: Engine, traces: list[Trace], actions: NDArray[np.int64]) -> float:
    """Return CPU seconds of ``len(actions)`` steps of clusters that have been running for a while."""
    for index, trace in enumerate(traces):
        engine.reset(index, trace)
    warm = len(traces[0]) - len(actions) - 1
    engine.run(round_robin(engine.num_instances, (engine.batch, warm)))
    return cpu_seconds(lambda: [engine.step(row) for row in actions])


def compile_time(bench: Bench) -> Iterator[Figure]:
    """Measure the first use of the kernel in a new process, with an empty cache and with a filled one.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        CPU seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold = in_new_process(_first_use_seconds, bench.cluster, NUMBA_CACHE_DIR=folder)
        warm = [in_new_process(_first_use_seconds, bench.cluster, NUMBA_CACHE_DIR=folder) for _ in range(bench.repeats)]
    title = "first use of the kernel in a process"
    yield Figure("compile_s.cold", f"{title}, empty cache", "s", "lower", [cold], [cold], note="measured once")
    yield Figure("compile_s.warm", f"{title}, filled cache", "s", "lower", warm, warm)


def _first_use_seconds(cluster: ClusterSpec) -> float:
    """Return the CPU seconds from asking for the engine to having used every part of it."""
    start = time.process_time()
    engine = make_engine("kernel", cluster, 1)
    trace = make_workload({"kind": "synthetic"}).episode(np.random.default_rng(0), 10)
    engine.reset(0, trace)
    engine.step(np.zeros(1, np.int64))
    engine.run(np.zeros((1, 9), np.int64))
    engine.drain(0)
    engine.results(0)
    engine.instance_stats(0)
    return time.process_time() - start


def memory_per_environment(bench: Bench) -> Iterator[Figure]:
    """Measure the resident memory of environments that have run an episode, in a new process.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        KiB per environment, then KiB of the kernel's state of one cluster.

    Raises
    ------
    NotMeasuredError
        The system has no ``/proc``.
    """
    batch = bench.size(512, 16)
    grown = [in_new_process(_resident_growth, bench.cluster, batch) for _ in range(bench.repeats)]
    kib = [bytes_ / batch / 1024 for bytes_, _ in grown]
    yield Figure(
        "memory_per_environment_kib",
        f"memory per environment, {bench.cluster.num_instances} instances, 1,000 requests",
        "KiB",
        "lower",
        kib,
        [cpu_s for _, cpu_s in grown],
        120.0,
        f"growth of resident memory by {batch} environments over an episode, their requests included",
    )
    engine = make_engine("kernel", bench.cluster, 1)
    trace = make_workload({"kind": "synthetic"}).episode(np.random.default_rng(bench.seed), 1000)
    taken = cpu_seconds(lambda: engine.reset(0, trace))
    state = sum(array.nbytes for array in engine.snapshot(0).values()) / 1024
    title = f"kernel state of one cluster, {bench.cluster.num_instances} instances, 1,000 requests"
    yield Figure("kernel_state_kib", title, "KiB", "lower", [state], [taken], note="size of a snapshot")


def _resident_growth(cluster: ClusterSpec, batch: int) -> tuple[int, float]:
    """Return by how many bytes ``batch`` environments and a whole episode of each raise the memory, and CPU seconds."""
    from fleetgym.envs.routing.problem import Routing
    from fleetgym.envs.vector import FleetVectorEnv

    def play(num_envs: int) -> FleetVectorEnv:
        env = FleetVectorEnv(num_envs, problem=Routing.resolve(cluster=cluster, num_requests=1000))
        env.reset(seed=0)
        for row in round_robin(cluster.num_instances, (1000, num_envs)):
            env.step(row)
        return env

    first = play(2)  # loads everything that all environments share
    before, start = memory_bytes("VmRSS"), time.process_time()
    envs = play(batch)
    grown, spent = memory_bytes("VmRSS") - before, time.process_time() - start
    del first, envs
    return grown, spent


def prefix_caching(bench: Bench) -> Iterator[Figure]:
    """Measure the Mooncake trace, whose prompts share prefixes: in the trace's own 512-token blocks, and in vLLM's 16.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        Requests per CPU second.

    Raises
    ------
    NotMeasuredError
        The trace is not there.
    """
    for block_size, key in ((512, "requests_per_s.prefix_caching"), (16, "requests_per_s.prefix_caching_16")):
        try:
            workload = make_workload({"kind": "mooncake", "block_size": block_size})
            cluster = _with_prefix_caching(bench.cluster, block_size)
            trace = _loaded_trace(workload, cluster, 0.7, bench.size(1 << 30, 100) if bench.quick else None, bench.seed)
        except UserError as error:
            raise NotMeasuredError(str(error)) from None
        engine = make_engine("kernel", cluster, 1)
        cpu_s = _repeat_trace(bench, engine, trace)
        hits = float(engine.results(0)["cached_tokens"].sum() / trace.requests["prompt_tokens"].sum())
        yield Figure(
            key, f"Mooncake trace with prefix caching, blocks of {block_size} tokens, {cluster.num_instances} "
            "instances, 70 % load", "requests/s", "higher", [len(trace) / s for s in cpu_s], cpu_s, 0.5e6,
            f"{len(trace):,} requests of {trace.requests['prompt_tokens'].mean():,.0f} prompt tokens, "
            f"{100 * hits:.0f} % of them hit, round robin",
        )  # fmt: skip


def _with_prefix_caching(cluster: ClusterSpec, block_size: int) -> ClusterSpec:
    groups: list[Any] = [
        replace(g, engine=replace(g.engine, enable_prefix_caching=True, block_size=block_size))
        for g in cluster.instances
    ]
    return ClusterSpec(tuple(groups), cluster.name)

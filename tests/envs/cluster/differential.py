"""Random cases on which both engines must agree bit for bit, and the comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import strategies as st

from fleetgym.envs.cluster.engine import Engine
from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec, Slo

MS = 1_000_000
SHAPES = {  # largest prompt, largest output, mean gap between arrivals in ms
    "plain": (120, 40, 60.0),
    "overload": (120, 60, 4.0),
    "single": (80, 1, 10.0),
    "huge": (700, 12, 60.0),
    "long": (20, 300, 120.0),
    "growing": (15, 60, 8.0),
    "burst": (60, 30, 0.0),
}
CHAINS = ("conversations", "tree", "shuffled", "loose")
ARRIVALS = ("random", "grid", "bursts", "idle")


@dataclass(frozen=True)
class Case:
    """What both engines are given."""

    cluster: ClusterSpec
    trace: Trace
    actions: np.ndarray
    available: np.ndarray
    slo: Slo


def latency(rng: np.random.Generator, constant: bool) -> LatencyModel:
    if constant:
        return LatencyModel(w0_s=0.01)
    return LatencyModel(
        w0_s=0.008,
        w1_s_per_tok=float(rng.uniform(1e-6, 1e-4)),
        c0_s=0.004,
        c1_s_per_tok=float(rng.uniform(1e-5, 3e-4)),
        kd_s_per_ctxtok=float(rng.uniform(1e-8, 1e-6)),
        km_s_per_ctxtok=float(rng.uniform(1e-8, 1e-6)),
        a_s_per_pair=float(rng.uniform(1e-9, 1e-7)),
        sm_s_per_seq=float(rng.uniform(1e-6, 1e-5)),
        om_s=1e-4,
        moe_we_s=float(rng.choice([0.0, 0.006])),
        moe_q=0.05,
        moe_g_s_per_tok=float(rng.uniform(0.0, 1e-4)),
    )


@st.composite
def instances(draw: st.DrawFn, rng: np.random.Generator, caching: bool, longest: int) -> InstanceSpec:
    block_size = draw(st.sampled_from([1, 3, 4, 16]))
    # From too small for some requests over preemption all the time to ample.
    blocks = 3 + int(longest * draw(st.sampled_from([0.6, 1.0, 1.2, 1.6, 2.5, 30.0])) / block_size)
    batched = draw(st.sampled_from([2, 5, 16, 64, 512, 8192]))
    args = EngineArgs(
        max_num_batched_tokens=batched,
        max_num_scheduled_tokens=draw(st.sampled_from([None, None, batched, -(-batched // 3)])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 0, 1, 4, 30])),
        max_num_seqs=draw(st.sampled_from([1, 4, 16, 64, 1024])),
        max_model_len=draw(st.sampled_from([None, (blocks - 1) * block_size // 2 + 2])),
        block_size=block_size,
        num_gpu_blocks=blocks,
        enable_prefix_caching=caching and draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.1])),
        reserve_full_prompt=draw(st.sampled_from([True, True, False])),
        cuda_graph_padding=draw(st.booleans()),
    )
    model = latency(rng, draw(st.booleans()))
    dp = draw(st.sampled_from([1, 1, 2, 3, 4]))
    count, lockstep = draw(st.integers(1, 2)), draw(st.sampled_from([True, True, False]))
    return InstanceSpec("any", "any", count=count, dp=dp, engine=args, latency=model, lockstep=lockstep)


def arrivals_ns(gaps_ms: np.ndarray, specs: Iterable[InstanceSpec]) -> np.ndarray:
    """Arrivals with these gaps.

    Exact equals that are partly prefilled side by side may preempt each other for ever, so where that is possible those
    of one time come a nanosecond apart. The first keeps it: it may be the very end of an iteration.
    """
    arrivals = (np.cumsum(gaps_ms) * MS).astype(np.int64)
    settings = [spec.engine for spec in specs]
    if any(args.long_prefill_token_threshold and args.scheduling_policy == "priority" for args in settings):
        arrivals += np.arange(len(arrivals)) - np.searchsorted(arrivals, arrivals)
    return arrivals


def chains(rng: np.random.Generator, tokens: np.ndarray, kind: str) -> list[np.ndarray]:
    """Content ids with shared beginnings.

    ``conversations``: a few that each request follows for a while. ``tree``: each chain leaves an earlier one somewhere
    and goes on with new ids, consecutive ones; ``shuffled``: the same with ids in no order. ``loose``: ids that
    come back anywhere, as no sound trace has them.
    """
    if kind == "conversations":
        return [int(rng.integers(0, 3)) * 100_000 + np.arange(rng.integers(0, count + 1)) for count in tokens]
    if kind == "loose":
        return [rng.integers(0, 12, rng.integers(0, count + 1)) for count in tokens]
    out: list[np.ndarray] = [np.zeros(0, np.int64)]
    used = 0
    for count in tokens:
        trunk = out[rng.integers(len(out))]
        kept = trunk[: rng.integers(0, min(count, len(trunk)) + 1)] if rng.random() < 0.7 else trunk[:count]
        new = int(rng.integers(0, count - len(kept) + 1))
        out.append(np.concatenate([kept, used + np.arange(new)]))
        used += new
    if kind == "shuffled":
        names = rng.permutation(used)
        return [names[chain] for chain in out[1:]]
    return out[1:]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    caching = draw(st.booleans())
    prompt, output, gap_ms = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    kinds = st.lists(instances(rng, caching, prompt + output), min_size=1, max_size=2)
    cluster = ClusterSpec(tuple(draw(kinds)))
    count = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(ARRIVALS))
    gaps = rng.exponential(gap_ms, count)
    if kind == "grid":
        gaps = np.rint(gaps / 10) * 10
    elif kind == "bursts":
        gaps = np.where(rng.random(count) < 0.1, gaps * 10, 0.0)
    elif kind == "idle":
        gaps = np.where(rng.random(count) < 0.2, 60_000.0, gaps)
    prompts, outputs = rng.integers(1, prompt + 1, count), rng.integers(1, output + 1, count)
    size = min(one.engine.block_size for one in cluster.expanded)
    trace = make_trace(
        arrivals_ns(gaps, cluster.instances),
        prompts,
        outputs,
        priority=rng.integers(0, draw(st.sampled_from([1, 2, 5])), count),
        chains=chains(rng, (prompts + outputs) // size, draw(st.sampled_from(CHAINS))) if caching else None,
    )
    available = rng.random(cluster.num_instances) < 0.8
    available[rng.integers(cluster.num_instances)] = True
    actions = rng.choice(np.flatnonzero(available), count)
    return Case(cluster, trace, actions, available, Slo(ttft_s=0.1, tpot_s=0.015))


def crowded(seed: int) -> Case:
    """Short requests on few blocks: many run, anybody may be the victim, and last tokens are in flight all the time.

    Here the rare rules meet. Drawn evenly, as hypothesis prefers simple cases and repeats them.
    """
    rng = np.random.default_rng(seed)
    block_size, caching = int(rng.choice([1, 2, 4])), bool(rng.random() < 0.4)
    longest, count = int(rng.choice([8, 24])), 40
    prompts, outputs = rng.integers(1, longest + 1, count), rng.integers(1, longest + 1, count)
    batched = int(rng.choice([5, 8, 64]))
    args = EngineArgs(
        max_num_batched_tokens=batched,
        max_num_scheduled_tokens=batched // 2 if rng.random() < 0.2 else None,
        long_prefill_token_threshold=int(rng.choice([0, 0, 1, 3, 6])),
        max_num_seqs=int(rng.choice([6, 64])),
        block_size=block_size,
        num_gpu_blocks=2 + int(longest * rng.uniform(1.0, 6.0) / block_size),
        enable_prefix_caching=caching,
        async_scheduling=bool(rng.random() < 0.8),
        scheduling_policy=str(rng.choice(["priority", "priority", "fcfs"])),
        watermark=float(rng.choice([0.0, 0.0, 0.3])),
        reserve_full_prompt=bool(rng.random() < 0.5),
    )
    one = InstanceSpec("any", "any", engine=args, latency=latency(rng, True), lockstep=bool(rng.random() < 0.8))
    cluster = ClusterSpec((one,))
    gaps = rng.exponential(float(rng.choice([5.0, 30.0])), count)
    trace = make_trace(
        arrivals_ns(gaps * (rng.random(count) < 0.5), cluster.instances),
        prompts,
        outputs,
        priority=rng.integers(0, rng.choice([1, 2, 5]), count),
        chains=chains(rng, (prompts + outputs) // block_size, CHAINS[seed % len(CHAINS)]) if caching else None,
    )
    return Case(cluster, trace, np.zeros(count, np.int64), np.ones(1, bool), Slo(ttft_s=0.1, tpot_s=0.015))


def same(kernel: Engine, reference: Engine) -> None:
    """Everything that can be asked of both is equal at the present decision."""
    for name in ("now_ns", "pending", "done", "obs", "mask", "terms"):
        equal(name, getattr(kernel, name), getattr(reference, name))
    for index in range(kernel.batch):
        for name in ("requests", "results", "instance_stats", "gap_histogram", "episode_totals"):
            equal(name, *(np.asarray(getattr(engine, name)(index)) for engine in (kernel, reference)))


def equal(name: str, left: np.ndarray, right: np.ndarray) -> None:
    """Fail with the first rows that differ."""
    if not (left == right).all():
        rows = np.argwhere(left != right)[:3].tolist()
        pytest.fail(f"{name} differ at {rows}:\n{left[rows[0][0]]}\n{right[rows[0][0]]}")


def check(case: Case) -> None:
    """Run a case step by step in both engines."""
    pair = [make_engine(name, case.cluster, 1, slo=case.slo) for name in ("kernel", "reference")]
    for engine in pair:
        engine.reset(0, case.trace, case.available)
    same(*pair)
    for action in case.actions:
        for engine in pair:
            engine.step(np.array([action]))
        same(*pair)
    for engine in pair:
        engine.drain(0)
    same(*pair)

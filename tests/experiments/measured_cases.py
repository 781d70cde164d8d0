"""Measured runs that the simulator itself wrote, and their replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from builders import write_json_lines

from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.experiments.fidelity.measured_replay import MeasuredReplay, replay_from
from fleetgym.experiments.harness.config import compose_config

HARDWARE = {"gpu": "RTX4090", "model": "Llama-3.1-8B"}
ARGS = EngineArgs(max_num_batched_tokens=2048, max_num_seqs=24, num_gpu_blocks=900, enable_prefix_caching=True)
ENGINE_KWARGS = {"tensor_parallel_size": 1, "data_parallel_size": 1, "max_num_seqs": 24, "max_num_batched_tokens": 2048}


def server(**changes: Any) -> InstanceSpec:
    return InstanceSpec(**HARDWARE, engine=ARGS, **changes)


def requests(count: int = 60, seed: int = 0) -> Trace:
    """Overload, with prompts that share their beginning."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.integers(1, 100_000_000, count))
    arrival -= arrival[0]  # a data-parallel balancer counts its 100 ms from there
    prompts = rng.integers(40, 900, count)
    chains = [np.r_[np.arange(2), 1000 * i + np.arange(2, n // 16)] for i, n in enumerate(prompts)]
    return make_trace(
        arrival,
        prompts,
        rng.integers(1, 200, count),
        chains=[c[: n // 16] for c, n in zip(chains, prompts, strict=True)],
    )


def serve(spec: InstanceSpec, trace: Trace) -> np.ndarray[Any, Any]:
    engine = make_engine("reference", ClusterSpec((spec,)))
    engine.reset(0, trace)
    for _ in range(len(trace)):
        engine.step(np.zeros(1, np.int64))
    engine.drain(0)
    return engine.results(0)


def write_run(
    folder: Path, spec: InstanceSpec, trace: Trace | None = None, *, blocks: int | None = 900, kwargs: Any = None
) -> Path:
    """Write what a server like ``spec`` would have left, on vLLM's two clocks, with a load series."""
    trace = trace or requests()
    results, rows = serve(spec, trace), trace.requests
    folder.mkdir()
    wall, engine_clock = 1.7e9, 4.0e5
    stamps, workload = [], []
    for i, (row, result) in enumerate(zip(rows, results, strict=True)):
        arrival = row["arrival_ns"] * 1e-9
        names = ("scheduled_ns", "first_token_ns", "finish_ns")
        scheduled, first, last = (engine_clock + result[name] * 1e-9 for name in names)
        stamps.append(
            {
                "request_id": f"bench-{i}",
                "input_toks": int(row["prompt_tokens"]),
                "output_toks": int(row["output_tokens"]),
                "arrival_time": wall + arrival,
                "queued_ts": engine_clock + arrival,
                "scheduled_ts": scheduled,
                "first_token_ts": first,
                "last_token_ts": last,
            }
        )
        chain = trace.block_ids[row["block_start"] : row["block_start"] + row["block_count"]]
        workload.append(
            {
                "request_id": f"bench-{i}",
                "arrival_s": arrival,
                "prompt_tokens": int(row["prompt_tokens"]),
                "output_tokens": int(row["output_tokens"]),
                "prefix_block_ids": chain.tolist(),
            }
        )
    for name, lines in (("requests", stamps), ("workload", workload)):
        write_json_lines(folder / f"{name}.jsonl", lines)
    meta = {"model": "meta-llama/Llama-3.1-8B", "engine_kwargs": kwargs or ENGINE_KWARGS}
    (folder / "meta.json").write_text(json.dumps(meta | ({"num_gpu_blocks": blocks} if blocks else {})))
    return folder


def replay_of(folder: Path, *overrides: str) -> MeasuredReplay:
    given = [f"measured={folder}", "gpu=RTX4090", "model=Llama-3.1-8B", "engine=reference", *overrides]
    return replay_from(compose_config("validate", given))

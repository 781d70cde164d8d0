"""The catalogue of hardware: which row an instance takes, what is composed for lack of one, vLLM's defaults per GPU."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import fleetgym

from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.latency import (
    ESTIMATE_TIER,
    TIER_ORDER,
    LatencyModel,
    batch_defaults,
    catalogue,
    find_row,
    iteration_seconds,
)
from fleetgym.envs.cluster.requests import make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.errors import UserError

GPU, MOE, DENSE = "RTXPRO6000", "Qwen3-30B-A3B-Instruct-2507", "Llama-3.1-8B"


def raw(tp: int, dp: int, ep: int) -> dict[str, str]:
    """The file's own line of the mixture of experts."""
    with resources.files("fleetgym.envs.cluster").joinpath("catalogue.csv").open(encoding="utf-8") as file:
        wanted = {"model": MOE, "tp": str(tp), "dp": str(dp), "ep": str(ep)}
        (line,) = (row for row in csv.DictReader(file) if wanted.items() <= row.items())
    return line


# ---- rows ----


def test_the_catalogue_is_the_published_one(data_path: Path) -> None:
    ours = resources.files("fleetgym.envs.cluster").joinpath("catalogue.csv").read_text(encoding="utf-8")
    assert ours == (data_path / "latency" / "coefficients.csv").read_text(encoding="utf-8")


def test_degrees_name_one_row_and_never_leave_a_choice_of_expert_layouts() -> None:
    rows = catalogue()
    assert len({(row.tier, row.key) for row in rows}) == len(rows)
    layouts = {(row.gpu, row.model, row.tp, row.dp): row.ep for row in rows}
    assert all(layouts[row.gpu, row.model, row.tp, row.dp] == row.ep for row in rows)
    assert {row.tier for row in rows} == set(TIER_ORDER)
    assert not any(row.estimate for row in rows)


@pytest.mark.parametrize(("tp", "dp", "ep"), [(1, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_a_group_takes_all_its_terms_and_its_kv_capacity_from_its_own_row(tp: int, dp: int, ep: int) -> None:
    spec, line = InstanceSpec(GPU, MOE, tp=tp, dp=dp), raw(tp, dp, ep)
    assert (spec.row.key, spec.row.tier) == (f"{GPU}/{MOE}/tp{tp}/dp{dp}/ep{ep}", "A")
    assert spec.estimate == ""
    for name, value in vars(spec.row.latency).items():
        scale = 1.0 if name == "moe_q" else float(line["recommended_scale"])
        assert value == float(line[name]) * scale, name
    assert spec.num_gpu_blocks == int(line["kv_capacity_tokens_est"]) // 16
    assert spec.row == replace(spec, ep=ep).row, "the layout may be named"


@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_a_group_s_iteration_is_its_slowest_rank_and_the_experts_for_the_tokens_of_all(engine: str) -> None:
    spec, line = InstanceSpec(GPU, MOE, dp=2), raw(1, 2, 2)
    value = {name: float(line[name]) for name in line if name.endswith(("_s", "_tok", "ctxtok", "_pair", "moe_q"))}
    simulator = make_engine(engine, ClusterSpec((spec,)), 1)
    simulator.reset(0, make_trace(np.zeros(1, np.int64), np.array([300]), np.array([1])))
    simulator.step(np.zeros(1, np.int64))
    simulator.drain(0)
    prefill, idle = 304, 1  # padded tokens; the rank without work takes part with a dummy token
    dense = max(value["w0_s"] + value["w1_s_per_tok"] * prefill, value["c0_s"] + value["c1_s_per_tok"] * 300)
    dense += value["a_s_per_pair"] * 300 * 301 / 2 + value["om_s"]
    tokens = prefill + idle
    experts = value["moe_we_s"] * (1 - (1 - value["moe_q"]) ** tokens) + value["moe_g_s_per_tok"] * tokens
    seconds = 1.03 * (dense + experts)
    assert simulator.results(0)["first_token_ns"][0] == pytest.approx(seconds * 1e9, abs=1.0)


# ---- estimates ----


@pytest.mark.parametrize(
    ("model", "degrees", "key", "text"),
    [
        (MOE, {"dp": 4}, "tp1/dp4/ep4", "dp=4 not measured: .*tp1/dp2/ep2 .tier A., with 1/2 of its expert terms"),
        (MOE, {"dp": 3}, "tp1/dp3/ep3", "dp=3 not measured: .*tp1/dp1/ep1 .tier A., with 1/3 of its expert terms"),
        (MOE, {"tp": 2, "dp": 2}, "tp2/dp2/ep4", "dp=2 not measured: .*tp2/dp1/ep2 .tier A., with 1/2"),
        (MOE, {"tp": 2, "ep": 1}, "tp2/dp1/ep1", "ep=1 not measured: each rank as in .*tp2/dp1/ep2 .tier A.$"),
        (MOE, {"dp": 4, "ep": 1}, "tp1/dp4/ep1", "dp=4 and ep=1 not measured: .*tp1/dp2/ep2"),
        (DENSE, {"dp": 2}, "tp1/dp2/ep1", r"dp=2 not measured: .*tp1/dp1/ep1 .tier A\+., as if alone"),
    ],
)
def test_what_was_not_measured_is_an_estimate_of_the_lowest_tier(
    model: str, degrees: dict[str, int], key: str, text: str
) -> None:
    spec = InstanceSpec(GPU, model, **degrees)  # type: ignore[arg-type]
    assert (spec.row.tier, spec.row.key) == (ESTIMATE_TIER, f"{GPU}/{model}/{key}")
    assert ESTIMATE_TIER not in TIER_ORDER, "nobody can ask for it"
    assert re.search(text, spec.row.estimate)
    assert spec.estimate == f"ESTIMATE, tier E, {spec.row.key}: {spec.row.estimate}"


def test_an_estimate_is_composed_from_one_row_whose_terms_stay_together() -> None:
    base, estimate = find_row(GPU, MOE, 1, dp=2), find_row(GPU, MOE, 1, dp=4)
    halves = {"moe_we_s": base.latency.moe_we_s / 2, "moe_g_s_per_tok": base.latency.moe_g_s_per_tok / 2}
    assert estimate.latency == replace(base.latency, **halves)
    assert estimate.kv_capacity_tokens == base.kv_capacity_tokens
    dense = find_row(GPU, DENSE, 1)
    assert find_row(GPU, DENSE, 1, dp=2).latency == dense.latency
    assert find_row(GPU, DENSE, 1, dp=2, tier="A").latency == find_row(GPU, DENSE, 1, tier="A").latency


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"tp": 4}, r"^tp=4: no catalogue row .* \(allowed: tp1/dp1/ep1, tp1/dp2/ep2, tp2/dp1/ep2\)$"),
        (
            {"tp": 4, "dp": 2, "ep": 8},
            r"^tp=4: no catalogue row .* \(allowed: tp1/dp1/ep1, tp1/dp2/ep2, tp2/dp1/ep2\)$",
        ),
        ({"dp": 2, "ep": 3}, f"^ep=3: must be 1 or 2 for model='{MOE}' with tp=1, dp=2$"),
        ({"ep": 2}, f"^ep=2: must be 1 for model='{MOE}' with tp=1, dp=1$"),
        ({"ep": 0}, "^ep=0: must be at least 1$"),
        ({"dp": 2, "tier": "A+"}, f"^model='{MOE}': no catalogue row on gpu='{GPU}'"),
    ],
)
def test_what_cannot_even_be_composed_is_one_line_that_lists_what_exists(degrees: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InstanceSpec(GPU, MOE, **degrees)


def test_own_coefficients_and_blocks_need_no_row() -> None:
    args = EngineArgs(max_num_batched_tokens=64, max_num_seqs=4, num_gpu_blocks=100)
    spec = InstanceSpec("mine", "mine", tp=4, dp=8, latency=LatencyModel(w0_s=0.01), engine=args)
    assert spec.estimate == ""
    assert spec.label == "mine mine tp4 dp8"


def test_a_cluster_names_each_estimate_once() -> None:
    estimated = InstanceSpec(GPU, MOE, dp=3)
    fleet = ClusterSpec((InstanceSpec(GPU, MOE, dp=2, count=2), estimated, replace(estimated, count=2)))
    assert fleet.estimates == (estimated.estimate,)
    assert fleet.label.endswith(f"2 x {GPU} {MOE} tp1 dp3 (estimate, tier E)")
    assert fleet.label.startswith(f"2 x {GPU} {MOE} tp1 dp2, ")


FLEET = f"cluster.instances=[{{gpu: {GPU}, model: {MOE}, dp: 3, count: 2}}]"
SHORT = ("env.num_requests=20", "env.load=null")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("simulate", ("workload.num_requests=20",)),
        ("evaluate", (*SHORT, "episodes=1")),
        ("leaderboard", (*SHORT, "seeds=[0,1]", "policies=[random,round_robin]", "checkpoint=null")),
        ("bench", ("only=[kernel]", "quick=true")),
        (
            "train",
            (*SHORT, "total_timesteps=64", "eval_every_timesteps=64", "eval_episodes=1", "agent.num_envs=2",
             "agent.hyperparameters.n_steps=32", "agent.hyperparameters.batch_size=64"),
        ),
    ],
)  # fmt: skip
def test_every_command_that_simulates_an_estimate_says_so(
    command: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = fleetgym(tmp_path, command, FLEET, *arguments, "hydra.run.dir=out")
    assert done.stdout.count(f"note: {InstanceSpec(GPU, MOE, dp=3).estimate}\n") == 1
    if command == "leaderboard":
        assert "tier E" in (tmp_path / "out" / "leaderboard.html").read_text()


# ---- vLLM's defaults ----


@pytest.mark.parametrize(
    ("gpu", "tokens", "seqs"),
    [
        ("H100-80GB", 8192, 1024),
        ("H200", 8192, 1024),
        ("RTXPRO6000", 8192, 1024),
        ("B200", 16384, 1024),
        ("A100-80GB", 2048, 256),
        ("A40", 2048, 256),
        ("RTX4090", 2048, 256),
        ("TPU-v6e-1", 1024, 256),
    ],
)
def test_batch_defaults_are_those_of_vllm_serve_on_the_gpu(gpu: str, tokens: int, seqs: int) -> None:
    assert batch_defaults(gpu) == (tokens, seqs)


def test_every_gpu_of_the_catalogue_has_its_defaults() -> None:
    for row in catalogue():
        spec = InstanceSpec(row.gpu, row.model, tp=row.tp, dp=row.dp, tier=row.tier)
        assert (spec.max_num_batched_tokens, spec.max_num_seqs) == batch_defaults(row.gpu)
        assert (spec.engine.max_num_batched_tokens, spec.engine.max_num_seqs) == batch_defaults(row.gpu)


def test_the_default_is_the_same_instance_as_the_stated_figure() -> None:
    stated = EngineArgs(max_num_batched_tokens=8192, max_num_seqs=1024)
    assert InstanceSpec("H100-80GB", DENSE) == InstanceSpec("H100-80GB", DENSE, engine=stated)
    assert InstanceSpec("A100-80GB", "Meta-Llama-3-8B").engine == EngineArgs(
        max_num_batched_tokens=2048, max_num_seqs=256
    )


def test_what_is_stated_stays_and_there_are_never_more_sequences_than_tokens() -> None:
    spec = InstanceSpec("H100-80GB", DENSE, engine=EngineArgs(max_num_batched_tokens=100))
    assert (spec.max_num_batched_tokens, spec.max_num_seqs) == (100, 100)
    spec = InstanceSpec("H100-80GB", DENSE, engine=EngineArgs(max_num_seqs=7))
    assert (spec.max_num_batched_tokens, spec.max_num_seqs) == (8192, 7)


def test_both_engines_compose_iterations_of_the_default_size() -> None:
    spec = InstanceSpec("H100-80GB", DENSE)
    seconds = iteration_seconds(spec.tables(), 0, 5000, 0, 5000 * 5001)
    for engine in ("kernel", "reference"):
        simulator = make_engine(engine, ClusterSpec((spec,)), 1)
        simulator.reset(0, make_trace(np.zeros(1, np.int64), np.array([5000]), np.array([1])))
        simulator.step(np.zeros(1, np.int64))
        simulator.drain(0)
        assert simulator.instance_stats(0)["iterations"].tolist() == [1], "one chunk, not three of 2,048"
        assert simulator.results(0)["first_token_ns"][0] == pytest.approx(seconds * 1e9, abs=1.0)


def test_a_gpu_of_unknown_memory_is_said_to_be_one() -> None:
    args = EngineArgs(num_gpu_blocks=100, max_num_seqs=4)
    with pytest.raises(UserError, match=r"gpu='H300': its memory is not known, .* give max_num_batched_tokens and "):
        InstanceSpec("H300", "mine", latency=LatencyModel(w0_s=0.01), engine=args)
    stated = replace(args, max_num_batched_tokens=64)
    assert InstanceSpec("H300", "mine", latency=LatencyModel(w0_s=0.01), engine=stated).max_num_batched_tokens == 64

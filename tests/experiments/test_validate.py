"""Validation: a folder that the simulator itself wrote must be replayed without error, and faults must show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import read_json_lines, write_json_lines
from commands import fleetgym, refused
from measured_cases import ARGS, ENGINE_KWARGS, HARDWARE, replay_of, requests, serve, server, write_run

from fleetgym.envs.cluster.latency import find_row
from fleetgym.envs.cluster.requests import make_trace
from fleetgym.envs.cluster.spec import SETTINGS, InstanceSpec
from fleetgym.envs.errors import UserError
from fleetgym.experiments.fidelity.measured_replay import METRICS, STATISTICS, MeasuredReplay, error_table
from fleetgym.experiments.harness.config import compose_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", server())


def worst(replay: MeasuredReplay) -> float:
    errors = replay.errors(replay.simulate())
    return max(abs(cell["error_pct"] or 0.0) for table in errors.values() for cell in table.values())


def test_a_run_of_the_simulator_itself_is_replayed_without_error(folder: Path) -> None:
    replay = replay_of(folder)
    assert replay.instance.engine == ARGS
    simulation = replay.simulate()
    assert simulation.preemptions > 0, "the case is meant to be hard"
    assert simulation.cached_tokens > 0
    assert worst(replay) < 0.01


@pytest.mark.parametrize(
    "change",
    [
        "vllm.async_scheduling=false",
        "vllm.enable_prefix_caching=false",
        "vllm.cuda_graph_padding=false",
        "vllm.max_num_seqs=20",
        "vllm.max_num_batched_tokens=512",
        "kv_blocks=855",
    ],
)
def test_every_setting_that_is_wrong_shows(folder: Path, change: str) -> None:
    assert worst(replay_of(folder, change)) > 0.05


def test_looking_at_the_load_changes_nothing_and_sees_it_exactly(folder: Path) -> None:
    replay = replay_of(folder)
    times = np.arange(0.25, 8.0, 0.5)
    unseen, seen = replay.simulate(), replay.simulate(load_at_s=times)
    for name in METRICS:
        np.testing.assert_array_equal(unseen.latencies[name], seen.latencies[name])
    assert seen.load is not None
    now, run = times[:, None], replay.run
    unfinished = ((run.arrival_s <= now) & ~(run.finish_s <= now)).sum(axis=1)
    np.testing.assert_array_equal(seen.load.running + seen.load.waiting, unfinished)
    assert seen.load.running.max() == 24
    assert seen.load.waiting.max() > 0


def test_unfinished_requests_are_replayed_but_not_judged(folder: Path, tmp_path: Path) -> None:
    lines = read_json_lines(folder / "requests.jsonl")
    for line in lines[10:13]:
        line |= {"first_token_ts": None, "last_token_ts": None}
    for name in ("workload.jsonl", "meta.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    write_json_lines(tmp_path / "requests.jsonl", lines)
    replay = replay_of(tmp_path)
    assert replay.facts()["requests"] == {"total": 60, "judged": 57, "unfinished": 3}
    assert any("3 requests never finished" in note for note in replay.notes)
    assert worst(replay) < 0.01


def test_the_error_is_that_of_simulated_over_measured() -> None:
    values = {name: np.array([1.0, 2.0, 3.0, np.nan]) for name in METRICS}
    half = {name: value * 0.5 for name, value in values.items()}
    table = error_table(values, half, np.ones(4, np.bool_))
    assert set(table) == set(METRICS)
    assert set(table["ttft"]) == set(STATISTICS)
    assert table["e2e"]["mean"] == {"measured_s": 2.0, "simulated_s": 1.0, "error_pct": -50.0}
    nothing = error_table(values, half, np.array([False, False, False, True]))
    assert nothing["tpot"]["p90"] == {"measured_s": None, "simulated_s": None, "error_pct": None}


def test_larger_blocks_are_named_by_the_last_id_in_each(tmp_path: Path) -> None:
    spec = server()
    coarse = replace(ARGS, block_size=32, num_gpu_blocks=450)
    rows = requests().requests
    fine = requests().block_ids
    spans = zip(rows["block_start"], rows["block_count"], strict=True)
    chains = [fine[start + 1 : start + count : 2] for start, count in spans]
    columns = (rows[name] for name in ("arrival_ns", "prompt_tokens", "output_tokens"))
    served = serve(replace(spec, engine=coarse), make_trace(*columns, chains=chains))
    replay = replay_of(write_run(tmp_path / "run", spec), "vllm.block_size=32", "kv_blocks=450")
    np.testing.assert_allclose(
        replay.simulate().latencies["e2e"], (served["finish_ns"] - rows["arrival_ns"]) * 1e-9, atol=1e-6
    )
    with pytest.raises(UserError, match=r"vllm\.block_size=24: must be a multiple of 16"):
        replay_of(tmp_path / "run", "vllm.block_size=24").simulate()


@pytest.mark.parametrize("field", ["block_ids", "prefix_block_ids"])
def test_a_plain_run_shares_the_blocks_that_it_names(tmp_path: Path, field: str) -> None:
    record = {"prompt_tokens": 320, "output_tokens": 2, "ttft_s": 0.02, "e2e_s": 0.03, field: list(range(20))}
    (tmp_path / "requests.jsonl").write_text(
        "".join(json.dumps({"arrival_s": 5 * i, **record}) + "\n" for i in range(2))
    )
    for overrides, cached in (
        ((), 304),  # all but the last block, whose last token must be computed
        (("vllm.block_size=32",), 288),
        (("vllm.enable_prefix_caching=false", "vllm.block_size=24"), 0),
    ):
        assert replay_of(tmp_path, *overrides).simulate().cached_tokens == cached


def test_a_full_cache_is_recognised_and_its_size_reconstructed(tmp_path: Path) -> None:
    args = replace(ARGS, max_num_seqs=128, num_gpu_blocks=1100)
    spec, trace = InstanceSpec(**HARDWARE, engine=args), requests(150, seed=3)
    folder = write_run(tmp_path / "run", spec, trace, blocks=None, kwargs={**ENGINE_KWARGS, "max_num_seqs": 128})
    known = replay_of(folder, "kv_blocks=1100")
    times = np.arange(1.0, np.max(known.run.finish_s))
    load = known.simulate(load_at_s=times).load
    assert load is not None
    rows = (f"{t},{int(r)},{int(w)},0.0" for t, r, w in zip(*load, strict=True))
    (folder / "timeseries.csv").write_text("t,running,waiting,kv_cache_pct\n" + "\n".join(rows) + "\n")
    kv = replay_of(folder).kv
    assert kv.source == "saturation"
    assert kv.blocks == pytest.approx(1100, rel=0.04)
    (folder / "meta.json").unlink()
    assert replay_of(folder).kv.source == "catalogue", "an unknown max_num_seqs is not taken for a full cache"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu=RTX4091", "gpu='RTX4091': not in the catalogue; did you mean RTX4090"),
        ("model=Llama-3.1-9B", "model='Llama-3.1-9B': no catalogue row on gpu='RTX4090'; did you mean Llama-3.1-8B"),
        ("tp=2", "tp=2: meta.json of the measured run says tensor_parallel_size=1"),
        ("tier=Z", "tier='Z': unknown"),
        ("kv_blocks=0", "kv_blocks=0: must be a whole number of at least 1"),
        ("kv_blocks=12", "kv_blocks=12: request [0-9]+ .* must fit"),
        ("vllm.max_num_seqs=0", "vllm: max_num_seqs=0: must be at least 1"),
        ("vllm.max_num_seqs=many", "vllm.max_num_seqs='many': expected a whole number, got str"),
        ("vllm.long_prefill_token_threshold=-1", "vllm: long_prefill_token_threshold=-1: must be at least 0"),
        ("vllm.max_num_scheduled_tokens=0", "vllm: max_num_scheduled_tokens=0: must be at least 1"),
        ("vllm.max_num_scheduled_tokens=4096", "must be at most max_num_batched_tokens=2048"),
        ("ep=2", "ep=2: must be 1 for model='Llama-3.1-8B' with tp=1, dp=1"),
        ("engine=warp", "engine='warp': unknown"),
        ("measured=/nowhere", "measured='/nowhere': must be a folder"),
    ],
)
def test_mistakes_are_one_clear_line(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay_of(folder, override).simulate()


def test_a_folder_without_meta_takes_its_settings_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    for name in ("requests.jsonl", "workload.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text())
    replay = replay_of(tmp_path, "vllm.max_num_seqs=24", "kv_blocks=900")
    assert replay.settings["max_num_seqs"] == (24, "command line")
    assert replay.settings["async_scheduling"] == (True, "vLLM's default")
    assert worst(replay) < 0.01


def test_settings_of_the_scheduler_are_read_from_meta_by_the_names_of_the_fields(tmp_path: Path) -> None:
    settings = {"long_prefill_token_threshold": 128, "max_num_scheduled_tokens": 300}
    spec = replace(server(), engine=replace(ARGS, **settings))
    run = write_run(tmp_path / "run", spec, kwargs=ENGINE_KWARGS | settings)
    replay = replay_of(run)
    for name, value in settings.items():
        assert replay.settings[name] == (value, "meta.json")
    assert worst(replay) < 0.01
    for name, value in {"long_prefill_token_threshold": 0, "max_num_scheduled_tokens": 2048}.items():
        other = replay_of(run, f"vllm.{name}={value}")
        assert other.settings[name] == (value, "command line")
        assert worst(other) > 1.0, f"{name} decides nothing"


@pytest.mark.parametrize("name", ["validate", "calibrate"])
def test_every_setting_of_a_server_is_a_key_of_the_command(name: str) -> None:
    assert dict(compose_config(name).vllm) == dict.fromkeys(set(SETTINGS) - {"num_gpu_blocks"})


@pytest.mark.parametrize("name", ["validate", "calibrate"])
def test_a_setting_that_does_not_exist_is_one_line_with_near_matches(name: str, folder: Path, tmp_path: Path) -> None:
    given = (name, f"measured={folder}", "gpu=RTX4090", "model=Llama-3.1-8B")
    line = refused(tmp_path, *given, "vllm.max_num_seq=9")
    assert line.startswith("error: vllm.max_num_seq: unknown key; did you mean max_num_seqs, ")
    line = refused(tmp_path, *given, "vllm.foo=1")
    assert line.startswith("error: vllm.foo: unknown key (allowed: async_scheduling, block_size, ")


def test_the_command_writes_metrics_picture_and_a_page_that_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    arguments = (f"measured={folder}", "gpu=RTX4090", "model=Llama-3.1-8B", "tp=1", "engine=reference")
    done = fleetgym(tmp_path, "validate", *arguments, "hydra.run.dir=out")
    assert "TTFT" in done.stdout
    assert "recorded in meta.json (num_gpu_blocks=900)" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for metric in METRICS:
        for statistic in STATISTICS:
            assert set(metrics[metric][statistic]) == {"measured_s", "simulated_s", "error_pct"}
            assert abs(metrics[metric][statistic]["error_pct"]) < 0.01
    assert (metrics["kv_blocks"], metrics["kv_blocks_source"], metrics["kv_blocks_estimated"]) == (900, "meta", False)
    assert (tmp_path / "out" / "validation.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "validation.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert "900, recorded in meta.json" in page


def test_a_mistake_ends_the_command_with_one_line_and_code_2(folder: Path, tmp_path: Path) -> None:
    line = refused(tmp_path, "validate", f"measured={folder}", "gpu=H200", "model=Llama-3.1-8B")
    assert line.startswith("error: gpu='H200': not in the catalogue")


TARGETS = {"A": {"e2e": 3.0, "tpot": 3.0, "ttft": 8.0}, "A+": {"e2e": 1.0, "tpot": 1.0, "ttft": 2.5}}


@pytest.mark.parametrize("tier", TARGETS)
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-32B"])
def test_real_runs_are_met_within_the_targets(data_path: Path, model: str, tier: str) -> None:
    given = (f"measured={data_path}/measured/RTXPRO6000_{model}", "gpu=RTXPRO6000", f"model={model}", f"tier={tier}")
    replay = replay_of(Path(), *given)
    errors = replay.errors(replay.simulate())
    for metric, limit in TARGETS[tier].items():
        error = errors[metric]["mean"]["error_pct"]
        assert error is not None
        assert abs(error) < limit, f"{metric}: {error:+.2f} %"


MOE = "Qwen3-30B-A3B-Instruct-2507"


def moe_run(folder: Path, dp: int, **recorded: Any) -> tuple[Path, tuple[str, ...]]:
    """A run of a mixture of experts in two ranks, and what `replay_of` needs to know of it."""
    spec = InstanceSpec("RTXPRO6000", MOE, dp=dp, engine=ARGS)
    kwargs = {**ENGINE_KWARGS, "data_parallel_size": dp, **recorded}
    written = write_run(folder, spec, blocks=dp * 900, kwargs=kwargs)
    return written, (f"measured={written}", f"gpu={spec.gpu}", f"model={spec.model}", "engine=kernel")


def test_a_data_parallel_run_is_replayed_without_error(tmp_path: Path) -> None:
    folder, given = moe_run(tmp_path / "run", 2, enable_expert_parallel=True)
    replay = replay_of(folder, *given)
    assert (replay.instance.dp, replay.kv.blocks, replay.engine) == (2, 900, "kernel")
    assert worst(replay) < 0.01
    with pytest.raises(UserError, match=r"dp=1: meta\.json of the measured run says data_parallel_size=2"):
        replay_of(folder, *given, "dp=1")
    with pytest.raises(UserError, match=r"ep=1: meta\.json of the measured run says enable_expert_parallel=True, so 2"):
        replay_of(folder, *given, "ep=1")


def test_a_data_parallel_run_finds_its_row_and_says_which(tmp_path: Path) -> None:
    _, given = moe_run(tmp_path / "run", 2)
    done = fleetgym(tmp_path, "validate", *given, "dp=2", "hydra.run.dir=out")
    row = find_row("RTXPRO6000", MOE, 1, dp=2)
    assert f"catalogue row RTXPRO6000/{MOE}/tp1/dp2/ep2, tier A, scale 1.03: {row.provenance}" in done.stdout
    assert "ESTIMATE," not in done.stdout
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (facts["tp"], facts["dp"], facts["ep"], facts["tier"], facts["estimate"]) == (1, 2, 2, "A", "")
    assert facts["catalogue_row"] == row.key
    assert row.key in (tmp_path / "out" / "validation.html").read_text()


@pytest.mark.parametrize("command", ["validate", "calibrate"])
def test_a_group_that_nobody_measured_is_called_an_estimate(command: str, tmp_path: Path) -> None:
    _, given = moe_run(tmp_path / "run", 3)
    done = fleetgym(tmp_path, command, *given, "hydra.run.dir=out")
    line = f"note: ESTIMATE, tier E, RTXPRO6000/{MOE}/tp1/dp3/ep3: dp=3 not measured"
    assert line in done.stdout
    assert f"no catalogue row, composed: RTXPRO6000/{MOE}/tp1/dp3/ep3, tier E" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    facts = metrics.get("run", metrics)
    assert (facts["tier"], facts["ep"]) == ("E", 3)
    assert f"note: {facts['estimate']}." in done.stdout
    assert facts["notes"][0].startswith("ESTIMATE")


@pytest.mark.parametrize("given", [(), ("dp=2", "ep=2")])
def test_a_group_with_spread_experts_is_replayed_and_watched_over_time(tmp_path: Path, given: tuple[str, ...]) -> None:
    folder, instance = moe_run(tmp_path / "run", 2, enable_expert_parallel=True)
    replay = replay_of(folder, *instance, *given)
    assert (replay.instance.row.dp, replay.instance.row.ep, replay.instance.row.tier) == (2, 2, "A")
    plain, watched = replay.simulate(), replay.simulate(load_at_s=np.linspace(0.0, 5.0, 11))
    assert np.array_equal(plain.latencies["e2e"], watched.latencies["e2e"], equal_nan=True)
    assert watched.load is not None
    assert len(watched.load.running) == 11


def test_the_server_s_own_layout_of_experts_decides(tmp_path: Path) -> None:
    folder, given = moe_run(tmp_path / "run", 2, enable_expert_parallel=False)
    replay = replay_of(folder, *given)
    assert (replay.instance.row.ep, replay.instance.row.tier) == (1, "E")
    assert "ep=1 not measured" in replay.notes[0]
    dense = write_run(tmp_path / "dense", server(), kwargs={**ENGINE_KWARGS, "enable_expert_parallel": True})
    assert replay_of(dense).instance.estimate == "", "a dense model has no experts to lay out"


def test_settings_that_nobody_states_are_vllm_s_for_the_gpu(folder: Path, tmp_path: Path) -> None:
    for name in ("requests.jsonl", "workload.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text())
    for gpu, tokens, seqs in (("RTX4090", 2048, 256), ("RTXPRO6000", 8192, 1024), ("H100-80GB", 8192, 1024)):
        settings = replay_of(tmp_path, f"gpu={gpu}", "kv_blocks=900").settings
        assert settings["max_num_batched_tokens"] == (tokens, f"vLLM's default for {gpu}")
        assert settings["max_num_seqs"] == (seqs, f"vLLM's default for {gpu}")
        assert settings["block_size"] == (16, "vLLM's default")
    settings = replay_of(tmp_path, "gpu=H100-80GB", "vllm.max_num_batched_tokens=512", "kv_blocks=900").settings
    assert settings["max_num_batched_tokens"] == (512, "command line")
    assert settings["max_num_seqs"] == (512, "vLLM's default for H100-80GB"), "never more than the token budget"

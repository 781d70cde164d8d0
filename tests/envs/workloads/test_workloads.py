"""Workloads: readers and their errors, slices, windows, rescaling, the fitted generator."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import same_trace, write_json_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from places import ROOT

from fleetgym.envs.cluster.kernel import KernelEngine
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads import make_workload
from fleetgym.envs.workloads.arrivals import Arrivals
from fleetgym.envs.workloads.datasets import locate
from fleetgym.envs.workloads.fit import arrival_quality, fit_profile, gap_cv, ks_distance, length_quality
from fleetgym.envs.workloads.lengths import find_profile
from fleetgym.envs.workloads.readers import read_azure, read_cached, read_jsonl, read_mooncake
from fleetgym.envs.workloads.recorded import RecordedWorkload

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
CONFIGS = ROOT / "conf" / "workload"
needs_traces = pytest.mark.skipif(
    not (Path(os.environ.get("FLEETGYM_DATA", "")) / "traces" / "azure_2023_conversation.csv").is_file(),
    reason="FLEETGYM_DATA names no folder with traces/azure_2023_conversation.csv",
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def write_azure(path: Path, arrivals_s: list[float]) -> Path:
    rows = [f"2023-11-16 18:15:{second:010.7f},{100 + i},{10 + i}" for i, second in enumerate(arrivals_s)]
    path.write_text("\n".join([HEADER, *rows]))
    return path


@pytest.fixture
def azure_file(tmp_path: Path) -> str:
    return str(write_azure(tmp_path / "small.csv", [float(i) for i in range(11)]))


def azure(path: str, **options: Any) -> Any:
    return make_workload({"kind": "azure", "path": path, **options})


@dataclass(frozen=True, kw_only=True)
class InMemory(RecordedWorkload):
    """A recording that needs no file; request i has a prompt of 100 + i tokens."""

    times_s: tuple[float, ...]

    def _read(self) -> Trace:
        index = np.arange(len(self.times_s))
        return make_trace(np.rint(np.array(self.times_s) * 1e9).astype(np.int64), 100 + index, 10 + index)


def in_memory(times_s: list[float], **options: Any) -> InMemory:
    return InMemory(times_s=tuple(times_s), **options)


# --- readers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_azure_reader_reads_both_time_forms(tmp_path: Path, end: str) -> None:
    path = tmp_path / "mixed.csv"
    rows = [
        HEADER,
        "2024-05-10 00:00:00+00:00,5,6",
        "2024-05-10 00:00:00.009930+00:00,374,44",
        "2024-05-10 00:00:01.0000001,7,8",
    ]
    path.write_bytes(end.join([*rows, ""]).encode())
    trace = read_azure(path)
    assert trace.requests["arrival_ns"].tolist() == [0, 9_930_000, 1_000_000_100]
    assert trace.requests["prompt_tokens"].tolist() == [5, 374, 7]
    assert trace.requests["output_tokens"].tolist() == [6, 44, 8]
    assert trace.name == "mixed"


GOOD = "2023-11-16 18:15:46.6805900,374,44"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad.csv:1: header None: expected 'TIMESTAMP"),
        ("a,b,c\n1,2,3", r"bad.csv:1: header 'a,b,c'"),
        (f"{HEADER}\n", r"bad.csv: the trace holds no request"),
        (f"{HEADER}\n{GOOD}\nyesterday,1,2", r"bad.csv:3: TIMESTAMP='yesterday'"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:40,1,2", r"bad.csv:3: TIMESTAMP='2023-11-16 18:15:40': goes back"),
        (f"{HEADER}\n{GOOD}\n2023-13-16 18:15:50,1,2", r"bad.csv:3: TIMESTAMP='2023-13-16 18:15:50'"),
        (f"{HEADER}\n2023-11-16 18:15:46,0,2", r"bad.csv:2: ContextTokens='0': must be a whole number from 1"),
        (f"{HEADER}\n2023-11-16 18:15:46,1,-2", r"bad.csv:2: GeneratedTokens='-2'"),
        (f"{HEADER}\n2023-11-16 18:15:46,1.5,2", r"bad.csv:2: ContextTokens='1.5'"),
        (f"{HEADER}\n2023-11-16 18:15:46,99999999999,2", r"bad.csv:2: ContextTokens='99999999999'"),
        (f"{HEADER}\n2023-11-16 18:15:46,,2", r"bad.csv:2: ContextTokens=''"),
        (f"{HEADER}\n{GOOD}\n\n{GOOD[:30]}", r"bad.csv:4: row='.*': expected 3"),
        (f"{HEADER}\n{GOOD}\n{GOOD},9", r"bad.csv:3: row='2023-11-16 18:15:46.6805900,374,44,9'"),
    ],
)
def test_azure_reader_names_file_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_azure(path)


def test_readers_refuse_binary_files(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\x00\n")
    with pytest.raises(UserError, match="bad: cannot be read as text"):
        read_azure(path)
    with pytest.raises(UserError, match="bad: cannot be read as text"):
        read_jsonl(path)


def write_mooncake(path: Path) -> Path:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 6, "hash_ids": [0, 3]},
        {"timestamp": 3000, "input_length": 10, "output_length": 7, "hash_ids": [4]},
    ]
    return write_json_lines(path, rows)


def chain(trace: Trace, index: int) -> list[int]:
    row = trace.requests[index]
    return [int(block) for block in trace.block_ids[row["block_start"] : row["block_start"] + row["block_count"]]]


def test_mooncake_hashes_become_chains_of_full_prompt_blocks(tmp_path: Path) -> None:
    path = write_mooncake(tmp_path / "m.jsonl")
    fine = read_mooncake(path, 16)
    assert fine.requests["arrival_ns"].tolist() == [0, 3 * 10**9, 3 * 10**9]
    assert chain(fine, 0) == list(range(68))  # 1,100 tokens: 68 full blocks, 4 of them of hash 2
    assert chain(fine, 1) == [*range(32), *range(96, 128)]
    assert chain(fine, 2) == []
    coarse = read_mooncake(path, 512)
    assert [chain(coarse, i) for i in range(3)] == [[0, 1], [0, 3], []]


LINE = '{"timestamp": 5, "input_length": 3, "output_length": 5, "hash_ids": [0]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad.jsonl: the trace holds no request"),
        (LINE + "{nonsense\n", r"bad.jsonl:2: '\{nonsense': not a JSON object"),
        (LINE + "[1]\n", r"bad.jsonl:2: '\[1\]': not a JSON object"),
        ("[" * 100_000, r"bad.jsonl:1: '\[\[.*not a JSON object"),
        (LINE + LINE.replace('"timestamp": 5', '"timestamp": 4'), r"bad.jsonl:2: arrival 0.004 s: goes back in time"),
        (LINE.replace("5, ", "-5, ", 1), r"bad.jsonl:1: timestamp=-5"),
        (LINE.replace("5, ", "NaN, ", 1), r"bad.jsonl:1: timestamp=nan"),
        (LINE.replace('"input_length": 3', '"input_length": 0'), r"bad.jsonl:1: input_length=0: must be a whole"),
        (LINE.replace('"output_length": 5', '"output_length": "5"'), r"bad.jsonl:1: output_length='5'"),
        (LINE.replace('"output_length": 5', '"output_length": true'), r"bad.jsonl:1: output_length=True"),
        (LINE.replace("[0]", '["a"]'), r"bad.jsonl:1: hash_ids="),
        (LINE.replace(', "hash_ids": [0]', ""), r"bad.jsonl:1: hash_ids: missing"),
    ],
)
def test_mooncake_reader_names_file_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_mooncake(path, 16)


def test_jsonl_reader_keeps_classes_priorities_and_blocks(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows: list[dict[str, Any]] = [
        {"arrival_s": 1.5, "prompt_tokens": 40, "output_tokens": 3, "class": "chat", "priority": -1},
        {"arrival_s": 1.75, "prompt_tokens": 40, "output_tokens": 4, "block_ids": [7, 9], "class": "batch"},
        {"arrival_s": 2, "prompt_tokens": 16, "output_tokens": 5, "prefix_block_ids": [7], "class": "chat"},
    ]
    write_json_lines(path, rows)
    trace = make_workload({"kind": "jsonl", "path": str(path)}).episode(rng())
    assert trace.requests["arrival_ns"].tolist() == [0, 250_000_000, 500_000_000]
    assert trace.class_names == ("chat", "batch")
    assert trace.requests["class_id"].tolist() == [0, 1, 0]
    assert trace.requests["priority"].tolist() == [-1, 0, 0]
    assert [chain(trace, i) for i in range(3)] == [[], [7, 9], [7]]


def test_jsonl_reader_refuses_unknown_fields(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_token": 1}\n')
    with pytest.raises(UserError, match=r"own.jsonl:1: field 'output_token': unknown; did you mean output_tokens"):
        read_jsonl(path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = write_azure(tmp_path / "t.csv", [0.0, 1.0])
    first = read_cached(read_azure, path)
    assert read_cached(read_azure, path) is first
    write_azure(path, [0.0, 1.0, 2.0])
    assert len(read_cached(read_azure, path)) == 3


# --- where files are looked for --------------------------------------------------------------------------------------


def test_absent_data_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETGYM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    workload = make_workload({"kind": "azure"})
    with pytest.raises(UserError, match=r"set FLEETGYM_DATA .* `fleetgym download-traces azure_conversation`.*synth"):
        workload.episode(rng())


def test_whole_file_is_preferred_to_its_part_and_original_names_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, user = tmp_path / "data", tmp_path / "user"
    (data / "traces").mkdir(parents=True)
    (user / "fleetgym" / "traces").mkdir(parents=True)
    monkeypatch.setenv("FLEETGYM_DATA", str(data))
    monkeypatch.setenv("XDG_DATA_HOME", str(user))
    part = data / "traces" / "azure_2023_code_first_half.csv"
    part.touch()
    assert locate(None, "azure_code") == part
    original = user / "fleetgym" / "traces" / "AzureLLMInferenceTrace_code.csv"
    original.touch()
    assert locate(None, "azure_code") == original


def test_absent_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"path='.*none.csv': no such file"):
        azure(str(tmp_path / "none.csv")).episode(rng())


# --- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "azur"}, r"workload.kind='azur': unknown; did you mean azure"),
        ({}, r"workload.kind=None: unknown"),
        ({"kind": "azure", "dataset": "conversation"}, r"workload.dataset='conversation': unknown"),
        ({"kind": "azure", "rate_sale": 2.0}, r"workload.rate_sale: unknown field; did you mean rate_scale"),
        ({"kind": "azure", "rate_scale": 0.0}, r"rate_scale=0.0: must be positive"),
        ({"kind": "azure", "rate_rps": -1.0}, r"rate_rps=-1.0: must be positive"),
        ({"kind": "azure", "rate_rps": float("nan")}, r"rate_rps=nan: expected a finite number"),
        ({"kind": "azure", "rate_rps": 1.0, "rate_scale": 1.0}, r"either rate_scale or rate_rps"),
        ({"kind": "azure", "rate_scale_range": [2.0, 1.0]}, r"rate_scale_range=\[2.0, 1.0\]"),
        ({"kind": "azure", "start": 0.5, "stop": 0.5}, r"start=0.5, stop=0.5: must be 0 <= start < stop <= 1"),
        ({"kind": "azure", "stop": 1.5}, r"stop=1.5"),
        ({"kind": "azure", "num_requests": 0}, r"num_requests=0"),
        ({"kind": "azure", "window": "rolling"}, r"workload.window='rolling': unknown"),
        ({"kind": "azure", "arrivals": {"process": "gamma"}}, r"cv=None: needed by process=gamma"),
        ({"kind": "azure", "arrivals": {"process": "poisson", "cv": 2.0}}, r"cv=2.0: needed by process=gamma"),
        ({"kind": "azure", "arrivals": {"process": "recorded", "drift_cv": 1.0, "drift_s": 1.0}}, r"drift_cv=1.0"),
        ({"kind": "synthetic", "arrivals": {"process": "poisson", "drift_cv": 1.0}}, r"drift_s=None: needed exactly"),
        ({"kind": "synthetic", "arrivals": {"process": "recorded"}}, r"no recorded times"),
        ({"kind": "synthetic", "profile": "azure_chat"}, r"profile='azure_chat': unknown; did you mean azure_co"),
        ({"kind": "synthetic", "prompt_tokens": {"shape": "constant", "mean": 8}}, r"output_tokens=None: give both"),
        ({"kind": "mooncake", "block_size": 24}, r"block_size=24: must divide 512"),
        ({"kind": "jsonl"}, r"path=None"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_workload(values)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"shape": "constant"}, r"mean=None"),
        ({"shape": "uniform", "mean": 5.0}, r"mean=5.0"),
        ({"shape": "lognormal", "mean": 5.0}, r"cv=None"),
        ({"shape": "constant", "mean": 0.5}, r"mean=0.5: must lie in \[low, high\] = \[1, 131072\]"),
        ({"shape": "uniform", "low": 9, "high": 8}, r"low=9, high=8"),
        ({"shape": "uniform", "low": 0}, r"low=0"),
    ],
)
def test_impossible_lengths_are_refused(length: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_workload({"kind": "synthetic", "prompt_tokens": length, "output_tokens": length})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_and_shows_every_field(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(path)
    if OmegaConf.is_missing(config, "path"):
        config.path = str(tmp_path)
    values: Any = OmegaConf.to_container(config, throw_on_missing=True)
    workload = make_workload(values)
    assert set(values) == set(workload.__dataclass_fields__)


# --- replay ----------------------------------------------------------------------------------------------------------


def test_whole_window_replays_the_file_as_recorded(azure_file: str) -> None:
    trace = azure(azure_file).episode(rng())
    assert trace.requests["arrival_ns"].tolist() == [i * 10**9 for i in range(11)]
    assert trace.requests["prompt_tokens"].tolist() == list(range(100, 111))


def test_an_episode_is_a_copy(azure_file: str) -> None:
    workload = azure(azure_file)
    workload.episode(rng()).requests["prompt_tokens"] = 1
    assert workload.episode(rng()).requests["prompt_tokens"][0] == 100


@settings(max_examples=50, deadline=None)
@given(cut=st.floats(0.01, 0.99))
def test_splits_by_time_are_disjoint_and_complete(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.getbasetemp() / "split.csv"
    if not path.exists():
        write_azure(path, [float(second) for second in np.sort(rng().uniform(0, 59, 40)).round(7)])
    before = azure(str(path), stop=cut).part.requests["prompt_tokens"]
    after = azure(str(path), start=cut).part.requests["prompt_tokens"]
    assert np.array_equal(np.concatenate([before, after]), azure(str(path)).part.requests["prompt_tokens"])


def test_split_boundary_belongs_to_the_later_part(azure_file: str) -> None:
    assert azure(azure_file, stop=0.5).part.requests["prompt_tokens"].tolist() == [100, 101, 102, 103, 104]
    assert azure(azure_file, start=0.5).episode(rng()).requests["arrival_ns"].tolist() == [i * 10**9 for i in range(6)]


def test_empty_part_and_too_many_requests_are_refused(azure_file: str) -> None:
    with pytest.raises(UserError, match=r"start=0.51, stop=0.52: no request of small"):
        azure(azure_file, start=0.51, stop=0.52).episode(rng())
    with pytest.raises(UserError, match=r"num_requests=12: must lie between 1 and 11"):
        azure(azure_file).episode(rng(), 12)
    with pytest.raises(UserError, match=r"num_requests=0"):
        azure(azure_file).episode(rng(), 0)


def test_random_windows_are_consecutive_reach_everywhere_and_stay_inside(azure_file: str) -> None:
    workload = azure(azure_file, window="random", stop=0.8, num_requests=3)
    generator = rng()
    starts = set()
    for _ in range(200):
        rows = workload.episode(generator).requests
        assert rows["arrival_ns"].tolist() == [0, 10**9, 2 * 10**9]
        assert np.array_equal(np.diff(rows["prompt_tokens"]), [1, 1])
        starts.add(int(rows["prompt_tokens"][0]))
    assert starts == set(range(100, 106))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 11), start=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 9))
def test_disjoint_windows_share_no_request_and_are_as_many_as_fit(count: int, start: float, seed: int) -> None:
    workload = in_memory([float(i) for i in range(11)], start=start, window="random")
    held = len(workload.part)
    if count > held:
        with pytest.raises(UserError, match=f"num_requests={count}"):
            workload.num_windows(count)
        return
    windows = workload.num_windows(count)
    assert windows == held // count
    seen = [
        prompt
        for window in range(windows)
        for prompt in workload.episode(rng(seed), count, window=window).requests["prompt_tokens"].tolist()
    ]
    assert len(seen) == len(set(seen)) == windows * count
    with pytest.raises(UserError, match=f"window={windows}: .* holds {windows} disjoint windows of {count} requests"):
        workload.episode(rng(seed), count, window=windows)


def test_a_window_does_not_depend_on_the_generator_but_for_what_is_drawn(azure_file: str) -> None:
    workload = azure(azure_file, window="random", num_requests=4)
    assert same_trace(workload.episode(rng(1), window=1), workload.episode(rng(2), window=1))
    assert workload.episode(rng(1), window=1).requests["prompt_tokens"].tolist() == [104, 105, 106, 107]


def test_resampled_blocks_keep_their_order_gaps_and_chains(tmp_path: Path) -> None:
    times = np.cumsum(np.arange(250) % 7 + 1.0)
    workload = in_memory(times.tolist(), window="bootstrap")
    assert workload.num_windows(250) is None
    trace = workload.episode(rng(0), 250)
    prompts, arrivals = trace.requests["prompt_tokens"].astype(int), trace.requests["arrival_ns"] / 1e9
    followed = np.diff(prompts) == 1
    assert followed.sum() >= 245  # three blocks: at most two seams, and perhaps the end of the trace in each
    gaps = dict(zip(range(101, 350), np.diff(times), strict=True))
    for gap, prompt in zip(np.diff(arrivals)[followed], prompts[1:][followed], strict=True):
        assert gap == pytest.approx(gaps[prompt])
    others = {tuple(workload.episode(rng(seed), 250).requests["prompt_tokens"]) for seed in range(5)}
    assert len(others) == 5
    path = write_mooncake(tmp_path / "m.jsonl")
    shared = make_workload({"kind": "mooncake", "path": str(path), "window": "bootstrap", "block_size": 512})
    trace = shared.episode(rng(3))
    for index, row in enumerate(trace.requests):
        assert chain(trace, index) == {5: [0, 1], 6: [0, 3], 7: []}[int(row["output_tokens"])]


def test_window_of_a_shared_prefix_trace_carries_its_own_blocks(tmp_path: Path) -> None:
    path = write_mooncake(tmp_path / "m.jsonl")
    workload = make_workload({"kind": "mooncake", "path": str(path), "start": 0.5, "block_size": 512})
    trace = workload.episode(rng())
    assert [chain(trace, i) for i in range(2)] == [[0, 3], []]
    assert len(trace.block_ids) == 2


@pytest.mark.parametrize("window", ["random", "bootstrap"])
def test_a_window_of_a_trace_hits_what_its_own_blocks_say(tmp_path: Path, window: str) -> None:
    rows = [
        {
            "timestamp": 100 * i,
            "input_length": 2100,
            "output_length": 3,
            "hash_ids": [i % 3, 10 + i % 4, 20 + i // 2, i],
        }
        for i in range(30)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({**row, "hash_ids": [*row["hash_ids"], 100]}) for row in rows))
    workload = make_workload({"kind": "mooncake", "path": str(path), "window": window, "num_requests": 20})
    trace = workload.episode(rng(3))
    alone = Trace(trace.requests.copy(), trace.block_ids)
    assert trace.segments.number > 0
    args = EngineArgs(2048, 256, num_gpu_blocks=300, enable_prefix_caching=True, max_model_len=4000)
    cached = []
    for episode in (trace, alone):
        engine = KernelEngine(ClusterSpec((InstanceSpec("any", "any", engine=args, latency=LatencyModel(w0_s=0.05)),)))
        engine.reset(0, episode)
        engine.run(np.zeros((1, 20), np.int64))
        engine.drain(0)
        cached.append(engine.results(0)["cached_tokens"].tolist())
    assert cached[0] == cached[1]
    assert sum(cached[0]) > 0


def test_rates_are_rescaled(azure_file: str) -> None:
    assert azure(azure_file).mean_rate_rps == pytest.approx(1.0)
    fast = azure(azure_file, rate_scale=4.0)
    assert fast.mean_rate_rps == pytest.approx(4.0)
    assert fast.episode(rng()).requests["arrival_ns"].tolist() == [i * 250_000_000 for i in range(11)]
    by_rate = azure(azure_file, rate_rps=0.5)
    assert by_rate.episode(rng()).requests["arrival_ns"][-1] == 20 * 10**9


def test_simultaneous_requests_have_no_rate(tmp_path: Path) -> None:
    path = write_azure(tmp_path / "once.csv", [1.0, 1.0])
    assert len(azure(str(path)).episode(rng())) == 2
    with pytest.raises(UserError, match="all requests arrive at once"):
        azure(str(path), rate_rps=1.0).episode(rng())


def test_load_is_drawn_log_uniformly_per_episode(azure_file: str) -> None:
    workload = azure(azure_file, rate_scale_range=[0.25, 4.0])
    generator = rng()
    factors = [1e10 / workload.episode(generator).requests["arrival_ns"][-1] for _ in range(400)]
    assert 0.25 <= min(factors) < 0.3
    assert 3.5 < max(factors) <= 4.0001
    assert abs(np.mean(np.log(factors))) < 0.12  # standard error 0.04


def test_arrivals_of_a_trace_can_be_replaced(azure_file: str) -> None:
    workload = azure(azure_file, arrivals={"process": "poisson"}, rate_scale=2.0)
    generator = rng()
    spans = [workload.episode(generator).requests["arrival_ns"][-1] for _ in range(400)]
    assert np.mean(spans) == pytest.approx(5e9, rel=0.05)
    assert workload.episode(generator).requests["prompt_tokens"].tolist() == list(range(100, 111))


# --- generator -------------------------------------------------------------------------------------------------------

GENERATORS: list[dict[str, Any]] = [
    {},
    {"profile": "azure_code"},
    {"arrivals": {"process": "poisson"}, "rate_rps": 40.0},
    {"arrivals": {"process": "gamma", "cv": 3.0}, "rate_scale_range": [0.5, 2.0]},
    {"arrivals": {"process": "deterministic"}},
]


@pytest.mark.parametrize("options", GENERATORS)
def test_equal_seeds_give_equal_episodes(options: dict[str, Any]) -> None:
    workload = make_workload({"kind": "synthetic", **options})
    assert same_trace(workload.episode(rng(7), 500), workload.episode(rng(7), 500))
    assert not same_trace(workload.episode(rng(7), 500), workload.episode(rng(8), 500))


@pytest.mark.parametrize("window", ["random", "bootstrap"])
def test_equal_seeds_give_equal_windows(azure_file: str, window: str) -> None:
    options = {"window": window, "num_requests": 4, "rate_scale_range": [0.5, 2.0]}
    episodes = []
    for _ in range(2):
        workload, generator = azure(azure_file, **options), rng(3)
        episodes.append([workload.episode(generator) for _ in range(5)])
    assert all(same_trace(first, second) for first, second in zip(*episodes, strict=True))
    assert not all(same_trace(episodes[0][0], other) for other in episodes[0][1:])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 300),
    rate_rps=st.floats(1e-3, 1e6),
    cv=st.floats(0.1, 8.0),
    drift_cv=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_arrivals_start_at_zero_and_never_go_back(
    seed: int, count: int, rate_rps: float, cv: float, drift_cv: float
) -> None:
    arrivals = Arrivals("gamma", cv=cv, drift_cv=drift_cv, drift_s=5.0 if drift_cv else None)
    times = arrivals.sample_ns(rng(seed), count, rate_rps)
    assert times.shape == (count,)
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [(Arrivals("deterministic"), 0.0), (Arrivals("poisson"), 1.0), (Arrivals("gamma", 0.5), 0.5),
     (Arrivals("gamma", 3.0), 3.0)],
)  # fmt: skip
def test_processes_have_their_rate_and_cv(arrivals: Arrivals, cv: float) -> None:
    times = arrivals.sample_ns(rng(), 200_000, 20.0)
    assert 200_000 / (times[-1] * 1e-9) == pytest.approx(20.0, rel=0.02)
    assert gap_cv(times) == pytest.approx(cv, rel=0.03, abs=1e-6)


def test_drift_raises_the_variance_of_counts_by_its_cv() -> None:
    times = Arrivals("poisson", drift_cv=0.5, drift_s=100.0).sample_ns(rng(), 1_000_000, 20.0)
    counts = np.bincount((times // 10**9).astype(np.int64))[:-1]
    assert counts.mean() == pytest.approx(20.0, rel=0.05)
    excess = np.sqrt(counts.var() - counts.mean()) / counts.mean()
    assert excess == pytest.approx(0.5, rel=0.1)


def test_named_length_distributions_have_their_moments() -> None:
    workload = make_workload(
        {
            "kind": "synthetic",
            "prompt_tokens": {"shape": "lognormal", "mean": 512, "cv": 1.0},
            "output_tokens": {"shape": "uniform", "low": 3, "high": 6},
        }
    )
    rows = workload.episode(rng(), 200_000).requests
    assert rows["prompt_tokens"].mean() == pytest.approx(512, rel=0.02)
    assert rows["prompt_tokens"].std() == pytest.approx(512, rel=0.05)
    values, counts = np.unique(rows["output_tokens"], return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert counts / 200_000 == pytest.approx([0.25] * 4, abs=0.01)


@pytest.mark.parametrize(
    "values", [{"kind": "synthetic"}, {"kind": "azure", "path": "x"}, {"kind": "jsonl", "path": "x"}]
)
def test_equal_configs_are_equal_and_hashable(values: dict[str, Any]) -> None:
    values = values | {"rate_scale_range": [0.5, 2.0]}
    assert make_workload(values) == make_workload(values)
    assert hash(make_workload(values)) == hash(make_workload(values))


def test_a_generator_needs_a_length() -> None:
    with pytest.raises(UserError, match="num_requests=None: a generator never ends"):
        make_workload({"kind": "synthetic", "num_requests": None}).episode(rng())


def test_ks_distance_of_known_samples() -> None:
    assert ks_distance(np.array([1, 2]), np.array([3, 4])) == 1.0
    assert ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5
    assert ks_distance(np.array([1, 1, 2]), np.array([1, 1, 2])) == 0.0


# --- against the traces ----------------------------------------------------------------------------------------------


@needs_traces
def test_azure_conversation_is_whole() -> None:
    workload = make_workload({"kind": "azure"})
    trace = workload.episode(rng())
    assert len(trace) == 19_366
    assert workload.mean_rate_rps == pytest.approx(5.5301, abs=1e-4)
    assert trace.requests["arrival_ns"][-1] == 3_501_721_937_000
    assert trace.requests["prompt_tokens"].sum() == pytest.approx(1154.697 * 19_366, rel=1e-6)


@needs_traces
def test_embedded_profile_is_the_fit_of_the_trace_and_fits_it() -> None:
    trace = read_azure(locate(None, "azure_conversation"))
    profile, fitted = find_profile("azure_conversation"), fit_profile(trace)
    assert profile.to_json() == fitted.to_json() | {"source": profile.source}
    lengths = length_quality(profile, trace, rng())
    assert lengths["ks_prompt"] < 0.006
    assert lengths["ks_output"] < 0.006
    assert lengths["ks_total"] < 0.025
    assert lengths["ks_output_given_prompt_quartile_max"] < 0.015
    arrivals = arrival_quality(profile, trace, rng())
    assert arrivals["ks_gap"] < 0.025
    assert arrivals["gap_cv_fit"] == pytest.approx(arrivals["gap_cv_trace"], rel=0.08)
    assert arrivals["dispersion_60s_fit"] == pytest.approx(arrivals["dispersion_60s_trace"], rel=0.3)


@settings(deadline=None, max_examples=60)
@given(
    rate_rps=st.floats(5e-324, 1e308),
    arrivals=st.sampled_from(
        [None, {"process": "poisson"}, {"process": "deterministic"}, {"process": "gamma", "cv": 30.0}]
    ),
    setting=st.sampled_from(["rate_rps", "rate_scale"]),
)
def test_at_any_rate_arrivals_ascend_in_whole_nanoseconds_or_are_refused(
    rate_rps: float, arrivals: dict[str, Any] | None, setting: str
) -> None:
    workload = make_workload({"kind": "synthetic", "arrivals": arrivals, setting: rate_rps})
    try:
        times = workload.episode(np.random.default_rng(0), 50).requests["arrival_ns"]
    except UserError as error:
        assert f"workload.{setting}={rate_rps!r}: too slow" in str(error)  # noqa: PT017 most rates are possible
        assert rate_rps < 1e-4
        return
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 2**62


@pytest.mark.parametrize("scale", [1e-300, 1e-12])
def test_a_replay_stretched_beyond_its_clock_is_refused(scale: float, azure_file: Path) -> None:
    with pytest.raises(UserError, match=f"workload.rate_scale={scale!r}: too slow"):
        azure(azure_file, rate_scale=scale).episode(np.random.default_rng(0))
    azure(azure_file, rate_scale=1e12).episode(np.random.default_rng(0))

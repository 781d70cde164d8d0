"""The recorder of ``vllm bench serve`` results, and the readers of measured folders with their errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import json_lines, write_json_lines

from fleetgym.envs.cluster.spec import EngineArgs
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.measured_run import MeasuredRun, read_measured
from fleetgym.envs.workloads.server_settings import find_kv_blocks, held_blocks, recorded_settings
from fleetgym.experiments import record_bench

BENCH = {
    "model_id": "meta-llama/Llama-3.1-8B",
    "start_times": [100.5, 100.0, 101.0],
    "input_lens": [30, 20, 40],
    "output_lens": [3, 2, 0],
    "ttfts": [0.25, 0.5, 0.0],
    "itls": [[0.1, 0.2], [0.05], []],
    "errors": ["", "", "timed out"],
}


def write_bench(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({k: v for k, v in {**BENCH, **changes}.items() if v is not ...}))
    return path


def write_folder(folder: Path, records: list[dict[str, Any]], **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    write_json_lines(folder / "requests.jsonl", records)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def plain(arrival_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    record = {"arrival_s": arrival_s, "prompt_tokens": 32, "output_tokens": 5, "ttft_s": 0.5, "e2e_s": 0.9, **changes}
    return {name: value for name, value in record.items() if value is not ...}


def stamped(request: int, arrival: float | None, queued: float, **changes: Any) -> dict[str, Any]:
    record = {
        "request_id": f"r{request}",
        "input_toks": 32,
        "output_toks": 5,
        "arrival_time": arrival,
        "queued_ts": queued,
        "scheduled_ts": queued,
        "first_token_ts": queued + 0.5,
        "last_token_ts": queued + 0.9,
    }
    return {**record, **changes}


def test_a_bench_result_becomes_a_measured_run_in_arrival_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = record_bench.main(
        [str(write_bench(tmp_path / "b.json")), str(folder), "max_num_seqs=8", "kv_cache_dtype=auto"]
    )
    assert code == 0
    run = read_measured(folder)
    np.testing.assert_allclose(run.arrival_s, [0.0, 0.5, 1.0])
    assert run.trace.requests["prompt_tokens"].tolist() == [20, 30, 40]
    assert run.finished.tolist() == [True, True, False]
    np.testing.assert_allclose(run.latencies["ttft"], [0.5, 0.25, np.nan])
    np.testing.assert_allclose(run.latencies["e2e"], [0.55, 0.55, np.nan])
    np.testing.assert_allclose(run.latencies["tpot"], [0.05, 0.15, np.nan])
    assert recorded_settings(run.meta) == {"max_num_seqs": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"itls": ...}, "itls: missing; run vllm bench serve with --save-detailed"),
        ({"start_times": ...}, "start_times: missing; run vllm bench serve with a vLLM that records"),
        (dict.fromkeys(record_bench.LISTS, ...), "itls: missing; run vllm bench serve with --save-detailed"),
        (
            {"start_times": ..., "itls": ...},
            "start_times, itls: missing; run vllm bench serve with --save-detailed",
        ),
        (
            {"start_times": [1000.5, 0.0, 1000.0]},
            "request 1: start_times=0 with output_lens=2: a request that was answered must start on the clock",
        ),
        ({"ttfts": [0.1]}, "lists of different lengths"),
        ({name: [] for name in record_bench.LISTS}, "holds no request"),
        ({"errors": ["", ""]}, "lists of different lengths"),
        ({"errors": "timed out"}, "lists of different lengths"),
        (
            {"ttfts": [0.25, None, 0.0]},
            "request 1: ttfts=None: must be a number of seconds of at least 0, or the request",
        ),
        ({"ttfts": [0.25, float("nan"), 0.0]}, "request 1: ttfts=nan: must be a number of seconds"),
        ({"ttfts": [0.25, "0.5", 0.0]}, "request 1: ttfts='0.5': must be a number of seconds"),
        ({"ttfts": [0.25, -0.5, 0.0]}, "request 1: ttfts=-0.5: must be a number of seconds"),
        ({"ttfts": [0.25, 0.0, 0.0]}, "request 1: ttfts=0 with output_lens=2: the client saw no first token"),
        ({"itls": [0.1, 0.2, 0.05]}, "request 0: itls=0.1: must be the list of this request's gaps"),
        (
            {"itls": [0.1, 0.2]},
            "'ttfts': 3, 'itls': 2, 'errors': 3}; itls must be one list per request",
        ),
        ({"itls": [[0.1, None], [0.05], []]}, "request 0: itls=None: must be a number of seconds"),
        ({"itls": [[0.1, float("inf")], [0.05], []]}, "request 0: itls=inf: must be a number of seconds"),
        ({"itls": [[], [], []]}, "itls: no request has any"),
        ({"start_times": [100.5, None, 101.0]}, "request 1: start_times=None: must be a number"),
        ({"start_times": [100.5, 10**400, 101.0]}, "must be a number of seconds"),
        ({"input_lens": [30, 0, 40]}, "request 1: input_lens=0: must be a whole number from 1"),
        ({"input_lens": [30, 20.5, 40]}, "request 1: input_lens=20.5: must be a whole number"),
        ({"output_lens": [3, None, 0]}, "request 1: output_lens=None: must be a whole number from 0"),
        ({"output_lens": [3, -1, 0]}, "request 1: output_lens=-1: must be a whole number from 0"),
        ({"errors": ["", {"code": 3}, ""]}, "request 1: errors={'code': 3}: must be a text"),
    ],
)
def test_a_result_without_the_per_request_lists_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert record_bench.main([str(write_bench(tmp_path / "b.json", **changes)), str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "requests.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "e2e_s"),
    [
        ({"ttfts": [0.25, 0.5, None]}, [0.55, 0.55, np.nan]),  # the failed request's time as null
        ({"errors": ...}, [0.55, 0.55, np.nan]),  # older vLLM: only the number of tokens tells the failure
        ({"errors": []}, [0.55, 0.55, np.nan]),
        ({"errors": ["", None, None]}, [0.55, 0.55, np.nan]),
        ({"errors": ["reset", "", "timed out"], "ttfts": [None, 0.5, 0.0]}, [0.55, np.nan, np.nan]),
        ({"itls": [[0.3], [0.05], []]}, [0.55, 0.55, np.nan]),  # one chunk of two tokens
        ({"itls": [[0.1, 0.1, 0.1], [0.05], []]}, [0.55, 0.55, np.nan]),  # a first chunk without a token
        ({"itls": [[0.1, 0.2], [], []]}, [0.5, 0.55, np.nan]),  # all tokens in one chunk
        (
            {"output_lens": [3, 1, 1], "itls": [[0.1, 0.2], [], []], "errors": ..., "ttfts": [0.25, 0.5, 1]},
            [0.5, 0.55, 1],
        ),
    ],
)
def test_every_shape_of_a_result_is_read(tmp_path: Path, changes: dict[str, Any], e2e_s: list[float]) -> None:
    assert record_bench.main([str(write_bench(tmp_path / "b.json", **changes)), str(tmp_path / "run")]) == 0
    np.testing.assert_allclose(read_measured(tmp_path / "run").latencies["e2e"], e2e_s)


@pytest.mark.parametrize(
    "failure",
    [
        {"errors": ["", "", "refused"]},
        {"errors": ["", "", "refused"], "output_lens": [3, 2, 7]},
        {"errors": ..., "ttfts": [0.25, 0.5, None]},
        {"input_lens": [30, 20, 0], "itls": [[0.1, 0.2], [0.05], None]},
    ],
)
def test_a_failed_request_that_never_started_has_no_arrival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: dict[str, Any]
) -> None:
    path = write_bench(tmp_path / "b.json", start_times=[1000.5, 1000.0, 0.0], **failure)
    assert record_bench.main([str(path), str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith(
        "run: 2 requests, 0 of them never finished; 1 more never started and are left out\n"
    )
    np.testing.assert_allclose(read_measured(tmp_path / "run").arrival_s, [0.0, 0.5])


def test_a_first_start_of_0_near_the_others_is_an_arrival(tmp_path: Path) -> None:
    for starts in ([0.5, 0.0, 1.0], [0, 0, 0], [0.5, 1.5, 0.0]):
        path = write_bench(tmp_path / "b.json", start_times=starts)
        assert record_bench.main([str(path), str(tmp_path / "run")]) == 0
        np.testing.assert_allclose(read_measured(tmp_path / "run").arrival_s, sorted(starts))


def test_a_result_may_be_packed_but_must_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_bench(tmp_path / "b.json").read_bytes()
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + data + b"\r\n\r\n"))
    assert record_bench.main([str(tmp_path / "b.json.gz"), str(tmp_path / "run")]) == 0
    for text, message in (
        (data + b"\n" + data, "holds several results, as --append-result writes them"),
        (b"[" + data + b"]", "must hold one JSON object"),
        (b"", "cannot be read as JSON"),
        (b"<html></html>", "it is a web page"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ):
        (tmp_path / "bad").write_bytes(text)
        assert record_bench.main([str(tmp_path / "bad"), str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_setting_must_be_name_and_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record_bench.main([str(write_bench(tmp_path / "b.json")), str(tmp_path / "run"), "eager"]) == 2
    assert "'eager': must be name=value" in capsys.readouterr().err


def test_both_forms_of_plain_latencies_mean_the_same(tmp_path: Path) -> None:
    absolute = plain(7.0, ttft_s=..., e2e_s=..., first_token_s=7.5, finish_s=7.9)
    left = read_measured(write_folder(tmp_path / "a", [plain(3.0), plain(4.0)]))
    right = read_measured(write_folder(tmp_path / "b", [{**absolute, "arrival_s": 7.0}, plain(8.0)]))
    for name, values in left.latencies.items():
        np.testing.assert_allclose(values, right.latencies[name], atol=1e-9)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (plain(e2e_s=...), r"requests\.jsonl:2: e2e_s: missing"),
        (plain(arrival_s=...), r"requests\.jsonl:2: arrival_s: missing"),
        (plain(ttft_s=1.0), r"requests\.jsonl:2: ttft_s=1\.0, e2e_s=0\.9: must follow the arrival in this order"),
        (plain(ttft_s="soon"), r"requests\.jsonl:2: ttft_s='soon': must be a finite number"),
        (plain(ttft_s=None), r"requests\.jsonl:2: ttft_s=None: must be a finite number"),
        (plain(output_tokens=0), r"requests\.jsonl:2: output_tokens=0: must be a whole number from 1"),
        (plain(prefix_block_ids=["a"]), r"requests\.jsonl:2: prefix_block_ids="),
    ],
)
def test_a_faulty_record_is_named_by_file_line_and_field(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_measured(write_folder(tmp_path / "run", [plain(), record]))


def test_a_folder_without_requests_or_without_a_finished_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a folder with requests\.jsonl"):
        read_measured(tmp_path)
    with pytest.raises(UserError, match="holds no request"):
        read_measured(write_folder(tmp_path / "empty", []))
    with pytest.raises(UserError, match="no request ever finished"):
        read_measured(write_folder(tmp_path / "none", [plain(ttft_s=None, e2e_s=None)]))


def test_the_clocks_are_aligned_by_the_request_that_was_queued_at_once(tmp_path: Path) -> None:
    records = [stamped(0, 1000.0, 50.3), stamped(1, 1001.0, 51.0), stamped(2, 1002.0, 52.2)]
    run = read_measured(write_folder(tmp_path / "run", records))
    np.testing.assert_allclose(run.arrival_s, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(run.latencies["ttft"], [0.8, 0.5, 0.7])
    np.testing.assert_allclose(run.latencies["e2e"], [1.2, 0.9, 1.1])


def test_a_failed_request_without_stamps_arrives_when_the_workload_says(tmp_path: Path) -> None:
    records = [stamped(0, 1000.0, 50.0), stamped(1, None, 0.0), stamped(2, 1002.0, 52.0)]
    records[1] |= dict.fromkeys(("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"))
    folder = write_folder(tmp_path / "run", records)
    with pytest.raises(UserError, match=r"requests\.jsonl:2: arrival_time=null"):
        read_measured(folder)
    rows = [
        {"request_id": f"r{i}", "arrival_s": i, "prompt_tokens": 32, "output_tokens": 5, "prefix_block_ids": [1, 2 + i]}
        for i in range(3)
    ]
    write_json_lines(folder / "workload.jsonl", rows)
    run = read_measured(folder)
    np.testing.assert_allclose(run.arrival_s, [0.0, 1.0, 2.0])
    assert run.finished.tolist() == [True, False, True]
    assert run.chains_known
    assert run.trace.block_ids.tolist() == [1, 2, 1, 3, 1, 4]


def test_arrivals_on_different_clocks_are_refused(tmp_path: Path) -> None:
    message = r"jsonl:1: arrives 1\.7.*e\+09 s after the one before \(.*jsonl:2\): must be less than a year"
    for name, records in (
        ("plain", [plain(1.7e9), plain(0.0), plain(1.7e9 + 1)]),
        ("stamps", [stamped(0, 1.7e9, 50.0), stamped(1, 0.0, 51.0), stamped(2, 1.7e9 + 2, 52.0)]),
    ):
        with pytest.raises(UserError, match=message):
            read_measured(write_folder(tmp_path / name, records))
    days = read_measured(write_folder(tmp_path / "days", [plain(1.7e9), plain(1.7e9 + 200_000)]))
    np.testing.assert_allclose(days.arrival_s, [0.0, 200_000.0])


def test_a_workload_that_contradicts_the_requests_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [stamped(0, 1000.0, 50.0)])
    row = {"request_id": "r0", "arrival_s": 0.0, "prompt_tokens": 33, "output_tokens": 5}
    (folder / "workload.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"input_toks=32, output_toks=5: workload\.jsonl says 33 and 5 for 'r0'"):
        read_measured(folder)
    (folder / "workload.jsonl").write_text(json.dumps({**row, "request_id": "other"}) + "\n")
    with pytest.raises(UserError, match=r"request_id='r0': is not in workload\.jsonl"):
        read_measured(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("meta_json", "{", "not JSON"),
        ("meta_json", '{"engine_kwargs": 3}', "must be an object"),
        ("timeseries_csv", "t,running\n1,2\n", "column 'waiting' is missing"),
        (
            "timeseries_csv",
            "t,running,waiting\n1,2,many\n",
            r"timeseries\.csv:2: waiting='many': cannot be read as numbers",
        ),
        ("timeseries_csv", "t,running,waiting\n1,2,3\n\n1,2\n", r"timeseries\.csv:4: waiting=None: cannot be read"),
        ("timeseries_csv", "t,running,waiting\nnan,2,3\n", r"timeseries\.csv:2: t='nan': cannot be read"),
        ("timeseries_csv", "", r"timeseries\.csv:1: column 't' is missing"),
        ("meta_json", "[" * 100_000, "not JSON"),
    ],
)
def test_faulty_side_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_measured(write_folder(tmp_path / "run", [plain()], **{name: text}))


def test_blocks_and_priorities_of_a_measured_run_are_used_as_in_workloads(tmp_path: Path) -> None:
    chains = [[2**63, 7], [2**63, 8]]
    runs = [
        read_measured(
            write_folder(tmp_path / name, [plain(i, priority=i, **{name: ids}) for i, ids in enumerate(chains)])
        )
        for name in ("block_ids", "prefix_block_ids")
    ]
    for run in runs:
        assert run.chains_known
        assert run.chain_tokens == 16
        assert run.trace.requests["priority"].tolist() == [0, 1]
        first, second = run.trace.block_ids.reshape(2, 2)
        assert first[0] == second[0]
        assert first[1] != second[1]
    stamps = write_folder(tmp_path / "stamps", [stamped(0, 1000.0, 50.0, block_ids=[3, 4], priority=2)])
    workload = {"request_id": "r0", "arrival_s": 0.0, "prompt_tokens": 32, "output_tokens": 5}
    for extra in ({}, {"priority": 2}):
        (stamps / "workload.jsonl").write_text(json.dumps(workload | extra) + "\n")
        run = read_measured(stamps)
        assert run.trace.block_ids.tolist() == [3, 4]
        assert run.trace.requests["priority"].tolist() == [2]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            plain(block_ids=[1, 2, 3, 4]),
            r"jsonl:1: 4 block ids for 32 \+ 5 tokens: with 16 tokens per block \(assumed .*: add block_size=8 to each .* 2$",
        ),
        (
            plain(block_ids=[1, 2, 3, 4], block_size=16),
            r"jsonl:1: 4 block ids for 32 \+ 5 tokens: with block_size=16 there must be at most 2",
        ),
        (plain(block_ids=list(range(99))), r"with 16 tokens per block \(.* add block_size to each record\) there must"),
        (plain(block_ids=[1, 2], prefix_block_ids=[1, 2]), r"jsonl:1: block_ids and prefix_block_ids: mean the same"),
        (plain(hash_ids=[1, 2]), r"jsonl:1: hash_ids: rename it to block_ids"),
        (plain(block_ids=[2**64]), r"jsonl:1: block_ids=.*at most 64 bits"),
        (plain(arrival_s=1_718_000_000_000), r"jsonl:1: arrival_s=1718000000000: must be seconds; .* ms since 1970"),
        (plain(arrival_s=10**400), r"jsonl:1: arrival_s=1000.*: must be a finite number"),
        (stamped(0, 1.718e18, 50.0), r"jsonl:1: arrival_time=.*: must be seconds; .* ns since 1970"),
    ],
)
def test_fields_of_a_measured_run_are_not_trusted(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_measured(write_folder(tmp_path / "run", [record]))


def test_a_measured_run_may_state_its_block_size(tmp_path: Path) -> None:
    rows = [plain(i, prompt_tokens=64 * (i + 1), block_ids=list(range(2 * (i + 1)))) for i in range(2)]
    with pytest.raises(
        UserError, match=r"requests\.jsonl: 16 tokens per block \(assumed .*: add block_size=32 to each record\): "
    ):
        read_measured(write_folder(tmp_path / "run", rows))
    run = read_measured(write_folder(tmp_path / "run", [{**row, "block_size": 32} for row in rows]))
    assert run.chain_tokens == 32
    assert held_blocks(run, np.array([1.6]), 64).tolist() == [3]  # the answer's block is its own
    assert held_blocks(run, np.array([1.6]), 16).tolist() == [9]


def test_all_files_of_a_measured_run_may_be_packed_or_come_from_elsewhere(tmp_path: Path) -> None:
    rows = [{"request_id": f"r{i}", "arrival_s": i, "prompt_tokens": 32, "output_tokens": 5} for i in range(2)]
    folder = write_folder(
        tmp_path / "run",
        [stamped(0, 1000.0, 50.0), stamped(1, 1001.0, 51.0)],
        workload_jsonl=json_lines(rows),
        meta_json='{"engine_kwargs": {"max_num_seqs": 7}}',
        timeseries_csv="t,running,waiting,kv_cache_pct\n1.0,2,0,50\n2.0,1,0,25\n",
    )
    plain_run = read_measured(folder)
    for packed in (False, True):
        other = tmp_path / f"other{packed}"
        other.mkdir()
        for file in folder.iterdir():
            data = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
            (other / (file.name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
        run = read_measured(other)
        assert run.latencies["e2e"].tolist() == plain_run.latencies["e2e"].tolist()
        assert run.meta == plain_run.meta
        assert run.timeseries is not None
        assert run.timeseries.kv_usage.tolist() == [0.5, 0.25]


def blocks_of(run: MeasuredRun, args: EngineArgs | None = None, **changes: Any) -> Any:
    options: dict[str, Any] = {"given": None, "max_num_seqs": 256, "catalogue_tokens": 1600, **changes}
    return find_kv_blocks(run, args or EngineArgs(), options.pop("dp", 1), **options)


def test_kv_blocks_come_from_the_user_then_the_record_then_an_estimate(tmp_path: Path) -> None:
    meta = json.dumps({"kv_cache": {"num_gpu_blocks": 500, "block_size": 16}})
    run = read_measured(write_folder(tmp_path / "run", [plain()], meta_json=meta))
    assert blocks_of(run, given=77)[:2] == (77, "given")
    assert blocks_of(run)[:2] == (500, "meta")
    assert blocks_of(run, dp=2)[:2] == (250, "meta")
    for meta, blocks in (({"kv_blocks": 300}, 300), ({"engine_kwargs": {"num_gpu_blocks_override": 80}}, 80)):
        other = read_measured(write_folder(tmp_path / f"run{blocks}", [plain()], meta_json=json.dumps(meta)))
        assert blocks_of(other, dp=2)[:2] == (blocks, "meta")
    tokens = read_measured(write_folder(tmp_path / "tokens", [plain()], meta_json='{"kv_cache_size_tokens": 1600}'))
    assert blocks_of(tokens)[:2] == (100, "meta")
    bare = read_measured(write_folder(tmp_path / "bare", [plain()]))
    estimate = blocks_of(bare)
    assert estimate[:2] == (100, "catalogue")
    assert estimate.estimated
    assert "ESTIMATED" in estimate.text


def test_recorded_usage_gives_the_blocks(tmp_path: Path) -> None:
    records = [plain(0.0, prompt_tokens=160, output_tokens=1, ttft_s=0.5, e2e_s=100.0) for _ in range(4)]
    series = "t,running,waiting,kv_cache_pct\n" + "".join(f"{t},4,0,40.0\n" for t in range(1, 11))
    run = read_measured(write_folder(tmp_path / "run", records, timeseries_csv=series))
    assert held_blocks(run, np.array([0.0, 50.0, 101.0]), 16).tolist() == [0, 40, 0]
    assert blocks_of(run, catalogue_tokens=3200)[:2] == (
        101,
        "kv_usage",
    )  # 40 blocks are 40 % of 100, and the null block
    agreed = blocks_of(run, catalogue_tokens=1648)
    assert agreed[:2] == (103, "catalogue")
    assert "the run agrees: 101 by kv_usage" in agreed.text


def test_a_shared_prompt_block_is_held_once(tmp_path: Path) -> None:
    chains = ([1, 2], [1, 3])
    records = [plain(output_tokens=1, ttft_s=0.1, e2e_s=9.0, prefix_block_ids=chain) for chain in chains]
    run = read_measured(write_folder(tmp_path / "run", records))
    assert held_blocks(run, np.array([5.0]), 16).tolist() == [3]
    assert held_blocks(run, np.array([5.0]), 32).tolist() == [2]

"""What files hold is checked: encodings, time units, block sizes, 64-bit ids and the formats of others."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import json_lines, same_trace, write_json_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import DOCS
from routing_envs import RoutingEnv

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.errors import UserError, UserNote
from fleetgym.envs.textfile import text_lines
from fleetgym.envs.workloads import make_workload
from fleetgym.envs.workloads.blocks import implied_block_size, label_chains, regroup
from fleetgym.envs.workloads.datasets import locate
from fleetgym.envs.workloads.formats import FORMATS, field_names, recognise
from fleetgym.envs.workloads.readers import AZURE_HEADER, read_azure, read_jsonl, read_mooncake
from fleetgym.experiments.harness import from_config
from fleetgym.experiments.harness.config import compose_config

Reader = Callable[[Path], Trace]
needs_traces = pytest.mark.skipif(
    not (Path(os.environ.get("FLEETGYM_DATA", "")) / "traces" / "mooncake_conversation_first_8000.jsonl").is_file(),
    reason="FLEETGYM_DATA names no folder with traces/mooncake_conversation_first_8000.jsonl",
)


def own(arrival_s: float = 0.0, prompt: int = 128, output: int = 2, **more: Any) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "prompt_tokens": prompt, "output_tokens": output, **more}


def mooncake(timestamp: float = 0, prompt: int = 1024, hashes: tuple[int, ...] = (0, 1), **more: Any) -> dict[str, Any]:
    record = {"timestamp": timestamp, "input_length": prompt, "output_length": 5, "hash_ids": list(hashes)}
    return {**record, **more}


def chains_of(trace: Trace) -> list[list[int]]:
    spans = zip(trace.requests["block_start"], trace.requests["block_count"], strict=True)
    return [trace.block_ids[start : start + count].tolist() for start, count in spans]


def gaps_s(trace: Trace) -> list[float]:
    return (np.diff(trace.requests["arrival_ns"]) * 1e-9).tolist()


def read_m(path: Path, **options: Any) -> Trace:
    return read_mooncake(path, 16, **options)


# --- one way to open a file -------------------------------------------------------------------------------------------

SAMPLES: dict[str, tuple[Reader, str]] = {
    "azure": (read_azure, f"{AZURE_HEADER}\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,9"),
    "mooncake": (read_m, "\n".join(json.dumps(mooncake(3000 * i, hashes=(0, i + 1))) for i in range(3))),
    "jsonl": (read_jsonl, "\n".join(json.dumps(own(i, block_ids=[*range(7), 90 + i])) for i in range(3))),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("bom", "end", "blank", "packed"), list(itertools.product((0, 1), ("\n", "\r\n"), (0, 1, 3), (0, 1)))
)
def test_every_reader_reads_every_way_of_writing_a_file(
    tmp_path: Path, name: str, bom: int, end: str, blank: int, packed: int
) -> None:
    reader, text = SAMPLES[name]
    plain = tmp_path / "trace.txt"
    plain.write_text(text)
    data = b"\xef\xbb\xbf" * bom + (text.replace("\n", end) + end * blank).encode()
    other = tmp_path / ("trace.txt.gz" if packed else "trace.other")
    other.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    assert same_trace(reader(other), reader(plain))
    assert reader(other).name == "trace"


def test_blank_lines_between_records_do_not_move_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n" + json.dumps(own(5)) + "\n\n\n" + json.dumps(own(3)) + "\n")
    with pytest.raises(UserError, match=r"t\.jsonl:5: arrival 3\.0 s: goes back in time"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("header", "quote", "comma"),
    [
        ('"TIMESTAMP","ContextTokens","GeneratedTokens"', "", ","),
        ('"TIMESTAMP","ContextTokens","GeneratedTokens"', '"', ","),
        ("TIMESTAMP, ContextTokens, GeneratedTokens", "", ", "),
        ("\n" + AZURE_HEADER, "", ","),
    ],
)
def test_an_azure_file_may_have_quotes_spaces_and_blank_lines(
    tmp_path: Path, header: str, quote: str, comma: str
) -> None:
    rows = [["2023-11-16 18:15:46.5", "374", "44"], ["2023-11-16 18:15:48.0", "396", "9"]]
    lines = [comma.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    path = tmp_path / "t"
    path.write_text("\n".join([header, "", lines[0], " ", "", lines[1]]))
    trace = read_azure(path)
    assert gaps_s(trace) == [1.5]
    assert trace.requests["prompt_tokens"].tolist() == [374, 396]
    assert trace.requests["output_tokens"].tolist() == [44, 9]


def test_blank_lines_of_an_azure_file_do_not_move_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t"
    good = "2023-11-16 18:15:46.5,374,44"
    for bad, message in (
        ("2023-11-16 18:15:47,0,1", "t:6: ContextTokens='0'"),
        ("2023-11-16 18:15:45,3,1", "t:6: TIMESTAMP='2023-11-16 18:15:45': goes back"),
        ("2023-11-16 18:15:47,3", "t:6: row="),
        ("9" * 900, "t:6: row='9{80}': expected 3"),
    ):
        path.write_text(f"{AZURE_HEADER}\n\n{good}\n\n\n{bad}\n{good}")
        with pytest.raises(UserError, match=message):
            read_azure(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f"conversation_id,{AZURE_HEADER}", "; drop conversation_id$"),
        (f'{AZURE_HEADER},"Model", Log Type', "; drop Model, Log Type$"),
        ("ContextTokens,TIMESTAMP,GeneratedTokens", f"expected '{AZURE_HEADER}'$"),
    ],
)
def test_an_azure_header_with_more_columns_says_what_to_do(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "t"
    path.write_text(f"{header}\n1,2,3,4\n")
    with pytest.raises(UserError, match=rf"t:1: header .*{message}"):
        read_azure(path)


def test_a_packed_data_set_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETGYM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = tmp_path / "azure_2023_code.csv.gz"
    path.write_bytes(gzip.compress(SAMPLES["azure"][1].encode()))
    assert locate(None, "azure_code") == path
    assert (
        make_workload({"kind": "azure", "dataset": "azure_code"}).episode(np.random.default_rng(0)).name
        == path.name[:-7]
    )


@pytest.mark.parametrize("reader", [reader for reader, _ in SAMPLES.values()])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>", "a web page: download the file's raw address"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"PAR1\x15\x04\x15", "a Parquet file: write it as JSON lines"),
        (b"PK\x03\x04\x14\x00", "a zip archive: unpack it"),
        (b"\x28\xb5\x2f\xfd\x00", "packed with zstandard: unpack it"),
        (b"\xff\xfe{\x00", "UTF-16 text: save it as UTF-8"),
        (b"TIMESTAMP\n\nab\xff\n", "line 3 is not UTF-8"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "cannot be read as text"),
        (b"\x1f\x8bnonsense", "cannot be read as text"),
        (gzip.compress(b"PAR1", mtime=0), "a Parquet file"),
    ],
)
def test_files_that_are_no_text_say_what_they_are(tmp_path: Path, reader: Reader, data: bytes, message: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"bad: cannot be read as text: .*{message}|bad: {message}"):
        reader(path)


@pytest.mark.parametrize("reader", [reader for reader, _ in SAMPLES.values()])
@pytest.mark.parametrize("data", [b"", b"\n\r\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_empty_files_are_refused(tmp_path: Path, reader: Reader, data: bytes) -> None:
    path = tmp_path / "empty"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"empty: the trace holds no request|empty:1: header None"):
        reader(path)


def trace_or_refusal(reader: Reader, path: Path) -> Trace | str:
    try:
        return reader(path)
    except UserError as error:
        return str(error)


PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b'"', b"\x00", b"\x1f", b"NaN", b"1e999", b"-1", b"9" * 400, b"\xff",
     b'{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [1]}\n', b'"arrival_s": ', b'"block_ids": [',
     b'{"arrival_s": 0, "prompt_tokens": 16, "output_tokens": 1, "block_ids": [1]}\n', b'"\\ud800"',
     b"TIMESTAMP,ContextTokens,GeneratedTokens\n", b"2023-11-16 18:15:46.6805900,374,44\n", b"9999-12-31 00:00:00,1,1\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=8).map(b"".join)), packed=st.booleans())
def test_garbage_is_refused_and_never_crashes(tmp_path: Path, data: bytes, packed: bool) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    for reader, _ in SAMPLES.values():
        result = trace_or_refusal(reader, path)
        assert len(result) > 0
        assert isinstance(result, Trace) or ("\n" not in result and len(result) < 700)


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes("a\x0bb\u2028c\r\nd\r\r\n\r\n".encode())
    assert text_lines(path) == ["a\x0bb\u2028c", "d"]


# --- formats of others ------------------------------------------------------------------------------------------------

FOREIGN = [
    ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.1,10,5\n", "a Vidur trace: .*arrived_at as arrival_s"),
    (",arrived_at,num_prefill_tokens,num_decode_tokens,pd_ratio\n", "a Vidur trace"),
    (",num_prefill_tokens,num_decode_tokens,pd_ratio\n0,10,5,2\n",
     "a Vidur file of lengths without arrival times: draw an arrival_s .*num_decode_tokens as output_tokens"),
    ("arrival_s,prompt_tokens,output_tokens\n0,10,5\n",
     r"a trace of ours, but as CSV: write it as JSON lines, .*write_ndjson\(TARGET\).*; then use workload=jsonl"),
    ('"arrival_s", "prompt_tokens", "output_tokens", "class"\n', "a trace of ours, but as CSV: write it as JSON lines"),
    ("timestamp,input_length,output_length,hash_ids\n0,10,5,\n",
     "a Mooncake trace, but as CSV: write it as JSON lines, .*; then use workload=mooncake_conversation"),
    ("arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s\n0,10,5,1,2\n",
     "a measured run, but as CSV: write it as JSON lines, .*; then use fleetgym validate"),
    ('{"TIMESTAMP": "2023-11-16 18:15:46", "ContextTokens": 3, "GeneratedTokens": 4}\n',
     "an Azure LLM inference trace, but as JSON: write it as CSV, .*; then use workload=azure_conversation"),
    ("request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n0,2,0,0.1,1,9,9\n",
     "a splitwise-sim trace: .*token_size as output_tokens"),
    ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,API log\n",
     "a BurstGPT trace: .*'Response tokens' as output_tokens, without the failures"),
    ("Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n", "a BurstGPT trace"),
    ("0,0.52,1.3,Gamma,0.6,3.2\n", "a ServeGen client's rates"),
    ("0,0.52,1.3,Weibull,0.6,3.2\n", "a ServeGen client's rates"),
    ('{"0": {"input_tokens": "{1: 0.5}", "output_tokens": "{2: 1}"}, "600": {}}', "a ServeGen client's lengths"),
    ("request_id,timestamp,input_tokens,output_tokens\n0,0.1,9,9\n", "a generated ServeGen workload"),
    ('{"chat_id": 1, "parent_chat_id": -1, "timestamp": 6.1, "input_length": 5, "output_length": 1, "turn": 2, "type": ""}\n',
     "a Bailian .*times are seconds .*blocks are 16 tokens: rename timestamp .*drop chat_id.*workload.block_size=16"),
    ('{"request_id": 0, "type": "text", "input_length": 61, "output_length": 2370, "duration": 14000}\n',
     "an offline batch without arrival times: add an arrival_s"),
    ('[{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}]', "a ShareGPT collection: .*draw arrival times"),
    ('[\n  {\n    "id": "a",\n    "conversations": []\n  }\n]\n', "a ShareGPT collection"),
    ('{"id": "a", "conversations": []}\n', "a ShareGPT collection"),
    ('{"conversation_id": "a", "conversation": []}\n', "a collection of conversations"),
    ('{"messages": []}\n', "a collection of conversations"),
    ('{"date": "x", "ttfts": [], "itls": []}', "a result of vllm bench serve: .*fleetgym record-bench"),
    ('{"date": "x", "request_throughput": 1.0, "completed": 3}', "a result of vllm bench serve: .*--save-detailed"),
    ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "ttft_s": 1, "e2e_s": 2}\n', "a measured run: .*validate"),
    ('{"request_id": "a", "queued_ts": 1, "first_token_ts": 2, "last_token_ts": 3}\n', "a measured run: .*validate"),
]  # fmt: skip
OURS = [
    ("TIMESTAMP,ContextTokens,GeneratedTokens\n", read_azure, "an Azure LLM inference trace: use workload=azure_conv"),
    (json.dumps(mooncake()), read_m, "a Mooncake trace: use workload=mooncake_conversation"),
    (json.dumps(own()), read_jsonl, "a trace of ours: use workload=jsonl"),
]


@pytest.mark.parametrize("reader", [reader for reader, _ in SAMPLES.values()])
@pytest.mark.parametrize(("text", "message"), FOREIGN)
def test_foreign_formats_are_named_with_what_to_do(tmp_path: Path, reader: Reader, text: str, message: str) -> None:
    path = tmp_path / "foreign"
    path.write_text(text)
    with pytest.raises(UserError, match=f"foreign: this is {message}") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


def test_a_csv_of_our_fields_is_read_once_rewritten_as_the_message_says(tmp_path: Path) -> None:
    source, target = tmp_path / "t.csv", tmp_path / "t.jsonl"
    source.write_text("arrival_s,prompt_tokens,output_tokens,class\n0.5,40,3,a\n2.0,64,3,b\n")
    with pytest.raises(UserError, match=r"polars\.read_csv\(SOURCE\)\.write_ndjson\(TARGET\)"):
        read_jsonl(source)
    pl.read_csv(source).write_ndjson(target)
    assert gaps_s(read_jsonl(target)) == [1.5]


@pytest.mark.parametrize(("text", "reader", "message"), OURS)
def test_a_trace_for_another_reader_is_sent_there(tmp_path: Path, text: str, reader: Reader, message: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    for other, _ in SAMPLES.values():
        if other is not reader:
            with pytest.raises(UserError, match=message):
                other(path)


def test_every_row_of_the_table_has_an_example() -> None:
    texts = [text for text, *_ in (*FOREIGN, *OURS)]
    seen = [recognise(field_names(text.splitlines()[0], text)) for text in texts]
    assert [known.name for known in FORMATS if known not in seen] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"arrival_s": 0}]', r"jq -c '\.\[\]'"),
        ('{\n"arrival_s": 0\n}', r"must stand on one line: jq -c"),
        ("[1, 2]", r"t:1: '\[1, 2\]': not a JSON object; an array"),
    ],
)
def test_json_that_is_not_lines_says_how_to_make_it_so(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"turn": 2}, r"t:1: field 'turn': unknown: drop turn \(every request comes at its recorded time"),
        ({"session_id": "a", "type": "x"}, r"drop session_id, type"),
        ({"hash_ids": [1], "turn": 1}, r"rename hash_ids to block_ids .*; drop turn"),
        ({"timestamp": 3}, r"rename timestamp to arrival_s"),
        ({"output_token": 1, "turn": 1}, r"field 'output_token': unknown; did you mean output_tokens"),
    ],
)
def test_extra_fields_of_chats_are_refused_with_a_way_on(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_jsonl(write_json_lines(tmp_path / "t", [own(**more)]))


def test_extra_fields_of_a_mooncake_file_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t:2: field 'session_id': unknown: drop session_id"):
        read_m(write_json_lines(tmp_path / "t", [mooncake(), mooncake(session_id=3)]))
    with pytest.raises(UserError, match=r"t:1: field 'priority': unknown"):
        read_m(write_json_lines(tmp_path / "t", [mooncake(priority=3)]))


# --- units of time ----------------------------------------------------------------------------------------------------


def test_seconds_in_a_field_of_milliseconds_are_refused_until_told(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "t", [mooncake(0.0), mooncake(0.2, hashes=(0, 2))])
    with pytest.raises(UserError, match=r"t: timestamp: 2 different times within 0\.0002 s.* workload\.time_unit=s if"):
        read_m(path)
    assert gaps_s(read_m(path, time_unit="s")) == pytest.approx([0.2])
    assert gaps_s(read_m(path, time_unit="ms")) == pytest.approx([0.0002])


@pytest.mark.parametrize("per_second", [0.2, 3.0, 40.0])
def test_a_long_trace_in_fractional_seconds_is_noticed(tmp_path: Path, per_second: float) -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(1 / per_second, 500)).round(3)
    path = write_json_lines(tmp_path / "t", [mooncake(time) for time in times.tolist()])
    with pytest.raises(UserError, match=r"workload\.time_unit=s if they are seconds"):
        read_m(path)
    assert sum(gaps_s(read_m(path, time_unit="s"))) == pytest.approx(times[-1] - times[0])


def test_whole_numbers_that_may_be_seconds_are_read_with_a_note(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "t", [mooncake(2 * time) for time in range(50)])
    with pytest.warns(UserNote, match=r"read as milliseconds, gives one per 2 ms: say workload\.time_unit=s"):
        assert gaps_s(read_m(path)) == pytest.approx([0.002] * 49)


@pytest.mark.parametrize("gap", [12.34, 250.5, 3000.25])
def test_fractions_in_a_field_of_milliseconds_are_noticed_at_any_rate(tmp_path: Path, gap: float) -> None:
    path = write_json_lines(tmp_path / "t", [mooncake(round(gap * i, 2)) for i in range(200)])
    with pytest.warns(UserNote, match=r"gives fractions, and one per .* ms: say workload\.time_unit=s if .*_unit=ms$"):
        assert sum(gaps_s(read_m(path))) == pytest.approx(gap * 0.199)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(gaps_s(read_m(path, time_unit="s"))) == pytest.approx(gap * 199)
        assert sum(gaps_s(read_m(path, time_unit="ms"))) == pytest.approx(gap * 0.199)
        whole = write_json_lines(tmp_path / "whole", [mooncake(3000.0 * i) for i in range(200)])
        assert sum(gaps_s(read_m(whole))) == pytest.approx(597.0)


def test_milliseconds_in_a_field_of_seconds_are_read_with_a_note(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "t", [own(250_000 * i) for i in range(120)])
    with pytest.warns(UserNote, match=r"one request per 2\.5e\+05 s: say workload\.time_unit=ms"):
        read_jsonl(path)
    assert gaps_s(read_jsonl(path, time_unit="ms")) == pytest.approx([250.0] * 119)


@pytest.mark.parametrize(("requests", "gap"), [(50, 200_000), (50, 200), (5, 61), (5, 3000)])
def test_a_handful_of_requests_is_enough_to_notice_slow_times(tmp_path: Path, requests: int, gap: int) -> None:
    path = write_json_lines(tmp_path / "t", [own(gap * i) for i in range(requests)])
    with pytest.warns(UserNote, match=r"one request per .* s: say workload\.time_unit=ms"):
        read_jsonl(path)
    micro = write_json_lines(tmp_path / "m", [mooncake(gap * 1000 * i) for i in range(requests)])
    with pytest.warns(UserNote, match=r"one request per .* s: say workload\.time_unit=us"):
        read_m(micro)


def test_a_single_gap_beyond_reason_is_noticed_and_one_of_years_refused(tmp_path: Path) -> None:
    late = [1_700_000_000 + 0.3 * i for i in range(300)]
    path = write_json_lines(tmp_path / "t", [own(time) for time in (0, *late)])
    with pytest.raises(
        UserError,
        match=r"t: arrival_s: request 2 comes 1\.7e\+09 s after the one before, .* one clock, or say .*unit=s",
    ):
        read_jsonl(path)
    assert max(gaps_s(read_jsonl(path, time_unit="s"))) == pytest.approx(1.7e9)
    for path, message in (
        (write_json_lines(tmp_path / "two", [own(0), own(3_000_000_000)]), r"request 2 comes 3e\+09 s after"),
        (write_json_lines(tmp_path / "ns", [own(3_000_000_000 * i) for i in range(9)]), "less than 146 years"),
    ):
        with pytest.raises(UserError, match=rf"{message}.* or say workload\.time_unit=s\|ms\|us\|ns$"):
            read_jsonl(path)
    days = write_json_lines(tmp_path / "d", [own(time) for time in (*(0.1 * i for i in range(9000)), 200_000.0)])
    with pytest.warns(UserNote, match=r"gives a gap of 1\.99e\+05 s before request 9001: say workload\.time_unit=ms"):
        read_jsonl(days)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_jsonl(write_json_lines(tmp_path / "night", [own(time) for time in (*range(900), 50_000)]))
        read_jsonl(write_json_lines(tmp_path / "few", [own(0), own(600)]))


@pytest.mark.parametrize(("unit", "scale"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_times_since_1970_are_refused_with_their_unit(tmp_path: Path, unit: str, scale: int) -> None:
    path = write_json_lines(tmp_path / "t", [own(1_718_000_000 * scale), own(1_718_000_001 * scale)])
    with pytest.raises(UserError, match=rf"t:1: arrival_s=1718.* since 1970: say workload\.time_unit={unit}"):
        read_jsonl(path)
    assert gaps_s(read_jsonl(path, time_unit=unit)) == [1.0]


def test_seconds_since_1970_are_seconds(tmp_path: Path) -> None:
    assert gaps_s(read_jsonl(write_json_lines(tmp_path / "t", [own(1_718_000_000.25), own(1_718_000_001.5)]))) == [1.25]
    with pytest.raises(UserError, match=r"looks like seconds since 1970: say workload\.time_unit=s"):
        read_m(write_json_lines(tmp_path / "m", [mooncake(1_718_000_000), mooncake(1_718_000_001)]))


def test_whole_nanoseconds_are_exact(tmp_path: Path) -> None:
    first = 1_718_000_000_123_456_789
    path = write_json_lines(tmp_path / "t", [own(first), own(first + 1)])
    assert np.diff(read_jsonl(path, time_unit="ns").requests["arrival_ns"]).tolist() == [1]


def test_bursts_of_equal_times_are_traffic(tmp_path: Path) -> None:
    bursts = [mooncake(3000 * (i // 2000)) for i in range(6000)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_m(write_json_lines(tmp_path / "m", bursts))) == 6000
        assert len(read_jsonl(write_json_lines(tmp_path / "t", [own(i // 3000) for i in range(6000)]))) == 6000
        assert len(read_m(write_json_lines(tmp_path / "one", [mooncake(7)] * 3000))) == 3000


@needs_traces
@pytest.mark.parametrize(
    ("kind", "dataset"),
    [("azure", "azure_conversation"), ("azure", "azure_code"), ("mooncake", "mooncake_conversation")],
)
def test_public_traces_are_read_without_a_word(kind: str, dataset: str) -> None:
    workload = make_workload({"kind": kind, "dataset": dataset, "num_requests": 10})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(workload.episode(np.random.default_rng(0))) == 10


def test_an_unknown_unit_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match=r"workload\.time_unit='minutes': unknown.*ms, ns, s, us"):
        make_workload({"kind": "jsonl", "path": "x", "time_unit": "minutes"})


# --- ids --------------------------------------------------------------------------------------------------------------

IDS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.integers(0, 6), st.integers(2**64 - 6, 2**64 - 1))


@settings(max_examples=200, deadline=None)
@given(lists=st.lists(st.lists(IDS, max_size=6), max_size=6))
def test_labels_are_equal_exactly_where_content_and_prefix_are(lists: list[list[int]]) -> None:
    labelled = label_chains(lists)
    assert [len(chain) for chain in labelled] == [len(ids) for ids in lists]
    prefixes: dict[int, tuple[int, ...]] = {}
    for ids, chain in zip(lists, labelled, strict=True):
        assert chain.dtype == np.int64
        assert (chain >= 0).all()
        for place, label in enumerate(chain.tolist()):
            assert prefixes.setdefault(label, tuple(ids[: place + 1])) == tuple(ids[: place + 1])
    assert len(prefixes) == len({tuple(ids[: n + 1]) for ids in lists for n in range(len(ids))})


@settings(max_examples=100, deadline=None)
@given(
    first=st.integers(2**53, 2**64 - 200),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_runs_of_consecutive_ids_stay_runs(first: int, cuts: list[int], order: Any) -> None:
    lists, start = [], first
    for length in cuts:
        lists.append(list(range(start, start + length)))
        start += length
    order.shuffle(lists)
    labelled = label_chains(lists)
    assert all((np.diff(chain) == 1).all() for chain in labelled)
    ids = {
        value: label
        for chain, names in zip(lists, labelled, strict=True)
        for value, label in zip(chain, names, strict=True)
    }
    assert all(ids[value + 1] == label + 1 for value, label in ids.items() if value + 1 in ids)


def test_small_ids_with_one_prefix_each_stay_as_they_are() -> None:
    assert [chain.tolist() for chain in label_chains([[7, 9, 4], [7, 9, 5], []])] == [[7, 9, 4], [7, 9, 5], []]


def test_ids_of_64_bits_are_read(tmp_path: Path) -> None:
    large = 9223372036854775809
    path = write_json_lines(tmp_path / "m", [mooncake(hashes=(large, 5)), mooncake(3000, hashes=(large, large + 1))])
    first, second = chains_of(read_m(path))
    assert len(first) == 64
    assert first[:32] == second[:32]
    assert not set(first[32:]) & set(second)
    rows = [own(block_ids=[2**64 - 1, *range(-8, -1)]), own(1, block_ids=[2**64 - 1, *range(10, 17)])]
    left, right = chains_of(read_jsonl(write_json_lines(tmp_path / "t", rows)))
    assert left[0] == right[0]
    assert not set(left[1:]) & set(right[1:])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2**64], "at most 64 bits"),
        ([-(2**63) - 1], "at most 64 bits"),
        ([1.0], "must be a list of whole numbers"),
        (["a1"], "must be a list of whole numbers"),
        ([True], "must be a list of whole numbers"),
        (3, "must be a list of whole numbers"),
    ],
)
def test_other_ids_are_refused_with_the_reason(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"t:1: block_ids=.*{message}"):
        read_jsonl(write_json_lines(tmp_path / "t", [own(block_ids=ids)]))
    with pytest.raises(UserError, match=rf"m:1: hash_ids=.*{message}"):
        read_m(write_json_lines(tmp_path / "m", [{**mooncake(), "hash_ids": ids}]))


def test_both_names_for_a_chain_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t:1: block_ids and prefix_block_ids: mean the same"):
        read_jsonl(write_json_lines(tmp_path / "t", [own(block_ids=[1], prefix_block_ids=[1])]))


# --- block sizes ------------------------------------------------------------------------------------------------------

SIXTEEN = [own(block_ids=list(range(1, 9))), own(5, block_ids=[1, *range(12, 19)])]


def fleet(*block_sizes: int, caching: bool = True) -> ClusterSpec:
    groups = (
        InstanceSpec(
            "RTXPRO6000",
            "Llama-3.1-8B",
            tier="A",
            engine=EngineArgs(block_size=size, enable_prefix_caching=caching, num_gpu_blocks=16_000 // size),
        )
        for size in block_sizes
    )
    return ClusterSpec(tuple(groups))


def environment(workload: dict[str, Any], cluster: ClusterSpec, **options: Any) -> RoutingEnv:
    return RoutingEnv(workload=workload, cluster=cluster, num_requests=None, **{"load": None, **options})


def cached_tokens(env: RoutingEnv) -> list[int]:
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _ = env.step(0)
    return env._engine.results(0)["cached_tokens"].tolist()


def jsonl_of(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return {"kind": "jsonl", "path": str(write_json_lines(tmp_path / "t.jsonl", rows)), **options}


@pytest.mark.parametrize("load", [None, 0.5])
def test_an_implied_block_size_that_differs_is_refused_at_the_start(tmp_path: Path, load: float | None) -> None:
    workload = jsonl_of(tmp_path, SIXTEEN)
    assert cached_tokens(environment(workload, fleet(16), load=load)) == [0, 16]
    with pytest.raises(
        UserError,
        match=r"instances\[1\]\.engine\.block_size=32: .* blocks of 16 tokens, by .*say workload\.block_size=16",
    ):
        environment(workload, ClusterSpec((*fleet(32, caching=False).instances, *fleet(32).instances)), load=load)


@pytest.mark.parametrize("engine", ["kernel", "reference"])
@pytest.mark.parametrize(("shared", "hit"), [(1, 0), (2, 32), (3, 32), (7, 96), (8, 96)])
def test_a_stated_block_size_is_regrouped_exactly(tmp_path: Path, engine: str, shared: int, hit: int) -> None:
    rows = [own(block_ids=list(range(8))), own(5, block_ids=[*range(shared), *range(20, 28 - shared)])]
    for workload in (
        jsonl_of(tmp_path, rows, block_size=16),
        jsonl_of(tmp_path, [{**row, "block_size": 16} for row in rows]),
    ):
        assert cached_tokens(environment(workload, fleet(32), engine=engine)) == [0, hit]


def test_a_block_cannot_be_split(tmp_path: Path) -> None:
    rows = [own(prompt=128, block_ids=[1, 2, 3, 4]), own(5, prompt=64, block_ids=[1, 2])]
    with pytest.raises(UserError, match=r"engine\.block_size=16: .* blocks of 32 tokens: set engine\.block_size=32"):
        environment(jsonl_of(tmp_path, rows, block_size=32), fleet(16))
    with pytest.raises(UserError, match=r"engine\.block_size=48: .* blocks of 32 tokens"):
        environment(jsonl_of(tmp_path, rows, block_size=32), fleet(48))


def test_a_block_size_that_nothing_tells_is_refused_only_where_someone_caches(tmp_path: Path) -> None:
    workload = jsonl_of(tmp_path, [own(prompt=812, block_ids=[17, 18, 42]), own(1, 90, block_ids=[17, 18, 50])])
    with pytest.raises(UserError, match=r"neither stated nor clear .*: say workload\.block_size="):
        environment(workload, fleet(16))
    with pytest.warns(UserNote, match="no instance caches"):
        environment(workload, fleet(16, caching=False))
    environment({**workload, "block_size": 16}, fleet(16))


def test_different_block_sizes_of_a_fleet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"instances\[0\]\.engine\.block_size=16 and cluster\.instances\[1\].*=32: must be eq"
    ):
        environment(jsonl_of(tmp_path, SIXTEEN), fleet(16, 32))


def test_a_workload_of_ones_own_must_say_what_its_ids_name(tmp_path: Path) -> None:
    class Silent(type(make_workload(jsonl_of(tmp_path, SIXTEEN)))):  # type: ignore[misc]
        chain_blocks = None

    env = RoutingEnv(workload=Silent(path=str(tmp_path / "t.jsonl")), cluster=fleet(16), num_requests=None, load=None)
    with pytest.raises(UserError, match="chain_blocks must say how many"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            own(7, block_ids=[1, 2, 3, 4, 5, 6, 7, 8, 9]),
            {"block_size": 16},
            r":3: 9 block ids for 128 \+ 2 tokens: .*=16",
        ),
        (own(7, block_ids=list(range(1, 9)), block_size=32), {"block_size": 16}, r":3: block_size=32: must be 16"),
        (own(7, block_ids=list(range(1, 9)), block_size=0), {}, r":3: block_size=0: must be a whole number from 1"),
        (own(7, prompt=64, block_ids=[1, 2, 3, 4]), {"block_size": 8}, r": block_size=8: .* say 16 tokens per block"),
    ],
)
def test_lists_that_contradict_the_block_size_are_refused(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"t\.jsonl{message}"):
        make_workload(jsonl_of(tmp_path, [*SIXTEEN, row], **options)).episode(np.random.default_rng(0))


def test_the_last_hash_of_a_list_may_name_a_partial_block_and_is_left_out(tmp_path: Path) -> None:
    rows = [
        own(prompt=521, output=132, block_ids=list(range(33))),
        own(1, prompt=70, output=1, block_ids=[0, 1, 2, 3, 90]),
    ]
    trace = read_jsonl(write_json_lines(tmp_path / "t", rows))
    assert trace.block_size == 16
    assert chains_of(trace) == [list(range(32)), [0, 1, 2, 3]]


def test_a_chain_may_go_on_into_the_answer(tmp_path: Path) -> None:
    rows = [
        own(prompt=64, output=40, block_ids=[1, 2, 3, 4, 5, 6]),
        own(9, prompt=112, block_ids=[1, 2, 3, 4, 5, 6, 7]),
    ]
    trace = read_jsonl(write_json_lines(tmp_path / "t", rows))
    assert (trace.block_size, trace.block_size_stated) == (16, False)
    assert cached_tokens(environment(jsonl_of(tmp_path, rows), fleet(16))) == [0, 96]


def test_ids_that_name_content_alone_give_no_hit_behind_another_prefix(tmp_path: Path) -> None:
    tail = list(range(50, 57))
    rows = [own(block_ids=[1, *tail]), own(5, block_ids=[2, *range(60, 67)]), own(10, block_ids=[2, *tail])]
    assert cached_tokens(environment(jsonl_of(tmp_path, rows), fleet(16))) == [0, 0, 16]


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from([1, 8, 16, 32, 64, 512]),
    lengths=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 300)), min_size=1, max_size=30),
    hashes=st.booleans(),
)
def test_an_implied_block_size_is_the_true_one_or_none(size: int, lengths: list[tuple[int, int]], hashes: bool) -> None:
    prompts, outputs = np.array(lengths).T
    counts = -(-prompts // size) if hashes else prompts // size
    assert implied_block_size(counts, prompts, outputs) in (size, None)
    longest = np.array([4999 * size + 1]), np.array([1])
    more = np.r_[counts, 5000 if hashes else 4999], np.r_[prompts, longest[0]], np.r_[outputs, longest[1]]
    if size >= 8:  # a longer answer than a block leaves smaller sizes open
        assert implied_block_size(*more) == size


def test_regrouping_keeps_equality_and_everything_else(tmp_path: Path) -> None:
    rows = [
        own(block_ids=list(range(7)), prompt=112, **{"class": "a"}, priority=3),
        own(1, block_ids=[0, 1, 2, 9], prompt=64, **{"class": "b"}),
        own(2, prompt=64),
    ]
    trace = read_jsonl(write_json_lines(tmp_path / "t", rows), block_size=16)
    coarse = regroup(trace, 16, 32)
    first, second, third = chains_of(coarse)
    assert (len(first), len(second), third) == (3, 2, [])
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert coarse.class_names == ("a", "b", "default")
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "priority", "class_id"):
        assert np.array_equal(coarse.requests[name], trace.requests[name])
    assert chains_of(trace)[0] == list(range(7)), "the trace itself stays"
    runs = regroup(read_m(write_json_lines(tmp_path / "m", [mooncake(hashes=(4, 7))])), 16, 64)
    assert np.diff(runs.block_ids).tolist() == [1] * 7 + [17] + [1] * 7, "runs stay runs"


@pytest.mark.parametrize("block_size", [16, 32, 512])
def test_mooncake_hashes_fit_every_engine_whose_blocks_they_divide(tmp_path: Path, block_size: int) -> None:
    path = write_json_lines(
        tmp_path / "m.jsonl", [mooncake(prompt=1030, hashes=(0, 1, 2)), mooncake(9000, 1030, (0, 1, 3))]
    )
    workload = {"kind": "mooncake", "path": str(path)}
    assert cached_tokens(environment(workload, fleet(block_size))) == [0, 1024]


def test_hashes_of_other_blocks_are_refused_by_place(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "m.jsonl", [mooncake(0, 64, (1, 2, 3, 4)), mooncake(3000, 50, (1, 2, 3, 5))])
    with pytest.raises(UserError, match=r"m\.jsonl:1: hash_ids: 4 hashes for 64 tokens: .* 512 tokens give 1: .*=16"):
        read_m(path)
    assert chains_of(read_m(path, hash_block_size=16)) == [[1, 2, 3, 4], [1, 2, 3]]
    late = write_json_lines(tmp_path / "late.jsonl", [mooncake(), mooncake(3000), mooncake(6000, hashes=(0,))])
    with pytest.raises(UserError, match=r"late\.jsonl:3: hash_ids: 1 hashes for 1024 tokens"):
        read_m(late)
    with pytest.raises(UserError, match=r"block_size=16: must divide 24"):
        make_workload({"kind": "mooncake", "hash_block_size": 24})
    with pytest.raises(UserError, match=r"hash_block_size=0"):
        make_workload({"kind": "mooncake", "hash_block_size": 0})


def test_hashes_of_full_blocks_alone_are_read_where_they_fit_no_other_size(tmp_path: Path) -> None:
    rows = [mooncake(0, 1000, (7,)), mooncake(3000, 300, ()), mooncake(6000, 2000, (7, 8, 9))]
    trace = read_mooncake(write_json_lines(tmp_path / "m", rows), 512)
    assert chains_of(trace) == [[7], [], [7, 8, 9]]
    assert len(chains_of(read_m(tmp_path / "m"))[2]) == 96
    open_size = write_json_lines(tmp_path / "open", [mooncake(0, 700, (7,))])  # one full block of 512, or one of 1024
    with pytest.raises(UserError, match=r"open:1: hash_ids: 1 hashes for 700 tokens: blocks of 512 tokens give 2$"):
        read_m(open_size)


def test_a_hint_names_no_size_that_is_set_already(tmp_path: Path) -> None:
    rows = [mooncake(0, 1000, (7,)), mooncake(3000, 2000, (7, 8, 9, 10))]
    mixed = [{**row, "output_length": 100} for row in rows]
    with pytest.raises(UserError, match=r"m:1: hash_ids: 1 hashes for 1000 tokens: blocks of 512 tokens give 2$"):
        read_m(write_json_lines(tmp_path / "m", mixed))


@needs_traces
def test_public_mooncake_hashes_imply_their_512_tokens() -> None:
    records = [json.loads(line) for line in text_lines(locate(None, "mooncake_conversation"))]
    counts, prompts, outputs = (
        np.array([value(record) for record in records])
        for value in (lambda r: len(r["hash_ids"]), lambda r: r["input_length"], lambda r: r["output_length"])
    )
    assert implied_block_size(counts, prompts, outputs) == 512
    lists = [record["hash_ids"] for record in records]
    assert [chain.tolist() for chain in label_chains(lists)] == lists


def test_lists_that_imply_a_size_that_the_engine_cannot_have_say_so(tmp_path: Path) -> None:
    workload = jsonl_of(tmp_path, [own(prompt=812, block_ids=[17, 18, 42])])
    with pytest.raises(
        UserError, match=r"of 256 tokens, by the lengths of its lists: say workload\.block_size=\.\.\. if"
    ):
        environment(workload, fleet(16))


# --- at the command line ----------------------------------------------------------------------------------------------


def test_notes_are_given_once_per_command_and_faults_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_json_lines(tmp_path / "t.jsonl", SIXTEEN)
    overrides = ["workload=jsonl", f"workload.path={path}", "env.load=null", "env.num_requests=null"]
    cfg = compose_config("experiment_base", overrides)
    from_config._tell.cache_clear()
    for part in (None, "train", "test"):
        from_config.problem_of(cfg, part)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("note: the workload names shared prompt blocks, but no instance caches them")
    group = "{gpu: RTXPRO6000, model: Llama-3.1-8B, engine: {block_size: 32, enable_prefix_caching: true}}"
    with pytest.raises(UserError, match=r"block_size=32: .*blocks of 16 tokens"):
        from_config.problem_of(compose_config("experiment_base", [*overrides, f"cluster.instances=[{group}]"]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.jsonl"]


# --- the recipes of the docs ------------------------------------------------------------------------------------------

DOC = (DOCS / "workloads.md").read_text().partition("## Other formats")[2].partition("\n## ")[0]
BAILIAN = [
    {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "output_length": 3, "type": "text", "turn": 1,
     "hash_ids": [1, 2, 3]},
    {"chat_id": 1, "parent_chat_id": 1, "timestamp": 2.0, "input_length": 64, "output_length": 3, "type": "text", "turn": 2,
     "hash_ids": [1, 2, 4, 5]},
]  # fmt: skip
SOURCES = {
    "Vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,40,3\n2.0,64,3\n",
    "splitwise-sim": "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.5,1,40,3\n1,2,0,2.0,1,64,3\n",
    "BurstGPT": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "0.5,ChatGPT,40,3,43,API log\n1,GPT-4,9,0,9,API log\n2,GPT-4,64,3,67,API log\n",
    "ServeGen, generated": "request_id,timestamp,input_tokens,output_tokens\n1,2.0,64,3\n0,0.5,40,3\n",
    "Bailian (Qwen) chats": json_lines(BAILIAN),
}
CALLS = dict(re.findall(r"^\| ([^|]+) \| `(to_jsonl[^`]+)` \|$", DOC, re.MULTILINE))


def test_every_recipe_has_a_source() -> None:
    assert set(CALLS) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_every_recipe_of_the_docs_makes_a_trace(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").write_text(SOURCES[name])
    space: dict[str, Any] = {"source": tmp_path / "source", "target": tmp_path / "target.jsonl"}
    exec(DOC.partition("```python")[2].partition("```")[0], space)  # noqa: S102
    exec(CALLS[name], space)  # noqa: S102
    trace = read_jsonl(space["target"], block_size=16 if "Bailian" in name else None)
    assert gaps_s(trace) == [1.5]
    assert trace.requests["prompt_tokens"].tolist() == [40, 64]
    assert trace.requests["output_tokens"].tolist() == [3, 3]
    if "Bailian" in name:
        assert chains_of(trace) == [[1, 2], [1, 2, 4, 5]]

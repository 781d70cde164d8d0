from __future__ import annotations

import copy
import json

import pytest
from builders import write_json_lines
from places import DATA

from fleetgym.envs.cluster.golden import (
    ReferenceReplay,
    UnsupportedCaseError,
    case_args,
    compare,
    expected_records,
    load_cases,
    replay,
    replay_file,
)
from fleetgym.envs.cluster.scheduler import Request, Scheduler
from fleetgym.envs.cluster.spec import EngineArgs
from fleetgym.envs.errors import UserError

PUBLIC, IDLE_VICTIM = DATA / "golden_public.jsonl.gz", DATA / "golden_idle_victim.jsonl.gz"
LONG_PREFILL = DATA / "golden_long_prefill.jsonl.gz"


def test_a_file_may_be_plain_with_any_line_end_and_blank_last_lines(tmp_path):
    cases = first_cases(2)
    path = tmp_path / "cases"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*map(json.dumps, cases), "", ""]).encode())
    assert list(load_cases(path)) == cases


def first_cases(count: int) -> list[dict]:
    return [case for case, _ in zip(load_cases(PUBLIC), range(count), strict=False)]


def test_every_recorded_case_matches_in_every_step():
    report = replay_file(PUBLIC)
    assert report.failures == []
    assert (report.matched, report.total, report.skipped) == (150, 150, 0)
    assert report.by_tag == {
        "plain": [109, 109],
        "time_ties": [21, 21],
        "watermark": [10, 10],
        "no_reserve_full_isl": [10, 10],
        "oversize": [3, 3],
    }


def test_a_victim_ahead_moves_the_position_also_without_tokens():
    report = replay_file(IDLE_VICTIM)
    assert report.failures == []
    assert report.by_tag == {"idle_victim": [8, 8], "time_ties": [4, 4]}


def test_prompts_over_the_threshold_advance_side_by_side():
    report = replay_file(LONG_PREFILL)
    assert report.failures == []
    assert (report.matched, report.total, report.skipped) == (24, 24, 0)
    assert report.by_tag["long_prefill"] == [24, 24]


def test_merged_records_unroll_to_one_per_schedule_call():
    for case in first_cases(20):
        assert len(list(expected_records(case))) == case["steps"]


def test_a_wrong_victim_is_noticed(monkeypatch, tmp_path):
    def oldest(self: Scheduler) -> Request:
        return self.running[0]

    monkeypatch.setattr(Scheduler, "_choose_victim", oldest)
    report = replay_file(write_json_lines(tmp_path / "some.gz", first_cases(30)))
    assert report.matched < report.total == 30


def test_the_first_differing_field_is_named():
    case = copy.deepcopy(first_cases(1)[0])
    record = next(record for record in case["trace"] if record["k"] > 3 and "n" not in record)
    record["b"] += 1
    difference = compare(case, replay(case))
    assert difference is not None
    assert (difference.seed, difference.step, difference.field) == (case["seed"], record["k"], "b")
    assert difference.expected == difference.got + 1


def test_a_missing_last_record_is_noticed():
    case = copy.deepcopy(first_cases(1)[0])
    case["trace"].pop()
    difference = compare(case, replay(case))
    assert difference is not None
    assert difference.step == -1


def test_a_scheduler_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(Scheduler, "_grow", lambda self, request, tokens: False)  # preempts itself for ever
    case = first_cases(1)[0]
    got = replay(case)
    assert len(got.records) == case["steps"] + 1
    assert compare(case, got) is not None


def test_a_case_with_an_unmodelled_mechanism_is_skipped_with_its_reason(tmp_path):
    cases = copy.deepcopy(first_cases(3))
    cases[1]["config"]["num_lookahead_slots"] = 2
    cases[2]["config"]["num_lookahead_slots"] = 0  # off
    report = replay_file(write_json_lines(tmp_path / "three.gz", cases), ReferenceReplay)
    assert (report.matched, report.total, report.skipped) == (2, 2, 1)
    assert report.skips == [(cases[1]["seed"], "num_lookahead_slots is not modelled")]


def test_more_than_two_iterations_in_flight_are_not_modelled():
    case = first_cases(1)[0]
    case["config"]["depth"] = 3
    with pytest.raises(UnsupportedCaseError, match="depth=3 is not modelled"):
        case_args(case)


def test_every_setting_of_a_case_is_read_by_its_name_or_by_the_field_it_stands_for():
    case = first_cases(1)[0]
    case["config"] = {
        "policy": "priority",
        "depth": 1,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 7,
        "max_model_len": 99,
        "block_size": 4,
        "num_gpu_blocks": 40,
        "prefix_caching": True,
        "watermark": 0.5,
        "reserve_full_isl": False,
        "long_prefill_token_threshold": 5,
        "max_num_scheduled_tokens": 60,
    }
    assert case_args(case) == EngineArgs(64, 7, 60, 5, 99, 4, 40, True, False, "priority", 0.5, False)
    for name in case["config"]:
        lacking = copy.deepcopy(case)
        del lacking["config"][name]
        if name in ("long_prefill_token_threshold", "max_num_scheduled_tokens"):  # older files do not know them
            assert getattr(case_args(lacking), name) == getattr(EngineArgs(), name)
        else:
            with pytest.raises(KeyError, match=name):
                case_args(lacking)


def test_a_file_that_is_no_golden_file_is_refused_by_name_and_line(tmp_path):
    plain = tmp_path / "plain.gz"
    plain.write_text("no case")
    with pytest.raises(UserError, match=r"plain\.gz, line 1: not a golden case, not JSON"):
        replay_file(plain)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(write_json_lines(tmp_path / "whole.gz", first_cases(1)).read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.gz: cannot be read"):
        replay_file(cut)
    lacking = write_json_lines(tmp_path / "lacking.gz", [*first_cases(1), {"seed": 1}])
    with pytest.raises(UserError, match=r"lacking\.gz, line 2: not a golden case, lacks config"):
        replay_file(lacking)
    with pytest.raises(UserError, match=r"absent\.gz"):
        replay_file(tmp_path / "absent.gz")

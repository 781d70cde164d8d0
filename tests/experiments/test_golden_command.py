"""``fleetgym golden``: malformed cases are named, differing ones are shown with their first step."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from builders import write_json_lines
from commands import fleetgym, refused
from places import DATA

from fleetgym.envs.cluster.golden import load_cases, replay_file
from fleetgym.envs.errors import UserError
from fleetgym.experiments.golden import check_case, describe, metrics_of, scheduler_factory

PUBLIC = DATA / "golden_public.jsonl.gz"


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    return next(iter(load_cases(PUBLIC)))


def edited(case: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(case)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("config",), {}, "malformed case: 'block_size' is missing"),
        (("config", "max_num_seqs"), 0, "malformed case: config: max_num_seqs=0: must be at least 1"),
        (("config", "policy"), "lifo", "malformed case: config.scheduling_policy='lifo': unknown"),
        (("config", "watermark"), "high", "malformed case: config.watermark='high': expected a finite number"),
        (
            ("config", "long_prefill_token_threshold"),
            -1,
            "malformed case: config: long_prefill_token_threshold=-1: must",
        ),
        (("requests", 0), {"prompt": 3}, "malformed case: 'output' is missing"),
        (("requests", 0, "prompt"), "many", "malformed case: request 0: .* must hold whole numbers"),
        (("requests", 0, "output"), 0, "malformed case: request 0: .* must be at least 1"),
        (("trace", 0), {"k": 0}, "malformed case: 'b' is missing"),
        (("trace", 0, "s"), [[99, 1]], "malformed case: step 0 names a request that does not exist"),
        (("trace",), 7, "malformed case: 'int' object is not iterable"),
        (("preemptions",), [0], "malformed case: preemptions has 1 entries"),
    ],
)
def test_a_malformed_case_is_refused_in_one_line(case: dict[str, Any], path: Any, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"file, line 3: {message}") as caught:
        check_case(edited(case, *path, value=value), "file, line 3")
    assert "\n" not in str(caught.value)


def test_an_unsupported_case_is_skipped_and_not_refused(case: dict[str, Any], tmp_path: Path) -> None:
    unsupported = edited(case, "config", "num_lookahead_slots", value=64)
    check_case(unsupported, "here")
    metrics = metrics_of(
        replay_file(write_json_lines(tmp_path / "g.jsonl", [case, unsupported]), scheduler_factory("reference"))
    )
    assert (metrics["matched"], metrics["total"], metrics["skipped"]) == (1, 1, 1)
    assert metrics["skips"] == [{"seed": 1000, "reason": "num_lookahead_slots is not modelled"}]


def test_the_first_differing_step_is_described(case: dict[str, Any], tmp_path: Path) -> None:
    wrong = edited(case, "trace", 2, "w", value=5)
    wrong["trace"][3]["w"] = 6
    report = replay_file(write_json_lines(tmp_path / "g.jsonl", [wrong]), scheduler_factory("reference"))
    assert [describe(failure) for failure in report.failures] == ["seed 1000: step 2: w: vLLM 5, here 0"]
    assert metrics_of(report)["by_tag"] == {"plain": {"matched": 0, "total": 1}}


def test_the_command_prints_the_tally_and_writes_it(case: dict[str, Any], tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "g.jsonl", [case, edited(case, "trace", 2, "w", value=5)])
    done = fleetgym(tmp_path, "golden", f"file={file}", "engine=reference", "hydra.run.dir=out")
    assert "seed 1000: step 2: w: vLLM 5, here 0" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["matched"], metrics["total"], metrics["skipped"]) == (1, 2, 0)


@pytest.mark.parametrize(("text", "line"), [("{", 1), ('{"seed": 1}', 1), ("[]", 1)])
def test_the_command_ends_a_malformed_file_with_one_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "g.jsonl").write_text(text + "\n")
    message = refused(tmp_path, "golden", "file=g.jsonl", "engine=reference")
    assert f"g.jsonl, line {line}: not a golden case" in message

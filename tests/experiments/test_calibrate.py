"""Calibration: a known scale is found again, from the first half of the requests only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import read_json_lines, write_json_lines
from commands import fleetgym
from measured_cases import replay_of, requests, server, write_run

from fleetgym.envs.errors import UserError
from fleetgym.experiments.calibrate import fit_scale, halves


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_the_scale_of_the_server_is_recovered(tmp_path: Path, scale: float) -> None:
    replay = replay_of(write_run(tmp_path / "run", server(latency_scale=scale)))
    first, second = halves(replay)
    fitted = fit_scale(replay, first)
    assert fitted == pytest.approx(scale, rel=2e-3)
    errors = replay.errors(replay.simulate(fitted), second)
    assert abs(errors["e2e"]["mean"]["error_pct"] or 0.0) < 1.0


def test_the_fit_does_not_look_at_the_second_half(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", server(latency_scale=1.1))
    before = fit_scale(replay_of(folder), halves(replay_of(folder))[0])
    lines = read_json_lines(folder / "requests.jsonl")
    for line in lines[30:]:
        line["last_token_ts"] += 100.0
    write_json_lines(folder / "requests.jsonl", lines)
    replay = replay_of(folder)
    first, second = halves(replay)
    assert fit_scale(replay, first) == before
    assert (replay.errors(replay.simulate(before), second)["e2e"]["mean"]["error_pct"] or 0.0) < -50.0


def test_the_halves_are_of_the_arrivals_and_hold_finished_requests_only(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", server(), requests(21))
    first, second = halves(replay_of(folder))
    assert np.flatnonzero(first).tolist() == list(range(10))
    assert np.flatnonzero(second).tolist() == list(range(10, 21))
    alone = write_run(tmp_path / "alone", server(), requests(1))
    with pytest.raises(UserError, match="needs a finished request in each half"):
        halves(replay_of(alone))


def test_a_scale_beyond_all_reason_is_refused(tmp_path: Path) -> None:
    replay = replay_of(write_run(tmp_path / "run", server(latency_scale=5.0)))
    with pytest.raises(UserError, match=r"no latency_scale between 0\.25 and 4 gives its mean TPOT"):
        fit_scale(replay, halves(replay)[0])


def test_one_token_answers_are_fitted_by_their_e2e(tmp_path: Path) -> None:
    trace = requests(30)
    trace.requests["output_tokens"] = 1
    replay = replay_of(write_run(tmp_path / "run", server(latency_scale=1.2), trace))
    assert fit_scale(replay, halves(replay)[0]) == pytest.approx(1.2, rel=2e-3)


def test_the_command_reports_the_scale_and_the_unseen_half(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", server(latency_scale=1.1))
    arguments = (f"measured={folder}", "gpu=RTX4090", "model=Llama-3.1-8B", "engine=reference")
    done = fleetgym(tmp_path, "calibrate", *arguments, "hydra.run.dir=out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["latency_scale"] == pytest.approx(1.1, rel=2e-3)
    assert metrics["total_scale"] == pytest.approx(metrics["latency_scale"] * metrics["catalogue_scale"])
    assert metrics["judged"] == {"first_half": 30, "second_half": 30}
    assert abs(metrics["second_half"]["tpot"]["mean"]["error_pct"]) < 0.5
    assert metrics["second_half_uncalibrated"]["tpot"]["mean"]["error_pct"] < -5.0
    assert "use it: latency_scale: 1.1" in done.stdout

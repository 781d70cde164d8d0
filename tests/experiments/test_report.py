import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fleetgym.envs.cluster.metrics import SLO_SCALES, per_request
from fleetgym.envs.cluster.requests import FINISHED, INSTANCE_STATS_DTYPE, RESULT_DTYPE, make_trace
from fleetgym.envs.cluster.spec import Slo
from fleetgym.envs.errors import UserError
from fleetgym.experiments.report import print_summary, print_table, write_leaderboard
from fleetgym.experiments.report.axis import fit_axis, spread
from fleetgym.experiments.report.plots import in_flight_steps, run_plots, training_curve
from fleetgym.experiments.report.tables import build_table, number

PNG = b"\x89PNG"
SCENARIO = {"name": "A <test>", "description": "two & two", "requests": 100, "nothing": None}


def make_rows(**e2e_by_policy: list[float | None]) -> list[dict[str, Any]]:
    kinds = {"ppo": "learned", "oracle": "oracle", "ppo_bundle": "bundle"}
    return [
        {
            "policy": policy,
            "kind": kinds.get(policy, "heuristic"),
            "window": window,
            "e2e_charged_s.mean": value,
            "e2e_s.max": None if value is None else 3 * value,
            "slo_attainment_curve": [0.5] * len(SLO_SCALES),
            "ttft_charged_s.p90": None if value is None else value / 10,
            "slo_attainment": 0.5,
            "requests.rejected": 0,
        }
        for policy, values in e2e_by_policy.items()
        for window, value in enumerate(values)
    ]


ROWS = make_rows(
    round_robin=[9.0, 9.5, 9.2, 9.1, 9.4, 9.24],
    least=[5.0, 5.5, 5.2, 5.1, 5.4, 5.24],
    alike=[5.1, 5.4, 5.2, 5.1, 5.5, 5.2],
    ppo=[4.5, 5.0, 4.7, 4.6, 4.9, 4.74],
    oracle=[4.0, 4.5, 4.2, 4.1, 4.4, 4.24],
)


def test_places_reference_and_change() -> None:
    table = build_table(ROWS, scenario=SCENARIO)
    assert [(entry.policy, entry.place) for entry in table.entries] == [
        ("ppo", 1),
        ("least", 2),
        ("alike", 2),
        ("round_robin", 4),
        ("oracle", None),
    ]
    assert table.reference == "least"
    ppo = table.entries[0]
    assert ppo.change is not None
    assert ppo.change.estimate == pytest.approx(4.74 / 5.24 - 1.0)
    assert ppo.change.high < 0.0
    assert ppo.main.low < 4.74 < ppo.main.high
    assert ["oracle" in note for note in table.notes] == [True]


def test_a_metric_where_more_is_better_turns_the_order_round() -> None:
    rows = [{**row, "goodput_rps": row["e2e_charged_s.mean"]} for row in ROWS]
    table = build_table(rows, scenario=SCENARIO, rank_by="goodput_rps")
    assert [entry.policy for entry in table.entries if entry.place == 1] == ["round_robin"]
    assert table.reference == "round_robin"


def test_notes_warn_of_few_windows_failures_gaps_and_oracles() -> None:
    rows = make_rows(least=[5.0, 5.2], ppo=[4.9, None], oracle=[5.0, 5.1])
    rows[0]["requests.rejected"] = 3
    table = build_table(rows, scenario=SCENARIO, failure_s=60.0)
    notes = " ".join(table.notes)
    assert "2 windows: fewer than 6 give no intervals" in notes
    assert "charged failure_s, 60 s" in notes
    assert "least is in place 1 and fails 1.5 requests per window; ppo fails the fewest, 0.0" in notes
    assert "placed last: ppo" in notes
    assert "Below the places: oracle" in notes
    assert [(entry.policy, entry.place) for entry in table.entries] == [("least", 1), ("ppo", 2), ("oracle", None)]
    assert "One window" in build_table(make_rows(least=[5.0]), scenario=SCENARIO).notes[0]


def test_a_note_tells_that_a_served_request_took_longer_than_the_charge_of_a_failure() -> None:
    slow = [note for note in build_table(ROWS, scenario=SCENARIO, failure_s=28.0).notes if "round_robin" in note]
    assert len(slow) == 1
    assert "longer than failure_s=28" in slow[0]
    assert not any("longer" in note for note in build_table(ROWS, scenario=SCENARIO, failure_s=29.0).notes)


def test_without_a_reference_policy_there_is_no_comparison(tmp_path: Path) -> None:
    table = write_leaderboard(tmp_path, make_rows(ppo=[4.0, 4.1]), scenario={}, versions={"x": "1"})
    assert table.reference is None
    assert table.entries[0].change is None


def test_bad_rows_are_named() -> None:
    with pytest.raises(UserError, match="kind='magic' of policy p: allowed: heuristic"):
        build_table([{"policy": "p", "kind": "magic", "window": 0, "e2e_charged_s.mean": 1.0}], scenario={})
    twice = [*make_rows(ppo=[1.0]), {"policy": "ppo", "kind": "bundle", "window": 1, "e2e_charged_s.mean": 1.0}]
    with pytest.raises(UserError, match="listed both as learned and as bundle"):
        build_table(twice, scenario={})
    with pytest.raises(UserError, match="leaves failures out"):
        build_table(ROWS, scenario={}, rank_by="e2e_s.max")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board") / "deep"
    rows = [*ROWS, *make_rows(gone=[None] * 6)]
    write_leaderboard(folder, rows, scenario=SCENARIO, config={"seeds": [0, 1]}, versions={"fleetgym": "0"})
    return folder


def test_all_files_are_written_and_nothing_else(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == ["leaderboard.csv", "leaderboard.html", "leaderboard.json", "leaderboard.png", "slo_attainment.png"]
    assert (written / "leaderboard.png").read_bytes().startswith(PNG)


def test_json_and_csv_hold_gaps_as_null_and_empty(written: Path) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    content = json.loads((written / "leaderboard.json").read_text(), parse_constant=refuse)
    gone = content["entries"][-2]
    assert (gone["policy"], gone["place"], gone["main"]["estimate"]) == ("gone", 5, None)
    assert len(content["rows"]) == 36
    with (written / "leaderboard.csv").open() as file:
        table = {row["policy"]: row for row in csv.DictReader(file)}
    assert table["gone"]["e2e_charged_s.mean"] == ""
    assert float(table["ppo"]["e2e_charged_s.mean"]) == pytest.approx(4.74)
    assert table["oracle"]["place"] == ""


def test_the_page_asks_nothing_of_the_network_and_escapes_its_text(written: Path) -> None:
    page = (written / "leaderboard.html").read_text()
    assert not re.search(r"https?://|src=|<link|@import|url\(", page)
    assert "{{" not in page
    assert "A &lt;test&gt;" in page
    assert "two &amp; two" in page
    assert "NaN" not in page.replace("isNaN", "")
    assert ">nan<" not in page.lower()
    assert page.count('<tr class="heuristic"') == 4
    assert "<dt>nothing</dt>" not in page


def test_the_same_rows_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    rows = [*ROWS, *make_rows(gone=[None] * 6)]
    write_leaderboard(tmp_path, rows, scenario=SCENARIO, config={"seeds": [0, 1]}, versions={"fleetgym": "0"})
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_measured_time_stays_out_of_the_simulated_figures() -> None:
    table = build_table([{**row, "decision_us": 3.0} for row in ROWS], scenario=SCENARIO)
    assert "decision_us" in [column.key for column in table.columns]
    assert "decision_us" not in json.dumps(table.simulated())


def test_the_terminal_table_fits_narrow_and_wide(capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table(ROWS, scenario=SCENARIO)
    for width in (80, 160):
        print_table(table, Console(width=width))
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= width
        assert "round_robin" in text
        assert ("TTFT P90" in text) == (width == 160)


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match=r"cannot write leaderboard\.csv"):
        write_leaderboard(blocker / "sub", ROWS, scenario=SCENARIO)


def make_columns() -> tuple[dict[str, Any], np.ndarray]:
    trace = make_trace(np.arange(6) * 10**9, np.full(6, 100), np.array([1, 5, 5, 5, 5, 5]))
    results = np.zeros(6, RESULT_DTYPE)
    results["status"] = FINISHED
    results["instance"] = [0, 1, 0, 1, 0, 1]
    results["first_token_ns"] = results["scheduled_ns"] = trace.requests["arrival_ns"] + 10**8
    results["finish_ns"] = trace.requests["arrival_ns"] + 25 * 10**8
    stats = np.zeros(2, INSTANCE_STATS_DTYPE)
    stats["dispatched"], stats["busy_ns"] = 3, 5 * 10**9
    return per_request(trace, results, Slo(), failure_s=60.0), stats


def test_run_plots_writes_pictures_even_of_a_run_where_nothing_finished(tmp_path: Path) -> None:
    columns, stats = make_columns()
    paths = run_plots(tmp_path, columns, stats)
    assert [path.name for path in paths] == ["latency_cdf.png", "in_flight.png", "instance_load.png"]
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        columns[key] = np.full(6, np.nan)
    run_plots(tmp_path, columns, stats, names=["left", "right"])
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_in_flight_counts_arrivals_and_departures() -> None:
    times, counts = in_flight_steps(np.array([0.0, 1.0, 2.0]), np.array([2.0, np.nan, 5.0]))
    assert times.tolist() == [0.0, 1.0, 2.0, 2.0, 5.0]
    assert counts.tolist() == [1, 2, 1, 2, 1]  # at 2 s one leaves, then one comes


def test_training_curve_reads_rows_or_csv_and_skips_empty_cells(tmp_path: Path) -> None:
    history = [{"timesteps": 10, "mean_reward": -5.0}, {"timesteps": 20, "mean_reward": -3.0, "note": "x"}]
    assert training_curve(tmp_path, history).read_bytes().startswith(PNG)
    source = tmp_path / "progress.csv"
    source.write_text("step,loss,eval\n1,0.5,\n2,0.4,-3\n")
    assert training_curve(tmp_path / "csv", source, keys=["eval"]).is_file()


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([{"loss": 1.0}], None, "no column of timesteps"),
        ([{"step": 1, "loss": 1.0}], ["los"], "did you mean loss"),
        ([{"step": 1, "name": "x"}], None, "no numeric column"),
    ],
)
def test_training_curve_names_what_is_missing(
    tmp_path: Path, rows: list[dict[str, Any]], keys: list[str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        training_curve(tmp_path, rows, keys=keys)
    with pytest.raises(UserError, match="cannot read"):
        training_curve(tmp_path, tmp_path / "absent.csv")


def test_print_summary_shows_latencies_counts_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.1234)
    summary = {"requests": {"arrived": 7}, "ttft_s": figures, "tpot_s": dict.fromkeys(figures), "goodput_rps": 1.5}
    print_summary(summary, Console(width=100), title="a run")
    text = capsys.readouterr().out
    assert "0.123" in text
    assert "–" in text
    assert "7 arrived" in text
    assert "goodput_rps: 1.50" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.2345, "1.23"), (9.999, "10.0"), (123456.0, "123,456"), (0.01234, "0.0123"), (-0.5, "-0.500"),
     (1e-5, "1.00e-05"), (math.nan, "–")],
)  # fmt: skip
def test_number_keeps_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=20))
def test_an_axis_holds_its_values_in_order_and_has_few_ticks(values: list[float]) -> None:
    axis = fit_axis(values, 10.0, 200.0)
    positions = [axis.at(value) for value in sorted(values)]
    assert all(10.0 <= p <= 200.0 for p in positions)
    assert positions == sorted(positions)
    assert len(axis.ticks()) <= 7
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in axis.ticks())


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=15))
def test_labels_are_spread_apart_in_order_and_within_bounds(positions: list[float]) -> None:
    placed = spread(positions, 5.0, 0.0, 100.0)
    assert all(-1e-6 <= p <= 100.0 + 1e-6 for p in placed)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.array(placed)[order]) >= 5.0 - 1e-6).all()

"""Suites: what they may name, each scenario as if it were alone, and one summary of ratios to the yardstick."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fleetgym
from rich.console import Console
from routing_envs import ROUTING_ID
from suite_cases import POLICIES, write_suite

from fleetgym.agents.learned import load_checkpoint
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import find_problem
from fleetgym.envs.routing.problem import Routing
from fleetgym.experiments import cli
from fleetgym.experiments.comparison.suite import Suite, check_alike
from fleetgym.experiments.harness.trials import with_yardstick
from fleetgym.experiments.report import print_suite
from fleetgym.experiments.report.suite_table import SuiteTable, build_suite
from fleetgym.experiments.report.tables import LeaderboardTable, build_table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "s", "scenarios": []}, r"suite: scenarios=\[\]: must name at least one"),
        ({"name": "s", "scenarios": ["a", "b", "a"]}, "suite: scenarios: 'a' is named twice"),
        ({"name": "", "scenarios": ["a"]}, "suite: name='': must not be empty"),
        ({"name": "s"}, "suite.scenarios: missing"),
        ({"name": "s", "scenarios": ["a"], "scenario": "b"}, "suite.scenario: unknown field; did you mean scenarios"),
        ({"name": "s", "scenarios": [3]}, r"suite.scenarios\[0\]=3: expected a text"),
    ],
)
def test_an_impossible_suite_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Suite, values, "suite")


class Elsewhere(Routing):
    """Another environment."""

    env_id = "test/Elsewhere-v0"


def test_a_suite_is_of_one_environment_and_where_asked_of_one_observation() -> None:
    def problem(kind: type[Problem] | None = None, **arguments: object) -> Problem:
        return (kind or find_problem(ROUTING_ID)).resolve(num_requests=20, **arguments)

    check_alike({"a": problem(), "b": problem(load=0.5)}, "features")
    with pytest.raises(UserError, match=r"a and c differ in env.id \('fleetgym/Routing-v0' and 'test/Elsewhere-v0'\)"):
        check_alike({"a": problem(), "b": problem(), "c": problem(Elsewhere)})
    fewer = problem(features=["in_flight_requests", "kv_usage"])
    check_alike({"a": problem(features=["kv_usage"]), "b": fewer})
    with pytest.raises(UserError, match=r"a and b differ in features .not in both: in_flight_requests"):
        check_alike({"a": problem(features=["kv_usage"]), "b": fewer}, "features")


# -- The summary -------------------------------------------------------------------------------------------------------


def board(
    rank_by: str = "e2e_charged_s.mean", rejected: float = 0.0, **figures: list[float | None]
) -> LeaderboardTable:
    rows = [
        {
            "policy": policy,
            "kind": "oracle" if policy == "oracle" else "heuristic",
            "window": window,
            rank_by: value,
            "requests.rejected": rejected if policy == "good" else 0.0,
        }
        for policy, values in figures.items()
        for window, value in enumerate(values)
    ]
    return build_table(
        rows, scenario={"windows": f"{len(rows)} windows", "description": "what <it> is"}, rank_by=rank_by
    )


SPREAD = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]


def around(middle: float) -> list[float | None]:
    return [middle * value for value in SPREAD]


def summary(**changes: LeaderboardTable) -> SuiteTable:
    boards = {
        "latency": board(yard=around(4.0), good=around(2.0), bad=around(8.0), oracle=around(1.0)),
        "share": board("slo_attainment", yard=around(0.2), good=around(0.8), bad=around(0.1), oracle=around(0.8)),
    }
    return build_suite("both", boards | changes, "yard")


def entries(table: SuiteTable) -> dict[str, Any]:
    return {entry.policy: entry for entry in table.entries}


def test_the_suites_figure_is_the_geometric_mean_of_the_ratios_to_the_yardstick() -> None:
    table = summary()
    found = entries(table)
    assert found["good"].ratios == pytest.approx({"latency": 0.5, "share": 0.25})
    assert found["good"].main.estimate == pytest.approx(math.sqrt(0.5 * 0.25))
    assert found["yard"].main == pytest.approx((1.0, 1.0, 1.0))
    assert [(entry.policy, entry.place) for entry in table.entries] == [
        ("good", 1), ("yard", 2), ("bad", 3), ("oracle", None),
    ]  # fmt: skip
    assert found["good"].places == {"latency": 1, "share": 1}
    assert any("Below the places: oracle" in note for note in table.notes)


def test_a_policy_without_a_figure_in_one_scenario_is_named_and_comes_last() -> None:
    table = summary(
        share=board("slo_attainment", yard=around(0.2), good=[0.0] * 6, bad=around(0.1), oracle=around(0.8))
    )
    assert [entry.policy for entry in table.entries][:3] == ["yard", "bad", "good"]
    assert entries(table)["good"].place == 3
    assert math.isnan(entries(table)["good"].main.estimate)
    assert "share: no slo_attainment of good, placed last over the suite." in table.notes


def test_without_a_figure_of_the_yardstick_there_is_none_of_the_suite() -> None:
    table = summary(
        share=board("slo_attainment", yard=[0.0] * 6, good=around(0.8), bad=around(0.1), oracle=around(0.8))
    )
    assert all(math.isnan(entry.main.estimate) for entry in table.entries)
    assert any(note.startswith("share: yard has no slo_attainment") for note in table.notes)


def test_a_policy_that_fails_requests_in_one_scenario_is_named() -> None:
    failing = board(rejected=2.5, yard=around(4.0), good=around(2.0), bad=around(8.0), oracle=around(1.0))
    notes = summary(latency=failing).notes
    assert "latency: failed requests per window, each charged failure_s: good 2.50." in notes


def test_a_scenario_with_few_windows_leaves_the_suite_without_intervals() -> None:
    few = board(yard=[4.0, 4.1], good=[2.0, 2.2], bad=[8.0, 8.1], oracle=[1.0, 1.0])
    table = summary(latency=few)
    assert all(math.isnan(entry.main.low) for entry in table.entries)
    assert {entry.place for entry in table.entries if entry.kind != "oracle"} == {1}
    assert "Fewer than 6 windows in latency" in table.notes[0]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_summary_prints_at_any_width_with_every_policy(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_suite(summary(), console)
    text = console.export_text()
    assert all(policy in text for policy in entries(summary()))


# -- The commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(folder: Path, command: str, *arguments: str) -> None:
    where = ["--config-dir", "conf"] if (folder / "conf").is_dir() else write_suite(folder)
    cli.main([command, *where, *arguments])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """Run a command that must end with one line and code 2 before anything is written; return the line."""
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        run(folder, command, *arguments)
    line = capsys.readouterr().err
    assert caught.value.code == 2, line
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {"conf", *before}, "something was written"
    return line


BOARD = (POLICIES, "checkpoint=null")
MEASURED = ("run.json", "leaderboard.html", "leaderboard.json", "leaderboard.csv", "overrides.yaml")


def test_each_board_of_a_suite_is_that_of_its_scenario_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte, but for the time that a decision took; an override counts for every scenario."""
    run(folder, "leaderboard", "suite=tiny", *BOARD, "env.load=0.8", "hydra.run.dir=s")
    assert "geometric mean" in capsys.readouterr().out
    for name in ("tiny/eight", "tiny/four"):
        also = "policies=[round_robin,least_inflight,random]"
        run(folder, "leaderboard", f"scenario={name}", also, "checkpoint=null", "env.load=0.8", f"hydra.run.dir={name}")
        alone, within = folder / name, folder / "s" / name
        assert {path.name for path in alone.iterdir()} == {path.name for path in within.iterdir()}
        for path in sorted(alone.iterdir()):
            if path.name not in MEASURED and path.name != "config.yaml":
                assert path.read_bytes() == (within / path.name).read_bytes(), path.name
        assert "load: 0.8" in (within / "config.yaml").read_text()
        assert json.loads((within / "run.json").read_text())["status"] == "finished"


def test_a_suites_summary_ranks_by_ratios_and_links_to_the_boards(folder: Path) -> None:
    run(folder, "leaderboard", "suite=tiny", *BOARD, "hydra.run.dir=s")
    metrics = json.loads((folder / "s" / "metrics.json").read_text())
    assert metrics["yardstick"] == "round_robin"
    assert set(metrics["policies"]) == {"least_inflight", "random", "round_robin"}
    figures = {
        name: {
            policy: entry["main"]["estimate"]
            for policy, entry in json.loads((folder / "s" / name / "metrics.json").read_text())["policies"].items()
        }
        for name in ("tiny/eight", "tiny/four")
    }
    eight, four = figures.values()
    least = metrics["policies"]["least_inflight"]
    expected = {
        "tiny/eight": eight["least_inflight"] / eight["round_robin"],
        "tiny/four": four["round_robin"] / four["least_inflight"],
    }
    assert least["ratios"] == pytest.approx(expected)
    assert least["geometric_mean"]["estimate"] == pytest.approx(math.sqrt(math.prod(expected.values())))
    with (folder / "s" / "suite.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["policy"]: float(row["geometric_mean"]) for row in rows}["least_inflight"] == pytest.approx(
        least["geometric_mean"]["estimate"]
    )
    page = (folder / "s" / "suite.html").read_text()
    for link in re.findall('href="([^"]+)"', page):
        assert (folder / "s" / link).is_file()
    assert page.count("href=") == 2
    assert "{{" not in page
    assert (folder / "s" / "suite.png").read_bytes().startswith(b"\x89PNG")
    config = (folder / "s" / "config.yaml").read_text()
    assert "scenarios:\n  tiny/eight:\n    cluster:" in config


def test_an_experiment_may_choose_a_suite_and_a_sweep_may_run_over_them(folder: Path) -> None:
    write_suite(folder)
    (folder / "conf" / "experiment").mkdir()
    (folder / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /suite: lone\n  - _self_\nseed: 3\n"
    )
    arguments = ("leaderboard", *BOARD, "env.num_requests=20", "seeds=[0,1]")
    run(folder, *arguments, "experiment=mine", "env.load=0.5,0.7", "hydra.sweep.dir=m", "-m")
    for job, load in (("0", "0.5"), ("1", "0.7")):
        config = (folder / "m" / job / "tiny" / "eight" / "config.yaml").read_text()
        assert f"load: {load}" in config
        assert "seed: 3" in config
    run(folder, *arguments, "experiment=mine", "suite=[]", "scenario=tiny/four", "hydra.run.dir=four")
    assert (folder / "four" / "leaderboard.csv").is_file()


def test_worker_processes_compose_the_scenarios_too(tmp_path: Path) -> None:
    where = write_suite(tmp_path)
    sweep = ("env.load=0.5,0.7", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=m")
    small = ("env.num_requests=20", "episodes=1", "policy=random")
    fleetgym(tmp_path, "evaluate", *where, "-m", "suite=tiny", *small, *sweep)
    for job, load in (("0", "0.5"), ("1", "0.7")):
        assert set(json.loads((tmp_path / "m" / job / "metrics.json").read_text())["ratios"]) == {
            "tiny/eight",
            "tiny/four",
        }
        assert f"load: {load}" in (tmp_path / "m" / job / "tiny" / "four" / "config.yaml").read_text()


@pytest.mark.parametrize("command", ["train", "evaluate", "leaderboard"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["suite=tiny", "scenario=tiny/four"], "scenario=tiny/four: suite=tiny names its scenarios; choose one"),
        (["suite=tinny"], "suite=tinny: unknown; did you mean tiny"),
        (["suite=null"], "suite=null: must name an option of suite"),
        (["suite=3"], "suite=3: must name an option of suite"),
        (["suite=tiny", "suite.scenarios=[]"], "suite: scenarios=[]: must name at least one"),
        (["suite=tiny", "suite.scenarios=[tiny/four,tiny/four]"], "'tiny/four' is named twice"),
        (
            ["suite=tiny", "suite.scenarios=[tiny/fuor]"],
            "suite.scenarios: 'tiny/fuor': unknown; did you mean tiny/four",
        ),
        (["suite=tiny", "suite.scenarios=[../suite/tiny]"], "suite.scenarios: '../suite/tiny': unknown"),
        (["suite=tiny", "suite.scenarios=[tiny/four.yaml]"], "suite.scenarios: 'tiny/four.yaml': unknown"),
        (["suite=tiny", "env.available=6"], "tiny/four: available=6"),
        (["suite=tiny", "scenario.rank_by=e2e_s.mean"], "rank_by='e2e_s.mean': leaves failures out"),
        (["suite=tiny", "scenario=tiny/four,tiny/eight", "-m"], "suite=tiny names its scenarios"),
        (["suite=lone,tiny", "env.available=6", "-m"], "tiny/four: available=6"),
    ],
)
def test_a_wrong_suite_is_one_line_and_nothing_is_written(
    command: str, arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(folder, capsys, command, *arguments)


def test_a_scenario_whose_trace_is_absent_is_named_with_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "suite.scenarios=[routing/azure]"
    line = refused(folder, capsys, "leaderboard", "suite=routing_small", only, "++workload.path=none.csv")
    assert line.startswith("error: routing/azure: ")
    assert "none.csv" in line


def test_a_scenario_that_does_not_compose_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_suite(folder)
    four = folder / "conf" / "scenario" / "tiny" / "four.yaml"
    four.write_text(four.read_text().replace("rtxpro6000_qwen3_32b_tp2_x4", "rtxpro6000_x4"))
    line = refused(folder, capsys, "leaderboard", "suite=tiny")
    assert line.startswith("error: tiny/four: cluster=rtxpro6000_x4: unknown; did you mean rtxpro6000_x4_rtx4090_x4")


def test_a_command_without_scenarios_reads_no_suite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "simulate does not read this; read by train, evaluate, leaderboard" in refused(
        folder, capsys, "simulate", "suite=tiny"
    )


def test_evaluate_says_the_suites_geometric_mean_and_leaves_each_scenario_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "evaluate", "suite=tiny", "policy=least_inflight", "episodes=2", "hydra.run.dir=s")
    metrics = json.loads((folder / "s" / "metrics.json").read_text())
    said = f"tiny, geometric mean of 2 ratios, below 1 is better: {metrics['geometric_mean']:.4g}"
    assert said in capsys.readouterr().out
    run(folder, "leaderboard", "suite=tiny", *BOARD, "seeds=[0,1]", "hydra.run.dir=b")
    board = json.loads((folder / "b" / "metrics.json").read_text())["policies"]["least_inflight"]
    assert metrics["ratios"] == pytest.approx(board["ratios"])
    assert metrics["geometric_mean"] == pytest.approx(board["geometric_mean"]["estimate"])
    run(folder, "evaluate", "scenario=tiny/four", "policy=least_inflight", "episodes=2", "hydra.run.dir=four")
    for name in ("metrics.json", "requests.parquet"):
        assert (folder / "four" / name).read_bytes() == (folder / "s" / "tiny" / "four" / name).read_bytes()


def test_the_yardstick_itself_has_the_ratio_one(folder: Path) -> None:
    run(folder, "evaluate", "suite=tiny", "policy=round_robin", "episodes=1", "hydra.run.dir=s")
    metrics = json.loads((folder / "s" / "metrics.json").read_text())
    assert metrics["ratios"] == {"tiny/eight": 1.0, "tiny/four": 1.0}


# -- Training ----------------------------------------------------------------------------------------------------------

LEARN = (
    "total_timesteps=128", "eval_every_timesteps=64", "eval_episodes=2", "agent.num_envs=4", "progress_bar=false",
    "agent.hyperparameters.n_steps=16", "agent.hyperparameters.batch_size=32", "env.num_requests=40",
)  # fmt: skip


def test_a_policy_trained_on_a_suite_says_on_what_and_is_ranked_over_it(folder: Path) -> None:
    run(folder, "train", "suite=tiny", *LEARN, "name=both", "hydra.run.dir=t")
    metrics = json.loads((folder / "t" / "metrics.json").read_text())
    row = metrics["held_out"][0]
    assert row["ratio"] == pytest.approx(math.sqrt(row["tiny/eight.ratio"] * row["tiny/four.ratio"]))
    assert metrics["best"]["ratio"] == min(row["ratio"] for row in metrics["held_out"])
    assert (folder / "t" / "training_curve.png").is_file()
    assert "held_out/tiny/four.ratio" in (folder / "t" / "progress.csv").read_text().splitlines()[0]
    about = json.loads((folder / "t" / "best_model.json").read_text())
    assert about["scenarios"] == ["tiny/eight", "tiny/four"]
    assert about["trained_ranges"]["load"] == [0.5, 1.1]
    assert about["trained_ranges"]["num_choices"] == [4, 8]
    assert set(about["config"]["scenarios"]) == {"tiny/eight", "tiny/four"}
    run(folder, "leaderboard", "suite=tiny", "name=both", POLICIES, "seeds=[0]", "hydra.run.dir=b")
    board = json.loads((folder / "b" / "metrics.json").read_text())
    assert {entry["kind"] for entry in board["policies"].values()} == {"heuristic", "learned"}


def test_a_suite_of_one_scenario_gives_the_weights_of_that_scenario(folder: Path) -> None:
    for name, chosen in (("alone", "scenario=tiny/eight"), ("lone", "suite=lone")):
        run(folder, "train", chosen, *LEARN, f"hydra.run.dir={name}")
    for checkpoint in ("best_model.zip", "last_model.zip"):
        alone, lone = (
            load_checkpoint(folder / name / checkpoint).model.policy.state_dict() for name in ("alone", "lone")
        )
        assert all(torch.equal(alone[key], lone[key]) for key in alone)


def test_a_policy_for_one_number_of_choices_is_refused_with_the_scenario_that_has_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*LEARN[:5], *LEARN[7:], "agent.hyperparameters.learning_starts=16", "agent.hyperparameters.batch_size=16"]
    run(folder, "train", "scenario=tiny/four", "agent=dqn", *few, "hydra.run.dir=four")
    capsys.readouterr()
    checkpoint = "checkpoint=four/best_model.zip"
    for command, *chosen in (("leaderboard", POLICIES), ("evaluate", "policy=checkpoint")):
        line = refused(folder, capsys, command, "suite=tiny", checkpoint, *chosen)
        assert line.startswith("error: tiny/eight: ")
        assert "was trained for exactly 4 choices, here are 8" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent.num_envs=1"], "agent.num_envs=1: must be at least 2, one for each scenario of the suite"),
        (
            ["agent=dqn", "scenario.parts.train.available=null"],
            "suite.scenarios: 4 to 8 choices: dqn with network='mlp'",
        ),
        (["resume=conf/suite/tiny.yaml"], "not a checkpoint that training wrote"),
    ],
)
def test_what_cannot_be_trained_on_a_suite_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder)
    assert message in refused(folder, capsys, "train", "suite=tiny", *arguments)


def test_a_scenario_where_the_yardstick_attains_nothing_cannot_choose_a_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ("slo.ttft_s=1e-6", "slo.ttft_s_per_1k_prompt_tokens=0", "eval_episodes=1")
    line = refused(folder, capsys, "train", "suite=tiny", *nothing)
    assert "tiny/four: round_robin has slo_attainment=0 on the validation part" in line


def test_a_policy_that_has_no_ratio_is_still_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetgym.agents.held_out.ratio", lambda *_: math.nan)
    run(folder, "train", "suite=tiny", *LEARN, "name=none", "hydra.run.dir=t")
    assert math.isnan(json.loads((folder / "t" / "metrics.json").read_text())["best"]["ratio"] or math.nan)
    assert (folder / "t" / "best_model.zip").is_file()
    assert (folder / "t" / "training_curve.png").is_file()


def test_a_learned_policy_with_the_yardsticks_name_is_refused() -> None:
    class Learned:
        name, kind, features = "round_robin", "learned", ()

    problem = Routing.resolve(num_requests=20)
    with pytest.raises(UserError, match=r"a learned policy is called 'round_robin', as the yardstick of .*agent\.name"):
        with_yardstick([Learned()], problem)
    assert [policy.name for policy in with_yardstick([], problem)] == ["round_robin"]


def test_evaluate_says_where_a_window_has_no_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("workload.num_requests=1", "env.num_requests=null", "env.load=null", "scenario.rank_by=goodput_rps")
    run(folder, "evaluate", "policy=least_inflight", "episodes=2", *one, "hydra.run.dir=e")
    assert "goodput_rps, mean of 2 generated windows, each drawn afresh: not in every window" in capsys.readouterr().out
    assert "goodput_rps" not in json.loads((folder / "e" / "metrics.json").read_text())["mean"]

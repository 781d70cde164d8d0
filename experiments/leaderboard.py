"""``fleetgym leaderboard``: rank policies on the same arrivals over independent windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.baselines import contenders
from fleetgym.envs.cluster.judging import NS
from fleetgym.envs.cluster.metrics import flatten
from fleetgym.envs.episodes import Episode
from fleetgym.envs.errors import UserError
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Problem
from fleetgym.experiments.comparison.rollout import run_policies
from fleetgym.experiments.comparison.scenario import Scenario, Windows
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import plain
from fleetgym.experiments.harness.from_config import exported, learned, make_policy
from fleetgym.experiments.harness.latest import latest_checkpoint
from fleetgym.experiments.harness.options import LeaderboardOptions
from fleetgym.experiments.harness.run_folder import RunFolder, git_state, versions
from fleetgym.experiments.harness.suites import read_cases, run_config
from fleetgym.experiments.harness.trials import Trial, check_trials, plan_trials, with_yardstick
from fleetgym.experiments.report import LeaderboardTable, print_suite, print_table, write_leaderboard, write_suite

DEFINING = ("env[=.]", "cluster[=.]", "workload[=.]", "slo[=.]", r"scenario\.")  # overrides that change a scenario


@command("leaderboard")
def main(cfg: DictConfig) -> float | None:
    """Rank; return the best policy's figure of those that the scenario ranks by, of a suite its geometric mean.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/leaderboard.yaml``.

    Raises
    ------
    UserError
        A faulty option, trace or policy, more windows than there are, or a charge that serving exceeds.
    """
    options, cases = read_cases(LeaderboardOptions, cfg)
    trials = plan_trials(cases, options.seeds, "seeds")
    problem = trials[0].problem
    with cases[0].named():
        policies = collect(options, problem)
    if options.suite is not None:
        policies = with_yardstick(policies, problem)
    check_trials(trials, policies)
    config = run_config(cfg, cases)
    with RunFolder.from_hydra(config) as run:
        if options.suite is None:
            table = play_board(run, trials[0], policies)
            print_table(table, Console())
            _print_files(
                run, "leaderboard.html", "leaderboard.png", "slo_attainment.png", "leaderboard.csv", "leaderboard.json"
            )
            return table.entries[0].main.estimate
        boards = {}
        for trial in trials:
            with trial.case.run_folder(run) as own:
                boards[trial.case.name] = play_board(own, trial, policies)
                print(own.path / "leaderboard.html")
        suite = write_suite(run.path, options.suite.name, boards, problem.yardstick, config=config, versions=versions())
        run.write_metrics(suite.simulated())
        print_suite(suite, Console())
        _print_files(run, "suite.html", "suite.png", "suite.csv", "suite.json")
    return suite.entries[0].main.estimate


def play_board(run: RunFolder, trial: Trial[LeaderboardOptions], policies: Sequence[Policy]) -> LeaderboardTable:
    """Play all policies on one scenario and leave its board in a run folder.

    Parameters
    ----------
    run : RunFolder
        Open.
    trial : Trial
    policies : sequence of Policy
        Each under a name of its own.

    Returns
    -------
    LeaderboardTable
    """
    options, problem = trial.case.options, trial.problem
    scenario = options.scenario
    episodes = run_policies(problem, policies, trial.windows, seed=options.seed)
    rows = [
        {
            "policy": e.policy,
            "kind": e.kind,
            "window": e.window,
            "decision_us": e.decision_us,
            "slo_attainment_curve": e.attainment_curve(),
            **flatten(e.summary()),
        }
        for e in episodes
    ]
    table = write_leaderboard(
        run.path,
        rows,
        scenario=facts(scenario, problem, trial.windows, episodes, run.overrides),
        rank_by=scenario.rank_by,
        failure_s=scenario.failure_s,
        config=plain(trial.case.cfg),
        versions=versions(),
    )
    run.write_metrics(table.simulated())
    with run.atomic("requests.parquet") as path:
        tables = [
            pl.DataFrame(e.requests()).with_columns(policy=pl.lit(e.policy), window=pl.lit(e.window)) for e in episodes
        ]
        pl.concat(tables).write_parquet(path)
    return table


def _print_files(run: RunFolder, *names: str) -> None:
    for name in names:
        print(run.path / name)


def collect(options: LeaderboardOptions, problem: Problem) -> list[Policy]:
    """Build the heuristics, the trained and the exported policies that ``options`` name.

    Parameters
    ----------
    options : LeaderboardOptions
    problem : Problem
        What they are to decide.

    Returns
    -------
    list of Policy
        Each under a name of its own: those of equal names are numbered.

    Raises
    ------
    UserError
        A policy that is unknown or refused, or a heuristic that is named twice.
    """
    names = contenders(problem.env_id) if options.policies is None else options.policies
    policies = [make_policy(name, problem) for name in names]
    for path in _checkpoints(options):
        policies.append(learned(path, problem))
    for folder in options.bundle or ():
        policies.append(exported(folder, problem))
    _distinguish(policies)
    return policies


def _checkpoints(options: LeaderboardOptions) -> list[Path]:
    if options.checkpoint != ("latest",):
        return [Path(path) for path in options.checkpoint or ()]
    latest = latest_checkpoint(options.name)
    if latest is None:
        print(
            f"note: no training run called {options.name!r} was started from this directory, so that only heuristics are "
            f"ranked; train one, or give checkpoint=PATH"
        )
        return []
    print(f"trained policy: {latest}")
    return [latest]


def _distinguish(policies: Sequence[Policy]) -> None:
    """Number policies of the same name, e.g. the same agent trained with several seeds."""
    seen: dict[str, int] = {}
    for policy in policies:
        seen[policy.name] = seen.get(policy.name, 0) + 1
        if seen[policy.name] > 1:
            if policy.kind in ("heuristic", "oracle"):
                raise UserError(f"policies: {policy.name!r} is named twice")
            policy.name = f"{policy.name}_{seen[policy.name]}"


def facts(
    scenario: Scenario,
    problem: Problem,
    windows: Windows,
    episodes: Sequence[Episode],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what the page says about the scenario; ``overrides`` of the command line may have made it another.

    Parameters
    ----------
    scenario : Scenario
    problem : Problem
    windows : Windows
    episodes : sequence of Episode
        Of all policies.
    overrides : sequence of str
        Of the command line, as written.
    """
    fleet = problem.cluster.label
    changed = [text for text in overrides if re.match(rf"\+*({'|'.join(DEFINING)})", text)]
    load = "arrival times as the workload has them"
    if problem.load is not None:
        low, high = problem.load
        share = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        load = f"{share} of the measured saturation rate"
    slo = problem.slo
    return {
        "name": scenario.name + (f", changed: {', '.join(changed)}" if changed else ""),
        "description": f"{episodes[0].trace.name} on {fleet}, offered load: {load}.",
        "windows": windows.text,
        "each window": window_length(problem, episodes),
        "ranked by": scenario.rank_by,
        "failure_s": f"{scenario.failure_s:g} s charged for each failed request",
        "objectives": f"TTFT {slo.ttft_s:g} s + {slo.ttft_s_per_1k_prompt_tokens:g} s per 1,000 prompt tokens, TPOT {slo.tpot_s:g} s",
        "fleet": fleet,
        **({"not measured": "; ".join(problem.cluster.estimates)} if problem.cluster.estimates else {}),
        "load": load,
        "engine": problem.engine,
        "revision": (git_state() or {}).get("revision", "not in a checkout"),
    }


def window_length(problem: Problem, episodes: Sequence[Episode]) -> str:
    """Say how long a window is, in requests, seconds and mean latencies of the best policy.

    Parameters
    ----------
    problem : Problem
    episodes : sequence of Episode
        Of all policies.
    """
    span_s = float(np.mean([e.trace.requests["arrival_ns"][-1] * NS for e in episodes]))
    e2e_s: dict[str, list[float]] = {}
    for e in episodes:
        e2e_s.setdefault(e.policy, []).append(float(e.requests()["e2e_charged_s"].mean()))
    best_s = min(float(np.mean(values)) for values in e2e_s.values())
    requests = float(np.mean([len(e.trace) for e in episodes]))
    return f"{requests:,.0f} requests in {span_s:.1f} s, {span_s / best_s:.1f} mean latencies of the best policy"


if __name__ == "__main__":
    main()

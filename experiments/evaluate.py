"""``fleetgym evaluate``: evaluate one policy on held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.envs.cluster.metrics import flatten
from fleetgym.envs.policy import Policy
from fleetgym.envs.relative import geometric_mean, ratio
from fleetgym.experiments.comparison.rollout import run_policies
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.from_config import make_policy
from fleetgym.experiments.harness.options import EvaluateOptions
from fleetgym.experiments.harness.run_folder import RunFolder
from fleetgym.experiments.harness.suites import read_cases, run_config
from fleetgym.experiments.harness.trials import Trial, check_trials, plan_trials, with_yardstick
from fleetgym.experiments.report.tables import print_summary


@command("evaluate")
def main(cfg: DictConfig) -> float | None:
    """Evaluate on windows of the test part; return the mean of the figure that ranks, of a suite the geometric mean.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/evaluate.yaml``.

    Returns
    -------
    float or None
        None if no window has that figure.

    Raises
    ------
    UserError
        A faulty option, trace or policy, more windows than there are, or a charge that serving exceeds.
    """
    options, cases = read_cases(EvaluateOptions, cfg)
    trials = plan_trials(cases, options.episodes, "episodes")
    problem = trials[0].problem
    with cases[0].named():
        policy = make_policy(options.policy, problem, checkpoint=options.checkpoint, bundle=options.bundle)
    check_trials(trials, [policy])
    with RunFolder.from_hydra(run_config(cfg, cases)) as run:
        if options.suite is None:
            _, figure = play_windows(run, trials[0], [policy])
            print(f"run folder: {run.path}")
            return figure
        ratios = {}
        for trial in trials:
            with trial.case.run_folder(run) as own:
                yardstick, figure = play_windows(own, trial, with_yardstick([policy], problem))
            ratios[trial.case.name] = ratio(figure, yardstick, trial.case.options.scenario.rank_by)
        suite = geometric_mean(ratios.values())
        run.write_metrics(
            {"suite": options.suite.name, "yardstick": problem.yardstick, "geometric_mean": suite, "ratios": ratios}
        )
        for name, own_ratio in ratios.items():
            print(f"{name}: {own_ratio:.4g} of {problem.yardstick}")
        print(f"{options.suite.name}, geometric mean of {len(ratios)} ratios, below 1 is better: {suite:.4g}")
        print(f"run folder: {run.path}")
    return suite


def play_windows(
    run: RunFolder, trial: Trial[EvaluateOptions], policies: Sequence[Policy]
) -> tuple[float | None, float | None]:
    """Play one scenario and leave what the last policy did in a run folder.

    Parameters
    ----------
    run : RunFolder
        Open.
    trial : Trial
    policies : sequence of Policy
        At least one; files and prints are of the last alone.

    Returns
    -------
    first, last : float or None
        Mean of the figure that ranks of the first and of the last policy, which may be one; None where there is none.
    """
    windows, rank_by = trial.windows, trial.case.options.scenario.rank_by
    count = len(windows.numbers)
    episodes = run_policies(trial.problem, policies, windows, seed=trial.case.options.seed)
    rows = [{"window": e.window, **flatten(e.summary())} for e in episodes]
    first, last = (_attained(own, rank_by) for own in (rows[:count], rows[-count:]))
    episodes, rows = episodes[-count:], rows[-count:]
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, (int, float)))
    mean = {key: _mean([row.get(key) for row in rows]) for key in keys if key != "window"}
    run.write_metrics({"mean": mean, "windows": windows.text, "per_window": rows})
    with run.atomic("requests.parquet") as path:
        tables = [pl.DataFrame(e.requests()).with_columns(window=pl.lit(e.window)) for e in episodes]
        pl.concat(tables).write_parquet(path)
    print_summary(episodes[0].summary(), Console(), title=f"{policies[-1].name}, window {windows.numbers[0]}")
    print(f"{rank_by}, mean of {windows.text}: {'not in every window' if last is None else f'{last:.4g}'}")
    return first, last


def _attained(rows: Sequence[Mapping[str, object]], rank_by: str) -> float | None:
    """Mean of the figure that ranks; None where a window lacks it, as such a mean would be of other windows."""
    figures = [row.get(rank_by) for row in rows]
    return None if None in figures else _mean(figures)


def _mean(values: Sequence[object]) -> float | None:
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    return float(np.mean(numbers)) if numbers else None


if __name__ == "__main__":
    main()

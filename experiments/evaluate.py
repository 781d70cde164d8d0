"""``fleetgym evaluate``: evaluate one policy on held-out episodes."""

from __future__ import annotations

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.envs.cluster.metrics import flatten
from fleetgym.experiments.comparison.rollout import check_failure_s, run_policies
from fleetgym.experiments.comparison.scenario import plan_windows
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import note_estimates
from fleetgym.experiments.harness.from_config import make_policy, problem_of
from fleetgym.experiments.harness.options import EvaluateOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder
from fleetgym.experiments.report.tables import print_summary


@command("evaluate")
def main(cfg: DictConfig) -> float | None:
    """Evaluate on windows of the test part; return the mean of the figure that the scenario ranks by."""
    options = read_options(EvaluateOptions, cfg)
    scenario = options.scenario
    problem, windows = plan_windows(problem_of(cfg, "test"), scenario, options.episodes, "episodes")
    note_estimates(problem.cluster)
    policy = make_policy(options.policy, problem, checkpoint=options.checkpoint, bundle=options.bundle)
    check_failure_s(problem, windows)
    with RunFolder.from_hydra(cfg) as run:
        episodes = run_policies(problem, [policy], windows, seed=options.seed)
        rows = [{"window": e.window, **flatten(e.summary())} for e in episodes]
        keys = [key for key, value in rows[0].items() if isinstance(value, (int, float)) and key != "window"]
        mean = {key: _mean([row[key] for row in rows]) for key in keys}
        run.write_metrics({"mean": mean, "windows": windows.text, "per_window": rows})
        with run.atomic("requests.parquet") as path:
            tables = [pl.DataFrame(e.requests()).with_columns(window=pl.lit(e.window)) for e in episodes]
            pl.concat(tables).write_parquet(path)
        print_summary(episodes[0].summary(), Console(), title=f"{policy.name}, window {windows.numbers[0]}")
        print(f"{scenario.rank_by}, mean of {windows.text}: {mean[scenario.rank_by]:.4g}")
        print(f"run folder: {run.path}")
    return mean[scenario.rank_by]


def _mean(values: list[object]) -> float | None:
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    return float(np.mean(numbers)) if numbers else None


if __name__ == "__main__":
    main()

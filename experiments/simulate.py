"""``fleetgym simulate``: replay a workload through a cluster under one policy and report its metrics."""

from __future__ import annotations

from typing import Any

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.experiments.comparison.rollout import run_policies
from fleetgym.experiments.comparison.scenario import Windows
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import note_estimates
from fleetgym.experiments.harness.from_config import make_policy, problem_of
from fleetgym.experiments.harness.options import SimulateOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder
from fleetgym.experiments.report.plots import run_plots
from fleetgym.experiments.report.tables import print_summary


@command("simulate")
def main(cfg: DictConfig) -> float | None:
    """Simulate one episode; return its mean E2E latency in seconds.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/simulate.yaml``.

    Returns
    -------
    float or None
        None if no request finished.

    Raises
    ------
    UserError
        A faulty option, trace or policy, or a run folder that cannot be written.
    """
    options = read_options(SimulateOptions, cfg)
    problem = problem_of(cfg)
    note_estimates(problem.cluster)
    policy = make_policy(options.policy, problem, checkpoint=options.checkpoint, bundle=options.bundle)
    with RunFolder.from_hydra(cfg) as run:
        (episode,) = run_policies(problem, [policy], Windows((options.seed,), "generated"))
        summary: dict[str, Any] = episode.summary()
        columns = episode.requests()
        run.write_metrics(summary)
        with run.atomic("requests.parquet") as path:
            pl.DataFrame(columns).write_parquet(path)
        run_plots(run.path, columns, episode.instance_stats)
        print_summary(summary, Console(), title=f"{policy.name} on {episode.trace.name}, {problem.cluster.name}")
        print(f"run folder: {run.path}")
    mean: float | None = summary["e2e_s"]["mean"]
    return mean


if __name__ == "__main__":
    main()

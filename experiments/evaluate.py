"""``fleetgym evaluate``: evaluate one policy on held-out episodes."""

from __future__ import annotations

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.envs.cluster.metrics import flatten
from fleetgym.experiments.cli import command
from fleetgym.experiments.config import note_estimates, plain
from fleetgym.experiments.problem import make_policy, routing_problem
from fleetgym.experiments.report.tables import print_summary
from fleetgym.experiments.rollout import run_policies
from fleetgym.experiments.run import RunFolder


@command("evaluate")
def main(cfg: DictConfig) -> float | None:
    """Evaluate on ``episodes`` seeds of the test split; return the mean E2E latency in seconds."""
    problem = routing_problem(cfg, "test")
    note_estimates(problem.cluster)
    policy = make_policy(plain(cfg.policy), checkpoint=cfg.checkpoint, bundle=cfg.bundle)
    seeds = list(range(cfg.seed, cfg.seed + cfg.episodes))
    with RunFolder.from_hydra(cfg) as run:
        episodes = run_policies(problem, [policy], seeds)
        rows = [{"seed": e.seed, **flatten(e.summary(problem))} for e in episodes]
        keys = [key for key, value in rows[0].items() if isinstance(value, (int, float)) and key != "seed"]
        mean = {key: _mean([row[key] for row in rows]) for key in keys}
        run.write_metrics({"mean": mean, "per_seed": rows})
        with run.atomic("requests.parquet") as path:
            tables = [pl.DataFrame(e.requests(problem)).with_columns(seed=pl.lit(e.seed)) for e in episodes]
            pl.concat(tables).write_parquet(path)
        print_summary(episodes[0].summary(problem), Console(), title=f"{policy.name}, seed {seeds[0]}")
        print(f"mean E2E over {len(seeds)} seeds: {mean['e2e_s.mean']:.4f} s")
        print(f"run folder: {run.path}")
    return mean["e2e_s.mean"]


def _mean(values: list[object]) -> float | None:
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    return float(np.mean(numbers)) if numbers else None


if __name__ == "__main__":
    main()

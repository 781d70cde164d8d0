"""``fleetgym leaderboard``: rank policies on the same arrivals over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.baselines import Policy
from fleetgym.envs.cluster.metrics import flatten
from fleetgym.envs.errors import UserError
from fleetgym.envs.routing.batch import RoutingConfig
from fleetgym.experiments.cli import command
from fleetgym.experiments.config import note_estimates, plain
from fleetgym.experiments.problem import exported, learned, make_policy, routing_problem
from fleetgym.experiments.report import print_table, write_leaderboard
from fleetgym.experiments.rollout import run_policies
from fleetgym.experiments.run import RunFolder, git_state, versions
from fleetgym.experiments.train import latest_checkpoint


@command("leaderboard")
def main(cfg: DictConfig) -> float | None:
    """Rank; return the best mean E2E latency in seconds."""
    problem = routing_problem(cfg, "test")
    note_estimates(problem.cluster)
    policies = collect(cfg)
    with RunFolder.from_hydra(cfg) as run:
        episodes = run_policies(problem, policies, list(cfg.seeds))
        rows = [
            {
                "policy": e.policy,
                "kind": e.kind,
                "seed": e.seed,
                "decision_us": e.decision_us,
                **flatten(e.summary(problem)),
            }
            for e in episodes
        ]
        facts = scenario(cfg, problem)
        table = write_leaderboard(run.path, rows, scenario=facts, seed=cfg.seed, config=plain(cfg), versions=versions())
        run.write_metrics(table.simulated())
        with run.atomic("requests.parquet") as path:
            tables = [
                pl.DataFrame(e.requests(problem)).with_columns(policy=pl.lit(e.policy), seed=pl.lit(e.seed))
                for e in episodes
            ]
            pl.concat(tables).write_parquet(path)
        print_table(table, Console())
        for name in ("leaderboard.html", "leaderboard.png", "leaderboard.csv", "leaderboard.json"):
            print(run.path / name)
    return table.entries[0].main.estimate


def collect(cfg: DictConfig) -> list[Policy]:
    """Build the heuristics, the trained and the exported policies that ``cfg`` names."""
    policies = [make_policy(policy) for policy in plain(cfg.policies)]
    for path in _checkpoints(cfg):
        policies.append(learned(path))
    for path in _paths(cfg.bundle):
        policies.append(exported(path))
    _distinguish(policies)
    return policies


def _checkpoints(cfg: DictConfig) -> list[Path]:
    if cfg.checkpoint != "latest":
        return _paths(cfg.checkpoint)
    latest = latest_checkpoint(cfg.name)
    if latest is None:
        print(
            f"note: no training run called {cfg.name!r} was started from this directory, so that only heuristics are "
            f"ranked; train one, or give checkpoint=PATH"
        )
        return []
    print(f"trained policy: {latest}")
    return [latest]


def _paths(value: Any) -> list[Path]:
    if value is None:
        return []
    return [Path(str(v)) for v in (plain(value) if not isinstance(value, str) else [value])]


def _distinguish(policies: Sequence[Policy]) -> None:
    """Number policies of the same name, e.g. the same agent trained with several seeds."""
    seen: dict[str, int] = {}
    for policy in policies:
        seen[policy.name] = seen.get(policy.name, 0) + 1
        if seen[policy.name] > 1:
            if policy.kind in ("heuristic", "oracle"):
                raise UserError(f"policies: {policy.name!r} is named twice")
            policy.name = f"{policy.name}_{seen[policy.name]}"


def scenario(cfg: DictConfig, problem: RoutingConfig) -> dict[str, Any]:
    """Return what the page says about the scenario."""
    fleet = problem.cluster.label
    workload = plain(cfg.workload)
    source = workload.get("dataset") or workload["kind"]
    load = "arrival times as the workload has them"
    if problem.load is not None:
        low, high = problem.load
        share = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        load = f"{share} of the measured saturation rate"
    return {
        "name": cfg.name,
        "description": f"{source} on {fleet}, offered load: {load}.",
        "fleet": fleet,
        **({"not measured": "; ".join(problem.cluster.estimates)} if problem.cluster.estimates else {}),
        "load": load,
        "requests per seed": problem.num_requests or "all of the workload",
        "objectives": f"TTFT {problem.slo.ttft_s:g} s + {problem.slo.ttft_s_per_1k_prompt_tokens:g} s per 1,000 "
        f"prompt tokens, TPOT {problem.slo.tpot_s:g} s",
        "engine": problem.engine,
        "revision": (git_state() or {}).get("revision", "not in a checkout"),
    }


if __name__ == "__main__":
    main()

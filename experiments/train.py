"""``fleetgym train``: train a policy; leaves ``best_model.zip`` and ``last_model.zip`` in the run folder."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from fleetgym.experiments.comparison.rollout import check_failure_s
from fleetgym.experiments.comparison.scenario import Windows
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import note_estimates, plain, spec
from fleetgym.experiments.harness.from_config import problem_of
from fleetgym.experiments.harness.latest import remember_latest
from fleetgym.experiments.harness.options import TrainOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder, git_state, versions


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train, and return the best held-out figure of those that the scenario ranks by."""
    # Imported here so that `--help` and `--cfg` answer without loading torch.
    import torch

    from fleetgym.agents.factory import AgentSpec
    from fleetgym.agents.training import TrainSpec, check_fit, check_resume, train
    from fleetgym.experiments.harness.loggers import check_logger, make_logger, sb3_logger
    from fleetgym.experiments.report.plots import training_curve

    options = read_options(TrainOptions, cfg)
    agent = spec(AgentSpec, cfg.agent, "agent")
    rank_by = options.scenario.rank_by
    plan = TrainSpec(
        options.total_timesteps,
        options.eval_every_timesteps,
        options.eval_episodes,
        options.checkpoint_every_timesteps,
        rank_by,
    )
    check_logger(options.logger)
    problem, held_out = problem_of(cfg, "train"), problem_of(cfg, "validate")
    check_fit(agent, problem)
    if options.resume is not None:
        check_resume(options.resume, agent, problem, plan)
    note_estimates(problem.cluster)
    check_failure_s(held_out, Windows(tuple(range(options.eval_episodes)), "generated"))
    torch.set_num_threads(options.torch_threads)
    with RunFolder.from_hydra(cfg) as run:
        with make_logger(
            plain(cfg.logger), run.path, config=plain(cfg), job_type="train", group=options.name
        ) as logger:
            _, history, before = train(
                agent,
                problem,
                held_out,
                plan,
                run.path,
                card(cfg, agent, problem),
                seed=options.seed,
                resume=options.resume,
                progress_bar=options.progress_bar,
                prepare=lambda model: model.set_logger(sb3_logger(logger)),
            )
        best = max([*history, *([before] if before else [])], key=plan.worth)
        run.write_metrics({"total_timesteps": int(history[-1]["timesteps"]), "best": best, "held_out": history})
        training_curve(run.path, history)
        remember_latest(options.name, run.path / "best_model.zip")
        start = history[0]
        at_first = "untrained" if options.resume is None else f"resumed at {start['timesteps']:.0f} steps"
        print(
            f"best held-out {rank_by} {best[rank_by]:.4g} at {best['timesteps']:.0f} steps "
            f"({at_first}: {start[rank_by]:.4g})"
        )
        if best is before:
            print("this folder's best model of before was not surpassed")
        print(f"best model: {run.path / 'best_model.zip'}")
    return best[rank_by]


def card(cfg: DictConfig, agent: Any, problem: Any) -> dict[str, Any]:
    """Return what has to be known of a checkpoint to use it: schema, ranges it was trained on, versions."""
    from fleetgym.envs.features import SCHEMA_VERSION, schema_digest
    from fleetgym.envs.fingerprint import fingerprint

    return {
        "name": agent.name or agent.algorithm,
        "env_id": problem.env_id,
        "algorithm": agent.algorithm,
        "network": agent.network,
        "features": list(problem.features),
        "schema_version": SCHEMA_VERSION,
        "schema_digest": schema_digest(problem.features),
        "fingerprint": fingerprint(problem.env_id, problem.engine),
        "num_choices": problem.num_choices,
        "trained_ranges": {
            "load": list(problem.load) if problem.load else None,
            "num_choices": list(problem.num_choices_range),
            "staleness_s": [0.0, 0.0],
        },
        "seed": cfg.seed,
        "config": plain(cfg),
        "versions": versions(),
        "git": git_state(),
    }


if __name__ == "__main__":
    main()

"""``fleetgym train``: train a policy; leaves ``best_model.zip`` and ``last_model.zip`` in the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from fleetgym.baselines import make_heuristic
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.experiments.comparison.rollout import check_failure_s
from fleetgym.experiments.comparison.scenario import Windows
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import note_estimates, plain, spec
from fleetgym.experiments.harness.latest import remember_latest
from fleetgym.experiments.harness.options import TrainOptions
from fleetgym.experiments.harness.run_folder import RunFolder, git_state, versions
from fleetgym.experiments.harness.suites import Case, problems_of, read_cases, run_config

if TYPE_CHECKING:
    from fleetgym.agents.factory import AgentSpec
    from fleetgym.agents.held_out import HeldOut, HeldOutSuite


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train, and return the best held-out figure of those that the scenario ranks by, of a suite its geometric mean.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/train.yaml``.

    Raises
    ------
    UserError
        A faulty option, trace or agent, a checkpoint that cannot be resumed, or a charge that serving exceeds.
    """
    # Imported here so that `--help` and `--cfg` answer without loading torch.
    import torch

    from fleetgym.agents.factory import AgentSpec
    from fleetgym.agents.held_out import HeldOut
    from fleetgym.agents.training import TrainSpec, check_fit, check_resume, train
    from fleetgym.experiments.harness.loggers import check_logger, make_logger, sb3_logger
    from fleetgym.experiments.report.plots import training_curve

    options, cases = read_cases(TrainOptions, cfg)
    agent = spec(AgentSpec, cfg.agent, "agent")
    plan = TrainSpec(options.total_timesteps, options.eval_every_timesteps, options.checkpoint_every_timesteps)
    check_logger(options.logger)
    problems = problems_of(cases, "train")
    each = [
        HeldOut(problem, options.eval_episodes, case.options.scenario.rank_by)
        for case, problem in zip(cases, problems_of(cases, "validate"), strict=True)
    ]
    check_fit(agent, *problems)
    if options.resume is not None:
        check_resume(options.resume, agent, problems, plan)
    note_estimates(*(problem.cluster for problem in problems))
    for case, one in zip(cases, each, strict=True):
        with case.named():
            check_failure_s(one.problem, Windows(tuple(range(options.eval_episodes)), "generated"))
    torch.set_num_threads(options.torch_threads)
    held_out = each[0] if options.suite is None else against_yardstick(cases, each)
    config = run_config(cfg, cases)
    with RunFolder.from_hydra(config) as run:
        with make_logger(
            plain(cfg.logger), run.path, config=plain(config), job_type="train", group=options.name
        ) as logger:
            _, history, before = train(
                agent,
                problems,
                held_out,
                plan,
                run.path,
                card(config, agent, problems, cases),
                seed=options.seed,
                resume=options.resume,
                progress_bar=options.progress_bar,
                prepare=lambda model: model.set_logger(sb3_logger(logger)),
            )
        best = max([*history, *([before] if before else [])], key=held_out.worth)
        run.write_metrics({"total_timesteps": int(history[-1]["timesteps"]), "best": best, "held_out": history})
        rank_by, start = held_out.rank_by, history[0]
        ratios = [key for key in start if key.rpartition(".")[2] == rank_by]  # of a suite, and of each of its scenarios
        training_curve(run.path, history, keys=None if options.suite is None else ratios)
        remember_latest(options.name, run.path / "best_model.zip")
        at_first = "untrained" if options.resume is None else f"resumed at {start['timesteps']:.0f} steps"
        figure = rank_by if options.suite is None else f"{rank_by} to {problems[0].yardstick}"
        print(
            f"best held-out {figure} {best[rank_by]:.4g} at {best['timesteps']:.0f} steps "
            f"({at_first}: {start[rank_by]:.4g})"
        )
        if best is before:
            print("this folder's best model of before was not surpassed")
        print(f"best model: {run.path / 'best_model.zip'}")
    return best[rank_by]


def against_yardstick(cases: Sequence[Case[TrainOptions]], each: Sequence[HeldOut]) -> HeldOutSuite:
    """Score the environment's yardstick on the held-out episodes of each scenario, once.

    Parameters
    ----------
    cases : sequence of Case
    each : sequence of HeldOut
        Of each case.

    Raises
    ------
    UserError
        It attains nothing in one of them, so that there is no ratio to it.
    """
    from fleetgym.agents.held_out import HeldOutSuite

    attained = {}
    for case, held_out in zip(cases, each, strict=True):
        yardstick = make_heuristic(held_out.problem.yardstick, held_out.problem.env_id)
        figure = attained[case.name] = held_out.score(yardstick)[held_out.rank_by]
        if not 0.0 < figure < math.inf:
            raise UserError(
                f"{case.name}: {yardstick.name} has {held_out.rank_by}={figure:g} on the validation part, so that there is "
                "no ratio to it; rank by another figure, or change the scenario"
            )
    return HeldOutSuite({case.name: held_out for case, held_out in zip(cases, each, strict=True)}, attained)


def card(
    config: Any, agent: AgentSpec, problems: Sequence[Problem], cases: Sequence[Case[TrainOptions]]
) -> Mapping[str, Any]:
    """Return what has to be known of a checkpoint to use it: schema, ranges it was trained on, versions.

    Parameters
    ----------
    config : DictConfig or dict
        All that decides the run (`run_config`).
    agent : AgentSpec
    problems : sequence of Problem
        The training part of each scenario.
    cases : sequence of Case

    Returns
    -------
    mapping
        With all that `fleetgym.agents.checkpoint.write_card` asks for.
    """
    from fleetgym.envs.features import SCHEMA_VERSION, schema_digest
    from fleetgym.envs.fingerprint import fingerprint

    one = problems[0]
    loads = [problem.load for problem in problems if problem.load is not None]
    return {
        "name": agent.name or agent.algorithm,
        "env_id": one.env_id,
        "algorithm": agent.algorithm,
        "network": agent.network,
        "features": list(one.features),
        "schema_version": SCHEMA_VERSION,
        "schema_digest": schema_digest(one.features),
        "fingerprint": fingerprint(one.env_id, one.engine),
        "num_choices": max(problem.num_choices for problem in problems),
        "scenarios": [case.options.scenario.name for case in cases],
        "trained_ranges": {
            "load": _span(loads) if loads else None,
            "num_choices": _span([problem.num_choices_range for problem in problems]),
            "staleness_s": [0.0, 0.0],
        },
        "seed": cases[0].options.seed,
        "config": plain(config),
        "versions": versions(),
        "git": git_state(),
    }


def _span(ranges: Sequence[tuple[float, float]]) -> list[float]:
    """Return the least and the largest of several ranges."""
    return [min(low for low, _ in ranges), max(high for _, high in ranges)]


if __name__ == "__main__":
    main()

"""Scenarios whose test parts are ready to be played, and the checks before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fleetgym.baselines import make_heuristic
from fleetgym.envs.episodes import try_out
from fleetgym.envs.errors import UserError
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Problem
from fleetgym.experiments.comparison.rollout import check_failure_s
from fleetgym.experiments.comparison.scenario import Windows, plan_windows
from fleetgym.experiments.harness.config import note_estimates
from fleetgym.experiments.harness.options import JudgingOptions
from fleetgym.experiments.harness.suites import Case, problems_of

T = TypeVar("T", bound=JudgingOptions)


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One scenario to judge policies on: its test part and the windows of it.

    Attributes
    ----------
    case : Case
    problem : Problem
        Of the test part.
    windows : Windows
        The episodes to judge on.
    """

    case: Case[T]
    problem: Problem
    windows: Windows


def plan_trials(cases: Sequence[Case[T]], chosen: Sequence[int] | int | None, name: str) -> list[Trial[T]]:
    """Build the test part of each scenario and choose its windows (`plan_windows`).

    Parameters
    ----------
    cases : sequence of Case
    chosen : sequence of int or int, optional
        Windows by number, or how many; by default what each scenario says.
    name : str
        What set ``chosen``, for messages.

    Returns
    -------
    list of Trial
        One for each case.

    Raises
    ------
    UserError
        Naming the scenario, if a suite has several.
    """
    trials = []
    for case, problem in zip(cases, problems_of(cases, "test"), strict=True):
        with case.named():
            trials.append(Trial(case, *plan_windows(problem, case.options.scenario, chosen, name)))
    note_estimates(*(trial.problem.cluster for trial in trials))
    return trials


def check_trials(trials: Sequence[Trial[T]], policies: Sequence[Policy]) -> None:
    """Refuse a policy that cannot decide in one of the scenarios, and a charge that serving may exceed.

    Parameters
    ----------
    trials : sequence of Trial
    policies : sequence of Policy
        Tried out in the first scenario already.

    Raises
    ------
    UserError
        Naming the scenario, if a suite has several.
    """
    for trial in trials[1:]:
        with trial.case.named():
            for policy in policies:
                try_out(policy, trial.problem)
    for trial in trials:
        with trial.case.named():
            check_failure_s(trial.problem, trial.windows)


def with_yardstick(policies: Sequence[Policy], problem: Problem) -> list[Policy]:
    """Return the policies, the environment's yardstick among them: figures of a suite are ratios to its.

    Parameters
    ----------
    policies : sequence of Policy
    problem : Problem
        Names its yardstick.

    Returns
    -------
    list of Policy
        The yardstick first, where it was not among them.

    Raises
    ------
    UserError
        A policy that is no heuristic has the yardstick's name.
    """
    for policy in policies:
        if policy.name == problem.yardstick:
            if policy.kind != "heuristic":
                raise UserError(
                    f"policies: a {policy.kind} policy is called {policy.name!r}, as the yardstick of {problem.env_id} is; "
                    "its card must name it otherwise (agent.name)"
                )
            return list(policies)
    return [make_heuristic(problem.yardstick, problem.env_id), *policies]

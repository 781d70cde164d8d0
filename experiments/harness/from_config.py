"""From a composed config to decision problems and policies."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fleetgym.baselines import make_heuristic
from fleetgym.envs.episodes import try_out
from fleetgym.envs.errors import UserError, UserNote
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import find_problem, registered
from fleetgym.envs.workloads.blocks import fit_chains, unused_chains
from fleetgym.experiments.comparison.scenario import PartName, Scenario
from fleetgym.experiments.harness.config import plain, spec


def problem_of(cfg: DictConfig, part: PartName | None = None) -> Problem:
    """Build the decision problem that ``cfg.env.id`` names; one episode is drawn to see that it fits the fleet.

    Parameters
    ----------
    cfg : DictConfig
        Of a command that simulates.
    part : {"train", "validate", "test"}, optional
        Part of the scenario; None, or a config without a scenario: the environment as it is.

    Raises
    ------
    UserError
        Naming the field, the value and what is allowed.
    """
    values: dict[str, Any] = dict(plain(cfg.env))
    env_id = values.pop("id", None)
    if not isinstance(env_id, str):
        raise UserError(f"env.id={env_id!r}: must be the id of a registered environment ({', '.join(registered())})")
    kind = find_problem(env_id)
    values = kind.check_settings(values)
    workload: dict[str, Any] = dict(plain(cfg.workload))
    scenario = spec(Scenario, cfg.scenario, "scenario") if "scenario" in cfg else None
    values["failure_s"] = cfg.failure_s if scenario is None else scenario.failure_s
    if scenario is not None and part is not None:
        own = getattr(scenario.parts, part)
        workload |= own.workload
        values |= own.environment()
    problem = kind.resolve(
        cluster=plain(cfg.cluster),
        workload=workload,
        reward=plain(cfg.get("reward")),  # only training earns one
        slo=plain(cfg.slo),
        engine=cfg.engine,
        **values,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserNote)
        _check_workload(problem)
    for warning in caught:
        if issubclass(warning.category, UserNote):
            _tell(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    # The environments would give the same notes again.
    warnings.filterwarnings("ignore", category=UserNote)
    return problem


@functools.cache
def _tell(note: str) -> None:
    """Print a note, once per process."""
    print(f"note: {note}")


def _check_workload(problem: Problem) -> None:
    """Draw one episode, so that a bad trace or a hopeless cluster fails before anything is written."""
    blocks = problem.workload.chain_blocks
    fit = fit_chains(blocks, problem.cluster)
    if note := unused_chains(blocks, problem.cluster):
        warnings.warn(note, UserNote, stacklevel=2)
    trace = fit(problem.workload.episode(np.random.default_rng(0), problem.num_requests))
    holds = max(s.max_model_len for s in problem.cluster.expanded)
    shortest = int((trace.requests["prompt_tokens"].astype(np.int64) + trace.requests["output_tokens"]).min())
    if shortest > holds:
        raise UserError(
            f"cluster: num_gpu_blocks or max_model_len too small: the largest instance holds {holds} tokens, the "
            f"shortest request of {trace.name} has {shortest}"
        )


def make_policy(
    policy: str | Mapping[str, Any], problem: Problem, *, checkpoint: Any = None, bundle: Any = None
) -> Policy:
    """Build one policy and try it out: a heuristic by name, ``checkpoint`` or ``bundle`` from their paths.

    Parameters
    ----------
    policy : str or mapping
        A name, or ``{"name": ..., parameter: value, ...}``; ``fallback`` is the problem's own.
    problem : Problem
        What it is to decide: a policy of another one is refused.
    checkpoint, bundle : path, optional
        Given exactly where ``policy`` is "checkpoint" or "bundle".

    Raises
    ------
    UserError
        An unknown name or parameter, a path too much or too few, a file that is refused, or a policy that fails when
        it is tried out.
    """
    parameters = dict(policy) if isinstance(policy, Mapping) else {"name": policy}
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"policy.name={name!r}: must be the name of a policy")
    if name == "fallback":
        name = problem.fallback_heuristic()
    paths = {"checkpoint": checkpoint, "bundle": bundle}
    for kind, path in paths.items():
        if kind == name and path is None:
            raise UserError(f"policy={name}: give {name}=PATH")
        if kind != name and path is not None:
            raise UserError(f"{kind}={str(path)!r}: read under policy={kind} only, policy is {name}")
    if name not in paths:
        heuristic = make_heuristic(name, problem.env_id, **parameters)
        try_out(heuristic, problem)
        return heuristic
    if parameters:
        raise UserError(f"policy.{next(iter(parameters))}: unknown; policy={name} takes no parameters")
    return learned(checkpoint, problem) if name == "checkpoint" else exported(bundle, problem)


def learned(path: str | Path, problem: Problem) -> Policy:
    """Load a trained checkpoint and try it out.

    Parameters
    ----------
    path : path
        The zip (`fleetgym.agents.learned.load_checkpoint`).
    problem : Problem
        What it is to decide: a checkpoint of another one is refused.

    Raises
    ------
    UserError
        The file is refused, or the policy fails when it is tried out.
    """
    from fleetgym.agents.learned import load_checkpoint

    policy = load_checkpoint(path, problem=problem)
    try_out(policy, problem)
    return policy


def exported(path: str | Path, problem: Problem) -> Policy:
    """Load an exported bundle as a policy and try it out.

    Parameters
    ----------
    path : path
        The bundle's folder.
    problem : Problem
        What it is to decide: a bundle of another one is refused.

    Raises
    ------
    UserError
        The folder is refused, or the policy fails when it is tried out.
    """
    from fleetgym.agents.bundle_policy import BundlePolicy

    policy = BundlePolicy(path, problem)
    try_out(policy, problem)
    return policy

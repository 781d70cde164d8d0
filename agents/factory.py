"""One small factory for the learning algorithms of SB3 and sb3-contrib."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from fleetgym.agents.networks import SchemaExtractor
from fleetgym.agents.scorer import MaskableScorerPolicy, ScorerPolicy
from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.config import fits
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.problem import Problem

ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {"ppo": PPO, "maskable_ppo": MaskablePPO, "dqn": DQN}
ENVIRONMENT = "environment"  # a prior that the problem says
_OWN = ("self", "policy", "env", "seed", "verbose", "tensorboard_log", "device", "_init_setup_model", "policy_kwargs")


@dataclass(frozen=True)
class AgentSpec:
    """A learning algorithm and its settings.

    Attributes
    ----------
    algorithm : {"ppo", "maskable_ppo", "dqn"}
    network : {"mlp", "scorer"}
        ``mlp``: SB3's MLP over the flattened rows, for one fixed N. ``scorer``: one network shared over
        rows, for any N (`fleetgym.agents.scorer`).
    num_envs : int
        Environments stepped together.
    normalize_reward : bool
        Divide rewards by the running spread of returns (SB3's ``VecNormalize``) while learning. Returns of
        thousands of request-seconds otherwise drown the actor's gradient in the critic's. The scorer has
        ``value_scale`` for that, which keeps rewards in their units.
    name : str
        What tables call it; empty: the algorithm.
    hyperparameters : mapping
        Keyword arguments of the algorithm's class; ``lin_0.001`` falls linearly from 0.001 to 0.
    policy_kwargs : mapping
        Keyword arguments of the policy's class (``net_arch`` ...); a ``prior`` of ``environment`` is
        `fleetgym.envs.problem.Problem.prior`.
    """

    algorithm: Literal["ppo", "maskable_ppo", "dqn"]
    network: Literal["mlp", "scorer"] = "mlp"
    num_envs: int = 128
    normalize_reward: bool = False
    name: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise UserError(f"num_envs={self.num_envs}: must be at least 1")
        if self.network == "scorer" and self.algorithm == "dqn":
            raise UserError("network='scorer': not available for algorithm='dqn' (allowed: mlp)")
        parameters = inspect.signature(ALGORITHMS[self.algorithm].__init__).parameters
        allowed = [name for name in parameters if name not in _OWN]
        for key, value in self.hyperparameters.items():
            if key not in allowed:
                raise UserError(f"hyperparameters.{key}: unknown for {self.algorithm}{did_you_mean(key, allowed)}")
            if not fits(parameters[key].annotation, _value(key, value)):
                kind = inspect.formatannotation(parameters[key].annotation)
                raise UserError(f"hyperparameters.{key}={value!r}: {self.algorithm} takes {kind}")


def make_model(spec: AgentSpec, env: FleetVecEnv, seed: int) -> BaseAlgorithm:
    """Build an untrained model on ``env``; everything random follows from ``seed``.

    Parameters
    ----------
    spec : AgentSpec
    env : FleetVecEnv
        What it will learn on.
    seed : int
        Of weights, actions and minibatches.

    Raises
    ------
    UserError
        A setting of the policy that is unknown, or settings that SB3 or torch refuse.
    """
    policy, policy_kwargs = _policy(spec, env.env.problem)
    learning_env = learner_env(spec, env)
    try:
        return ALGORITHMS[spec.algorithm](
            policy,
            learning_env,
            seed=seed,
            device="cpu",
            policy_kwargs=policy_kwargs,
            **_values(spec.hyperparameters),
        )
    except UserError:
        raise
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:  # SB3 and torch check the rest
        raise UserError(f"agent: {spec.algorithm} cannot be built: {type(error).__name__}: {error}") from error


def learner_env(spec: AgentSpec, env: FleetVecEnv) -> VecEnv:
    """Return the environment as the algorithm sees it, its rewards normalised if ``spec`` says so.

    Parameters
    ----------
    spec : AgentSpec
    env : FleetVecEnv

    Returns
    -------
    VecEnv
        ``env`` itself, or a ``VecNormalize`` around it; rewards are not clipped.
    """
    if not spec.normalize_reward:
        return env
    gamma = float(spec.hyperparameters.get("gamma", 0.99))
    return VecNormalize(env, norm_obs=False, norm_reward=True, clip_reward=float("inf"), gamma=gamma)


def _policy(spec: AgentSpec, problem: Problem) -> tuple[Any, dict[str, Any]]:
    kwargs, features = _values(spec.policy_kwargs), problem.features
    if isinstance(prior := kwargs.get("prior"), str):
        if prior != ENVIRONMENT:
            raise UserError(f"policy_kwargs.prior={prior!r}: must be weights by feature, {ENVIRONMENT!r} or null")
        kwargs["prior"] = dict(problem.prior)
    if isinstance(name := kwargs.get("activation_fn"), str):
        kwargs["activation_fn"] = getattr(torch.nn, name, None)
        if kwargs["activation_fn"] is None:
            raise UserError(f"policy_kwargs.activation_fn={name!r}: must be a class of torch.nn, such as Tanh or ReLU")
    if spec.network == "scorer":
        policy = MaskableScorerPolicy if spec.algorithm == "maskable_ppo" else ScorerPolicy
        return policy, {"features": features, **kwargs}
    extractor = {"features_extractor_class": SchemaExtractor, "features_extractor_kwargs": {"features": features}}
    return "MlpPolicy", {**extractor, **kwargs}


def _values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copy, with lists as lists (SB3 pickles what it is given) and ``"lin_0.001"`` as a schedule that falls to 0."""
    return {key: _value(key, value) for key, value in mapping.items()}


def _value(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.startswith("lin_"):
        try:
            return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
        except ValueError:
            raise UserError(f"hyperparameters.{key}={value!r}: must be a number or lin_NUMBER") from None
    return value

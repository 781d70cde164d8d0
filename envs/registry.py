"""Which decision problems there are, by environment id; each is a Gymnasium environment at once.

An id may begin with the module that registers it, as Gymnasium has it: ``my_package:my/Toy-v0`` imports ``my_package``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import gymnasium as gym
from gymnasium.envs.registration import registry as gym_registry

from fleetgym.envs.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from fleetgym.envs.problem import Problem

_problems: dict[str, type[Problem] | str] = {}


def register(env_id: str, problem: type[Problem] | str) -> None:
    """Make a decision problem known to Gymnasium and to all commands.

    Parameters
    ----------
    env_id : str
        As in ``fleetgym/Routing-v0``. Changed dynamics need a new version.
    problem : type or str
        A subclass of `fleetgym.envs.problem.Problem`, or ``module:Class`` to be imported at first use.

    Raises
    ------
    UserError
        The id stands for another problem already, or the class for another id.
    gymnasium.error.Error
        ``env_id`` is not as Gymnasium wants ids to be.
    """
    if _problems.get(env_id, problem) != problem and _path(_problems[env_id]) != _path(problem):
        raise UserError(f"env.id={env_id!r}: stands for {_path(_problems[env_id])} already")
    if not isinstance(problem, str):
        _check_name(problem, env_id)
    if env_id not in gym_registry:  # a module-qualified id is resolved again in each process
        gym.register(
            env_id,
            entry_point="fleetgym.envs.env:FleetEnv",
            vector_entry_point="fleetgym.envs.vector:FleetVectorEnv",
            kwargs={"env_id": env_id},
        )
    if not isinstance(problem, str):
        problem.env_id = env_id
    _problems[env_id] = problem


def _check_name(problem: type[Problem], env_id: str) -> None:
    """Refuse another id for a class that has one: what carries an id (a card, a fingerprint) is read by it."""
    own = vars(problem).get("env_id", env_id)
    if own != env_id:
        raise UserError(f"env.id={env_id!r}: {_path(problem)} is {own!r} already; register a subclass of it")


def _path(problem: type[Problem] | str) -> str:
    return problem if isinstance(problem, str) else f"{problem.__module__}:{problem.__qualname__}"


def registered() -> tuple[str, ...]:
    """Return the ids of all problems."""
    return tuple(_problems)


def bare_id(env_id: str) -> str:
    """Return an id without the module that registers it.

    Parameters
    ----------
    env_id : str
        ``module:name``, or ``name``, which stays as it is.
    """
    return env_id.rpartition(":")[2]


def find_problem(env_id: str) -> type[Problem]:
    """Look a decision problem up.

    Parameters
    ----------
    env_id : str
        With or without the module that registers it.

    Raises
    ------
    UserError
        Its module cannot be imported, or it is not registered; the near ids are listed.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise UserError(f"env.id={env_id!r}: cannot import {module!r}: {error}") from None
    if name not in _problems:
        raise UserError(f"env.id={env_id!r}: is not registered{did_you_mean(name, _problems)}")
    problem = _problems[name]
    if isinstance(problem, str):
        path, _, attribute = problem.partition(":")
        problem = getattr(importlib.import_module(path), attribute)
        assert not isinstance(problem, str)
        _check_name(problem, name)
        problem.env_id = name
        _problems[name] = problem
    return problem

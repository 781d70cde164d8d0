"""Which heuristics there are, by name and by the environment that they decide in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fleetgym.baselines.base import Heuristic
from fleetgym.envs.config import checked_arguments
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.features import public
from fleetgym.envs.registry import bare_id, find_problem

P = TypeVar("P", bound=type[Heuristic])
_heuristics: dict[str, type[Heuristic]] = {}


def register(name: str, env_id: str | Sequence[str] = ()) -> Callable[[P], P]:
    """Class decorator: make a heuristic known under ``name``.

    Parameters
    ----------
    name : str
        Stands for one heuristic, whatever the environment.
    env_id : str or sequence of str
        Environments that it decides in, the first being what an export names; none: all, which is for those that read
        no column.

    Raises
    ------
    ValueError
        The name is taken, or it reads columns and names no environment.
    """
    env_ids = (env_id,) if isinstance(env_id, str) else tuple(env_id)

    def add(cls: P) -> P:
        taken = _heuristics.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"policy {name!r} is registered twice")
        if cls.features and not env_ids:
            raise ValueError(f"policy {name!r}: reads {cls.features[0]!r}; register it with the env_id that offers it")
        cls.name = name
        cls.env_ids = tuple(map(bare_id, env_ids))
        _heuristics[name] = cls
        return cls

    return add


def registered(env_id: str | None = None) -> dict[str, type[Heuristic]]:
    """Return the heuristics of an environment by name, those first that belong to all; without an id, every one.

    Parameters
    ----------
    env_id : str, optional
    """
    return {
        name: cls
        for name, cls in _heuristics.items()
        if env_id is None or not cls.env_ids or bare_id(env_id) in cls.env_ids
    }


def contenders(env_id: str) -> tuple[str, ...]:
    """Return whom a board of an environment ranks where nothing is said: all of its heuristics, oracles aside.

    Parameters
    ----------
    env_id : str
    """
    return tuple(name for name, cls in registered(env_id).items() if cls.kind != "oracle")


def find_heuristic(name: str, env_id: str | None = None) -> type[Heuristic]:
    """Look a heuristic up.

    Parameters
    ----------
    name : str
        Registered, or ``"module:Class"`` of your own.
    env_id : str, optional
        Environment that it is to decide in; by default any.

    Raises
    ------
    UserError
        Unknown, or of another environment; what is known for this one is listed.
    """
    cls = _heuristics.get(name)
    if cls is None and ":" in name:
        cls = _import(name)
    known = registered(env_id)
    if cls is None:
        raise UserError(f"policy={name!r}: unknown{did_you_mean(name, known)}; or your own as module:Class")
    if env_id is not None and cls.env_ids and bare_id(env_id) not in cls.env_ids:
        raise UserError(
            f"policy={name!r}: is a heuristic of {', '.join(cls.env_ids)}, not of {bare_id(env_id)} "
            f"(allowed: {', '.join(sorted(known))}; or your own as module:Class)"
        )
    return cls


def make_heuristic(name: str, env_id: str, /, **parameters: Any) -> Heuristic:
    """Build a heuristic for an environment.

    Parameters
    ----------
    name : str
        Registered, or ``"module:Class"`` of your own.
    env_id : str
        Environment that it is to decide in.
    **parameters
        Keyword arguments of the class.

    Raises
    ------
    UserError
        Unknown name, environment or parameter; a heuristic of another environment; a privileged column without being
        an oracle.
    """
    cls = find_heuristic(name, env_id)
    offers = find_problem(env_id).offers
    policy = cls(**checked_arguments(cls.__init__, parameters, f"policy={name!r}: "))
    if cls.features is Heuristic.features:  # the class names none
        policy.features = offers if policy.kind == "oracle" else public(offers)
    elif policy.kind != "oracle" and (privileged := set(policy.features) - set(public(policy.features))):
        raise UserError(
            f"policy={name!r}: reads {min(privileged)!r}, which is privileged: only one of kind 'oracle' may"
        )
    return policy


def _import(path: str) -> type[Heuristic]:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"policy={path!r}: cannot import it: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Heuristic)):
        raise UserError(f"policy={path!r}: must be a subclass of fleetgym.baselines.Heuristic")
    if "name" not in vars(cls):  # that of a parent is another policy's
        cls.name = attribute
    return cls

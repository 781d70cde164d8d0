"""The observation schema: which columns of `fleetgym.envs.signals` an observation has, and how networks see them.

An observation holds one row per choice and one column per feature, in raw physical units; features of the request and
of the cluster repeat in every row, so that a network shared over rows handles any number of choices.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.signals import Signal, find_signal

SCHEMA_VERSION = 1
# Digests and bundles of version 1 were made when the only choices were instances.
_SCOPE_IN_DIGEST = {"choice": "instance"}


def public(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the signals that a real decider could know.

    Parameters
    ----------
    names : iterable of str
        In the order of the result.

    Raises
    ------
    UserError
        Nobody declared a signal of that name.
    """
    return tuple(name for name in names if find_signal(name).tag != "privileged")


def select(names: Sequence[str] | None, offered: Sequence[str], *, oracle: bool = False) -> tuple[str, ...]:
    """Check a choice of columns, in the order given.

    Parameters
    ----------
    names : sequence of str or None
        None: all that are offered and that a real decider can know, with ``oracle`` the privileged ones too.
    offered : sequence of str
        What the environment has.
    oracle : bool
        Allow privileged ones.

    Returns
    -------
    tuple of str
        The columns.

    Raises
    ------
    UserError
        Unknown or repeated name, none at all, or a privileged one without ``oracle``.
    """
    if names is None:
        return tuple(offered) if oracle else public(offered)
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"features={names!r}: must be a list of names, or None for all that are public")
    for name in names:
        if name not in offered:
            raise UserError(f"features: {name!r} is unknown{did_you_mean(name, offered)}")
        if find_signal(name).tag == "privileged" and not oracle:
            raise UserError(f"features: {name!r} is privileged: only a policy registered as oracle may read it")
    if len(set(names)) != len(names) or not names:
        raise UserError(f"features={list(names)}: need at least one, each once")
    return tuple(names)


def observation_space(features: Sequence[str], num_choices: int) -> spaces.Box:
    """Return the space of an observation, in physical units.

    Parameters
    ----------
    features : sequence of str, length F
    num_choices : int
        C.

    Returns
    -------
    gymnasium.spaces.Box
        Shape (C, F), float32, within the declared bounds.

    Raises
    ------
    UserError
        Nobody declared a signal of that name.
    """
    signals = [find_signal(name) for name in features]
    low, high = (np.array([getattr(s, side) for s in signals], np.float32) for side in ("low", "high"))
    shape = (num_choices, len(features))
    return spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape, np.float32)


class Transform(NamedTuple):
    """What `scaled` needs of each column: arrays of numpy or of torch.

    Attributes
    ----------
    low, high : array of float32, shape (F,)
        Bounds in physical units.
    missing : array of float32, shape (F,)
        What replaces NaN, in physical units.
    is_log : array of bool, shape (F,)
        Whether networks see ``log1p(x) / log1p(scale)``, else ``x / scale``.
    scale : array of float32, shape (F,)
        The physical value that is mapped to 1.
    """

    low: Any
    high: Any
    missing: Any
    is_log: Any
    scale: Any

    @classmethod
    def of(cls, features: Sequence[str], array: Any = np.array) -> Transform:
        """Collect the columns' properties.

        Parameters
        ----------
        features : sequence of str, length F
        array : callable
            Makes an array of its kind of one of numpy: `numpy.array`, `torch.tensor`.

        Raises
        ------
        UserError
            Nobody declared a signal of that name.
        """
        signals = [find_signal(name) for name in features]
        low, high, missing, scale = (
            array(np.array([getattr(s, name) for s in signals], np.float32))
            for name in ("low", "high", "missing", "scale")
        )
        return cls(low, high, missing, array(np.array([s.transform == "log1p" for s in signals])), scale)


def cleaned(columns: Transform, observation: Any, xp: Any = np) -> Any:
    """Replace missing values and clip to the declared bounds.

    Parameters
    ----------
    columns : Transform
    observation : array of float32, shape (..., F)
        Physical units; NaN is missing.
    xp : module
        Whose arrays these are: numpy or torch.

    Returns
    -------
    array of float32, shape (..., F)
    """
    known = xp.where(xp.isnan(observation), columns.missing, observation)
    return xp.minimum(xp.maximum(known, columns.low), columns.high)


def scaled(columns: Transform, observation: Any, xp: Any = np) -> Any:
    """Return what networks see: missing values replaced, clipped, transformed to about [0, 1].

    Parameters
    ----------
    columns : Transform
    observation : array of float32, shape (..., F)
        Physical units; NaN is missing.
    xp : module
        Whose arrays these are: numpy or torch.

    Returns
    -------
    array of float32, shape (..., F)
    """
    x = cleaned(columns, observation, xp)
    # Both branches are computed; below 0 a logarithm would warn.
    logarithm = xp.log1p(xp.where(columns.is_log, x, xp.zeros_like(x)))
    return xp.where(columns.is_log, logarithm, x) / xp.where(columns.is_log, xp.log1p(columns.scale), columns.scale)


def schema_table(features: Sequence[str], choice: str = "choice") -> str:
    """Return the columns as a Markdown table, as printed in the docs.

    Parameters
    ----------
    features : sequence of str
        In the order of the table's rows.
    choice : str
        What a row of the observation is, one word.
    """
    lines = [
        "| # | feature | unit | scope | source | range | network input | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, s in enumerate(map(find_signal, features)):
        network = f"log1p(x) / log1p({s.scale:g})" if s.transform == "log1p" else f"x / {s.scale:g}"
        scope = choice if s.scope == "choice" else s.scope
        lines.append(
            f"| {index} | `{s.name}` | {s.unit} | {scope} | {s.tag} | [{s.low:g}, {s.high:g}] | {network} | {s.meaning} |"
        )
    return "\n".join(lines)


@functools.cache
def schema_digest(features: tuple[str, ...]) -> str:
    """Return a digest of everything that gives the columns their meaning; checkpoints and bundles carry it.

    Parameters
    ----------
    features : tuple of str
        The columns in order.

    Returns
    -------
    str
        The first 16 hexadecimal digits of a SHA-256.

    Raises
    ------
    UserError
        Nobody declared a signal of that name.
    """
    rows = [_digested(find_signal(name)) for name in features]
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, rows], sort_keys=True, default=list).encode()).hexdigest()[:16]


def _digested(signal: Signal) -> dict[str, Any]:
    return asdict(signal) | {"scope": _SCOPE_IN_DIGEST.get(signal.scope, signal.scope)}

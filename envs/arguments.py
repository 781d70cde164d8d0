"""What an environment is made with: names, mappings and numbers into validated specs, one line for each mistake."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.presets import default_preset, preset

T = TypeVar("T")

SETTINGS: Mapping[str, Any] = {  # of ``env`` in a config, whatever the environment; each must be there
    "num_requests": int | None,
    "load": float | tuple[float, ...] | None,
    "available": int | tuple[int, ...] | None,
    "features": tuple[str, ...] | None,
}
OPTIONAL: Mapping[str, Any] = {"oracle": bool}  # may be there too


@functools.cache
def default_failure_s() -> float:
    """Return the charge of the scenario that the command line chooses where nothing is said, in seconds."""
    value: float = default_preset("scenario")["scenario"]["failure_s"]
    return value


def checked_num_requests(value: Any) -> int | None:
    """Return a number of requests, or None for all.

    Parameters
    ----------
    value : object

    Raises
    ------
    UserError
        Neither None nor a whole number of at least 2.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if value is not None and not (whole and value >= 2):
        raise UserError(f"num_requests={value!r}: must be a whole number of at least 2, or None for all")
    return None if value is None else int(value)


def checked_failure_s(value: Any) -> float:
    """Return a charge in seconds.

    Parameters
    ----------
    value : object

    Raises
    ------
    UserError
        No positive, finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < math.inf:
        raise UserError(f"failure_s={value!r}: must be a positive number of seconds")
    return float(value)


def checked_pair(name: str, value: Any, low: float, high: float, kind: type[float | int]) -> Any:
    """Turn a number or a [low, high] list into a checked pair.

    Parameters
    ----------
    name : str
        As messages call it.
    value : object
        A number stands for a pair of it twice.
    low, high : float
        Smallest and largest allowed value.
    kind : {float, int}

    Returns
    -------
    tuple of ``kind`` or None
        None stays None.

    Raises
    ------
    UserError
        Not one or two ordered numbers within the bounds.
    """
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else (value, value)
    wanted = Integral if kind is int else Real
    numbers = all(isinstance(v, wanted) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not numbers or not low <= pair[0] <= pair[1] <= high:
        what = "whole number" if kind is int else "number"
        raise UserError(f"{name}={value!r}: must be a {what} or [low, high] within [{low:g}, {high:g}]")
    return kind(pair[0]), kind(pair[1])


def preset_fields(group: str, value: Any) -> Any:
    """Turn None into the fields of the default preset and a name into those of its preset; leave all else.

    Parameters
    ----------
    group : str
        One of `fleetgym.envs.presets.GROUPS`.
    value : object
        What was given for it.

    Raises
    ------
    UserError
        No preset of that name.
    """
    if value is None:
        return default_preset(group)
    return preset(group, value) if isinstance(value, str) else value


def built(cls: type[T], group: str, value: Any) -> T:
    """Return an argument as its dataclass.

    Parameters
    ----------
    cls : type
        The dataclass.
    group : str
        Of its presets; begins the message.
    value : object
        One already, a mapping of fields, a preset's name, or None for the default preset.

    Raises
    ------
    UserError
        Naming the field, the value and what is allowed.
    """
    values = preset_fields(group, value)
    return values if isinstance(values, cls) else build(cls, values, group)

"""Turn plain mappings (YAML, JSON, Hydra) into validated frozen dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fleetgym.envs.errors import UserError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build dataclass ``cls`` from ``values``; every fault names the field, the value and what is allowed.

    Parameters
    ----------
    cls : type
        A dataclass whose ``__post_init__`` raises `UserError` for impossible values.
    values : Mapping[str, Any]
        Field values; nested mappings are built recursively where the field is itself a dataclass.
    where : str
        Path shown in messages, e.g. ``"cluster.instances[2]"``; empty for fields at the top.

    Raises
    ------
    UserError
        Unknown or missing field, a value of the wrong type, or one that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values!r}: expected a mapping of fields")
    hints = typing.get_type_hints(cls)
    at = f"{where}." if where else ""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"{at}{name}: unknown field{did_you_mean(name, fields)}")
    kwargs = {name: convert(hints[name], values[name], f"{at}{name}") for name in fields if name in values}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in kwargs:
            raise UserError(f"{at}{name}: missing; this field has no default")
    try:
        return cls(**kwargs)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def checked_arguments(function: Callable[..., Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check keyword arguments from a config against the annotations of ``function``; what has none passes.

    Parameters
    ----------
    function : callable
        Its ``self`` and its ``*args`` are no arguments here; with ``**kwargs`` it takes any name.
    values : Mapping[str, Any]
        By name of the argument.
    where : str
        Begins the message.

    Returns
    -------
    dict
        The arguments as the annotations want them (see `convert`).

    Raises
    ------
    UserError
        An argument that ``function`` does not have or that is of the wrong type, or one that it misses.
    """
    parameters = inspect.signature(function).parameters
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # annotated with what is imported for type checkers only
        hints = {}
    named = [
        name for name, p in parameters.items() if name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    for name in values:
        if name not in named and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            raise UserError(f"{where}{name}: unknown{did_you_mean(name, named) if named else '; it takes none'}")
    for name in named:
        if name not in values and parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"{where}{name}: missing; it has no default")
    return {
        name: convert(hints[name], value, f"{where}{name}") if name in hints else value
        for name, value in values.items()
    }


_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}


def convert(hint: Any, value: Any, where: str) -> Any:
    """Return a value as an annotation wants it: lists as tuples, mappings as dataclasses, whole numbers as floats.

    Parameters
    ----------
    hint : type
        Annotation of a dataclass field or an argument.
    value : object
        From a config.
    where : str
        Path shown in messages.

    Raises
    ------
    UserError
        A value of the wrong type or of an unknown name, or one that the dataclass refuses.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        fitting = [option for option in options if fits(option, value)]
        if len(options) > 1 and not fitting:
            raise _unfit(where, value, " or ".join(map(_described, options)))
        return convert((fitting or options)[0], value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}={value!r}: unknown{did_you_mean(value, map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if isinstance(value, str) and fits(element, value):
            value = (value,)  # a lone name is a list of one
        if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
            raise _unfit(where, value, _described(hint))
        return tuple(convert(element, item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if not fits(hint, value):
        raise _unfit(where, value, _described(hint))
    return float(value) if hint is float else value


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the kind of an annotation, a tuple's elements aside; other annotations fit all.

    Parameters
    ----------
    hint : type
        Annotation of a dataclass field or an argument.
    value : object
        From a config.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(option, value) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if origin is list:
        return isinstance(value, (list, tuple)) and all(fits(typing.get_args(hint)[0], item) for item in value)
    if origin is Callable:
        return callable(value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin is type:
        return isinstance(value, type)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, (Mapping, hint))  # type: ignore[arg-type]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return not isinstance(hint, type) or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return "a list"
    return _NAMES.get(hint, "a mapping of fields")


def _unfit(where: str, value: Any, expected: str) -> UserError:
    got = "null" if value is None else type(value).__name__
    return UserError(f"{where}={'null' if value is None else repr(value)}: expected {expected}, got {got}")

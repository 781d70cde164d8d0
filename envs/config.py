"""Turn plain mappings (YAML, JSON, Hydra) into validated frozen dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
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
        Path shown in messages, e.g. ``"cluster.instances[2]"``.

    Raises
    ------
    UserError
        Unknown or missing field, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values!r}: expected a mapping of fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"{where}.{name}: unknown field{did_you_mean(name, fields)}")
    kwargs = {name: _convert(hints[name], values[name], f"{where}.{name}") for name in fields if name in values}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in kwargs:
            raise UserError(f"{where}.{name}: missing; this field has no default")
    try:
        return cls(**kwargs)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}={value!r}: unknown{did_you_mean(value, map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{where}={value!r}: expected a list")
        return tuple(_convert(element, item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise UserError(f"{where}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
    return value

"""Public docstrings say what code takes, gives and raises.

NumPy sections name each argument and field, arrays have a shape, and what a body raises stands under ``Raises``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from places import ROOT

FOLDERS = ("agents", "baselines", "envs", "experiments")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
]
ARRAY = re.compile(r"\b(NDArray|Array|Bool|Floats?|Ints)\b")  # and what stands for it
HEADER = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : .+)?$")
OF_THE_CODE = {"NotImplementedError", "AssertionError"}  # not for a caller to expect


def sections(docstring: str) -> dict[str, str]:
    """Text of each section by its title; of what stands before the first by the empty one."""
    before, *parts = HEADER.split(docstring)
    return {"": before, **dict(zip(parts[::2], parts[1::2], strict=True))}


def entries(section: str) -> dict[str, str]:
    """What a section says of each name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := ENTRY.match(line):
            names = entry[1].replace("*", "").split(", ")
        for name in names:
            found[name] = found.get(name, "") + line
    return found


def raised(function: Callable[..., Any]) -> set[str]:
    """Classes of the errors that a body raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    names = {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc).rpartition(".")[2] for exc in found}
    return {name for name in names if name[0].isupper()} - OF_THE_CODE


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Annotation of each public argument; a static method has none called ``self`` or ``cls``."""
    is_method = function.__qualname__ != function.__name__
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(function).parameters.items()
        if not name.startswith("_") and not (is_method and name in ("self", "cls"))
    }


def faults_of_names(asked: Mapping[str, str], documented: Mapping[str, str], title: str) -> Iterator[str]:
    for name, annotation in asked.items():
        if name not in documented:
            yield f"{name}: not under {title}"
        elif ARRAY.search(annotation) and "shape" not in documented[name]:
            yield f"{name}: an array without a shape"


def faults_of_function(function: Callable[..., Any], docstring: str | None) -> Iterator[str]:
    """What is missing or stale in the docstring of a function, or of a class for its constructor."""
    said = sections(inspect.cleandoc(docstring or ""))
    asked, documented = arguments(function), entries(said.get("Parameters", ""))
    yield from faults_of_names(asked, documented, "Parameters")
    yield from (f"{name}: no such argument" for name in documented if name not in asked)
    yield from (
        f"{error}: not under Raises" for error in sorted(raised(function)) if error not in said.get("Raises", "")
    )
    returned = str(inspect.signature(function).return_annotation)
    if ARRAY.search(returned) and "shape" not in said[""] + said.get("Returns", "") + said.get("Yields", ""):
        yield "returns an array without a shape"


def own_fields(kind: type) -> dict[str, str]:
    """Annotation of each public field that a generated constructor takes and no base has; `Annotated` ones say all."""
    names = getattr(kind, "_fields", ())
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind) if f.init]
    own = inspect.get_annotations(kind)
    asked = {name: str(own[name]) for name in names if name in own and not name.startswith("_")}
    return {name: annotation for name, annotation in asked.items() if "Annotated[" not in annotation}


def is_written(function: Callable[..., Any], kind: type) -> bool:
    """Whether a method is code of its class's module, and not made for dataclasses, named tuples and protocols."""
    return function.__module__ == kind.__module__ and not function.__code__.co_filename.startswith("<")


def is_documented_by_base(kind: type, name: str, function: Callable[..., Any]) -> bool:
    """Whether a method says no more than one that it overrides."""
    for base in kind.__mro__[1:]:
        overridden = getattr(vars(base).get(name), "__func__", vars(base).get(name))
        if inspect.isfunction(overridden):
            docstring = base.__doc__ if name == "__init__" else overridden.__doc__
            return bool(docstring) and arguments(overridden).keys() == arguments(function).keys()
    return False


def faults_of_class(kind: type) -> Iterator[str]:
    said = sections(inspect.cleandoc(kind.__doc__ or ""))
    documented = entries(said.get("Parameters", "") + said.get("Attributes", ""))
    yield from (f"{kind.__name__}.{fault}" for fault in faults_of_names(own_fields(kind), documented, "Attributes"))
    for name, member in vars(kind).items():
        function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", None) or member)
        if not inspect.isfunction(function) or not is_written(function, kind):
            continue
        if is_documented_by_base(kind, name, function):
            continue
        if name == "__init__":
            yield from (f"{kind.__name__}({fault})" for fault in faults_of_function(function, kind.__doc__))
        elif not name.startswith("_"):
            yield from (f"{kind.__name__}.{name}: {fault}" for fault in faults_of_function(function, function.__doc__))


def faults(members: Mapping[str, object], module: str) -> Iterator[str]:
    """What is wrong with the docstrings of the public functions and classes that a module defines, compiled ones aside."""
    for name, member in members.items():
        if name.startswith("_") or getattr(member, "__module__", None) != module or hasattr(member, "py_func"):
            continue
        if inspect.isclass(member):
            yield from faults_of_class(member)
        elif inspect.isfunction(function := inspect.unwrap(member) if callable(member) else member):
            yield from (f"{name}: {fault}" for fault in faults_of_function(function, function.__doc__))


@pytest.mark.parametrize("module", MODULES)
def test_a_public_docstring_says_what_is_taken_given_and_raised(module: str) -> None:
    name = f"fleetgym.{module}".removesuffix(".__init__")
    assert list(faults(vars(importlib.import_module(name)), name)) == []


class Documented:
    """A class.

    Parameters
    ----------
    count : int
    *rows, **others
        Whatever.
    """

    def __init__(self, count: int, *rows: int, **others: int) -> None: ...

    def look(self, where: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what is there, shape (B,).

        Parameters
        ----------
        where : ndarray of int64, shape (B,)

        Raises
        ------
        KeyError
            Nothing is there.
        """
        raise KeyError(where)


class Overriding(Documented):
    """Another."""

    def __init__(self, count: int, *rows: int, **others: int) -> None: ...

    def look(self, where: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return it at once."""
        return np.zeros(len(where))


class Lacking:
    """A class.

    Parameters
    ----------
    number : int
    """

    def __init__(self, count: int) -> None: ...

    def look(self, where: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what is there.

        Parameters
        ----------
        where : ndarray of int64
        """
        raise KeyError(where)

    def _own(self, where: int) -> None: ...


class Row(NamedTuple):
    """A row.

    Attributes
    ----------
    first : int
    """

    first: int
    second: int
    third: Annotated[int, "of a third kind"]


@dataclasses.dataclass
class Wider(Documented):
    """A generated constructor, and a method that takes more than the one it overrides."""

    width: int

    def look(self, where: NDArray[np.int64], width: int = 0) -> NDArray[np.float64]:
        """Return what is there, shape (B,)."""
        return np.zeros(len(where) + width)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Documented, []),
        (Overriding, []),
        (
            Lacking,
            [
                "Lacking(count: not under Parameters)",
                "Lacking(number: no such argument)",
                "Lacking.look: where: an array without a shape",
                "Lacking.look: KeyError: not under Raises",
                "Lacking.look: returns an array without a shape",
            ],
        ),
        (Row, ["Row.second: not under Attributes"]),
        (
            Wider,
            [
                "Wider.width: not under Attributes",
                "Wider.look: where: not under Parameters",
                "Wider.look: width: not under Parameters",
            ],
        ),
    ],
)
def test_what_is_missing_or_stale_is_found(kind: type, expected: list[str]) -> None:
    assert list(faults({"Kind": kind}, __name__)) == expected


def test_names_in_a_column_and_what_follows_them_belong_together() -> None:
    assert entries("first, second : int\n    Both.\n\nthird\n    Of any shape.\n") == {
        "first": "first, second : int    Both.",
        "second": "first, second : int    Both.",
        "third": "third    Of any shape.",
    }

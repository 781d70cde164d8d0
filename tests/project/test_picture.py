"""The picture of the house shows the imports as they are."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from places import DOCS


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", DOCS / "draw_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


drawing = load()


@pytest.fixture(scope="module")
def graph() -> Any:
    return drawing.imports()


def chips(box: Any) -> Iterator[tuple[str, float]]:
    """Each module with the height of its group."""
    yield from ((module, box.y) for module in box.modules)
    for row in box.rows:
        for part in row:
            yield from chips(part)


def test_the_picture_in_the_docs_is_that_of_the_imports(graph: Any) -> None:
    drawn = drawing.svg(drawing.house(graph))
    assert drawn == drawing.PICTURE.read_text(encoding="utf-8"), "draw it anew: make picture"


def test_every_module_is_drawn_once_and_nothing_imports_upwards(graph: Any) -> None:
    top = drawing.house(graph)
    drawing.svg(top)
    drawn = list(chips(top))
    height = dict(drawn)
    assert len(drawn) == len(height)
    assert set(height) == {module for module in graph.modules if not graph.find_children(module)} - {"fleetgym"}
    for module, y in height.items():
        for imported in graph.find_modules_directly_imported_by(module) & set(height):
            assert y <= height[imported], (module, imported)


@pytest.mark.parametrize(
    ("below", "folders", "rows"),
    [
        ({"a": {"b"}, "b": set()}, set(), {"a": 0, "b": 0}),
        ({"a": {"f"}, "f": {"b"}, "b": set()}, {"f"}, {"a": 2, "f": 1, "b": 0}),
        ({"a": set(), "f": {"b"}, "b": set()}, {"f"}, {"a": 2, "f": 1, "b": 0}),
        ({"f": {"m"}, "m": {"g"}, "g": set()}, {"f", "g"}, {"f": 3, "m": 2, "g": 1}),
        ({"f": {"g"}, "g": set()}, {"f", "g"}, {"f": 3, "g": 1}),
    ],
)
def test_rows_alternate_between_modules_and_folders(
    below: dict[str, set[str]], folders: set[str], rows: dict[str, int]
) -> None:
    assert drawing._levels(below, folders) == rows


def test_a_circle_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="circle: a, b"):
        drawing._levels({"a": {"b"}, "b": {"a"}, "c": set()}, set())


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    a, b, c = (drawing.Box(name) for name in "abc")
    assert drawing._needed([(a, b), (a, c), (b, c)]) == [(a, b), (b, c)]

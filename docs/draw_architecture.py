"""Draw ``docs/images/architecture.svg``, the house as its imports make it: ``python docs/draw_architecture.py``.

A folder is a frame, a module a chip. Whatever stands in a row imports from the rows below it in its frame and from
nothing above. In the first row of a frame stands what nothing else in it imports; all else as deep as its imports
allow. An arrow says that something in a box imports something in another; one that follows from others is left out.
Folders and modules are found, none is named here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
ROOTS = ("fleetgym.agents", "fleetgym.baselines", "fleetgym.envs", "fleetgym.experiments")

WIDTH, MARGIN, PADDING, GAP = 1120.0, 12.0, 10.0, 22.0
CHIP_HEIGHT, CHIP_GAP, TITLE_HEIGHT = 20.0, 5.0, 22.0
CHARACTER = 6.65  # of 11px monospace
FILLS = ("#ffffff", "#eef3f8", "#e3ecf5", "#d6e3f0")  # of frames, by depth
DEFINITIONS = """\
<title>Folders and modules of fleetgym, each above what it imports</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" fill="#6b7785"/></marker></defs>
<rect width="{}" height="{}" fill="#ffffff"/>"""


@dataclass
class Box:
    """A row's part: a folder with its rows, the lowest last, or some modules of the folder around it.

    Attributes
    ----------
    name : str
        The folder; empty for a group of modules.
    modules : list of str
        Full names, of a group only.
    rows : list of list of Box
        Of a folder only, the uppermost first.
    arrows : list of (Box, Box)
        From one that imports to one that is imported.
    x, y, width, height : float
        Place in the picture, in pixels from its upper left corner; 0 until it is given.
    """

    name: str = ""
    modules: list[str] = field(default_factory=list)
    rows: list[list[Box]] = field(default_factory=list)
    arrows: list[tuple[Box, Box]] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0


def imports() -> grimp.ImportGraph:
    """Return who imports whom; imports inside functions count."""
    return grimp.build_graph(*ROOTS, cache_dir=None)


def house(graph: grimp.ImportGraph) -> Box:
    """Return the frame around everything.

    Parameters
    ----------
    graph : ImportGraph
        Of all `ROOTS`.

    Returns
    -------
    Box
        Not placed yet.

    Raises
    ------
    ValueError
        Some modules import each other in a circle.
    """
    return _folder(graph, "fleetgym", set(ROOTS))


def _folder(graph: grimp.ImportGraph, name: str, members: set[str]) -> Box:
    """Sort the members of a folder into rows."""
    below = {member: set(_below(graph, member, members)) for member in members}
    level = _levels(below, {member for member in members if graph.find_children(member)})
    rows: dict[int, list[Box]] = {}
    box_of: dict[str, Box] = {}
    for member in sorted(members):
        row = rows.setdefault(level[member], [])
        if inside := graph.find_children(member):
            row.append(_folder(graph, member, inside))
        else:
            row[:] = row or [Box()]
            row[-1].modules.append(member)
        box_of[member] = row[-1]
    used = {(id(box_of[a]), id(box_of[b])) for a in members for b in below[a]}
    ordered = [row for _, row in sorted(rows.items(), reverse=True)]
    boxes = [box for row in ordered for box in row]
    arrows = [(a, b) for a in boxes for b in boxes if a is not b and (id(a), id(b)) in used]
    return Box(name, [], ordered, _needed(arrows))


def _levels(below: dict[str, set[str]], folders: set[str]) -> dict[str, int]:
    """Number the rows from the ground up: even ones hold modules, odd ones folders."""
    level: dict[str, int] = {}
    for member in _from_the_ground(below):
        deepest = max((level[other] for other in below[member]), default=0)
        level[member] = _odd_above(deepest) if member in folders else deepest + deepest % 2
    imported = set[str]().union(*below.values())
    if folders:
        top = max(level[folder] for folder in folders) + 1
        level |= {member: max(top, level[member]) for member in below if member not in folders | imported}
    return level


def _odd_above(level: int) -> int:
    return level + 1 if level % 2 == 0 else level + 2


def _below(graph: grimp.ImportGraph, member: str, members: set[str]) -> Iterator[str]:
    """Give the other members that something in ``member`` imports."""
    for module in {member, *graph.find_descendants(member)}:
        for imported in graph.find_modules_directly_imported_by(module):
            for other in members - {member}:
                if imported == other or imported.startswith(f"{other}."):
                    yield other


def _from_the_ground(below: dict[str, set[str]]) -> Iterator[str]:
    """Give each member after all that it imports.

    Raises
    ------
    ValueError
        Some import each other in a circle.
    """
    left = dict(below)
    while left:
        ready = sorted(member for member, needs in left.items() if not needs & set(left))
        if not ready:
            raise ValueError(f"imports in a circle: {', '.join(sorted(left))}")
        for member in ready:
            del left[member]
            yield member


def _needed(arrows: list[tuple[Box, Box]]) -> list[tuple[Box, Box]]:
    """Leave out the arrows that follow from others."""
    targets: dict[int, set[int]] = {}
    for start, end in arrows:
        targets.setdefault(id(start), set()).add(id(end))

    def reached(start: int) -> set[int]:
        direct = targets.get(start, set())
        return direct.union(*map(reached, direct))

    return [
        (start, end)
        for start, end in arrows
        if not any(id(end) in reached(other) for other in targets[id(start)] - {id(end)})
    ]


def _place(box: Box, x: float, y: float, width: float) -> None:
    """Give a box and all in it their places; the height follows from the width."""
    box.x, box.y, box.width = x, y, width
    if box.modules:
        lines = list(_lines(box.modules, width))
        box.height = len(lines) * (CHIP_HEIGHT + CHIP_GAP) - CHIP_GAP
        return
    down = y + TITLE_HEIGHT
    inside = width - 2 * PADDING
    for number, row in enumerate(box.rows):
        down += GAP if number else 0.0
        share = (inside - (len(row) - 1) * PADDING) / sum(map(_weight, row))
        right = x + PADDING
        for part in row:
            _place(part, right, down, share * _weight(part))
            right += part.width + PADDING
        down += max(part.height for part in row)
    box.height = down + PADDING - y


def _weight(box: Box) -> float:
    """How much of a row's width a box asks for: as much as its chips, but two may be no more than four times apart."""
    return min(max(sum(map(_chip_width, _modules(box))), 400.0), 1600.0)


def _modules(box: Box) -> Iterator[str]:
    yield from box.modules
    for row in box.rows:
        for part in row:
            yield from _modules(part)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _chip_width(module: str) -> float:
    return len(_short(module)) * CHARACTER + 12.0


def _lines(modules: Iterable[str], width: float) -> Iterator[list[str]]:
    """Break modules into lines that fit."""
    line: list[str] = []
    for module in modules:
        if line and sum(map(_chip_width, [*line, module])) + len(line) * CHIP_GAP > width:
            yield line
            line = []
        line.append(module)
    yield line


def svg(top: Box) -> str:
    """Place everything and return the picture.

    Parameters
    ----------
    top : Box
        As `house` makes it; changed in place.

    Returns
    -------
    str
        An SVG file, `WIDTH` pixels wide.
    """
    _place(top, MARGIN, MARGIN, WIDTH - 2 * MARGIN)
    size = f"{WIDTH:.0f}", f"{top.height + 2 * MARGIN:.0f}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {" ".join(size)}" width="{size[0]}" height="{size[1]}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">'
    )
    return "\n".join([head, DEFINITIONS.format(*size), *_draw(top, 0), "</svg>", ""])


def _draw(box: Box, depth: int) -> Iterator[str]:
    if box.modules:
        yield from _draw_modules(box)
        return
    fill = FILLS[min(depth, len(FILLS) - 1)]
    title = f"{_short(box.name)}/" if depth else box.name
    yield f'<rect {_area(box)} rx="6" fill="{fill}" stroke="#9fb0c2"/>'
    yield (
        f'<text x="{box.x + PADDING:.1f}" y="{box.y + 15:.1f}"><tspan font-weight="bold" font-size="12">{escape(title)}'
        f'</tspan><tspan dx="10" fill="#5c6570">{escape(_purpose(box))}</tspan></text>'
    )
    for number, (start, end) in enumerate(box.arrows):
        yield _arrow(start, end, sum(other is start for other, _ in box.arrows[:number]))
    for row in box.rows:
        for part in row:
            yield from _draw(part, depth + 1)


def _purpose(box: Box) -> str:
    """Return what the folder says of itself, as far as it fits."""
    file = ROOT.joinpath(*box.name.split(".")[1:], "__init__.py")
    if not file.is_file():
        return ""
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0].rstrip(".")
    room = int((box.width - 2 * PADDING) / CHARACTER) - len(_short(box.name)) - 5
    return text if len(text) <= room else f"{text[: room - 1].rpartition(' ')[0]} …"


def _draw_modules(box: Box) -> Iterator[str]:
    down = box.y
    for line in _lines(box.modules, box.width):
        right = box.x
        for module in line:
            width = _chip_width(module)
            yield (
                f'<rect x="{right:.1f}" y="{down:.1f}" width="{width:.1f}" height="{CHIP_HEIGHT:.0f}" rx="4" '
                'fill="#ffffff" stroke="#c5ced8"/>'
            )
            yield f'<text x="{right + 6:.1f}" y="{down + 14:.1f}">{escape(_short(module))}</text>'
            right += width + CHIP_GAP
        down += CHIP_HEIGHT + CHIP_GAP


def _arrow(start: Box, end: Box, number: int) -> str:
    """Draw from the bottom of one box to the top of another, upright where it can be; what is between covers it."""
    low, high = max(start.x, end.x), min(start.x + _drawn_width(start), end.x + _drawn_width(end))
    x1, x2 = ((low + high) / 2,) * 2 if low < high else (start.x + PADDING, end.x + PADDING)
    y1, y2 = start.y + start.height, end.y
    shift = number * PADDING
    return (
        f'<path d="M{x1 + shift:.1f},{y1:.1f} L{x2 + shift:.1f},{y2 - 1:.1f}" stroke="#6b7785" fill="none" '
        'marker-end="url(#head)"/>'
    )


def _drawn_width(box: Box) -> float:
    """Width of what is seen of a box; a group of modules has no frame."""
    if not box.modules:
        return box.width
    return max(sum(map(_chip_width, line)) + (len(line) - 1) * CHIP_GAP for line in _lines(box.modules, box.width))


def _area(box: Box) -> str:
    return f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(svg(house(imports())), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""The summary of a suite as one HTML page, with links to the board of each scenario."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fleetgym.envs.atomic import write_text
from fleetgym.experiments.report import svg
from fleetgym.experiments.report.page_parts import (
    facts,
    first_cells,
    heading,
    line,
    page,
    strip_heading,
    value_key,
)
from fleetgym.experiments.report.suite_table import SuiteEntry, SuiteTable
from fleetgym.experiments.report.tables import show_place


def write_suite_page(path: Path, table: SuiteTable, about: Mapping[str, Any]) -> None:
    """Write the suite's page, whole or not at all.

    Parameters
    ----------
    path : Path
        The HTML file; the boards that it links to stand in folders beside it.
    table : SuiteTable
    about : mapping
        ``config`` (the resolved config) and ``versions``, shown at the end.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    strips = [entry.strip for entry in table.entries]
    axis = svg.strip_axis(strips, table.main)
    heads = [
        heading("#", "place over the suite: 1 + number of significantly better policies"),
        heading("Policy", css="text"),
        heading("Kind", css="text"),
        heading(table.main.title, table.main.help, unit="geometric mean [95 %]"),
        strip_heading(table.main, axis),
        *(
            heading(name, "ratio in this scenario; below: place on its own board", unit="place")
            for name in table.boards
        ),
    ]
    fields = {
        "title": escape(table.name),
        "kind": "suite",
        "eyebrow": "fleetgym leaderboard over a suite",
        "description": "",
        "details": "",
        "facts": facts({"scenarios": len(table.boards), "policies": len(table.entries), "yardstick": table.yardstick}),
        "head": "".join(heads),
        "body": "\n".join(_row(table, entry, svg.strip(entry.strip, table.main, axis)) for entry in table.entries),
        "legend": "Dot: geometric mean over scenarios. Bar: 95 % interval. Thin ticks below: single scenarios. "
        "Small numbers: places. Click a heading to sort; hover for more.",
        "scenarios": "\n".join(_scenario(table, name) for name in table.boards),
        "yardstick": escape(table.yardstick),
    }
    write_text(path, page("suite.html", fields, table.notes, about))


def _row(table: SuiteTable, entry: SuiteEntry, strip: str) -> str:
    cells = first_cells(entry.strip, table.main, strip)
    for name, value in entry.ratios.items():
        place = f" <small>{show_place(entry.places[name])}</small>"
        cells.append(f"<td{value_key(value)}>{table.main.show(value)}{place}</td>")
    return line(entry.strip, cells)


def _scenario(table: SuiteTable, name: str) -> str:
    """Return what is said of one scenario, with the link to its board."""
    board = table.boards[name]
    yardstick = next(entry for entry in board.entries if entry.policy == table.yardstick)
    windows, about = (str(board.scenario.get(key, "")) for key in ("windows", "description"))
    return (
        f'<tr><td class="text"><a href="{escape(name)}/leaderboard.html">{escape(name)}</a></td>'
        f'<td class="text">{escape(board.main.header)}</td><td class="text">{escape(windows)}</td>'
        f'<td>{board.main.show(yardstick.main.estimate)}</td><td class="text wrap">{escape(about)}</td></tr>'
    )

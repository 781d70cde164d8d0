"""The leaderboard as one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fleetgym.envs.atomic import write_text
from fleetgym.experiments.report import svg
from fleetgym.experiments.report.axis import Axis
from fleetgym.experiments.report.page_parts import (
    facts,
    first_cells,
    heading,
    line,
    page,
    strip_heading,
    value_key,
)
from fleetgym.experiments.report.tables import COLUMNS, Column, Entry, LeaderboardTable, show_change

SCATTER_X = "ttft_charged_s.p90"


def write_page(path: Path, table: LeaderboardTable, about: Mapping[str, Any]) -> None:
    """Write the leaderboard's page, whole or not at all.

    Parameters
    ----------
    path : Path
        The HTML file.
    table : LeaderboardTable
    about : mapping
        ``config`` (the resolved config) and ``versions``, shown at the end; empty ones as "none given".

    Raises
    ------
    UserError
        The file cannot be written.
    """
    write_text(path, _page(table, about))


def _page(table: LeaderboardTable, about: Mapping[str, Any]) -> str:
    """Fill ``page.html`` and ``leaderboard.html``."""
    axis = svg.strip_axis([entry.strip for entry in table.entries], table.main)
    scenario = dict(table.scenario)
    better = "lower" if table.lower_is_better else "higher"
    main = table.main
    meaning = f": {main.help}" if main.help else ""
    fields = {
        "title": escape(str(scenario.pop("name", "Leaderboard"))),
        "kind": "leaderboard",
        "eyebrow": "fleetgym leaderboard",
        "description": f'<p class="soft">{escape(str(scenario.pop("description", "")))}</p>\n',
        "facts": facts({**scenario, "policies": len(table.entries)}),
        "head": _head(table, axis),
        "body": "\n".join(_row(table, entry, svg.strip(entry.strip, main, axis)) for entry in table.entries),
        "legend": "Dot: mean over windows. Bar: 95 % interval. Thin ticks below: single windows. "
        "Click a heading to sort; hover for more.",
        "trade_off": _trade_off(table),
        "attainment": _attainment(table),
        "windows": escape(str(table.scenario.get("windows", f"{len(table.windows)} windows"))),
        "how_main": f"<b>{escape(main.title)}</b> decides the places{escape(meaning)}; {better} is better.",
        "reference": escape(table.reference or "none here"),
        "details": _detail(f"{main.header}, window by window", _per_window(table))
        + _detail("All metrics, mean over windows", _all_metrics(table)),
    }
    return page("leaderboard.html", fields, table.notes, about)


def _detail(summary: str, grid: str) -> str:
    return f'<details><summary>{escape(summary)}</summary><div class="card"><table>{grid}</table></div></details>\n'


def _head(table: LeaderboardTable, axis: Axis) -> str:
    main = table.main
    return "".join(
        (
            heading("#", "place: 1 + number of significantly better policies"),
            heading("Policy", css="text"),
            heading("Kind", css="text"),
            heading(main.title, main.help, unit=f"{main.unit} [95 %]"),
            strip_heading(main, axis),
            heading("vs best", "relative difference and its paired 95 % interval", unit=table.reference or "–"),
            *(heading(column.title, column.help, unit=column.unit) for column in table.columns),
        )
    )


def _row(table: LeaderboardTable, entry: Entry, strip: str) -> str:
    text = "reference" if entry.policy == table.reference else show_change(entry.change)
    change, _, bounds = text.partition(" [")
    bounds = f" <small>[{bounds}</small>" if bounds else ""
    cells = [
        *first_cells(entry.strip, table.main, strip),
        f"<td{value_key(entry.change.estimate if entry.change else math.nan)}>{change}{bounds}</td>",
    ]
    for column in table.columns:
        value = entry.metrics.get(column.key, math.nan)
        cells.append(f"<td{value_key(value)}>{column.show(value)}</td>")
    return line(entry.strip, cells)


def _trade_off(table: LeaderboardTable) -> str:
    other = next(column for column in COLUMNS if column.key == SCATTER_X)
    entries = [
        entry
        for entry in table.entries
        if math.isfinite(entry.main.estimate) and math.isfinite(entry.metrics.get(SCATTER_X, math.nan))
    ]
    if not entries or table.main.key == SCATTER_X:
        return ""
    heading = f"<h2>{escape(table.main.title)} against {escape(other.title)}</h2>"
    return f'{heading}<div class="card plot">{svg.trade_off(entries, table.main, other)}</div>'


def _attainment(table: LeaderboardTable) -> str:
    entries = [entry for entry in table.entries if entry.attainment]
    if not entries:
        return ""
    heading = "<h2>SLO attainment over the scale of the objectives</h2>"
    return f'{heading}<div class="card plot">{svg.attainment(entries)}</div>'


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        first, *others = (escape(value) for value in values)
        return f'<tr><{tag} class="text">{first}</{tag}>' + "".join(f"<{tag}>{o}</{tag}>" for o in others) + "</tr>"

    return f"<thead>{cells('th', head)}</thead><tbody>{''.join(cells('td', row) for row in rows)}</tbody>"


def _per_window(table: LeaderboardTable) -> str:
    head = ["policy", *(f"window {window}" for window in table.windows)]
    return _grid(head, [[e.policy, *(table.main.show(v) for v in e.per_window.values())] for e in table.entries])


def _all_metrics(table: LeaderboardTable) -> str:
    """One line per metric, one column per policy."""
    plain = Column("", "")
    keys = dict.fromkeys(key for entry in table.entries for key in entry.metrics)
    rows = [[key, *(plain.show(entry.metrics.get(key)) for entry in table.entries)] for key in keys]
    return _grid(["metric", *(entry.policy for entry in table.entries)], rows)

"""The leaderboard as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from fleetgym.envs.atomic import write_text
from fleetgym.experiments.harness.run_folder import jsonable
from fleetgym.experiments.report import svg
from fleetgym.experiments.report.tables import COLUMNS, Column, Entry, LeaderboardTable, number, show_change

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
    """Fill ``page.html``."""
    axis = svg.strip_axis(table)
    scenario = dict(table.scenario)
    better = "lower" if table.lower_is_better else "higher"
    main = table.main
    meaning = f": {main.help}" if main.help else ""
    fields = {
        "title": escape(str(scenario.pop("name", "Leaderboard"))),
        "description": escape(str(scenario.pop("description", ""))),
        "facts": _facts({**scenario, "policies": len(table.entries)}),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes),
        "head": _head(table, svg.strip_header(axis)),
        "body": "\n".join(_row(table, entry, svg.strip(entry, main, axis)) for entry in table.entries),
        "trade_off": _trade_off(table),
        "attainment": _attainment(table),
        "windows": escape(str(table.scenario.get("windows", f"{len(table.windows)} windows"))),
        "how_main": f"<b>{escape(main.title)}</b> decides the places{escape(meaning)}; {better} is better.",
        "reference": escape(table.reference or "none here"),
        "main": escape(main.header),
        "per_window": _per_window(table),
        "all_metrics": _all_metrics(table),
        "config": _listing(about["config"]),
        "versions": _listing(about["versions"]),
    }
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], template)


def _facts(facts: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(text, value))
        return number(value) if isinstance(value, float) else str(value)

    shown = ((key.replace("_", " "), text(value)) for key, value in facts.items() if value is not None)
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in shown)


def _head(table: LeaderboardTable, scale: str) -> str:
    def cell(title: str, tip: str = "", css: str = "", unit: str = "") -> str:
        hint = f' data-tip="{escape(tip)}"' if tip else ""
        small = f"<small>{escape(unit)}</small>" if unit else ""
        return f'<th scope="col" class="{css}"{hint}><button>{escape(title)}</button>{small}</th>'

    main = table.main
    axis_title = f"{main.header}, log scale" if svg.strip_axis(table).log else main.header
    return "".join(
        (
            cell("#", "place: 1 + number of significantly better policies"),
            cell("Policy", css="text"),
            cell("Kind", css="text"),
            cell(main.title, main.help, unit=f"{main.unit} [95 %]"),
            f'<th scope="col" class="text strip">{escape(axis_title)}{scale}</th>',
            cell("vs best", "relative difference and its paired 95 % interval", unit=table.reference or "–"),
            *(cell(column.title, column.help, unit=column.unit) for column in table.columns),
        )
    )


def _row(table: LeaderboardTable, entry: Entry, strip: str) -> str:
    main = table.main
    interval = ""
    if math.isfinite(entry.main.low):
        interval = f" <small>[{main.show(entry.main.low)}, {main.show(entry.main.high)}]</small>"
    text = "reference" if entry.policy == table.reference else show_change(entry.change)
    change, _, bounds = text.partition(" [")
    bounds = f" <small>[{bounds}</small>" if bounds else ""
    place = "–" if entry.place is None else str(entry.place)
    cells = [
        f"<td{_value(entry.place or math.inf)}>{place}</td>",
        f'<td class="text policy" data-v="{escape(entry.policy)}">{escape(entry.policy)}</td>',
        f'<td class="text" data-v="{entry.kind}"><span class="tag {entry.kind}">{entry.kind}</span></td>',
        f"<td{_value(entry.main.estimate)}>{main.show(entry.main.estimate)}{interval}</td>",
        f'<td class="strip">{strip}</td>',
        f"<td{_value(entry.change.estimate if entry.change else math.nan)}>{change}{bounds}</td>",
    ]
    for column in table.columns:
        value = entry.metrics.get(column.key, math.nan)
        cells.append(f"<td{_value(value)}>{column.show(value)}</td>")
    return f'<tr class="{entry.kind}" data-policy="{escape(entry.policy)}">{"".join(cells)}</tr>'


def _value(value: float) -> str:
    """Sort key of a cell; absent where there is no figure."""
    return f' data-v="{value:.10g}"' if math.isfinite(value) else ""


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


def _listing(value: Any) -> str:
    return escape(json.dumps(jsonable(value), indent=2, ensure_ascii=False)) if value else "none given"

"""What the pages of a board and of a suite are made of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from fleetgym.experiments.harness.run_folder import jsonable
from fleetgym.experiments.report import svg
from fleetgym.experiments.report.axis import Axis
from fleetgym.experiments.report.tables import Column, Strip, number, show_place


def page(content: str, fields: Mapping[str, str], notes: Sequence[str], about: Mapping[str, Any]) -> str:
    """Return a whole page: ``page.html``, with what is peculiar to one kind of page between the table and the details.

    Parameters
    ----------
    content : str
        File of this folder with what is peculiar, ``{{name}}`` where a field goes.
    fields : mapping of str to str
        HTML by name, for both files.
    notes : sequence of str
        What a reader has to know; plain text.
    about : mapping
        ``config`` and ``versions``, shown at the end.
    """
    shared = {
        "style": _read("page.css"),
        "script": _read("page.js"),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        "config": _listing(about["config"]),
        "versions": _listing(about["versions"]),
    }
    return _fill("page.html", {**fields, **shared, "content": _fill(content, fields)})


def _fill(template: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], _read(template))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def facts(known: Mapping[str, Any]) -> str:
    """Return facts as a list of terms, in HTML.

    Parameters
    ----------
    known : mapping
        Numbers, texts, lists and mappings by name; None is left out.
    """

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(text, value))
        return number(value) if isinstance(value, float) else str(value)

    shown = ((key.replace("_", " "), text(value)) for key, value in known.items() if value is not None)
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in shown)


def heading(title: str, tip: str = "", css: str = "", unit: str = "") -> str:
    """Return the heading of a column that the page can be sorted by, in HTML.

    Parameters
    ----------
    title : str
    tip : str
        Shown where the pointer rests; empty for none.
    css : str
        Class of the cell.
    unit : str
        Small, below the title; empty for none.
    """
    hint = f' data-tip="{escape(tip)}"' if tip else ""
    small = f"<small>{escape(unit)}</small>" if unit else ""
    return f'<th scope="col" class="{css}"{hint}><button>{escape(title)}</button>{small}</th>'


def strip_heading(main: Column, axis: Axis) -> str:
    """Return the heading of the column of strips, with their scale, in HTML.

    Parameters
    ----------
    main : Column
        How the figure that ranks is shown.
    axis : Axis
        As `fleetgym.experiments.report.svg.strip_axis` fits it.
    """
    title = f"{main.header}, log scale" if axis.log else main.header
    return f'<th scope="col" class="text strip">{escape(title)}{svg.strip_header(axis)}</th>'


def first_cells(row: Strip, main: Column, strip: str) -> list[str]:
    """Return what every row begins with: place, policy, kind, figure with its interval, strip.

    Parameters
    ----------
    row : Strip
    main : Column
        How the figure that ranks is shown.
    strip : str
        As `fleetgym.experiments.report.svg.strip` draws it.

    Returns
    -------
    list of str
        HTML of each cell.
    """
    interval = ""
    if math.isfinite(row.main.low):
        interval = f" <small>[{main.show(row.main.low)}, {main.show(row.main.high)}]</small>"
    return [
        f"<td{value_key(row.place or math.inf)}>{show_place(row.place)}</td>",
        f'<td class="text policy" data-v="{escape(row.policy)}">{escape(row.policy)}</td>',
        f'<td class="text" data-v="{row.kind}"><span class="tag {row.kind}">{row.kind}</span></td>',
        f"<td{value_key(row.main.estimate)}>{main.show(row.main.estimate)}{interval}</td>",
        f'<td class="strip">{strip}</td>',
    ]


def line(row: Strip, cells: Sequence[str]) -> str:
    """Return a row of a table of policies, in HTML.

    Parameters
    ----------
    row : Strip
    cells : sequence of str
        HTML of each cell.
    """
    return f'<tr class="{row.kind}" data-policy="{escape(row.policy)}">{"".join(cells)}</tr>'


def value_key(value: float) -> str:
    """Return the sort key of a cell as an HTML attribute; empty where there is no figure.

    Parameters
    ----------
    value : float
        NaN or infinite where there is none.
    """
    return f' data-v="{value:.10g}"' if math.isfinite(value) else ""


def _listing(value: Any) -> str:
    """Return a config as indented JSON, escaped for HTML; an empty one as "none given"."""
    return escape(json.dumps(jsonable(value), indent=2, ensure_ascii=False)) if value else "none given"

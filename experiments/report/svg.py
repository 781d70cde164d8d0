"""Small drawings for the leaderboard's page; colours come from its style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fleetgym.envs.cluster.metrics import SLO_SCALES
from fleetgym.experiments.report.axis import Axis, fit_axis, spread
from fleetgym.experiments.report.tables import Column, Entry, Strip, number, show_interval

STRIP_WIDTH, STRIP_HEIGHT = 250, 30


def strip_axis(strips: Sequence[Strip], main: Column) -> Axis:
    """Fit one axis to the main figure of all rows: estimates, bounds and parts, in the unit that is shown.

    Parameters
    ----------
    strips : sequence of Strip
    main : Column
        Gives the scale from the figure's unit to the shown one.

    Returns
    -------
    Axis
        From 8 to `STRIP_WIDTH` - 8 pixels.
    """
    figures = [value for strip in strips for value in (*strip.main, *strip.parts.values())]
    return fit_axis((value * main.scale for value in figures), 8.0, STRIP_WIDTH - 8.0)


def strip_header(axis: Axis) -> str:
    """Draw the tick labels above the strips.

    Parameters
    ----------
    axis : Axis
        As `strip_axis` fits it.

    Returns
    -------
    str
        An ``<svg>`` element, `STRIP_WIDTH` wide.
    """
    labels = "".join(f'<text x="{axis.at(t):.1f}" y="12" text-anchor="middle">{s}</text>' for t, s in axis.labels())
    return f'<svg width="{STRIP_WIDTH}" height="16" aria-hidden="true">{labels}</svg>'


def strip(row: Strip, main: Column, axis: Axis) -> str:
    """Draw one row's dot, interval and windows or scenarios.

    Parameters
    ----------
    row : Strip
        What does not exist (no interval, a window without a figure) is not drawn.
    main : Column
        How the main figure is shown.
    axis : Axis
        As `strip_axis` fits it.

    Returns
    -------
    str
        An ``<svg>`` element of `STRIP_WIDTH` by `STRIP_HEIGHT` pixels.
    """
    middle, scale = 12, main.scale
    parts = [f'<line class="grid" x1="{axis.at(t):.1f}" x2="{axis.at(t):.1f}" y1="0" y2="30"/>' for t in axis.ticks()]
    for value in row.parts.values():
        if math.isfinite(value):
            x = axis.at(value * scale)
            parts.append(f'<line class="window" x1="{x:.1f}" x2="{x:.1f}" y1="21" y2="27"/>')
    if math.isfinite(row.main.low):
        low, high = axis.at(row.main.low * scale), axis.at(row.main.high * scale)
        parts.append(f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
    if math.isfinite(row.main.estimate):
        parts.append(_mark(row.kind, axis.at(row.main.estimate * scale), middle))
    each = "\n".join(f"{name}: {main.show(value)}" for name, value in row.parts.items())
    text = escape(f"{row.policy}: {show_interval(main, row.main)} {main.unit}\n{each}", quote=True)
    size = f'width="{STRIP_WIDTH}" height="{STRIP_HEIGHT}"'
    return f'<svg class="{row.kind}" {size} data-tip="{text}" role="img" aria-label="{text}">{"".join(parts)}</svg>'


def _mark(kind: str, x: float, y: float) -> str:
    """Circle, diamond, square or triangle: kinds are told apart without colour."""
    if kind == "heuristic":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>'
    if kind == "bundle":
        return f'<rect class="mark" x="{x - 4.2:.1f}" y="{y - 4.2:.1f}" width="8.4" height="8.4"/>'
    corners = ((0, -5.8), (5.8, 0), (0, 5.8), (-5.8, 0)) if kind == "learned" else ((0, -5.8), (5.8, 4.6), (-5.8, 4.6))
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


def _frame(across: Axis, up: Axis, ticks: Sequence[tuple[float, str]], x_title: str, y_title: str) -> list[str]:
    """Grid, tick labels and titles; ``ticks`` are those of the axis across, and ``up`` starts at the bottom."""
    left, right, bottom = across.start, across.end, up.start
    parts = []
    for tick, label in ticks:
        x = across.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{bottom:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{label}</text>')
    for tick, label in up.labels():
        y = up.at(tick)
        parts.append(f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{(left + right) / 2:g}" y="{bottom + 42:g}" text-anchor="middle">{x_title}</text>')
    parts.append(f'<text transform="translate(16 200) rotate(-90)" text-anchor="middle">{y_title}</text>')
    return parts


def trade_off(entries: Sequence[Entry], main: Column, other: Column) -> str:
    """Draw ``other`` (across) against ``main`` (up), with the names in a column at the right.

    Parameters
    ----------
    entries : sequence of Entry
        At least one; each with a finite figure of both metrics.
    main, other : Column
        The metric that ranks, and one that `Entry.metrics` holds.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    width, height, left, right, bottom = 980, 430, 64, 760, 380
    xs = [entry.metrics[other.key] * other.scale for entry in entries]
    ys = [entry.main.estimate * main.scale for entry in entries]
    across, up = fit_axis(xs, left, right), fit_axis(ys, bottom, 16)
    log_x, log_y = (", log scale" if axis.log else "" for axis in (across, up))
    parts = _frame(across, up, across.labels(), f"{other.header}{log_x}", f"{main.header}{log_y}")
    heights = spread([up.at(y) for y in ys], 17.0, 22.0, bottom - 4.0)
    for entry, x_value, y_value, level in zip(entries, xs, ys, heights, strict=True):
        x, y, name = across.at(x_value), up.at(y_value), escape(entry.policy, quote=True)
        text = f"{name}\n{main.header}: {number(y_value)}\n{other.header}: {number(x_value)}"
        parts.append(
            f'<g class="point {entry.kind}" data-policy="{name}" data-tip="{text}">'
            f'<polyline class="lead" points="{x:.1f},{y:.1f} {right + 6},{level:.1f} {right + 14},{level:.1f}"/>'
            f'<text class="label" x="{right + 18}" y="{level + 4:.1f}">{name}</text>{_mark(entry.kind, x, y)}</g>'
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def attainment(entries: Sequence[Entry]) -> str:
    """Draw the share of requests within their SLO over a factor on all objectives; names by their order at factor 1.

    Parameters
    ----------
    entries : sequence of Entry
        At least one; each with a curve (`Entry.attainment`).

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    width, height, left, right, bottom = 980, 430, 64, 720, 380
    across = Axis(SLO_SCALES[0], SLO_SCALES[-1], True, left, right)
    up = Axis(0.0, 100.0, False, bottom, 16)
    factors = [(tick, f"{tick:g}") for tick in (0.25, 0.5, 1.0, 2.0, 4.0)]
    parts = _frame(across, up, factors, "factor on the objectives, log scale", "SLO met (%)")
    one = SLO_SCALES.index(1.0)
    ordered = sorted(entries, key=lambda entry: -entry.attainment[one])
    levels = spread([24.0] * len(ordered), 17.0, 22.0, bottom - 4.0)
    for entry, level in zip(ordered, levels, strict=True):
        name = escape(entry.policy, quote=True)
        points = " ".join(
            f"{across.at(scale):.1f},{up.at(100 * share):.1f}"
            for scale, share in zip(SLO_SCALES, entry.attainment, strict=True)
        )
        text = f"{name}\nSLO met: {100 * entry.attainment[one]:.1f} %"
        parts.append(
            f'<g class="point {entry.kind}" data-policy="{name}" data-tip="{text}"><polyline class="curve" points="{points}"/>'
            f'<text class="label" x="{right + 18}" y="{level + 4:.1f}">{100 * entry.attainment[one]:.1f} %  {name}</text></g>'
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'

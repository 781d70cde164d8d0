"""Pictures (PNG), drawn without any global state and without a display."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from fleetgym.envs.atomic import replacing
from fleetgym.envs.cluster.metrics import SLO_SCALES
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.experiments.report.axis import Axis, fit_axis, spread
from fleetgym.experiments.report.tables import COLUMNS, Column, Entry, LeaderboardTable, Strip, number

# Okabe-Ito: told apart with any colour vision; kinds differ in their marker too.
KIND_COLOURS = {"heuristic": "#0072B2", "learned": "#D55E00", "bundle": "#CC79A7", "oracle": "#009E73"}
KIND_MARKERS = {"heuristic": "o", "learned": "D", "bundle": "s", "oracle": "^"}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#888888"
SCATTER_X = "ttft_charged_s.p90"
STEP_KEYS = ("timesteps", "step", "total_timesteps", "time/total_timesteps")


def new_figure(width: float, height: float) -> Figure:
    """Make a figure on an Agg canvas.

    Parameters
    ----------
    width, height : float
        In inches; `save` draws 150 pixels for each.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes.

    Parameters
    ----------
    figure : Figure
    path : Path
        A file ending in ``.png``.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})


def plain_axes(axes: Axes) -> Axes:
    """Take the frame off, put a faint grid behind and return the axes.

    Parameters
    ----------
    axes : Axes
        Changed in place.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def leaderboard_plot(path: Path, table: LeaderboardTable) -> None:
    """Draw the main metric with its intervals, and P90 of TTFT against the main metric.

    The second panel is left out where P90 of TTFT itself ranks or no policy has one. Policies without a figure are not
    drawn.

    Parameters
    ----------
    path : Path
        The PNG file.
    table : LeaderboardTable

    Raises
    ------
    UserError
        The file cannot be written.
    """
    shown = [entry for entry in table.entries if math.isfinite(entry.main.estimate)]
    other = next((column for column in COLUMNS if column.key == SCATTER_X), None)
    scatter = [entry for entry in shown if math.isfinite(entry.metrics.get(SCATTER_X, math.nan))]
    panels = 2 if scatter and other is not None and table.main.key != SCATTER_X else 1
    figure = new_figure(7.0 * panels, max(3.2, 1.4 + 0.34 * len(shown)))
    grid = figure.subplots(1, panels, squeeze=False, width_ratios=[1.0, 1.15][:panels])[0]
    better = "lower" if table.lower_is_better else "higher"
    label = f"{table.main.header}, {better} is better; line: 95 % interval, ticks: windows"
    dots(plain_axes(grid[0]), table.main, [entry.strip for entry in shown], label)
    if panels == 2 and other is not None:
        _trade_off(plain_axes(grid[1]), table.main, other, scatter)
    name = str(table.scenario.get("name", ""))
    figure.suptitle(name, x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def suite_plot(path: Path, name: str, main: Column, strips: Sequence[Strip]) -> None:
    """Draw the ratio to the yardstick over a suite with its interval, and the ratio in each scenario.

    Parameters
    ----------
    path : Path
        The PNG file.
    name : str
        Of the suite.
    main : Column
        How the ratio is shown.
    strips : sequence of Strip
        One for each policy; those without a figure are not drawn.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    shown = [strip for strip in strips if math.isfinite(strip.main.estimate)]
    figure = new_figure(7.0, max(3.2, 1.4 + 0.34 * len(shown)))
    axes = plain_axes(figure.subplots())
    axes.axvline(1.0, color=GREY, linewidth=0.6, linestyle=":")
    dots(axes, main, shown, f"{main.header}, below 1 is better; line: 95 % interval, ticks: scenarios")
    figure.suptitle(name, x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def attainment_plot(path: Path, table: LeaderboardTable) -> None:
    """Draw the share of requests within their SLO over a factor on all objectives, one line per policy.

    Parameters
    ----------
    path : Path
        The PNG file.
    table : LeaderboardTable
        Entries without a curve (`Entry.attainment`) are not drawn.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    one = SLO_SCALES.index(1.0)
    entries = sorted((e for e in table.entries if e.attainment), key=lambda entry: -entry.attainment[one])
    figure = new_figure(8.5, 4.6)
    axes = plain_axes(figure.subplots())
    for position, entry in enumerate(entries):
        bold = entry.kind in ("learned", "bundle")
        axes.plot(
            SLO_SCALES, [100 * share for share in entry.attainment],
            color=KIND_COLOURS[entry.kind] if bold else CYCLE[position % len(CYCLE)],
            linewidth=2.4 if bold else 1.0, linestyle=("-", "--", ":")[0 if bold else position // len(CYCLE) % 3],
            label=f"{100 * entry.attainment[one]:.1f} %  {entry.policy}",
        )  # fmt: skip
    axes.axvline(1.0, color=GREY, linewidth=0.6, linestyle=":")
    _scale(axes, "x", Axis(SLO_SCALES[0], SLO_SCALES[-1], True))
    axes.set_ylim(0.0, 101.0)
    axes.set_xlabel("factor on the objectives, log")
    axes.set_ylabel("SLO met (%)")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="at factor 1")
    figure.suptitle(str(table.scenario.get("name", "")), x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def dots(axes: Axes, main: Column, strips: Sequence[Strip], label: str) -> None:
    """Draw a line per policy: its figure, the interval, and the windows or scenarios that it is the mean of.

    Parameters
    ----------
    axes : Axes
        Drawn on.
    main : Column
        Gives the scale from the figure's unit to the shown one.
    strips : sequence of Strip
        Uppermost first, each with a finite figure.
    label : str
        Below the axis.
    """
    scale = main.scale
    for row, strip in enumerate(strips):
        colour, marker = KIND_COLOURS[strip.kind], KIND_MARKERS[strip.kind]
        parts = [value * scale for value in strip.parts.values() if math.isfinite(value)]
        axes.plot(parts, [row + 0.3] * len(parts), "|", color=colour, alpha=0.6, markersize=4)
        if math.isfinite(strip.main.low):
            axes.plot([strip.main.low * scale, strip.main.high * scale], [row, row], color=colour, linewidth=2.5)
        axes.plot(strip.main.estimate * scale, row, marker, color=colour, markersize=6, markeredgecolor="white")
    names = [f"{'–' if strip.place is None else strip.place}   {strip.policy}" for strip in strips]
    axes.set_yticks(range(len(strips)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(strips) - 0.4, -0.6)
    axes.grid(False, axis="y")
    bounds = [v * scale for strip in strips for v in (strip.main.low, strip.main.high, *strip.parts.values())]
    _scale(axes, "x", fit_axis(bounds))
    axes.set_xlabel(label)


def _trade_off(axes: Axes, main: Column, other: Column, entries: Sequence[Entry]) -> None:
    xs = [entry.metrics[other.key] * other.scale for entry in entries]
    ys = [entry.main.estimate * main.scale for entry in entries]
    x_axis, y_axis = fit_axis(xs), fit_axis(ys)
    _scale(axes, "x", x_axis)
    _scale(axes, "y", y_axis)
    places = spread([y_axis.at(y) for y in ys], 0.052, 0.02, 0.98)
    for entry, x, y, place in zip(entries, xs, ys, places, strict=True):
        colour = KIND_COLOURS[entry.kind]
        axes.plot(x, y, KIND_MARKERS[entry.kind], color=colour, markersize=7, markeredgecolor="white", zorder=3)
        axes.annotate(
            entry.policy, (x, y), (1.03, place), textcoords="axes fraction", va="center", color=colour, fontsize=8,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4}, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel(f"{other.header}{', log' if x_axis.log else ''}")
    axes.set_ylabel(f"{main.header}{', log' if y_axis.log else ''}")


def _scale(axes: Axes, which: str, axis: Axis) -> None:
    line = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    line.set_major_locator(FixedLocator(axis.ticks()))
    line.set_minor_locator(NullLocator())
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    (axes.set_xlim if which == "x" else axes.set_ylim)(axis.low, axis.high)


def run_plots(
    folder: Path,
    columns: Mapping[str, NDArray[Any]],
    instance_stats: NDArray[np.void],
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Draw one run: ``latency_cdf.png``, ``in_flight.png`` and ``instance_load.png``.

    Parameters
    ----------
    folder : Path
        Must exist; earlier pictures are replaced.
    columns : mapping of str to ndarray, shape (R,)
        As `fleetgym.envs.cluster.metrics.per_request` gives them.
    instance_stats : ndarray of INSTANCE_STATS_DTYPE, shape (N,)
    names : sequence of str, optional
        Of the instances; by default their numbers.

    Returns
    -------
    list of Path
        The three files.

    Raises
    ------
    UserError
        A file cannot be written.
    """
    labels = [str(index) for index in range(len(instance_stats))] if names is None else list(names)
    figures = {
        "latency_cdf.png": _latency_cdf(columns),
        "in_flight.png": _in_flight(columns, labels),
        "instance_load.png": _instance_load(columns, instance_stats, labels),
    }
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in figures]


def _latency_cdf(columns: Mapping[str, NDArray[Any]]) -> Figure:
    figure = new_figure(11.0, 3.4)
    panels = figure.subplots(1, 3, sharey=True)
    titles = {"ttft_s": ("TTFT (s)", 1.0), "tpot_s": ("TPOT (ms)", 1e3), "e2e_s": ("E2E latency (s)", 1.0)}
    for axes, (key, (title, scale)) in zip(panels, titles.items(), strict=True):
        values = np.sort(columns[key][np.isfinite(columns[key])]) * scale
        plain_axes(axes).set_xlabel(title)
        if not len(values):
            axes.text(0.5, 0.5, "no request has one", transform=axes.transAxes, ha="center", color=GREY)
            continue
        axes.plot(values, np.arange(1, len(values) + 1) / len(values), color=CYCLE[0])
        for share in (0.5, 0.9, 0.99):
            point = float(np.quantile(values, share))
            axes.axvline(point, color=GREY, linewidth=0.6, linestyle=":")
            axes.annotate(
                f"P{share * 100:.0f} {number(point)}", (point, share), (4, -10), textcoords="offset points", fontsize=7
            )
        if values[0] > 0 and values[-1] / values[0] > 30:
            axes.set_xscale("log")
    panels[0].set_ylabel("share of requests")
    return figure


def in_flight_steps(arrival_s: NDArray[np.float64], leave_s: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Count the requests in flight over time.

    Parameters
    ----------
    arrival_s : ndarray of float64, shape (R,)
        In seconds.
    leave_s : ndarray of float64, shape (R,)
        When each finished; NaN: it never left.

    Returns
    -------
    times : ndarray of float64, shape (K,)
        Every arrival and leave in order; of equal ones leaves come first.
    counts : ndarray of int64, shape (K,)
        Requests in flight just after each.
    """
    leaves = leave_s[np.isfinite(leave_s)]
    times = np.concatenate([arrival_s, leaves])
    change = np.concatenate([np.ones(len(arrival_s), np.int64), -np.ones(len(leaves), np.int64)])
    order = np.lexsort((change, times))
    return times[order], np.cumsum(change[order])


def _in_flight(columns: Mapping[str, NDArray[Any]], labels: Sequence[str]) -> Figure:
    figure = new_figure(9.0, 3.6)
    axes = plain_axes(figure.subplots())
    taken = columns["status"] != "rejected"
    for index, label in enumerate(labels):
        mine = taken & (columns["instance"] == index)
        times, counts = in_flight_steps(columns["arrival_s"][mine], (columns["arrival_s"] + columns["e2e_s"])[mine])
        colour, style = CYCLE[index % len(CYCLE)], ("-", "--", ":", "-.")[index // len(CYCLE) % 4]
        axes.step(times, counts, where="post", linewidth=0.9, color=colour, linestyle=style, label=label)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("requests in flight")
    axes.set_ylim(bottom=0)
    if len(labels) <= 16:
        axes.legend(title="instance", fontsize=7, ncols=2, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _instance_load(columns: Mapping[str, NDArray[Any]], stats: NDArray[np.void], labels: Sequence[str]) -> Figure:
    figure = new_figure(11.0, 3.2)
    panels = figure.subplots(1, 3)
    bars = (
        ("requests", stats["dispatched"]),
        ("computed tokens (thousands)", (stats["prefill_tokens"] + stats["decode_tokens"]) / 1e3),
        ("busy time (s)", stats["busy_ns"] * 1e-9),
    )
    for axes, (title, heights) in zip(panels, bars, strict=True):
        plain_axes(axes).bar(range(len(labels)), heights, color=CYCLE[0])
        axes.axhline(float(np.mean(heights)), color=CYCLE[1], linewidth=1.0, label="mean")
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60, fontsize=7)
        axes.grid(False, axis="x")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("instance")
    panels[-1].legend(frameon=False, fontsize=7)
    return figure


def training_curve(
    folder: Path, source: Path | Sequence[Mapping[str, Any]], *, keys: Sequence[str] | None = None
) -> Path:
    """Draw ``training_curve.png``: one panel per quantity over timesteps.

    Parameters
    ----------
    folder : Path
        Must exist; an earlier picture is replaced.
    source : Path or sequence of mappings
        A CSV file, or its rows, with a column of timesteps (one of `STEP_KEYS`); empty cells are skipped.
    keys : sequence of str, optional
        Columns to draw, also those without a finite figure; by default every numeric one (at most eight).

    Returns
    -------
    Path
        The picture.

    Raises
    ------
    UserError
        The CSV file cannot be read; no rows, no column of timesteps, no numeric column besides it, or an unknown key;
        the picture cannot be written.
    """
    rows = _read_csv(source) if isinstance(source, Path) else list(source)
    known = list(dict.fromkeys(key for row in rows for key in row))
    step = next((key for key in STEP_KEYS if key in known), None)
    if step is None:
        raise UserError(f"training curve: no column of timesteps among {known}; allowed: {', '.join(STEP_KEYS)}")
    for key in keys or ():
        if key not in known:
            raise UserError(f"training curve: column {key!r} is unknown{did_you_mean(key, known)}")
    points = {key: _points(rows, step, key) for key in keys or known if key != step}
    drawn = [(key, xy) for key, xy in points.items() if keys or len(xy)][: None if keys else 8]
    if not drawn:
        raise UserError("training curve: no numeric column besides the timesteps")
    width = min(3, len(drawn))
    height = math.ceil(len(drawn) / width)
    figure = new_figure(3.8 * width, 2.7 * height)
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for axes, (key, xy) in zip(panels, drawn, strict=False):
        plain_axes(axes).plot(xy[:, 0], xy[:, 1], color=CYCLE[0], marker="." if len(xy) < 50 else None)
        axes.set_title(key, fontsize=9)
        axes.set_xlabel("timesteps")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    path = folder / "training_curve.png"
    save(figure, path)
    return path


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"training curve: cannot read {path}: {error.strerror}") from None


def _points(rows: Sequence[Mapping[str, Any]], step: str, key: str) -> NDArray[np.float64]:
    """Rows where both columns hold finite numbers, shape (K, 2)."""

    def value(cell: Any) -> float:
        try:
            return float(cell)
        except (TypeError, ValueError):
            return math.nan

    pairs = np.array([(value(row.get(step)), value(row.get(key))) for row in rows]).reshape(-1, 2)
    kept: NDArray[np.float64] = pairs[np.isfinite(pairs).all(axis=1)]
    return kept

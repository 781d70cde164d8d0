"""The results as a terminal table, a picture and a page of the documentation."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fleetgym.experiments.benchmarks.environments import BATCHES, SIZES
from fleetgym.experiments.report.plots import new_figure, save
from fleetgym.experiments.report.tables import number

Metrics = Mapping[str, Any]
PACKAGES = ("fleetgym", "numpy", "numba", "torch", "stable-baselines3", "onnxruntime")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    cpu, memory = platform.processor() or platform.machine(), "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f"{kib / 2**20:.0f} GiB"
    except OSError:  # another system than Linux
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_average_at_start": load_average(),
    }


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if sys.platform != "win32" else None


def _holds(record: Metrics) -> str:
    if record["holds"] is None:
        return ""
    return "yes" if record["holds"] else f"NO: {_shortfall(record)}"


def _shortfall(record: Metrics) -> str:
    ratio = record["figure"] / record["floor"]
    return f"{100 * abs(ratio - 1.0):.0f} % {'below' if ratio < 1.0 else 'above'}"


def _bound(record: Metrics) -> str:
    if record["floor"] is None:
        return ""
    return f"{'>=' if record['better'] == 'higher' else '<='} {_show(record['floor'])}"


def _show(value: float) -> str:
    return f"{value / 1e6:.2f} M" if abs(value) >= 1e6 else number(value)


def _records(metrics: Metrics) -> dict[str, Metrics]:
    """Return all figures, those with a floor first."""
    return {**metrics["floors"], **metrics["figures"]}


def print_results(metrics: Metrics, console: Console) -> None:
    """Print figure, floor and whether it holds.

    Parameters
    ----------
    metrics : mapping
        As `fleetgym.experiments.bench.measure` returns it.
    console : Console
        From 110 characters on it also shows the best repeat.
    """
    table = Table(title="Speed and memory, medians of CPU time", title_justify="left", header_style="bold", expand=True)
    wide = console.width >= 110
    table.add_column("what", ratio=1)
    for name in ("median", *(["best"] if wide else []), "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for record in _records(metrics).values():
        style = "bold red" if record["holds"] is False else "green" if record["holds"] else None
        best = [_show(record["best"])] if wide else []
        cells = (f"{_show(record['figure'])} {record['unit']}", *best, _bound(record), _holds(record))
        table.add_row(record["title"], *cells, style=style)
    console.print(table)
    for key, reason in metrics["not_measured"].items():
        console.print(f"not measured: {key}: {reason}", style="yellow", markup=False)


def draw(metrics: Metrics, path: Path) -> None:
    """Draw every floor's figure as a multiple of it, and steps per second against the number of instances.

    Parameters
    ----------
    metrics : mapping
        As `fleetgym.experiments.bench.measure` returns it.
    path : Path
        The PNG file.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    floors = metrics["floors"]
    steps = {key: r for key, r in _records(metrics).items() if key.startswith("vector_steps_per_s.")}
    figure = new_figure(11.0 if steps else 7.0, max(2.6, 0.9 + 0.28 * len(floors)))
    axes = figure.subplots(1, 2 if steps else 1, squeeze=False)[0]
    margins = [
        r["figure"] / r["floor"] if r["better"] == "higher" else r["floor"] / r["figure"] for r in floors.values()
    ]
    colours = ["#009E73" if r["holds"] else "#D55E00" for r in floors.values()]
    axes[0].barh([r["title"] for r in floors.values()], margins, color=colours)
    axes[0].axvline(1.0, color="black", linewidth=1.0)
    axes[0].set(xscale="log", xlabel="figure over floor (right of the line: better)")
    axes[0].invert_yaxis()
    axes[0].tick_params(labelsize=7)
    if steps:
        for batch in BATCHES:
            points = [(n, steps[f"vector_steps_per_s.n{n}_b{batch}"]["figure"]) for n in SIZES]
            axes[1].plot(*zip(*points, strict=True), marker="o", label=f"B = {batch}")
        axes[1].set(xscale="log", yscale="log", xlabel="instances N", ylabel="environment steps per CPU second")
        axes[1].legend(frameon=False)
        axes[1].grid(True, color="#dddddd", linewidth=0.6)
    save(figure, path)


def page(metrics: Metrics) -> str:
    """Return the documentation page of these results, in Markdown.

    Parameters
    ----------
    metrics : mapping
        As `fleetgym.experiments.bench.measure` returns it.
    """
    m = metrics["machine"]
    missed = [r for r in metrics["floors"].values() if not r["holds"]]
    packages = ", ".join(f"{name} {number}" for name, number in m["packages"].items())
    lines = [
        "# Performance",
        "",
        "Measured by `fleetgym bench`; this page is the `performance.md` of its run folder.",
        "",
        f"* Machine: {m['cpu']}, {m['cores']} cores, {m['memory']}, {m['system']}",
        f"* Python {m['python']}, {packages}",
        f"* Fleet: {metrics['fleet']}",
        f"* Load average at start and end: {m['load_average_at_start']}, {m['load_average_at_end']} "
        + "(at the end above 1: other processes ran beside it)",
        "",
        "![Figures over their floors](bench.png)",
        "",
        f"One core, one torch thread, CPU seconds, {metrics['repeats']} repeats; both sides of a ratio are measured",
        "in turn in one run. The floor is held against the median; *best* is the repeat that was disturbed least.",
        "",
        "## Floors",
        "",
        f"{len(metrics['floors']) - len(missed)} of {len(metrics['floors'])} hold.",
        "",
        *_markdown(metrics["floors"], floors=True),
        "",
        *(
            f"* **Missed:** {r['title']}: {_show(r['figure'])} {r['unit']}, floor {_bound(r)}, {_shortfall(r)}."
            for r in missed
        ),
        "",
        "## All other figures",
        "",
        *_markdown(metrics["figures"], floors=False),
    ]
    if metrics["not_measured"]:
        lines += ["", "## Not measured", "", *(f"* `{k}`: {reason}" for k, reason in metrics["not_measured"].items())]
    text = "\n".join(lines) + "\n"
    return text.replace("\n\n\n", "\n\n")


def _markdown(rows: Mapping[str, Metrics], *, floors: bool) -> list[str]:
    head = ["key", "what", "median", "best", "unit", *(["floor", "holds"] if floors else []), "CPU s (min, median)"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for key, r in rows.items():
        what = f"{r['title']} ({r['note']})" if r["note"] else r["title"]
        extra = [_bound(r), _holds(r)] if floors else []
        cpu = f"{r['cpu_s']['min']:.3g}, {r['cpu_s']['median']:.3g}"
        cells = [f"`{key}`", what, _show(r["figure"]), _show(r["best"]), r["unit"], *extra, cpu]
        lines.append(f"| {' | '.join(cells)} |")
    return lines

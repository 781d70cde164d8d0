"""What a comparison with a measured run prints: every error, and what was replayed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fleetgym.experiments.fidelity.measured_replay import METRICS, STATISTICS, ErrorTable, MeasuredReplay


def print_errors(errors: ErrorTable, console: Console, title: str) -> None:
    """Print measured, simulated and error of every metric and statistic.

    Parameters
    ----------
    errors : ErrorTable
        As `MeasuredReplay.errors` gives it.
    console : Console
    title : str
        Above the table.
    """
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("metric")
    grid.add_column("statistic")
    for name in ("measured", "simulated", "error"):
        grid.add_column(name, justify="right")
    for metric in METRICS:
        for name in STATISTICS:
            cell = errors[metric][name]
            shown = (
                _show_seconds(cell["measured_s"]),
                _show_seconds(cell["simulated_s"]),
                _show_error(cell["error_pct"]),
            )
            grid.add_row(metric.upper() if name == STATISTICS[0] else "", name, *shown)
        grid.add_section()
    console.print(grid)


def print_facts(replay: MeasuredReplay) -> None:
    """Print the instance, its settings with their origin, and the notes.

    Parameters
    ----------
    replay : MeasuredReplay
    """
    row = replay.instance.row
    kind = "no catalogue row, composed:" if row.estimate else "catalogue row"
    print(f"{kind} {row.key}, tier {row.tier}, scale {row.scale:g}: {row.provenance}")
    for origin in dict.fromkeys(origin for _, origin in replay.settings.values()):
        names = (f"{name}={value}" for name, (value, other) in replay.settings.items() if other == origin)
        print(f"{origin}: {', '.join(names)}")
    for note in replay.notes:
        print(f"note: {note}")


def _show_seconds(value: float | None) -> str:
    """``1.234 s`` or ``12.34 ms``."""
    if value is None:
        return "–"
    return f"{value:.3f} s" if value >= 1.0 else f"{1e3 * value:.2f} ms"


def _show_error(value: float | None) -> str:
    """Format a signed percentage."""
    return "–" if value is None else f"{value:+.2f} %"

"""``fleetgym validate``: replay a measured run and print how far the simulation is off."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fleetgym.experiments.cli import command
from fleetgym.experiments.fidelity.measured_replay import METRICS, STATISTICS, ErrorTable, MeasuredReplay, replay_from
from fleetgym.experiments.fidelity.page import write_validation
from fleetgym.experiments.harness.options import ValidateOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder


@command("validate")
def main(cfg: DictConfig) -> float | None:
    """Compare with a measured run; return the absolute error of the mean E2E latency in percent."""
    read_options(ValidateOptions, cfg)
    replay = replay_from(cfg)
    simulation = replay.simulate(load_at_s=load_times(replay))
    errors = replay.errors(simulation)
    with RunFolder.from_hydra(cfg) as run:
        metrics: dict[str, Any] = {**errors, **replay.facts()}
        metrics |= {
            "simulated_preemptions": simulation.preemptions,
            "simulated_cached_tokens": simulation.cached_tokens,
        }
        run.write_metrics(metrics)
        write_validation(run.path, replay, simulation, errors)
        print_errors(errors, Console(), f"{replay.run.name}: simulated against measured")
        print_facts(replay)
        print(f"page: {run.path / 'validation.html'}")
    error = errors["e2e"]["mean"]["error_pct"]
    return None if error is None else abs(error)


def load_times(replay: MeasuredReplay) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the ticks of ``timeseries.csv``, else one per second of the measured run."""
    series = replay.run.timeseries
    if series is not None and len(series.t_s):
        return series.t_s
    return np.arange(0.0, np.nanmax(replay.run.finish_s) + 1.0)


def print_errors(errors: ErrorTable, console: Console, title: str) -> None:
    """Print measured, simulated and error of every metric and statistic."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("metric")
    grid.add_column("statistic")
    for name in ("measured", "simulated", "error"):
        grid.add_column(name, justify="right")
    for metric in METRICS:
        for name in STATISTICS:
            cell = errors[metric][name]
            shown = (show_seconds(cell["measured_s"]), show_seconds(cell["simulated_s"]), show_error(cell["error_pct"]))
            grid.add_row(metric.upper() if name == STATISTICS[0] else "", name, *shown)
        grid.add_section()
    console.print(grid)


def print_facts(replay: MeasuredReplay) -> None:
    """Print the instance, its settings with their origin, and the notes."""
    row = replay.instance.row
    kind = "no catalogue row, composed:" if row.estimate else "catalogue row"
    print(f"{kind} {row.key}, tier {row.tier}, scale {row.scale:g}: {row.provenance}")
    for origin in dict.fromkeys(origin for _, origin in replay.settings.values()):
        names = (f"{name}={value}" for name, (value, other) in replay.settings.items() if other == origin)
        print(f"{origin}: {', '.join(names)}")
    for note in replay.notes:
        print(f"note: {note}")


def show_seconds(value: float | None) -> str:
    """``1.234 s`` or ``12.34 ms``."""
    if value is None:
        return "–"
    return f"{value:.3f} s" if value >= 1.0 else f"{1e3 * value:.2f} ms"


def show_error(value: float | None) -> str:
    """Format a signed percentage."""
    return "–" if value is None else f"{value:+.2f} %"


if __name__ == "__main__":
    main()

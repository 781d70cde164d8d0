"""The validation page: three CDFs and the load over time, measured against simulated, and every figure."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fleetgym.envs.atomic import write_text
from fleetgym.experiments.fidelity.measured_replay import ErrorTable, MeasuredReplay, Simulation
from fleetgym.experiments.report.plots import new_figure, plain_axes, save

TITLES = {
    "ttft": ("time to first token", "s", 1.0),
    "tpot": ("time per output token", "ms", 1e3),
    "e2e": ("end to end", "s", 1.0),
}
MEASURED, SIMULATED = "#1b1f24", "#D55E00"

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fbfbfa; color: #1b1f24; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
h1 { font-size: 1.55rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.soft { color: #5c6570; } .note { color: #8a5a00; margin: .25rem 0; }
.card { background: #fff; border: 1px solid #e3e5e8; border-radius: 8px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e5e8; }
th { font-size: .8rem; color: #5c6570; } td:first-child, th:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; } td.error { font-weight: 600; } img { display: block; width: 100%; height: auto; }
"""


def write_validation(folder: Path, replay: MeasuredReplay, simulation: Simulation, errors: ErrorTable) -> None:
    """Write ``validation.png`` and the self-contained ``validation.html``, each whole or not at all.

    Parameters
    ----------
    folder : Path
        Must exist.
    replay : MeasuredReplay
    simulation : Simulation
        Of this replay; its ``load`` is drawn if it has one.
    errors : ErrorTable
        As `MeasuredReplay.errors` gives it.

    Raises
    ------
    UserError
        A file cannot be written.
    """
    _draw(folder / "validation.png", replay, simulation)
    picture = base64.b64encode((folder / "validation.png").read_bytes()).decode("ascii")
    write_text(folder / "validation.html", _page(replay, simulation, errors, picture))


def _draw(path: Path, replay: MeasuredReplay, simulation: Simulation) -> None:
    """Draw the CDFs of TTFT, TPOT and E2E, and the running and waiting requests over time."""
    figure = new_figure(11.0, 7.2)
    grid = figure.subplots(2, 3)
    spec = grid[1, 0].get_gridspec()
    for axes in grid[1]:
        axes.remove()
    judged = replay.run.finished
    for axes, (name, (title, unit, scale)) in zip(grid[0], TITLES.items(), strict=True):
        _cdf(axes, replay.run.latencies[name][judged] * scale, MEASURED, "measured", "-")
        _cdf(axes, simulation.latencies[name][judged] * scale, SIMULATED, "simulated", "--")
        axes.set(title=f"{name.upper()}: {title}", xlabel=unit, ylim=(0, 1.02), ylabel="share of requests")
        plain_axes(axes)
    grid[0, 0].legend(frameon=False, loc="lower right")
    _load(figure.add_subplot(spec[1, :]), replay, simulation)
    figure.suptitle(f"{replay.run.name}: measured and simulated", x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def _cdf(axes: Axes, values: NDArray[np.float64], colour: str, label: str, style: str) -> None:
    known = np.sort(values[np.isfinite(values)])
    axes.plot(known, np.arange(1, len(known) + 1) / max(1, len(known)), style, color=colour, label=label, linewidth=1.6)


def _load(axes: Axes, replay: MeasuredReplay, simulation: Simulation) -> None:
    """Draw running and waiting requests; without a time series, how many were unfinished."""
    load, series = simulation.load, replay.run.timeseries
    if load is not None and series is not None:
        for name, colour in (("running", "#0072B2"), ("waiting", "#CC79A7")):
            axes.plot(series.t_s, getattr(series, name), "-", color=colour, label=f"{name}, measured", linewidth=1.6)
            axes.plot(load.t_s, getattr(load, name), "--", color=colour, label=f"{name}, simulated", linewidth=1.6)
        axes.set_title("running and waiting requests")
    elif load is not None:
        run, now = replay.run, load.t_s[:, None]
        unfinished = ((run.arrival_s <= now) & ~(run.finish_s <= now)).sum(axis=1)
        axes.plot(load.t_s, unfinished, "-", color=MEASURED, label="measured", linewidth=1.6)
        axes.plot(load.t_s, load.running + load.waiting, "--", color=SIMULATED, label="simulated", linewidth=1.6)
        axes.set_title("unfinished requests (no timeseries.csv)")
    axes.set(xlabel="s after the first arrival", ylabel="requests")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=2)
    plain_axes(axes)


def _page(replay: MeasuredReplay, simulation: Simulation, errors: ErrorTable, picture: str) -> str:
    """Return the page as HTML; ``picture`` is the PNG in base64."""
    facts = replay.facts()
    judged, total = facts["requests"]["judged"], facts["requests"]["total"]
    title = escape(f"{replay.run.name}: measured and simulated")
    settings = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td><td>{escape(origin)}</td></tr>"
        for name, (value, origin) in replay.settings.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body><main>
<h1>{title}</h1>
<p class="soft">{"Composed" if facts["estimate"] else "Catalogue row"} {escape(facts["catalogue_row"])}, tier
{escape(facts["tier"])}, scale {facts["catalogue_scale"]:g}: {escape(facts["provenance"])}; {judged} of {total} requests
compared; {simulation.preemptions} preemptions and {simulation.cached_tokens} cached prompt tokens in the simulation.</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in replay.notes)}
<h2>Error</h2><div class="card"><table>{_table(errors)}</table></div>
<h2>Distributions and load</h2>
<div class="card"><img alt="CDFs of TTFT, TPOT and E2E, and requests over time" src="data:image/png;base64,{picture}"></div>
<h2>Settings</h2>
<div class="card"><table><tr><th>setting</th><th>value</th><th>from</th></tr>{settings}</table></div>
</main></body></html>
"""


def _table(errors: ErrorTable) -> str:
    head = "<tr><th>metric</th><th>statistic</th><th>measured (s)</th><th>simulated (s)</th><th>error (%)</th></tr>"
    rows = []
    for metric, statistics in errors.items():
        for name, cell in statistics.items():
            shown = ("–" if value is None else f"{value:.4f}" for value in (cell["measured_s"], cell["simulated_s"]))
            error = "–" if cell["error_pct"] is None else f"{cell['error_pct']:+.2f}"
            cells = "".join(f"<td>{text}</td>" for text in (metric.upper(), name, *shown))
            rows.append(f'<tr>{cells}<td class="error">{error}</td></tr>')
    return head + "".join(rows)

"""The leaderboard as a table: places, intervals and columns; on a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fleetgym.envs.cluster.metrics import find_metric
from fleetgym.envs.errors import UserError
from fleetgym.experiments.report.files import write_text
from fleetgym.experiments.run import jsonable
from fleetgym.experiments.statistics import FEW_SEEDS, Interval, Scores, bootstrap_for, collect, places

Row = Mapping[str, Any]

DECISION_KEY = "decision_us"
CONTROL_MARGIN = 0.03
KINDS = ("heuristic", "learned", "bundle", "oracle")


@dataclass(frozen=True)
class Column:
    """How a metric is shown: ``value * scale`` in ``unit``."""

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    help: str = ""

    @property
    def header(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def show(self, value: float | None) -> str:
        """Format one figure to three significant digits, or a dash."""
        return "–" if value is None or not math.isfinite(value) else number(value * self.scale)


COLUMNS = (
    Column("e2e_s.mean", "E2E mean", "s", help="end-to-end latency: arrival to last token"),
    Column("ttft_s.mean", "TTFT mean", "s", help="time to first token"),
    Column("ttft_s.p90", "TTFT P90", "s", help="nine in ten requests see their first token sooner"),
    Column("tpot_s.mean", "TPOT mean", "ms", 1e3, "time per output token after the first"),
    Column("goodput_rps", "Goodput", "req/s", help="requests per second that finished within their SLO"),
    Column("slo_attainment", "SLO met", "%", 100.0, "share of all arrived requests that finished within their SLO"),
    Column("requests.rejected", "Rejected", help="requests that the fleet refused, mean over seeds"),
    Column("requests.unfinished", "Unfinished", help="requests that never finished, mean over seeds"),
    Column(DECISION_KEY, "Decision", "µs", help="measured time of one decision on this machine"),
)


@dataclass(frozen=True)
class Entry:
    """One policy of the table.

    Attributes
    ----------
    place : int or None
        None for an oracle: it reads what no router can know and does not compete.
    main : Interval
        Main metric, mean over seeds and scenarios.
    change : Interval or None
        Relative difference to the reference policy (-0.1: ten percent lower).
    per_seed : dict of int to float
        Main metric of each seed, mean over scenarios.
    metrics : dict of str to float
        Mean over seeds of every numeric column; NaN where a seed has no figure.
    """

    policy: str
    kind: str
    place: int | None
    main: Interval
    change: Interval | None
    per_seed: dict[int, float]
    metrics: dict[str, float]


@dataclass(frozen=True)
class LeaderboardTable:
    """Entries in order of place, and what they were measured on."""

    entries: tuple[Entry, ...]
    main: Column
    lower_is_better: bool
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    scenarios: tuple[str, ...]
    reference: str | None
    notes: tuple[str, ...]
    scenario: Mapping[str, Any]

    def simulated(self) -> dict[str, Any]:
        """Return the figures that are equal from run to run, for ``metrics.json``."""
        return {
            "main_metric": self.main.key,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "policies": {entry.policy: _record(entry, timed=False) for entry in self.entries},
        }


def build_table(
    rows: Sequence[Row],
    *,
    scenario: Mapping[str, Any],
    main_metric: str = "e2e_s.mean",
    reference_kind: str = "heuristic",
    seed: int = 0,
) -> LeaderboardTable:
    """Rank the policies of ``rows``; see `write_leaderboard` for the parameters."""
    scores = collect(rows, main_metric)
    kinds = _kinds(rows)
    lower = find_metric(main_metric).better == "lower"
    bootstrap = bootstrap_for(scores, seed)
    means = dict(zip(scores.policies, scores.values.mean(axis=(1, 2)), strict=True))
    complete = dict(zip(scores.policies, scores.complete, strict=True))
    candidates = [name for name in scores.policies if kinds[name] == reference_kind and complete[name]]
    sign = 1.0 if lower else -1.0
    reference = min(candidates, key=lambda name: sign * means[name], default=None)
    values = dict(zip(scores.policies, scores.values, strict=True))
    ranked = [name for name in scores.policies if kinds[name] != "oracle"]
    place = _places(scores, ranked, seed, lower)
    metrics = _metric_means(rows)
    entries = [
        Entry(
            policy=name,
            kind=kinds[name],
            place=place.get(name),
            main=bootstrap.interval(values[name]),
            change=bootstrap.relative_change(values[name], values[reference]) if reference else None,
            per_seed=dict(zip(scores.seeds, map(float, values[name].mean(axis=1)), strict=True)),
            metrics=metrics[name],
        )
        for name in scores.policies
    ]
    # Oracles first, to hold the others against; then by place.
    entries.sort(key=lambda e: (e.place or 0, not math.isfinite(e.main.estimate), sign * e.main.estimate, e.policy))
    main = next((c for c in COLUMNS if c.key == main_metric), Column(main_metric, main_metric))
    return LeaderboardTable(
        entries=tuple(entries),
        main=main,
        lower_is_better=lower,
        columns=_columns(main, entries),
        seeds=scores.seeds,
        scenarios=scores.scenarios,
        reference=reference,
        notes=tuple(_notes(scores, entries, reference)),
        scenario=scenario,
    )


def _kinds(rows: Sequence[Row]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for row in rows:
        name, kind = str(row["policy"]), str(row["kind"])
        if kind not in KINDS:
            raise UserError(f"kind={kind!r} of policy {name}: allowed: {', '.join(KINDS)}")
        if kinds.setdefault(name, kind) != kind:
            raise UserError(f"policy {name}: listed both as {kinds[name]} and as {kind}; give each its own name")
    return kinds


def _places(scores: Scores, ranked: Sequence[str], seed: int, lower: bool) -> dict[str, int]:
    keep = [scores.policies.index(name) for name in ranked]
    competing = Scores(tuple(ranked), scores.seeds, scores.scenarios, scores.values[keep])
    found = places(competing, bootstrap_for(competing, seed), lower_is_better=lower)
    return dict(zip(ranked, found, strict=True))


def _metric_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean over seeds and scenarios of every numeric column, per policy."""
    skip = {"policy", "kind", "seed", "scenario"}
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in skip]
    means: dict[str, dict[str, float]] = {str(row["policy"]): {} for row in rows}
    for key in keys:
        if any(isinstance(row.get(key), (str, list, dict)) for row in rows):
            continue
        scores = collect(rows, key)
        for name, value in zip(scores.policies, scores.values, strict=True):
            means[name][key] = float(value.mean())
    return means


def _columns(main: Column, entries: Sequence[Entry]) -> tuple[Column, ...]:
    """Columns that any row fills, without the main one; "unfinished" only where something is."""

    def shown(column: Column) -> bool:
        values = [entry.metrics.get(column.key, math.nan) for entry in entries]
        used = any(math.isfinite(value) for value in values)
        return used and (column.key != "requests.unfinished" or any(value > 0 for value in values))

    return tuple(column for column in COLUMNS if column.key != main.key and shown(column))


def _notes(scores: Scores, entries: Sequence[Entry], reference: str | None) -> list[str]:
    notes = []
    if len(scores.seeds) == 1:
        notes.append("One seed: no intervals, so no difference is shown to be real and all share the first place.")
    elif len(scores.seeds) < FEW_SEEDS:
        notes.append(f"{len(scores.seeds)} seeds: intervals from fewer than {FEW_SEEDS} seeds are too narrow.")
    failed = {_failures(entry) for entry in entries}
    if len(failed) > 1:
        notes.append("Policies differ in rejected or unfinished requests: compare e2e_penalised_s, not e2e_s.")
    missing = [entry.policy for entry in entries if not math.isfinite(entry.main.estimate)]
    if missing:
        notes.append(f"No figure in at least one seed, so placed last: {', '.join(missing)}.")
    oracles = [entry.main.estimate for entry in entries if entry.kind == "oracle"]
    best = next((entry.main.estimate for entry in entries if entry.policy == reference), math.nan)
    if oracles and all(abs(oracle / best - 1.0) < CONTROL_MARGIN for oracle in oracles):
        notes.append(
            f"The oracle lies within 3 % of the best heuristic, {reference}: knowing every answer's length is worth "
            "little to a greedy rule here."
        )
    return notes


def _failures(entry: Entry) -> float:
    return entry.metrics.get("requests.rejected", 0.0) + entry.metrics.get("requests.unfinished", 0.0)


def number(value: float) -> str:
    """Format to three significant digits, without an exponent between 0.001 and a million."""
    if value == 0.0 or not math.isfinite(value):
        return "0" if value == 0.0 else "–"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")  # 9.999 is 10.0: count the digits after rounding
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded if abs(rounded) < 1000 else value:,.{digits}f}"


def show_interval(column: Column, interval: Interval) -> str:
    """``1.23 [1.20, 1.26]``."""
    if math.isnan(interval.low):
        return column.show(interval.estimate)
    return f"{column.show(interval.estimate)} [{column.show(interval.low)}, {column.show(interval.high)}]"


def show_change(change: Interval | None) -> str:
    """``−4.1 %`` with its interval, rounded to a tenth of a percent."""
    if change is None or not math.isfinite(change.estimate):
        return "–"
    point = f"{100 * change.estimate:+.1f} %"
    return point if math.isnan(change.low) else f"{point} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _record(entry: Entry, *, timed: bool) -> dict[str, Any]:
    metrics = {key: value for key, value in entry.metrics.items() if timed or key != DECISION_KEY}
    return {
        "place": entry.place,
        "kind": entry.kind,
        "main": entry.main._asdict(),
        "change_vs_reference": None if entry.change is None else entry.change._asdict(),
        "per_seed": {str(seed): value for seed, value in entry.per_seed.items()},
        "metrics": metrics,
    }


def write_json(path: Path, table: LeaderboardTable, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write everything the page shows, and the rows that it was computed from."""
    content = {
        "main_metric": table.main.key,
        "lower_is_better": table.lower_is_better,
        "reference": table.reference,
        "seeds": table.seeds,
        "scenarios": table.scenarios,
        "scenario": table.scenario,
        "notes": table.notes,
        "entries": [{"policy": entry.policy, **_record(entry, timed=True)} for entry in table.entries],
        **about,
        "rows": [dict(row) for row in rows],
    }
    write_text(path, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, table: LeaderboardTable) -> None:
    """Write one line per policy; an empty cell is a figure that does not exist."""
    keys = list(dict.fromkeys(key for entry in table.entries for key in entry.metrics))
    main = table.main.key
    head = ["place", "policy", "kind", f"{main}.low", f"{main}.high"]
    change = ["change_vs_reference", "change_low", "change_high"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *change, *keys])
    for entry in table.entries:
        figures = (*entry.main[1:], *(entry.change or (math.nan,) * 3), *(entry.metrics[key] for key in keys))
        cells = [value if math.isfinite(value) else "" for value in figures]
        writer.writerow(["" if entry.place is None else entry.place, entry.policy, entry.kind, *cells])
    write_text(path, text.getvalue())


def print_table(table: LeaderboardTable, console: Console) -> None:
    """Print the leaderboard; wide columns are dropped from the right on a narrow terminal."""
    title = f"{table.scenario.get('name', 'Leaderboard')}: {len(table.seeds)} seeds, 95 % intervals"
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("#", justify="right")
    grid.add_column("policy", no_wrap=True)
    grid.add_column("kind")
    grid.add_column(f"{table.main.header} [95 %]", justify="right", no_wrap=True)
    grid.add_column("vs best", justify="right")
    columns = table.columns[: max(0, (console.width - 78) // 10)]
    for column in columns:
        grid.add_column(column.header, justify="right")
    for entry in table.entries:
        style = {"learned": "bold", "bundle": "bold", "oracle": "dim"}.get(entry.kind)
        place = "oracle" if entry.place is None else str(entry.place)
        change = "–" if entry.change is None else show_change(entry.change._replace(low=math.nan))
        change = "ref." if entry.policy == table.reference else change
        cells = [column.show(entry.metrics.get(column.key)) for column in columns]
        grid.add_row(
            place, entry.policy, entry.kind, show_interval(table.main, entry.main), change, *cells, style=style
        )
    console.print(grid)
    for note in table.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def print_summary(summary: Mapping[str, Any], console: Console, title: str = "") -> None:
    """Print the metrics of one run: latencies as a table, everything else as a list."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    names = ("mean", "p50", "p90", "p99", "max")
    grid.add_column("")
    for name in names:
        grid.add_column(name, justify="right")
    for key, value in summary.items():
        if isinstance(value, Mapping) and set(names) <= set(value):
            cells = (value[name] for name in names)
            grid.add_row(key, *("–" if cell is None else number(cell) for cell in cells))
    console.print(grid)
    requests = ", ".join(f"{count} {name}" for name, count in summary["requests"].items())
    figures = [f"requests: {requests}"]
    for key, value in summary.items():
        if isinstance(value, (int, float)) and np.isfinite(value):
            figures.append(f"{key}: {number(value)}")
    console.print("\n".join(figures), highlight=False)

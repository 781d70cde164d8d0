"""The leaderboard as a table: places, intervals and columns; on a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fleetgym.envs.atomic import write_text
from fleetgym.envs.cluster.metrics import SLO_SCALES, find_ranking
from fleetgym.envs.errors import UserError
from fleetgym.experiments.comparison.intervals import (
    MIN_WINDOWS,
    Interval,
    Scores,
    collect,
    mean_interval,
    places,
    relative_change,
)
from fleetgym.experiments.harness.run_folder import jsonable

Row = Mapping[str, Any]

DECISION_KEY = "decision_us"
CURVE_KEY = "slo_attainment_curve"
KINDS = ("heuristic", "learned", "bundle", "oracle")
KIND_STYLES = {"learned": "bold", "bundle": "bold", "oracle": "dim"}  # on a terminal


@dataclass(frozen=True)
class Column:
    """How a metric is shown: ``value * scale`` in ``unit``.

    Attributes
    ----------
    key : str
        Dotted name of the metric, e.g. ``ttft_charged_s.p90``.
    title : str
        What readers see.
    unit : str
        Of what is shown; empty for counts.
    scale : float
        From the metric's own unit to ``unit``, e.g. 1e3 from seconds to ms.
    help : str
        What the metric says, in one line; empty if the title does.
    """

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
        """Format one figure to three significant digits, or a dash.

        Parameters
        ----------
        value : float or None
            In the metric's own unit; None, NaN and infinities become the dash.
        """
        return "–" if value is None or not math.isfinite(value) else number(value * self.scale)


_CHARGED = "a failed request counts as failure_s"
COLUMNS = (
    Column("e2e_charged_s.mean", "E2E mean", "s", help=f"end-to-end latency, arrival to last token; {_CHARGED}"),
    Column("e2e_charged_s.p99", "E2E P99", "s", help=f"one in a hundred requests takes longer; {_CHARGED}"),
    Column("ttft_charged_s.mean", "TTFT mean", "s", help=f"time to first token; {_CHARGED}"),
    Column(
        "ttft_charged_s.p90", "TTFT P90", "s", help=f"nine in ten requests see their first token sooner; {_CHARGED}"
    ),
    Column("slo_attainment", "SLO met", "%", 100.0, "share of all arrived requests that finished within their SLO"),
    Column("requests.rejected", "Rejected", help="requests that the fleet refused, mean over windows"),
    Column("requests.unfinished", "Unfinished", help="requests that never finished, mean over windows"),
    Column("ttft_charged_s.p99", "TTFT P99", "s", help=f"one in a hundred requests waits longer; {_CHARGED}"),
    Column("tpot_s.mean", "TPOT mean", "ms", 1e3, "time per output token after the first, of finished requests"),
    Column("goodput_rps", "Goodput", "req/s", help="requests that finished within their SLO, per second of arrivals"),
    Column(DECISION_KEY, "Decision", "µs", help="measured time of one decision on this machine"),
)


class Strip(NamedTuple):
    """What a picture's line shows of a policy: its figure, the interval, and what it is the mean of.

    Attributes
    ----------
    policy : str
    kind : {"heuristic", "learned", "bundle", "oracle"}
    place : int or None
        None for an oracle, which does not compete.
    main : Interval
        The figure that ranks.
    parts : mapping of str to float
        The figure of single windows or scenarios, by what they are called; NaN where there is none.
    """

    policy: str
    kind: str
    place: int | None
    main: Interval
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """One policy of the table.

    Attributes
    ----------
    policy : str
    kind : {"heuristic", "learned", "bundle", "oracle"}
    place : int or None
        1 + number of policies shown to be better. None for an oracle: it reads what no router can know and does not
        compete.
    main : Interval
        The figure that ranks, mean over windows and scenarios.
    change : Interval or None
        Relative difference to the reference policy (-0.1: ten percent lower); None without a reference.
    per_window : dict of int to float
        The figure that ranks in each window, mean over scenarios.
    metrics : dict of str to float
        Mean over windows and scenarios of every numeric column; NaN where one of them has no figure.
    attainment : tuple of float
        SLO attainment (0 to 1) at each of `fleetgym.envs.cluster.metrics.SLO_SCALES`, mean over windows and scenarios;
        empty if not given.
    """

    policy: str
    kind: str
    place: int | None
    main: Interval
    change: Interval | None
    per_window: dict[int, float]
    metrics: dict[str, float]
    attainment: tuple[float, ...]

    @property
    def strip(self) -> Strip:
        """Its line in a picture."""
        windows = {f"window {window}": value for window, value in self.per_window.items()}
        return Strip(self.policy, self.kind, self.place, self.main, windows)


@dataclass(frozen=True)
class LeaderboardTable:
    """Entries in order of place, and what they were measured on.

    Attributes
    ----------
    entries : tuple of Entry
        By place; oracles last.
    main : Column
        The metric that decides the places.
    lower_is_better : bool
        Of ``main``.
    columns : tuple of Column
        Of `COLUMNS`, those that some entry fills, without ``main``.
    windows : tuple of int
        Numbers of the windows that every policy was measured in.
    scenarios : tuple of str
        Names of the scenarios that figures are means over.
    reference : str or None
        The policy that `Entry.change` compares with; None if none of that kind has every figure.
    notes : tuple of str
        What a reader of the places has to know.
    scenario : mapping
        ``name``, ``description`` and other facts of what was measured.
    """

    entries: tuple[Entry, ...]
    main: Column
    lower_is_better: bool
    columns: tuple[Column, ...]
    windows: tuple[int, ...]
    scenarios: tuple[str, ...]
    reference: str | None
    notes: tuple[str, ...]
    scenario: Mapping[str, Any]

    def simulated(self) -> dict[str, Any]:
        """Return the figures that are equal from run to run, for ``metrics.json``."""
        return {
            "rank_by": self.main.key,
            "reference": self.reference,
            "windows": list(self.windows),
            "policies": {entry.policy: _record(entry, timed=False) for entry in self.entries},
        }


def build_table(
    rows: Sequence[Row],
    *,
    scenario: Mapping[str, Any],
    rank_by: str = "e2e_charged_s.mean",
    reference_kind: str = "heuristic",
    failure_s: float = math.inf,
) -> LeaderboardTable:
    """Rank the policies of ``rows``.

    Parameters
    ----------
    rows : sequence of mappings
    scenario : mapping
    rank_by, reference_kind : str
    failure_s : float
        All as in `fleetgym.experiments.report.leaderboard.write_leaderboard`.

    Returns
    -------
    LeaderboardTable

    Raises
    ------
    UserError
        No rows, an unknown metric, a kind that is none of `KINDS`, or a policy listed under two kinds.
    """
    scores = collect(rows, rank_by)
    kinds = _kinds(rows)
    lower = find_ranking(rank_by).better == "lower"
    means = dict(zip(scores.policies, scores.values.mean(axis=(1, 2)), strict=True))
    complete = dict(zip(scores.policies, scores.complete, strict=True))
    candidates = [name for name in scores.policies if kinds[name] == reference_kind and complete[name]]
    sign = 1.0 if lower else -1.0
    reference = min(candidates, key=lambda name: sign * means[name], default=None)
    values = dict(zip(scores.policies, scores.values, strict=True))
    ranked = [name for name in scores.policies if kinds[name] != "oracle"]
    place = _places(scores, ranked, lower)
    metrics = _metric_means(rows)
    curves = _curves(rows)
    entries = [
        Entry(
            policy=name,
            kind=kinds[name],
            place=place.get(name),
            main=mean_interval(values[name]),
            change=relative_change(values[name], values[reference]) if reference else None,
            per_window=dict(zip(scores.windows, map(float, values[name].mean(axis=1)), strict=True)),
            metrics=metrics[name],
            attainment=curves.get(name, ()),
        )
        for name in scores.policies
    ]
    # By place; what does not compete comes after.
    entries.sort(
        key=lambda e: (e.place or math.inf, not math.isfinite(e.main.estimate), sign * e.main.estimate, e.policy)
    )
    main = next((c for c in COLUMNS if c.key == rank_by), Column(rank_by, rank_by))
    return LeaderboardTable(
        entries=tuple(entries),
        main=main,
        lower_is_better=lower,
        columns=_columns(main, entries),
        windows=scores.windows,
        scenarios=scores.scenarios,
        reference=reference,
        notes=tuple(_notes(scores, entries, _slowest(rows), failure_s)),
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


def _places(scores: Scores, ranked: Sequence[str], lower: bool) -> dict[str, int]:
    keep = [scores.policies.index(name) for name in ranked]
    competing = Scores(tuple(ranked), scores.windows, scores.scenarios, scores.values[keep])
    found = places(competing, lower_is_better=lower)
    return dict(zip(ranked, found, strict=True))


def _metric_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean over windows and scenarios of every numeric column, per policy."""
    skip = {"policy", "kind", "window", "scenario"}
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in skip]
    means: dict[str, dict[str, float]] = {str(row["policy"]): {} for row in rows}
    for key in keys:
        if any(isinstance(row.get(key), (str, list, dict)) for row in rows):
            continue
        scores = collect(rows, key)
        for name, value in zip(scores.policies, scores.values, strict=True):
            means[name][key] = float(value.mean())
    return means


def _curves(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """Mean over windows and scenarios of the attainment curves, per policy."""
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        if CURVE_KEY in row:
            curves.setdefault(str(row["policy"]), []).append(row[CURVE_KEY])
    return {name: tuple(np.mean(several, axis=0).tolist()) for name, several in curves.items()}


def _slowest(rows: Sequence[Row]) -> tuple[float, str]:
    """Largest latency of a request that was served, in seconds, and the policy that served it."""
    served = [(float(row["e2e_s.max"]), str(row["policy"])) for row in rows if row.get("e2e_s.max") is not None]
    return max(served, default=(0.0, ""))


def _columns(main: Column, entries: Sequence[Entry]) -> tuple[Column, ...]:
    """Columns that any row fills, without the main one; "unfinished" only where something is."""

    def shown(column: Column) -> bool:
        values = [entry.metrics.get(column.key, math.nan) for entry in entries]
        used = any(math.isfinite(value) for value in values)
        return used and (column.key != "requests.unfinished" or any(value > 0 for value in values))

    return tuple(column for column in COLUMNS if column.key != main.key and shown(column))


def _notes(scores: Scores, entries: Sequence[Entry], slowest: tuple[float, str], failure_s: float) -> Iterator[str]:
    windows = len(scores.windows)
    if windows < MIN_WINDOWS:
        count = "One window" if windows == 1 else f"{windows} windows"
        yield (
            f"{count}: fewer than {MIN_WINDOWS} give no intervals, so no difference is shown to be real and all "
            "with a figure share the first place."
        )
    failed = {entry.policy: failures(entry) for entry in entries}
    if any(failed.values()):
        charge = f", {failure_s:g} s" if math.isfinite(failure_s) else ""
        yield f"Each failed request is charged failure_s{charge}."
        fewest = min(failed, key=lambda name: failed[name])
        dropping = [e.policy for e in entries if e.place == 1 and failed[e.policy] > failed[fewest]]
        for name in dropping:
            yield (
                f"{name} is in place 1 and fails {failed[name]:.1f} requests per window; {fewest} fails the fewest, "
                f"{failed[fewest]:.1f}."
            )
    if slowest[0] > failure_s:
        yield (
            f"{slowest[1]} served a request in {slowest[0]:.0f} s, longer than failure_s={failure_s:g}: failing it "
            "would have cost less, so read its place with care."
        )
    missing = [entry.policy for entry in entries if not math.isfinite(entry.main.estimate)]
    if missing:
        yield f"No figure in at least one window, so placed last: {', '.join(missing)}."
    yield from oracle_note([entry.policy for entry in entries if entry.kind == "oracle"])


def oracle_note(oracles: Sequence[str]) -> Iterator[str]:
    """Say why oracles have no place.

    Parameters
    ----------
    oracles : sequence of str
        Their names; nothing is said of none.
    """
    if oracles:
        yield f"Below the places: {', '.join(oracles)}, which reads what no router can know and is still no bound."


def failures(entry: Entry) -> float:
    """Return how many requests failed per window, 0 where rows do not count them.

    Parameters
    ----------
    entry : Entry
        Rejected and unfinished ones count.
    """
    return entry.metrics.get("requests.rejected", 0.0) + entry.metrics.get("requests.unfinished", 0.0)


def number(value: float) -> str:
    """Format to three significant digits, without an exponent between 0.001 and a million; a dash where not finite.

    Parameters
    ----------
    value : float
        In the unit that is shown.
    """
    if value == 0.0 or not math.isfinite(value):
        return "0" if value == 0.0 else "–"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")  # 9.999 is 10.0: count the digits after rounding
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded if abs(rounded) < 1000 else value:,.{digits}f}"


def show_interval(column: Column, interval: Interval) -> str:
    """Format as ``1.23 [1.20, 1.26]``, or the estimate alone where there are no bounds.

    Parameters
    ----------
    column : Column
        Gives the scale from the metric's unit to the shown one.
    interval : Interval
        In the metric's own unit.
    """
    if math.isnan(interval.low):
        return column.show(interval.estimate)
    return f"{column.show(interval.estimate)} [{column.show(interval.low)}, {column.show(interval.high)}]"


def show_change(change: Interval | None) -> str:
    """Format as ``-4.1 %`` with its interval, rounded to a tenth of a percent; a dash where there is none.

    Parameters
    ----------
    change : Interval or None
        A share: -0.041 is 4.1 percent lower.
    """
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
        "per_window": {str(window): value for window, value in entry.per_window.items()},
        "slo_attainment_curve": list(entry.attainment),
        "metrics": metrics,
    }


def write_json(path: Path, table: LeaderboardTable, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write everything the page shows, and the rows that it was computed from, as strict JSON.

    Parameters
    ----------
    path : Path
    table : LeaderboardTable
    rows : sequence of mappings
        What `build_table` ranked.
    about : mapping
        More top-level keys: ``config`` and ``versions``.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    content = {
        "rank_by": table.main.key,
        "lower_is_better": table.lower_is_better,
        "reference": table.reference,
        "windows": table.windows,
        "slo_scales": list(SLO_SCALES),
        "scenarios": table.scenarios,
        "scenario": table.scenario,
        "notes": table.notes,
        "entries": [{"policy": entry.policy, **_record(entry, timed=True)} for entry in table.entries],
        **about,
        "rows": [dict(row) for row in rows],
    }
    write_text(path, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, table: LeaderboardTable) -> None:
    """Write one line per policy; an empty cell is a figure that does not exist.

    Parameters
    ----------
    path : Path
    table : LeaderboardTable

    Raises
    ------
    UserError
        The file cannot be written.
    """
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
    """Print the leaderboard; wide columns are dropped from the right on a narrow terminal.

    Parameters
    ----------
    table : LeaderboardTable
    console : Console
        Its width, in characters, decides how many columns fit.
    """
    title = (
        f"{table.scenario.get('name', 'Leaderboard')}: {table.scenario.get('windows', f'{len(table.windows)} windows')}"
    )
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("#", justify="right")
    grid.add_column("policy", no_wrap=True)
    grid.add_column("kind")
    grid.add_column(f"{table.main.header} [95 %]", justify="right", no_wrap=True)
    grid.add_column("vs best", justify="right")
    columns = table.columns[: max(0, (console.width - 78) // 10)]
    rejected = next(column for column in COLUMNS if column.key == "requests.rejected")
    if rejected not in columns and any(entry.metrics.get(rejected.key) for entry in table.entries):
        columns = (rejected, *columns)  # whatever the width
    for column in columns:
        grid.add_column(column.header, justify="right")
    for entry in table.entries:
        change = "–" if entry.change is None else show_change(entry.change._replace(low=math.nan))
        change = "ref." if entry.policy == table.reference else change
        cells = [column.show(entry.metrics.get(column.key)) for column in columns]
        grid.add_row(
            show_place(entry.place),
            entry.policy,
            entry.kind,
            show_interval(table.main, entry.main),
            change,
            *cells,
            style=KIND_STYLES.get(entry.kind),
        )
    console.print(grid)
    if length := table.scenario.get("each window"):
        console.print(f"Each window: {length}. Place: 1 + policies shown to be better.", markup=False, highlight=False)
    print_notes(table.notes, console)


def show_place(place: int | None) -> str:
    """Return a place, or a dash for what does not compete.

    Parameters
    ----------
    place : int or None
    """
    return "–" if place is None else str(place)


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print what a reader of a table has to know.

    Parameters
    ----------
    notes : sequence of str
    console : Console
    """
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def print_summary(summary: Mapping[str, Any], console: Console, title: str = "") -> None:
    """Print the metrics of one run: latencies as a table, everything else as a list.

    Parameters
    ----------
    summary : mapping
        As `fleetgym.envs.cluster.metrics.summarize` gives it.
    console : Console
    title : str
        Above the table; empty for none.
    """
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

"""The boards of a suite's scenarios summed up: ratios to the yardstick; on a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fleetgym.envs.atomic import write_text
from fleetgym.envs.relative import ratio
from fleetgym.experiments.comparison.intervals import MIN_WINDOWS, Interval, geometric_mean_ratio, place_all
from fleetgym.experiments.harness.run_folder import jsonable
from fleetgym.experiments.report.tables import (
    KIND_STYLES,
    Column,
    Entry,
    LeaderboardTable,
    Strip,
    failures,
    number,
    oracle_note,
    print_notes,
    show_interval,
    show_place,
)

Figures = Mapping[str, Sequence[NDArray[np.float64]]]  # of each policy, in each scenario: its windows


@dataclass(frozen=True)
class SuiteEntry:
    """One policy of the summary.

    Attributes
    ----------
    policy, kind : str
    place : int or None
        1 + the number of policies that are shown to be better over the suite; None for an oracle.
    main : Interval
        Geometric mean over scenarios of the ratio to the yardstick; below 1 is better.
    ratios : dict of str to float
        The ratio in each scenario.
    places : dict of str to (int or None)
        The place on each scenario's own board.
    failed : dict of str to float
        Failed requests per window in each scenario.
    """

    policy: str
    kind: str
    place: int | None
    main: Interval
    ratios: dict[str, float]
    places: dict[str, int | None]
    failed: dict[str, float]

    @property
    def strip(self) -> Strip:
        """Its line in a picture."""
        return Strip(self.policy, self.kind, self.place, self.main, self.ratios)


@dataclass(frozen=True)
class SuiteTable:
    """Entries in order of place, and the boards that they sum up.

    Attributes
    ----------
    name : str
        Of the suite.
    yardstick : str
        The policy whose figures all others are divided by.
    entries : tuple of SuiteEntry
        By place; oracles last.
    boards : mapping of str to LeaderboardTable
        By scenario.
    notes : tuple of str
        What a reader of the places has to know.
    """

    name: str
    yardstick: str
    entries: tuple[SuiteEntry, ...]
    boards: Mapping[str, LeaderboardTable]
    notes: tuple[str, ...]

    @property
    def main(self) -> Column:
        """How the figure that ranks is shown."""
        return Column(
            "geometric_mean", f"Ratio to {self.yardstick}", help="geometric mean over scenarios; below 1 is better"
        )

    def simulated(self) -> dict[str, Any]:
        """Return what the summary says, for ``metrics.json``; all of it is equal from run to run."""
        return {
            "suite": self.name,
            "yardstick": self.yardstick,
            "scenarios": {
                name: {"rank_by": board.main.key, "windows": list(board.windows)} for name, board in self.boards.items()
            },
            "notes": list(self.notes),
            "policies": {entry.policy: _record(entry) for entry in self.entries},
        }


def build_suite(name: str, boards: Mapping[str, LeaderboardTable], yardstick: str) -> SuiteTable:
    """Sum up the boards of a suite.

    Parameters
    ----------
    name : str
        Of the suite.
    boards : mapping of str to LeaderboardTable
        By scenario, of the same policies.
    yardstick : str
        The policy whose figures all others are divided by.

    Returns
    -------
    SuiteTable
    """
    kinds = {entry.policy: entry.kind for entry in next(iter(boards.values())).entries}
    by_policy = {policy: {scenario: _entry(board, policy) for scenario, board in boards.items()} for policy in kinds}
    windows = [board.windows for board in boards.values()]
    figures = {
        policy: [np.array([*entry.per_window.values()], np.float64) for entry in entries.values()]
        for policy, entries in by_policy.items()
    }
    ranked = [policy for policy, kind in kinds.items() if kind != "oracle"]
    lower = [board.lower_is_better for board in boards.values()]

    def compared(policy: str, other: str) -> Interval:
        return geometric_mean_ratio(*_over(figures, policy, other, lower), windows)

    main = {policy: compared(policy, yardstick) for policy in kinds}
    complete = [math.isfinite(main[policy].estimate) for policy in ranked]
    found = place_all(complete, lambda i, j: compared(ranked[i], ranked[j]).high < 1.0)
    place = dict(zip(ranked, found, strict=True))
    entries = [
        SuiteEntry(
            policy=policy,
            kind=kind,
            place=place.get(policy),
            main=main[policy],
            ratios={
                scenario: ratio(
                    by_policy[policy][scenario].main.estimate,
                    by_policy[yardstick][scenario].main.estimate,
                    board.main.key,
                )
                for scenario, board in boards.items()
            },
            places={scenario: entry.place for scenario, entry in by_policy[policy].items()},
            failed={scenario: failures(entry) for scenario, entry in by_policy[policy].items()},
        )
        for policy, kind in kinds.items()
    ]
    entries.sort(key=lambda e: (e.place or math.inf, not math.isfinite(e.main.estimate), e.main.estimate, e.policy))
    return SuiteTable(name, yardstick, tuple(entries), dict(boards), tuple(_notes(entries, boards, yardstick)))


def _entry(board: LeaderboardTable, policy: str) -> Entry:
    return next(entry for entry in board.entries if entry.policy == policy)


def _over(
    figures: Figures, policy: str, other: str, lower: Sequence[bool]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the figures of two policies in each scenario, first those whose mean is divided by the other's."""
    pairs = zip(figures[policy], figures[other], lower, strict=True)
    above, below = zip(*((a, b) if is_lower else (b, a) for a, b, is_lower in pairs), strict=True)
    return list(above), list(below)


def _notes(entries: Sequence[SuiteEntry], boards: Mapping[str, LeaderboardTable], yardstick: str) -> Iterator[str]:
    if few := [name for name, board in boards.items() if len(board.windows) < MIN_WINDOWS]:
        yield (
            f"Fewer than {MIN_WINDOWS} windows in {', '.join(few)}: no intervals, so no difference over the suite is "
            "shown to be real and all with a figure share the first place."
        )
    for name, board in boards.items():
        without = [e.policy for e in entries if not 0.0 < e.ratios[name] < math.inf]
        if yardstick in without:
            yield f"{name}: {yardstick} has no {board.main.key}, so there is no ratio to it and no figure of the suite."
        elif without:
            yield f"{name}: no {board.main.key} of {', '.join(without)}, placed last over the suite."
        failing = [f"{e.policy} {number(e.failed[name])}" for e in entries if e.failed[name] > 0]
        if failing:
            yield f"{name}: failed requests per window, each charged failure_s: {', '.join(failing)}."
    yield from oracle_note([entry.policy for entry in entries if entry.kind == "oracle"])


def _record(entry: SuiteEntry) -> dict[str, Any]:
    return {
        "place": entry.place,
        "kind": entry.kind,
        "geometric_mean": entry.main._asdict(),
        "ratios": entry.ratios,
        "places": entry.places,
        "failed_requests_per_window": entry.failed,
    }


def write_suite_json(path: Path, table: SuiteTable, about: Mapping[str, Any]) -> None:
    """Write everything that the page shows; the rows behind it are in each scenario's own ``leaderboard.json``.

    Parameters
    ----------
    path : Path
    table : SuiteTable
    about : mapping
        More top-level keys: ``config`` and ``versions``.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    simulated = table.simulated()
    policies = simulated.pop("policies")
    content = {**simulated, "entries": [{"policy": name, **record} for name, record in policies.items()], **about}
    write_text(path, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def write_suite_csv(path: Path, table: SuiteTable) -> None:
    """Write one line per policy; an empty cell is a figure that does not exist.

    Parameters
    ----------
    path : Path
    table : SuiteTable

    Raises
    ------
    UserError
        The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    each = [f"{scenario}.{column}" for scenario in table.boards for column in ("ratio", "place", "failed_requests")]
    writer.writerow(["place", "policy", "kind", "geometric_mean", "low", "high", *each])
    for entry in table.entries:
        cells: list[Any] = [entry.place, entry.policy, entry.kind, *entry.main]
        for scenario in table.boards:
            cells += [entry.ratios[scenario], entry.places[scenario], entry.failed[scenario]]
        writer.writerow(["" if cell is None or _unknown(cell) else cell for cell in cells])
    write_text(path, text.getvalue())


def _unknown(cell: Any) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)


def print_suite(table: SuiteTable, console: Console) -> None:
    """Print the summary: the ratio over the suite, and in each scenario the ratio and the place.

    Parameters
    ----------
    table : SuiteTable
    console : Console
        Its width, in characters, decides how many scenarios fit.
    """
    count = len(table.boards)
    title = f"{table.name}: {count} scenario{'s' if count > 1 else ''}, {table.main.title}, below 1 is better"
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("#", justify="right")
    grid.add_column("policy", no_wrap=True)
    grid.add_column("kind")
    grid.add_column("geometric mean [95 %]", justify="right", no_wrap=True)
    shown = list(table.boards)[: max(0, (console.width - 70) // 15)]
    for scenario in shown:
        grid.add_column(f"{scenario} (#)", justify="right")
    for entry in table.entries:
        cells = [f"{table.main.show(entry.ratios[name])} ({show_place(entry.places[name])})" for name in shown]
        grid.add_row(
            show_place(entry.place),
            entry.policy,
            entry.kind,
            show_interval(table.main, entry.main),
            *cells,
            style=KIND_STYLES.get(entry.kind),
        )
    console.print(grid)
    if left := list(table.boards)[len(shown) :]:
        console.print(f"On the page: {', '.join(left)}.", markup=False, highlight=False)
    print_notes(table.notes, console)

"""From table rows to a terminal table, CSV, JSON, a picture and one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleetgym.experiments.harness.run_folder import versions as installed_versions
from fleetgym.experiments.report.leaderboard_page import write_page
from fleetgym.experiments.report.plots import attainment_plot, leaderboard_plot
from fleetgym.experiments.report.tables import LeaderboardTable, Row, build_table, write_csv, write_json


def write_leaderboard(
    folder: Path,
    rows: Sequence[Row],
    *,
    scenario: Mapping[str, Any],
    rank_by: str = "e2e_charged_s.mean",
    reference_kind: str = "heuristic",
    failure_s: float = math.inf,
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
) -> LeaderboardTable:
    """Rank the policies and write ``leaderboard.{csv,json,png,html}`` and ``slo_attainment.png``, each whole or absent.

    Parameters
    ----------
    folder : Path
        Made if absent; earlier files of these names are replaced.
    rows : sequence of mappings
        One per policy and window (and ``scenario``, if there are several): ``policy``, ``kind`` ("heuristic",
        "learned", "bundle" or "oracle"), ``window``, the dotted columns of
        `fleetgym.envs.cluster.metrics.flatten`, and perhaps ``slo_attainment_curve`` and ``decision_us``.
    scenario : mapping
        What was measured: ``name``, ``description`` and whatever facts the page should list.
    rank_by : str
        Column that the places are decided by, failure-aware (`fleetgym.envs.cluster.metrics.RANKING`).
    reference_kind : str
        The best policy of this kind is the one that all are compared with.
    failure_s : float
        What a failed request is charged, in seconds; a note tells if a served one took longer.
    config : mapping, optional
        The resolved config, shown on the page.
    versions : mapping, optional
        By default those that are installed.

    Returns
    -------
    LeaderboardTable
        What was written.

    Raises
    ------
    UserError
        No rows, an unknown metric or kind, or a folder that cannot be written.
    """
    table = build_table(rows, scenario=scenario, rank_by=rank_by, reference_kind=reference_kind, failure_s=failure_s)
    about = {"versions": versions or installed_versions(), "config": config or {}}
    folder = Path(folder)
    write_csv(folder / "leaderboard.csv", table)
    write_json(folder / "leaderboard.json", table, rows, about)
    leaderboard_plot(folder / "leaderboard.png", table)
    if any(entry.attainment for entry in table.entries):
        attainment_plot(folder / "slo_attainment.png", table)
    write_page(folder / "leaderboard.html", table, about)
    return table

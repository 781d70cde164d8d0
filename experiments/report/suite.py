"""From the boards of a suite's scenarios to CSV, JSON, a picture and one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetgym.experiments.harness.run_folder import versions as installed_versions
from fleetgym.experiments.report.plots import suite_plot
from fleetgym.experiments.report.suite_page import write_suite_page
from fleetgym.experiments.report.suite_table import SuiteTable, build_suite, write_suite_csv, write_suite_json
from fleetgym.experiments.report.tables import LeaderboardTable


def write_suite(
    folder: Path,
    name: str,
    boards: Mapping[str, LeaderboardTable],
    yardstick: str,
    *,
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
) -> SuiteTable:
    """Rank policies over a suite and write ``suite.{csv,json,png,html}``, each whole or not at all.

    Parameters
    ----------
    folder : Path
        In which each scenario has a folder of its name with its own board.
    name : str
        Of the suite.
    boards : mapping of str to LeaderboardTable
        By scenario, of the same policies.
    yardstick : str
        The policy whose figures all others are divided by.
    config : mapping, optional
        The resolved config, shown on the page.
    versions : mapping, optional
        By default those that are installed.

    Returns
    -------
    SuiteTable
        What was written.

    Raises
    ------
    UserError
        A file cannot be written.
    """
    table = build_suite(name, boards, yardstick)
    about = {"versions": versions or installed_versions(), "config": config or {}}
    write_suite_csv(folder / "suite.csv", table)
    write_suite_json(folder / "suite.json", table, about)
    suite_plot(folder / "suite.png", table.name, table.main, [entry.strip for entry in table.entries])
    write_suite_page(folder / "suite.html", table, about)
    return table

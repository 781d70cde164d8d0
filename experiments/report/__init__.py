"""Reports: tables, pictures and the leaderboard's pages."""

from fleetgym.experiments.report.leaderboard import write_leaderboard
from fleetgym.experiments.report.suite import write_suite
from fleetgym.experiments.report.suite_table import SuiteTable, print_suite
from fleetgym.experiments.report.tables import LeaderboardTable, print_summary, print_table

__all__ = [
    "LeaderboardTable",
    "SuiteTable",
    "print_suite",
    "print_summary",
    "print_table",
    "write_leaderboard",
    "write_suite",
]

"""Reports: tables, pictures and the leaderboard's page."""

from fleetgym.experiments.report.leaderboard import write_leaderboard
from fleetgym.experiments.report.tables import LeaderboardTable, print_summary, print_table

__all__ = ["LeaderboardTable", "print_summary", "print_table", "write_leaderboard"]

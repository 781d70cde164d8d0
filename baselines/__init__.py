"""Heuristic routing policies, named after their source."""

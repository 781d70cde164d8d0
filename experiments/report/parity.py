"""What the verification of a bundle prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_parity(report: Mapping[str, Any]) -> None:
    """Print how far both evaluations of a bundle are from its recorded decisions.

    Parameters
    ----------
    report : mapping
        As `fleetgym.agents.bundle_verify.verify` returns it.
    """
    print(f"{report['policy_id']}: {report['vectors']} vectors, {report['num_choices']} choices")
    for name in ("onnxruntime", "numpy"):
        part = report[name]
        print(
            f"  {name:<12} actions that differ: {part['actions_differ']}, largest score difference: "
            f"{part['max_score_difference']:.2e}"
        )

"""Hold a bundle's ONNX file and its weights against the decisions recorded at export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.agents.bundle import load
from fleetgym.agents.bundle_format import Array

TOLERANCE = 1e-5


def verify(path: str | Path) -> dict[str, Any]:
    """Recompute all parity vectors with onnxruntime and with plain numpy.

    Parameters
    ----------
    path : path
        The bundle's folder.

    Returns
    -------
    dict
        ``vectors``, ``passed``, and for ``onnxruntime`` and ``numpy``: ``actions_differ`` (count),
        ``max_score_difference``. It passes if no action differs and no score by more than 1e-5.

    Raises
    ------
    BundleError
        The bundle is refused.
    """
    bundle = load(path)
    groups = bundle.parity_vectors()
    report: dict[str, Any] = {"policy_id": bundle.name, "vectors": sum(len(g["action"]) for g in groups)}
    report["num_choices"] = [g["mask"].shape[1] for g in groups]
    for name in ("onnxruntime", "numpy"):
        differ, worst = 0, 0.0
        for g in groups:
            if name == "numpy":
                scores, action = bundle.evaluate_numpy(g["obs"], g["mask"])
            else:
                scores, action = bundle.scores(g["obs"], g["mask"]), bundle.greedy(g["obs"], g["mask"])
            differ += int((action != g["action"]).sum())
            worst = max(worst, float(_difference(scores, g["scores"], g["mask"]).max()))
        report[name] = {"actions_differ": differ, "max_score_difference": worst}
    report["passed"] = all(
        report[n]["actions_differ"] == 0 and report[n]["max_score_difference"] <= TOLERANCE
        for n in ("onnxruntime", "numpy")
    )
    return report


def _difference(scores: Array, recorded: Array, mask: Array) -> NDArray[np.float64]:
    """Absolute differences; infinite if a masked choice has any other score than the recorded one."""
    difference = np.abs(scores.astype(np.float64) - recorded.astype(np.float64))
    return np.where(mask | (difference == 0), difference, np.inf)

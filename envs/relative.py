"""How good a figure is beside a yardstick's, in one scenario and over several whose figures have no common scale."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fleetgym.envs.cluster.metrics import find_ranking


def ratio(figure: float | None, yardstick: float | None, rank_by: str) -> float:
    """Return how ``figure`` compares with that of a yardstick: below 1 is better, whichever way it goes.

    Parameters
    ----------
    figure, yardstick : float or None
        Of the same episodes, at least 0; None or NaN where there is none.
    rank_by : str
        What they are (`fleetgym.envs.cluster.metrics.RANKING`): latencies are divided by the yardstick's, shares and
        rates divide it.

    Returns
    -------
    float
        inf where nothing is attained that the yardstick attains some of; NaN without a figure, or for 0 and 0.
    """
    above, below = (figure, yardstick) if find_ranking(rank_by).better == "lower" else (yardstick, figure)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(*np.array([above, below], np.float64)))


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean of ratios; NaN unless each is positive and finite, as a figure of 0 has no ratio.

    Parameters
    ----------
    ratios : iterable of float
        At least one.
    """
    values = np.array(list(ratios), np.float64)
    if not (np.isfinite(values) & (values > 0.0)).all():
        return math.nan
    return float(np.exp(np.log(values).mean()))

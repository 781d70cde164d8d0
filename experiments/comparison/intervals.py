"""Intervals and places for a comparison of policies over independent windows of traffic.

The unit of replication is the *window*: an episode that shares no request with any other. Whatever was measured
several times in one window is averaged first. Every policy meets the same arrivals in the same window, so all
comparisons are paired. Windows are few (a recorded hour holds seven), and resampling so few is known to give intervals
that are too narrow; these are Student's, which are exact for normal window means at any number of windows, and
Fieller's for a ratio. Scenarios are strata with windows of their own (Satterthwaite's degrees of freedom). Figures of
scenarios of a suite have no common scale; their geometric mean has, and its interval is Student's of its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.relative import geometric_mean

Array = NDArray[np.float64]

CONFIDENCE = 0.95
MIN_WINDOWS = 6  # with five pairs even an exact sign-flip test cannot reach 95 %: 2 / 2**5 > 0.05


class Interval(NamedTuple):
    """An estimate and its 95 % interval.

    Attributes
    ----------
    estimate : float
        NaN where a figure is missing.
    low, high : float
        NaN where there are fewer than `MIN_WINDOWS` windows.
    """

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside (never for NaN bounds)."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Scores:
    """One metric of P policies over W windows and C scenarios.

    Attributes
    ----------
    policies, windows, scenarios : tuple
        Names along the axes.
    values : ndarray of float64, shape (P, W, C)
        NaN where a policy has no figure.
    """

    policies: tuple[str, ...]
    windows: tuple[int, ...]
    scenarios: tuple[str, ...]
    values: Array

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Policies with a figure in every cell, shape (P,)."""
        return np.array([bool(np.isfinite(values).all()) for values in self.values])


def collect(rows: Sequence[Mapping[str, Any]], metric: str) -> Scores:
    """Arrange table rows, averaging rows of the same policy, window and scenario.

    Parameters
    ----------
    rows : sequence of mappings
        Each has ``policy``, ``window``, ``metric`` and perhaps ``scenario``; None and NaN count as missing.
    metric : str

    Raises
    ------
    UserError
        No rows, or no row knows the metric.
    """
    if not rows:
        raise UserError("rows=[]: nothing to compare")
    known = {key for row in rows for key in row}
    if metric not in known:
        raise UserError(f"metric={metric!r}: unknown{did_you_mean(metric, known)}")
    policies = tuple(dict.fromkeys(str(row["policy"]) for row in rows))
    windows = tuple(sorted({int(row["window"]) for row in rows}))
    scenarios = tuple(dict.fromkeys(str(row.get("scenario", "default")) for row in rows))
    total = np.zeros((len(policies), len(windows), len(scenarios)))
    count = np.zeros_like(total)
    for row in rows:
        scenario = scenarios.index(str(row.get("scenario", "default")))
        cell = policies.index(str(row["policy"])), windows.index(int(row["window"])), scenario
        value = row.get(metric)
        total[cell] += np.nan if value is None else float(value)
        count[cell] += 1.0
    with np.errstate(invalid="ignore"):
        return Scores(policies, windows, scenarios, total / count)


def mean_interval(values: Array) -> Interval:
    """Return Student's interval of the mean over windows and scenarios.

    Parameters
    ----------
    values : ndarray of float64, shape (W, C)
        One figure for each window and scenario, NaN where it is missing.

    Returns
    -------
    Interval
        In the unit of ``values``.
    """
    estimate = float(values.mean())
    half = _quantile(values) * float(np.sqrt(_variance(values, values)))
    return Interval(estimate, estimate - half, estimate + half)


def relative_change(values: Array, reference: Array) -> Interval:
    """Return Fieller's interval of ``mean(values) / mean(reference) - 1``.

    Over one scenario it excludes zero exactly where `mean_interval` of the difference does.

    Parameters
    ----------
    values, reference : ndarray of float64, shape (W, C)
        Both in the same windows.

    Returns
    -------
    Interval
        A share: -0.1 is ten percent less. Without bounds (NaN) where the reference's own mean cannot be told from zero.
    """
    a, b = float(values.mean()), float(reference.mean())
    if not np.isfinite([a, b]).all() or b == 0.0:
        return Interval(np.nan, np.nan, np.nan)
    ratio = a / b
    t = _quantile(values - ratio * reference)
    square = b * b - t * t * _variance(reference, reference)
    middle = a * b - t * t * _variance(values, reference)
    root = middle * middle - square * (a * a - t * t * _variance(values, values))
    if not square > 0.0 or not np.isfinite(root):
        return Interval(ratio - 1.0, np.nan, np.nan)
    half = float(np.sqrt(max(0.0, root)))
    return Interval(ratio - 1.0, (middle - half) / square - 1.0, (middle + half) / square - 1.0)


def geometric_mean_ratio(
    values: Sequence[Array], reference: Sequence[Array], windows: Sequence[tuple[int, ...]]
) -> Interval:
    """Interval of the geometric mean over scenarios of ``mean(values) / mean(reference)``.

    To first order, a window adds to a ratio's logarithm what it deviates by from the means, each relative to its mean.
    Scenarios whose windows have the same numbers may share traffic (the same draws, the same part of a recording), so
    what they add is summed window by window first: together they are one stratum. Strata are taken to be independent.

    Parameters
    ----------
    values, reference : sequence of ndarray of float64
        For each scenario c the figures of its windows, shape (W_c,), both in the same windows.
    windows : sequence of tuple of int
        The numbers of each scenario's windows, length W_c.

    Returns
    -------
    Interval
        NaN without a figure in every window, or with a mean of 0; without bounds where a scenario has fewer than
        `MIN_WINDOWS` windows.
    """
    means = [(float(a.mean()), float(b.mean())) for a, b in zip(values, reference, strict=True)]
    estimate = geometric_mean(a / b if b > 0.0 else math.nan for a, b in means)
    if math.isnan(estimate):
        return Interval(np.nan, np.nan, np.nan)
    strata: dict[tuple[int, ...], Array] = {}
    for numbers, x, y, (a, b) in zip(windows, values, reference, means, strict=True):
        strata[numbers] = strata.get(numbers, 0.0) + x / a - y / b
    if min(map(len, strata)) < MIN_WINDOWS:
        return Interval(estimate, np.nan, np.nan)
    spread = np.array([added.var(ddof=1) / len(added) for added in strata.values()])
    freedom = np.array([len(added) - 1 for added in strata.values()])
    half = _student(spread, freedom) * float(np.sqrt(spread.sum())) / len(means)
    return Interval(estimate, estimate * math.exp(-half), estimate * math.exp(half))


def _variance(x: Array, y: Array) -> float:
    """Covariance of the means of ``x`` and ``y``, shape (W, C), from their windows."""
    windows, scenarios = x.shape
    if windows < 2:
        return np.nan
    products = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).sum(axis=0) / (windows - 1)
    return float(products.sum()) / (windows * scenarios**2)


def _quantile(values: Array) -> float:
    """Student's two-sided 95 % quantile for a mean over windows (W) and scenarios (C); NaN for too few windows."""
    windows, _ = values.shape
    if windows < MIN_WINDOWS:
        return np.nan
    spread = values.var(axis=0, ddof=1)
    if not np.isfinite(spread).all():
        return np.nan
    return _student(spread, np.full(len(spread), windows - 1))


def _student(spread: Array, freedom: NDArray[np.int64]) -> float:
    """Student's quantile for a sum of estimates with variances ``spread``, shape (C,), by Satterthwaite's freedom."""
    worth = float((spread**2 / freedom).sum())
    pooled = float(spread.sum()) ** 2 / worth if worth > 0.0 else float(freedom.min())
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, pooled))


def places(scores: Scores, *, lower_is_better: bool) -> list[int]:
    """Place of each policy: 1 + the number of policies that are significantly better.

    A policy is significantly better than another when the paired interval of their difference excludes 0. So a place
    is lost only to a shown difference; two policies with different places need not differ from each other. A policy
    with a missing figure comes after all complete ones.

    Parameters
    ----------
    scores : Scores
        Of P policies.
    lower_is_better : bool
        Of the metric.

    Returns
    -------
    list of int, length P
    """
    sign = 1.0 if lower_is_better else -1.0

    def beats(i: int, j: int) -> bool:
        return mean_interval(sign * (scores.values[i] - scores.values[j])).high < 0.0

    return place_all(scores.complete.tolist(), beats)


def place_all(complete: Sequence[bool], beats: Callable[[int, int], bool]) -> list[int]:
    """Return 1 + the number of policies that beat each; one without a figure comes after all that have theirs.

    Parameters
    ----------
    complete : sequence of bool, length P
        Which have a figure.
    beats : callable
        Whether the policy of the first index is shown to be better than that of the second, both complete.
    """
    with_figure = [i for i, has in enumerate(complete) if has]
    return [
        1 + sum(beats(j, i) for j in with_figure if j != i) if has else 1 + len(with_figure)
        for i, has in enumerate(complete)
    ]

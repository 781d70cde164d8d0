"""Intervals and places for a comparison of policies over seeds.

The unit of replication is the seed: whatever was measured several times under one seed is averaged first, and only
seeds are resampled. Every policy meets the same arrivals under the same seed, so all comparisons are paired: one
resample draws the same seeds for every policy. Scenarios are strata, resampled each on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError, did_you_mean

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

CONFIDENCE = 0.95
REPLICATES = 10_000
FEW_SEEDS = 5


class Interval(NamedTuple):
    """An estimate and its bootstrap interval; NaN bounds where there are not two seeds."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside (never for NaN bounds)."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Scores:
    """One metric of P policies over S seeds and C scenarios.

    Attributes
    ----------
    policies, seeds, scenarios : tuple
        Names along the axes.
    values : ndarray of float64, shape (P, S, C)
        NaN where a policy has no figure.
    """

    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    scenarios: tuple[str, ...]
    values: Array

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Policies with a figure in every cell, shape (P,)."""
        return np.array([bool(np.isfinite(values).all()) for values in self.values])


def collect(rows: Sequence[Mapping[str, Any]], metric: str) -> Scores:
    """Arrange table rows, averaging rows of the same policy, seed and scenario.

    Parameters
    ----------
    rows : sequence of mappings
        Each has ``policy``, ``seed``, ``metric`` and perhaps ``scenario``; None and NaN count as missing.
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
    seeds = tuple(sorted({int(row["seed"]) for row in rows}))
    scenarios = tuple(dict.fromkeys(str(row.get("scenario", "default")) for row in rows))
    total = np.zeros((len(policies), len(seeds), len(scenarios)))
    count = np.zeros_like(total)
    for row in rows:
        scenario = scenarios.index(str(row.get("scenario", "default")))
        cell = policies.index(str(row["policy"])), seeds.index(int(row["seed"])), scenario
        value = row.get(metric)
        total[cell] += np.nan if value is None else float(value)
        count[cell] += 1.0
    with np.errstate(invalid="ignore"):
        return Scores(policies, seeds, scenarios, total / count)


def mean(values: Array) -> Array:
    """Mean over the last two axes (seeds, scenarios)."""
    average: Array = values.mean(axis=(-2, -1))
    return average


def iqm(values: Array) -> Array:
    """Interquartile mean over the last two axes: the lowest and the highest quarter of the figures are dropped."""
    flat = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    kept: Array = flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)
    return kept


class PairedBootstrap:
    """Resamples of seeds, drawn once and used for every policy and every metric.

    Parameters
    ----------
    num_seeds, num_scenarios : int
        S and C.
    seed : int
        Of the generator: the same seed gives the same intervals.
    replicates : int
    """

    def __init__(self, num_seeds: int, num_scenarios: int, seed: int = 0, replicates: int = REPLICATES) -> None:
        rng = np.random.default_rng(seed)
        self.num_seeds = num_seeds
        self.draws = rng.integers(num_seeds, size=(replicates, num_seeds, num_scenarios))

    def resample(self, values: Array) -> Array:
        """Resample ``values``, shape (S, C), into shape (replicates, S, C)."""
        drawn: Array = values[self.draws, np.arange(values.shape[1])]
        return drawn

    def interval(self, values: Array, statistic: Statistic = mean) -> Interval:
        """Percentile interval of ``statistic`` of ``values``, shape (S, C)."""
        return self.bounds(float(statistic(values)), statistic(self.resample(values)))

    def difference(self, a: Array, b: Array, statistic: Statistic = mean) -> Interval:
        """Interval of ``statistic(a) - statistic(b)``, both of shape (S, C) under the same arrivals."""
        replicates = statistic(self.resample(a)) - statistic(self.resample(b))
        return self.bounds(float(statistic(a) - statistic(b)), replicates)

    def relative_change(self, a: Array, b: Array, statistic: Statistic = mean) -> Interval:
        """Interval of ``statistic(a) / statistic(b) - 1``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = statistic(self.resample(a)) / statistic(self.resample(b)) - 1.0
            return self.bounds(float(statistic(a) / statistic(b) - 1.0), replicates)

    def bounds(self, estimate: float, replicates: Array) -> Interval:
        """Return ``estimate`` with the percentile interval of its ``replicates``, shape (replicates,)."""
        if self.num_seeds < 2 or not np.isfinite(replicates).all():
            return Interval(estimate, np.nan, np.nan)
        tail = 50.0 * (1.0 - CONFIDENCE)
        low, high = np.percentile(replicates, (tail, 100.0 - tail))
        return Interval(estimate, float(low), float(high))


def bootstrap_for(scores: Scores, seed: int = 0, replicates: int = REPLICATES) -> PairedBootstrap:
    """Return the resamples that fit ``scores``."""
    return PairedBootstrap(len(scores.seeds), len(scores.scenarios), seed, replicates)


def places(
    scores: Scores, bootstrap: PairedBootstrap, *, lower_is_better: bool, statistic: Statistic = mean
) -> list[int]:
    """Place of each policy: 1 + the number of policies that are significantly better.

    A policy is significantly better than another when the paired interval of their difference excludes 0. So
    policies that nothing tells apart share a place, and a place is lost only to a proven difference. A policy with
    a missing figure comes after all complete ones.

    Returns
    -------
    list of int, length P
    """
    complete = scores.complete
    sign = 1.0 if lower_is_better else -1.0
    replicates = [sign * statistic(bootstrap.resample(values)) for values in scores.values]

    def beats(i: int, j: int) -> bool:
        return bool(complete[i]) and bootstrap.bounds(0.0, replicates[i] - replicates[j]).high < 0.0

    everyone = range(len(scores.policies))
    last = 1 + int(complete.sum())
    return [1 + sum(beats(j, i) for j in everyone) if complete[i] else last for i in everyone]

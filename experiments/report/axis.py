"""Where figures stand along an axis: the same choices for the picture and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_RATIO = 2.0
_LOG_STEPS = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``start`` to ``end`` in drawing units.

    Attributes
    ----------
    low, high : float
        Values at the two ends, ``low < high``; both positive if ``log``.
    log : bool
        Whether equal ratios, not equal differences, stand equally far apart.
    start, end : float
        Positions of ``low`` and ``high`` in drawing units; by default a share of the axis. The end is the smaller one
        where SVG draws upwards.
    """

    low: float
    high: float
    log: bool
    start: float = 0.0
    end: float = 1.0

    def at(self, value: float) -> float:
        """Position of ``value``, held within the axis.

        Parameters
        ----------
        value : float
            In the unit of ``low`` and ``high``; positive on a logarithmic axis.

        Returns
        -------
        float
            Between ``start`` and ``end``: a value beyond the axis stands at its end.
        """
        low, high, x = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        share = min(1.0, max(0.0, (x - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """At most ``most`` round values within the axis.

        Parameters
        ----------
        most : int
            Largest number of ticks, at least 1.

        Returns
        -------
        list of float
            Ascending: on a linear axis multiples of 1, 2 or 5 times a power of ten.
        """
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in _LOG_STEPS:
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) <= most:
                    return found
            return found[:: math.ceil(len(found) / most)]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def labels(self) -> list[tuple[float, str]]:
        """Ticks with their text."""
        return [(tick, f"{tick:.6g}") for tick in self.ticks()]


def fit_axis(values: Iterable[float], start: float = 0.0, end: float = 1.0) -> Axis:
    """Axis that holds the finite ``values`` with a margin; logarithmic where they span more than a factor of two.

    Parameters
    ----------
    values : iterable of float
        What the axis must hold; NaN and infinities are passed over. Without any finite one it runs from 0 to 1.
    start, end : float
        Of the axis, in drawing units.

    Returns
    -------
    Axis
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low > 0.0 and high / low > LOG_RATIO:
        margin = (high / low) ** 0.05
        return Axis(low / margin, high * margin, True, start, end)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, False, start, end)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= least * (1 - 1e-9))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: at least ``gap`` between neighbours, within ``[low, high]``, order kept, moved little.

    Parameters
    ----------
    positions : sequence of float, shape (K,)
        Where each label belongs, in drawing units.
    gap : float
        Least distance of neighbours; less where ``[low, high]`` has no room for it.
    low, high : float
        Bounds of the labels.

    Returns
    -------
    list of float, shape (K,)
        In the order of ``positions``.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    placed = list(positions)
    floor = low
    for index in order:
        placed[index] = floor = max(positions[index], floor)
        floor += gap
    ceiling = high
    for index in reversed(order):
        placed[index] = ceiling = min(placed[index], ceiling)
        ceiling -= gap
    return placed

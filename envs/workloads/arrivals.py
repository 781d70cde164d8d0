"""Arrival processes: when requests come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError

LAST_ARRIVAL_NS = 2**62  # leaves as much again, 146 years, for what arrives last
_CELLS_PER_DRIFT = 10  # grid cells of the rate per correlation time
_MOST_DRIFTS = 100_000  # correlation times of one episode: each costs memory however few requests it holds


def whole_ns(times_ns: NDArray[np.float64], rate: str) -> NDArray[np.int64]:
    """Round ascending arrival times to whole nanoseconds, shape (R,).

    Parameters
    ----------
    times_ns : ndarray of float64, shape (R,)
        Ascending, at least one.
    rate : str
        The setting that asks for this rate; begins the message.

    Raises
    ------
    UserError
        The last is at 2**62 ns or later, or no number.
    """
    last_ns = float(times_ns[-1])
    if not last_ns < LAST_ARRIVAL_NS:
        raise UserError(
            f"{rate}: too slow: {len(times_ns)} arrivals would take {last_ns * 1e-9:.3g} s; must be less than "
            f"2^62 ns ({LAST_ARRIVAL_NS * 1e-9:.3g} s)"
        )
    whole: NDArray[np.int64] = np.rint(times_ns).astype(np.int64)
    return whole


@dataclass(frozen=True)
class Arrivals:
    """An arrival process with mean rate given by the workload.

    Attributes
    ----------
    process : {"recorded", "poisson", "gamma", "deterministic"}
        ``recorded`` keeps a trace's own times; ``deterministic`` spaces requests evenly.
    cv : float or None
        Coefficient of variation of the gaps, for ``gamma`` only (1 is Poisson, above 1 bursty).
    drift_cv : float
        Coefficient of variation of the slowly changing rate; 0 keeps it constant.
    drift_s : float or None
        Correlation time of that rate in seconds; needed where ``drift_cv`` > 0.

    Notes
    -----
    With drift the rate is ``mean * exp(x - var/2)``, x a stationary first-order autoregressive Gaussian
    process. This is the doubly stochastic (Cox) process that production traces show: counts in longer
    windows vary more and more beyond Poisson, which independent gaps of any cv cannot do.
    """

    process: Literal["recorded", "poisson", "gamma", "deterministic"] = "poisson"
    cv: float | None = None
    drift_cv: float = 0.0
    drift_s: float | None = None

    def __post_init__(self) -> None:
        if (self.process == "gamma") != (self.cv is not None):
            raise UserError(f"cv={self.cv!r}: needed by process=gamma and by no other, process={self.process!r}")
        if self.cv is not None and not 0.0 < self.cv < math.inf:
            raise UserError(f"cv={self.cv!r}: must be positive")
        if not 0.0 <= self.drift_cv < math.inf:
            raise UserError(f"drift_cv={self.drift_cv!r}: must be at least 0")
        if (self.drift_cv > 0.0) != (self.drift_s is not None):
            raise UserError(f"drift_s={self.drift_s!r}: needed exactly where drift_cv > 0, drift_cv={self.drift_cv!r}")
        if self.drift_s is not None and not 0.0 < self.drift_s < math.inf:
            raise UserError(f"drift_s={self.drift_s!r}: must be positive")
        if self.process == "recorded" and self.drift_cv:
            raise UserError(f"drift_cv={self.drift_cv!r}: recorded arrivals have their own drift; must be 0")

    def sample_ns(
        self, rng: np.random.Generator, count: int, rate_rps: float, rate: str | None = None
    ) -> NDArray[np.int64]:
        """Draw arrival times in nanoseconds, shape (count,), ascending, the first one 0.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int
            At least one.
        rate_rps : float
            Mean arrivals per second.
        rate : str, optional
            The setting that a message names; by default ``rate_rps``.

        Raises
        ------
        UserError
            The process is ``recorded``, or so slow that the times leave 2**62 ns or, where the rate drifts, take more
            than 100,000 of its correlation times.
        """
        if self.process == "recorded":
            raise UserError("arrivals.process='recorded': there is nothing recorded; allowed: poisson, gamma, ...")
        rate = rate or f"rate_rps={rate_rps!r}"
        span_s = count / rate_rps if rate_rps > 0.0 else math.inf
        if self.drift_s is not None and span_s / self.drift_s > _MOST_DRIFTS:
            raise UserError(
                f"{rate}: too slow: {count} arrivals would take {span_s:.3g} s; must be at most {_MOST_DRIFTS:,} times "
                f"drift_s={self.drift_s!r}"
            )
        if self.process == "deterministic":
            times = np.arange(count, dtype=np.float64)
        elif self.cv is None:
            times = np.cumsum(rng.standard_exponential(count))
        else:
            times = np.cumsum(rng.gamma(self.cv**-2, self.cv**2, count))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # `whole_ns` refuses what comes out
            times = self._warp(rng, times, rate_rps) if self.drift_cv else times / np.float64(rate_rps)
            return whole_ns((times - times[0]) * 1e9, rate)

    def _warp(self, rng: np.random.Generator, times: NDArray[np.float64], rate_rps: float) -> NDArray[np.float64]:
        """Map unit-rate ``times`` to seconds through the inverse of the cumulative drifting rate."""
        assert self.drift_s is not None
        cell_s = self.drift_s / _CELLS_PER_DRIFT
        decay = math.exp(-1.0 / _CELLS_PER_DRIFT)
        variance = math.log1p(self.drift_cv**2)
        spread = math.sqrt(1.0 - decay**2)
        state = float(rng.standard_normal())
        cumulative = np.zeros(1)
        while cumulative[-1] < times[-1]:
            missing = (times[-1] - cumulative[-1]) / (rate_rps * cell_s)
            states = []
            for noise in rng.standard_normal(int(1.2 * missing) + 4).tolist():
                state = decay * state + spread * noise
                states.append(state)
            rates = rate_rps * np.exp(math.sqrt(variance) * np.array(states) - variance / 2)
            cumulative = np.concatenate([cumulative, cumulative[-1] + np.cumsum(rates * cell_s)])
        seconds: NDArray[np.float64] = np.interp(times, cumulative, cell_s * np.arange(len(cumulative)))
        return seconds

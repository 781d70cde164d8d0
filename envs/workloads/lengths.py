"""Prompt and output lengths: named distributions, and profiles fitted to traces."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.workloads.arrivals import Arrivals

PROFILE_FILE = "profiles.json"
_TABLE_POINTS = 1025
_END_RANK = 0.1 / (_TABLE_POINTS - 1)


@dataclass(frozen=True)
class Distribution:
    """Token lengths of one known shape.

    Attributes
    ----------
    shape : {"constant", "uniform", "lognormal"}
    mean : float or None
        Mean in tokens, of ``constant`` and, before truncation, of ``lognormal``.
    cv : float or None
        Coefficient of variation of ``lognormal``, before truncation.
    low, high : int
        Bounds in tokens, both included.
    """

    shape: Literal["constant", "uniform", "lognormal"]
    mean: float | None = None
    cv: float | None = None
    low: int = 1
    high: int = 131_072

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high < 2**31:
            raise UserError(f"low={self.low!r}, high={self.high!r}: must be 1 <= low <= high")
        if (self.mean is None) != (self.shape == "uniform"):
            raise UserError(f"mean={self.mean!r}: needed by constant and lognormal only, shape={self.shape!r}")
        if self.mean is not None and not self.low <= self.mean <= self.high:
            raise UserError(f"mean={self.mean!r}: must lie in [low, high] = [{self.low}, {self.high}]")
        if (self.cv is None) != (self.shape != "lognormal"):
            raise UserError(f"cv={self.cv!r}: needed by lognormal only, shape={self.shape!r}")
        if self.cv is not None and not 0.0 < self.cv < math.inf:
            raise UserError(f"cv={self.cv!r}: must be positive")

    def quantiles(self) -> NDArray[np.float64]:
        """Return evenly spaced quantiles in tokens, shape (Q,), from the 0th to the 100th percentile."""
        if self.shape == "constant":
            return np.full(2, self.mean, np.float64)
        if self.shape == "uniform":
            # Half a token beyond the bounds, so that rounding gives every length the same chance.
            return np.array([self.low - 0.499999, self.high + 0.499999])
        assert self.mean is not None
        assert self.cv is not None
        sigma = math.sqrt(math.log1p(self.cv**2))
        mu = math.log(self.mean) - sigma**2 / 2
        normal = NormalDist(mu, sigma)
        edges = normal.cdf(math.log(self.low)), normal.cdf(math.log(self.high))
        ranks = np.linspace(0.0, 1.0, _TABLE_POINTS)
        ranks[[0, -1]] = _END_RANK, 1.0 - _END_RANK  # the extremes themselves would stretch the last interval
        levels = (edges[0] + ranks * (edges[1] - edges[0])).tolist()
        return np.clip(np.exp([normal.inv_cdf(level) for level in levels]), self.low, self.high)


@dataclass(frozen=True)
class Lengths:
    """A joint distribution of prompt and output tokens as quantile tables.

    Attributes
    ----------
    prompt : ndarray of float64, shape (P,)
        Evenly spaced quantiles of the prompt length.
    output : ndarray of float64, shape (K, Q)
        Evenly spaced quantiles of the output length given that the prompt is in the k-th of K classes of
        equal probability (K = 1: independent lengths).
    """

    prompt: NDArray[np.float64]
    output: NDArray[np.float64]

    def sample(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw lengths in tokens, linearly interpolated between quantiles.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int
            How many requests.

        Returns
        -------
        prompt, output : ndarray of int64, shape (count,)
        """
        rank, position = rng.random((2, count))
        prompt = _interpolate(self.prompt, rank * (len(self.prompt) - 1), 0)
        classes, points = self.output.shape
        offset = (rank * classes).astype(np.int64) * points
        return prompt, _interpolate(self.output.reshape(-1), position * (points - 1), offset)


def _interpolate(
    table: NDArray[np.float64], position: NDArray[np.float64], offset: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    index = position.astype(np.int64)
    fraction = position - index
    index += offset
    low = table[index]
    return np.rint(low + fraction * (table[index + 1] - low)).astype(np.int64)


@dataclass(frozen=True)
class Profile:
    """What `fleetgym.envs.workloads.fit` keeps of a trace.

    Attributes
    ----------
    source : str
        The trace, the number of its requests and its time span.
    rate_rps : float
        Mean arrival rate in requests per second.
    arrivals : Arrivals
    lengths : Lengths
    """

    source: str
    rate_rps: float
    arrivals: Arrivals
    lengths: Lengths

    def to_json(self) -> dict[str, object]:
        """Return plain values for `PROFILE_FILE`."""
        lengths = {"prompt": self.lengths.prompt.tolist(), "output": self.lengths.output.tolist()}
        return {"source": self.source, "rate_rps": self.rate_rps, "arrivals": asdict(self.arrivals), **lengths}


@lru_cache(maxsize=1)
def profiles() -> dict[str, Profile]:
    """Return the embedded profiles by name."""
    text = files("fleetgym.envs.workloads").joinpath(PROFILE_FILE).read_text(encoding="utf-8")
    return {
        name: Profile(
            row["source"],
            row["rate_rps"],
            Arrivals(**row["arrivals"]),
            Lengths(np.array(row["prompt"], np.float64), np.array(row["output"], np.float64)),
        )
        for name, row in json.loads(text).items()
    }


def find_profile(name: str) -> Profile:
    """Return an embedded profile.

    Parameters
    ----------
    name : str
        One of `profiles`.

    Raises
    ------
    UserError
        Unknown name; the message lists near matches.
    """
    if name not in profiles():
        raise UserError(f"profile={name!r}: unknown{did_you_mean(name, profiles())}")
    return profiles()[name]

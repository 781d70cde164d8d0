"""What every workload is: a validated description that yields one episode of requests at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.blocks import ChainBlocks

WindowKind = Literal["recorded", "generated", "bootstrap"]


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """A source of episodes.

    Attributes
    ----------
    num_requests : int or None
        Requests of one episode; None takes all that there are.
    rate_rps : float or None
        Mean arrival rate in requests per second to rescale to.
    rate_scale : float or None
        Factor on the native rate instead; > 1 compresses time. Neither of both: native rate.
    rate_scale_range : tuple of float or None
        ``[low, high]``: every episode draws a further factor, log-uniformly (load randomisation for training).

    Raises
    ------
    UserError
        A count or rate that is not positive, bounds that are not ordered, or both ``rate_rps`` and ``rate_scale``.
    """

    num_requests: int | None = None
    rate_rps: float | None = None
    rate_scale: float | None = None
    rate_scale_range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_requests is not None and self.num_requests < 1:
            raise UserError(f"num_requests={self.num_requests!r}: must be at least 1, or null for all")
        for name in ("rate_rps", "rate_scale"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise UserError(f"{name}={value!r}: must be positive")
        if self.rate_rps is not None and self.rate_scale is not None:
            raise UserError(f"rate_scale={self.rate_scale!r}: give either rate_scale or rate_rps, not both")
        bounds = self.rate_scale_range
        if bounds is not None and not (len(bounds) == 2 and 0.0 < bounds[0] <= bounds[1] < math.inf):
            raise UserError(f"rate_scale_range={list(bounds)!r}: must be [low, high] with 0 < low <= high")

    @property
    @abstractmethod
    def native_rate_rps(self) -> float:
        """Mean arrival rate without any rescaling, in requests per second."""

    @property
    def mean_rate_rps(self) -> float:
        """Mean arrival rate of episodes in requests per second, before ``rate_scale_range``."""
        return self.rate_rps if self.rate_rps is not None else self.native_rate_rps * (self.rate_scale or 1.0)

    @property
    def chain_blocks(self) -> ChainBlocks | None:
        """What one id of the episodes' chains names; None: the workload has no chains."""
        return None

    @property
    def rate_setting(self) -> str:
        """The setting that decides the rate of episodes, as messages name it."""
        for name in ("rate_rps", "rate_scale", "rate_scale_range"):
            if (value := getattr(self, name)) is not None:
                return f"workload.{name}={list(value) if isinstance(value, tuple) else value!r}"
        return f"workload: native rate {self.native_rate_rps:g}/s"

    def num_windows(self, num_requests: int | None = None) -> int | None:
        """How many episodes there are that share no request; None: each is drawn afresh.

        Parameters
        ----------
        num_requests : int, optional
            Of one episode; replaces the workload's own ``num_requests``.

        Raises
        ------
        UserError
            There are not as many, or the file is absent or malformed.
        """
        return None

    @property
    def window_kind(self) -> WindowKind:
        """What its episodes are: windows of a recording, draws of a generator, or a recording resampled in blocks."""
        return "generated"

    @property
    def arrival_process(self) -> str:
        """Whose times a recording's requests have: ``recorded``, or the process that replaces them."""
        return "recorded"

    def resampled(self) -> Workload:
        """Return a workload that draws any number of episodes from this recording's requests.

        Raises
        ------
        UserError
            There is no such way.
        """
        raise UserError(
            f"scenario.beyond_windows='bootstrap': {type(self).__name__} cannot be resampled; allowed: refuse"
        )

    @abstractmethod
    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        """Return one episode: its first request arrives at 0, equal generator states give equal traces.

        Parameters
        ----------
        rng : numpy.random.Generator
        num_requests : int, optional
            Replaces the workload's own ``num_requests``.
        window : int, optional
            Of a recording, its ``window``-th of the disjoint windows that `num_windows` counts.

        Raises
        ------
        UserError
            More requests or windows than there are, or a file that is absent or malformed.
        """

    def typical(self, rng: np.random.Generator, count: int) -> Trace:
        """Return requests that stand for all of this traffic, whatever their times.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int
            How many; a recording that is shorter gives some of its requests more than once.

        Raises
        ------
        UserError
            As `episode`.
        """
        return self.episode(rng, count)

    def draw_rate_rps(self, rng: np.random.Generator) -> float:
        """Return the mean rate of the next episode in requests per second.

        Parameters
        ----------
        rng : numpy.random.Generator
            Drawn from only where there is a ``rate_scale_range``.

        Raises
        ------
        UserError
            A recording whose requests all arrive at once has no rate, or its file is absent or malformed.
        """
        if self.rate_scale_range is None:
            return self.mean_rate_rps
        low, high = self.rate_scale_range
        return self.mean_rate_rps * math.exp(rng.uniform(math.log(low), math.log(high)))

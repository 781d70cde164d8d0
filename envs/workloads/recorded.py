"""Workloads that replay a trace file: sliced by time, rescaled in rate, in whole, in windows or resampled in blocks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.arrivals import Arrivals, whole_ns
from fleetgym.envs.workloads.base import WindowKind, Workload
from fleetgym.envs.workloads.blocks import ChainBlocks
from fleetgym.envs.workloads.datasets import locate
from fleetgym.envs.workloads.readers import (
    MOONCAKE_BLOCK_TOKENS,
    read_azure,
    read_cached,
    read_jsonl,
    read_mooncake,
)
from fleetgym.envs.workloads.times import TimeUnit

TYPICAL_RUN = 20  # requests that stay together where the part's order is given up
BOOTSTRAP_BLOCK = 100  # requests; long enough to keep bursts, short enough to make new episodes


@dataclass(frozen=True, kw_only=True)
class RecordedWorkload(Workload):
    """Episodes cut from a recorded trace.

    Attributes
    ----------
    path : str or None
        The file; else ``dataset`` is looked for (see `fleetgym.envs.workloads.datasets`).
    start, stop : float
        Part of the trace, as fractions of its duration: arrivals in ``[start, stop)``, the last one
        included where stop is 1. Splits by time are disjoint and never shuffle requests.
    window : {"whole", "random", "bootstrap"}
        ``whole`` replays the part from its beginning. ``random`` starts at a random request and stays
        inside the part, so that episodes overlap: for training, not for replications. ``bootstrap``
        joins blocks of `BOOTSTRAP_BLOCK` consecutive requests, drawn at random with their gaps: new
        episodes of this part's traffic, as many as wanted. Evaluation asks for disjoint windows instead
        (`episode` with ``window``), except of ``bootstrap``.
    arrivals : Arrivals
        ``recorded`` times, or a process that replaces them at the same mean rate.
    """

    path: str | None = None
    start: float = 0.0
    stop: float = 1.0
    window: Literal["whole", "random", "bootstrap"] = "whole"
    arrivals: Arrivals = field(default_factory=lambda: Arrivals("recorded"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise UserError(f"start={self.start!r}, stop={self.stop!r}: must be 0 <= start < stop <= 1")

    @abstractmethod
    def _read(self) -> Trace:
        """Return the whole file."""

    @property
    def chain_blocks(self) -> ChainBlocks | None:
        """What one id of the file's chains names; None: it has no chains."""
        trace = self._read()
        return ChainBlocks(trace.block_size, trace.block_size_stated) if len(trace.block_ids) else None

    @cached_property
    def part(self) -> Trace:
        """The requests of ``[start, stop)`` with their recorded times; read at first use."""
        trace = self._read()
        times = trace.requests["arrival_ns"]
        low = int(np.searchsorted(times, np.ceil(self.start * times[-1])))
        high = len(times) if self.stop == 1.0 else int(np.searchsorted(times, np.ceil(self.stop * times[-1])))
        if low == high:
            raise UserError(f"start={self.start!r}, stop={self.stop!r}: no request of {trace.name} lies between")
        return _cut(trace, low, high)

    @property
    def native_rate_rps(self) -> float:
        """Requests per second of the part of the trace, first to last arrival."""
        return self._native_rate_rps

    @cached_property
    def _native_rate_rps(self) -> float:
        times = self.part.requests["arrival_ns"]
        if times[-1] == times[0]:
            raise UserError(f"{self.part.name}: all requests arrive at once, so that no rate can be scaled")
        return float((len(times) - 1) / ((times[-1] - times[0]) * 1e-9))

    def _count(self, num_requests: int | None) -> int:
        """Requests of one episode."""
        wanted = self.num_requests if num_requests is None else num_requests
        count = len(self.part) if wanted is None else wanted
        if not 1 <= count <= len(self.part):
            raise UserError(
                f"num_requests={count}: must lie between 1 and {len(self.part)}, the requests of {self.part.name} "
                f"from start={self.start} to stop={self.stop}"
            )
        return count

    def num_windows(self, num_requests: int | None = None) -> int | None:
        """How many disjoint windows of ``num_requests`` the part holds; None where blocks are resampled."""
        count = self._count(num_requests)
        return None if self.window == "bootstrap" else len(self.part) // count

    @property
    def window_kind(self) -> WindowKind:
        """Disjoint windows of the recording, unless it is resampled."""
        return "bootstrap" if self.window == "bootstrap" else "recorded"

    @property
    def arrival_process(self) -> str:
        """``recorded``, or the process that replaces the times."""
        return self.arrivals.process

    def resampled(self) -> RecordedWorkload:
        """Return the same part in blocks drawn at random."""
        return replace(self, window="bootstrap")

    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        """Return one window of the trace (see `Workload.episode`)."""
        part, count = self.part, self._count(num_requests)
        if self.window == "bootstrap":
            trace = _resample(part, rng, count)
        else:
            first = int(rng.integers(len(part) - count + 1)) if self.window == "random" else 0
            if window is not None:
                first = self._first(window, count)
            trace = _cut(part, first, first + count)
        self._retime(trace.requests, rng)
        return trace

    def typical(self, rng: np.random.Generator, count: int) -> Trace:
        """Return ``count`` requests in short runs from all over the part, in random order, since traffic drifts."""
        part = self.part
        starts = np.linspace(0, max(0, len(part) - TYPICAL_RUN), -(-count // TYPICAL_RUN)).astype(np.int64)
        runs = rng.permutation(starts)[:, None] + np.arange(TYPICAL_RUN)
        places = (runs.ravel() % len(part))[:count]
        rows = part.requests[places]
        rows["arrival_ns"] = 0
        return replace(part, requests=rows, origin=(part, places))

    def _first(self, window: int, count: int) -> int:
        """First request of the ``window``-th disjoint window of ``count`` requests."""
        windows = len(self.part) // count
        if not 0 <= window < windows:
            raise UserError(
                f"window={window}: {self.part.name} from start={self.start} to stop={self.stop} holds {windows} "
                f"disjoint windows of {count} requests, so it must lie between 0 and {windows - 1}"
            )
        return window * count

    def _retime(self, rows: NDArray[np.void], rng: np.random.Generator) -> None:
        if self.arrivals.process != "recorded":
            rows["arrival_ns"] = self.arrivals.sample_ns(rng, len(rows), self.draw_rate_rps(rng), self.rate_setting)
            return
        times = rows["arrival_ns"] - rows["arrival_ns"][0]
        if self.rate_rps or self.rate_scale or self.rate_scale_range:
            # One correctly rounded division keeps equal gaps equal and the order of arrivals.
            speedup = np.float64(self.draw_rate_rps(rng) / self.native_rate_rps)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                times = whole_ns(times / speedup, self.rate_setting)
        rows["arrival_ns"] = times


def _cut(trace: Trace, low: int, high: int) -> Trace:
    """Return requests [low, high) with their own copy of the rows and a view of their blocks."""
    rows = trace.requests[low:high].copy()
    first = int(rows["block_start"][0])
    last = int(rows["block_start"][-1]) + int(rows["block_count"][-1])
    rows["block_start"] -= first
    return replace(trace, requests=rows, block_ids=trace.block_ids[first:last], origin=(trace, np.arange(low, high)))


def _resample(trace: Trace, rng: np.random.Generator, count: int) -> Trace:
    """Return ``count`` requests in blocks of consecutive ones, drawn circularly (moving-block bootstrap).

    Each request brings the gap before it, the first of the trace the mean gap.
    """
    times = trace.requests["arrival_ns"]
    gaps = np.diff(times, prepend=times[0])
    gaps[0] = (times[-1] - times[0]) // max(1, len(trace) - 1)
    starts = rng.integers(len(trace), size=-(-count // BOOTSTRAP_BLOCK))
    chosen = ((starts[:, None] + np.arange(BOOTSTRAP_BLOCK)).ravel() % len(trace))[:count]
    rows = trace.requests[chosen]
    rows["arrival_ns"] = np.cumsum(gaps[chosen]) - gaps[chosen[0]]
    return replace(trace, requests=rows, origin=(trace, chosen))


@dataclass(frozen=True, kw_only=True)
class Azure(RecordedWorkload):
    """Azure LLM inference traces, or any file of that format.

    Attributes
    ----------
    kind : {"azure"}
        Its name in configs.
    dataset : {"azure_conversation", "azure_code"}
        Looked for where ``path`` is None.
    """

    kind: Literal["azure"] = "azure"
    dataset: Literal["azure_conversation", "azure_code"] = "azure_conversation"

    @property
    def chain_blocks(self) -> None:
        """The format names no blocks."""
        return None

    def _read(self) -> Trace:
        return read_cached(read_azure, locate(self.path, self.dataset))


@dataclass(frozen=True, kw_only=True)
class Mooncake(RecordedWorkload):
    """Mooncake traces, whose requests share prompt prefixes.

    Attributes
    ----------
    kind : {"mooncake"}
        Its name in configs.
    dataset : {"mooncake_conversation", "mooncake_toolagent"}
        Looked for where ``path`` is None.
    time_unit : {"s", "ms", "us", "ns"} or None
        Of ``timestamp``; None: milliseconds, as the format has it, if that can be.
    hash_block_size : int
        Tokens that one of the file's ``hash_ids`` names.
    block_size : int
        Tokens of the blocks that the chains name; must divide the file's, and the engine's where it caches.
    """

    kind: Literal["mooncake"] = "mooncake"
    dataset: Literal["mooncake_conversation", "mooncake_toolagent"] = "mooncake_conversation"
    time_unit: TimeUnit | None = None
    hash_block_size: int = MOONCAKE_BLOCK_TOKENS
    block_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hash_block_size < 1:
            raise UserError(f"hash_block_size={self.hash_block_size!r}: must be at least 1")
        if self.block_size < 1 or self.hash_block_size % self.block_size:
            raise UserError(f"block_size={self.block_size!r}: must divide {self.hash_block_size}")

    def _read(self) -> Trace:
        path = locate(self.path, self.dataset)
        return read_cached(read_mooncake, path, self.block_size, self.time_unit, self.hash_block_size)


@dataclass(frozen=True, kw_only=True)
class Jsonl(RecordedWorkload):
    """A user's own trace: one JSON object per request (see `fleetgym.envs.workloads.readers.read_jsonl`).

    Attributes
    ----------
    kind : {"jsonl"}
        Its name in configs.
    time_unit : {"s", "ms", "us", "ns"} or None
        Of ``arrival_s``; None: seconds, if that can be.
    block_size : int or None
        Tokens that one of the file's block ids names; None: what the file says, or its lists imply.
    """

    kind: Literal["jsonl"] = "jsonl"
    time_unit: TimeUnit | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError("path=None: the file of a jsonl workload must be named")
        if self.block_size is not None and self.block_size < 1:
            raise UserError(f"block_size={self.block_size!r}: must be at least 1")

    def _read(self) -> Trace:
        return read_cached(read_jsonl, locate(self.path, None), self.time_unit, self.block_size)

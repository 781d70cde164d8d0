"""Workloads that replay a trace file: sliced by time, rescaled in rate, in whole or in random windows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.arrivals import Arrivals
from fleetgym.envs.workloads.base import Workload
from fleetgym.envs.workloads.data import locate
from fleetgym.envs.workloads.readers import MOONCAKE_BLOCK_TOKENS, read_azure, read_cached, read_jsonl, read_mooncake


@dataclass(frozen=True, kw_only=True)
class Replay(Workload):
    """Episodes cut from a recorded trace.

    Attributes
    ----------
    path : str or None
        The file; else ``dataset`` is looked for (see `fleetgym.envs.workloads.data`).
    start, stop : float
        Part of the trace, as fractions of its duration: arrivals in ``[start, stop)``, the last one
        included where stop is 1. Splits by time are disjoint and never shuffle requests.
    window : {"whole", "random", "rotate"}
        ``whole`` replays the part from its beginning. ``random`` starts at a random request and stays
        inside the part. ``rotate`` cuts the part circularly at a random request, with the mean gap at
        the seam, for replications of a whole trace.
    arrivals : Arrivals
        ``recorded`` times, or a process that replaces them at the same mean rate.
    """

    path: str | None = None
    start: float = 0.0
    stop: float = 1.0
    window: Literal["whole", "random", "rotate"] = "whole"
    arrivals: Arrivals = field(default_factory=lambda: Arrivals("recorded"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise UserError(f"start={self.start!r}, stop={self.stop!r}: must be 0 <= start < stop <= 1")

    @abstractmethod
    def _read(self) -> Trace:
        """Return the whole file."""

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

    def episode(self, rng: np.random.Generator, num_requests: int | None = None) -> Trace:
        """Return one window of the trace (see `Workload.episode`)."""
        part = self.part
        wanted = self.num_requests if num_requests is None else num_requests
        count = len(part) if wanted is None else wanted
        if not 1 <= count <= len(part):
            raise UserError(
                f"num_requests={count}: must lie between 1 and {len(part)}, the requests of {part.name} "
                f"from start={self.start} to stop={self.stop}"
            )
        if self.window == "rotate":
            trace = _rotate(part, int(rng.integers(len(part))), count)
        else:
            first = int(rng.integers(len(part) - count + 1)) if self.window == "random" else 0
            trace = _cut(part, first, first + count)
        self._retime(trace.requests, rng)
        return trace

    def _retime(self, rows: NDArray[np.void], rng: np.random.Generator) -> None:
        if self.arrivals.process != "recorded":
            rows["arrival_ns"] = self.arrivals.sample_ns(rng, len(rows), self.draw_rate_rps(rng))
            return
        times = rows["arrival_ns"] - rows["arrival_ns"][0]
        if self.rate_rps or self.rate_scale or self.rate_scale_range:
            # One correctly rounded division keeps equal gaps equal and the order of arrivals.
            times = np.rint(times / (self.draw_rate_rps(rng) / self.native_rate_rps)).astype(np.int64)
        rows["arrival_ns"] = times


def _cut(trace: Trace, low: int, high: int) -> Trace:
    """Return requests [low, high) with their own copy of the rows and a view of their blocks."""
    rows = trace.requests[low:high].copy()
    first = int(rows["block_start"][0])
    last = int(rows["block_start"][-1]) + int(rows["block_count"][-1])
    rows["block_start"] -= first
    return Trace(rows, trace.block_ids[first:last], trace.class_names, trace.name, (trace, np.arange(low, high)))


def _rotate(trace: Trace, first: int, count: int) -> Trace:
    """Return ``count`` requests from ``first`` on, circularly; the seam has the trace's mean gap."""
    head = _cut(trace, first, min(first + count, len(trace)))
    rest = count - len(head)
    if not rest:
        return head
    tail = _cut(trace, 0, rest)
    times = trace.requests["arrival_ns"]
    span = int(times[-1] - times[0])
    tail.requests["arrival_ns"] += span + span // max(1, len(trace) - 1)
    tail.requests["block_start"] += len(head.block_ids)
    rows = np.concatenate([head.requests, tail.requests])
    blocks = np.concatenate([head.block_ids, tail.block_ids])
    places = (first + np.arange(count)) % len(trace)
    return Trace(rows, blocks, trace.class_names, trace.name, (trace, places))


@dataclass(frozen=True, kw_only=True)
class Azure(Replay):
    """Azure LLM inference traces: ``dataset`` azure_conversation or azure_code, or any file of that format."""

    kind: Literal["azure"] = "azure"
    dataset: Literal["azure_conversation", "azure_code"] = "azure_conversation"

    def _read(self) -> Trace:
        return read_cached(read_azure, locate(self.path, self.dataset))


@dataclass(frozen=True, kw_only=True)
class Mooncake(Replay):
    """Mooncake traces, whose requests share prompt prefixes.

    Attributes
    ----------
    dataset : str
    block_size : int
        Tokens of the blocks that the chains name; must be the engine's ``block_size`` for prefix caching.
    """

    kind: Literal["mooncake"] = "mooncake"
    dataset: Literal["mooncake_conversation", "mooncake_toolagent"] = "mooncake_conversation"
    block_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1 or MOONCAKE_BLOCK_TOKENS % self.block_size:
            raise UserError(f"block_size={self.block_size!r}: must divide {MOONCAKE_BLOCK_TOKENS}")

    def _read(self) -> Trace:
        return read_cached(read_mooncake, locate(self.path, self.dataset), self.block_size)


@dataclass(frozen=True, kw_only=True)
class Jsonl(Replay):
    """A user's own trace: one JSON object per request (see `fleetgym.envs.workloads.readers.read_jsonl`)."""

    kind: Literal["jsonl"] = "jsonl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError("path=None: the file of a jsonl workload must be named")

    def _read(self) -> Trace:
        return read_cached(read_jsonl, locate(self.path, None))

"""What arrives and what became of it: one numpy dtype each, shared by workloads, engines and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.segments import Segments, find_segments
from fleetgym.envs.errors import UserError

REQUEST_DTYPE = np.dtype(
    [
        ("arrival_ns", np.int64),
        ("prompt_tokens", np.int32),
        ("output_tokens", np.int32),
        ("priority", np.int32),  # smaller is more important; read by the priority scheduling policy only
        ("class_id", np.int32),  # index into Trace.class_names
        ("block_start", np.int64),  # first entry of the request's chain in Trace.block_ids
        ("block_count", np.int32),  # full blocks with a known content id (0: nothing is shared)
    ],
    align=True,
)

UNFINISHED, FINISHED, REJECTED = 0, 1, 2
STATUS_NAMES = ("unfinished", "finished", "rejected")

RESULT_DTYPE = np.dtype(
    [
        ("status", np.int32),  # UNFINISHED, FINISHED or REJECTED (prompt + output can never fit)
        ("instance", np.int32),  # -1 before dispatch
        ("scheduled_ns", np.int64),  # first time in an iteration; -1 if never
        ("first_token_ns", np.int64),  # -1 if never
        ("finish_ns", np.int64),  # -1 if never
        ("preemptions", np.int32),
        ("recomputed_tokens", np.int32),  # computed, lost by preemption and not hit again on resume
        ("cached_tokens", np.int32),  # prompt tokens of the first admission found in the prefix cache
    ],
    align=True,
)

INSTANCE_STATS_DTYPE = np.dtype(
    [
        ("busy_ns", np.int64),  # time with an iteration executing
        ("iterations", np.int64),
        ("prefill_tokens", np.int64),  # computed, recomputation included
        ("decode_tokens", np.int64),
        ("kv_block_ns", np.int64),  # time integral of used KV blocks, from 0 to the last event
        ("peak_kv_blocks", np.int64),
        ("preemptions", np.int64),
        ("recomputed_tokens", np.int64),
        ("dispatched", np.int64),
        ("finished", np.int64),
        ("rejected", np.int64),
    ],
    align=True,
)


@dataclass(frozen=True)
class Trace:
    """Requests in arrival order, with the content ids of their KV blocks.

    Attributes
    ----------
    requests : ndarray of REQUEST_DTYPE, shape (R,)
        Sorted by ``arrival_ns``.
    block_ids : ndarray of int64, shape (sum of block_count,)
        Chains of content ids, flat. Entry j of a request's chain names tokens
        ``[j * block_size, (j + 1) * block_size)``; equal ids mean equal tokens *and* equal prefix.
        A chain may go on into the answer. Blocks past its end are private to the request.
    class_names : tuple of str
        What ``class_id`` counts.
    name : str
        As messages call it.
    block_size : int or None
        Tokens that one content id names; None: not known.
    block_size_stated : bool
        Whether somebody said so, and it does not merely follow from the lengths of the chains.
    origin : (Trace, ndarray of int64, shape (R,)), optional
        The trace that this one was cut from and the place of each request in it: what is known of its chains need not
        be found again.

    Raises
    ------
    UserError
        No request, a length below 1, or a time that goes back.
    TypeError
        ``requests`` are of another dtype.
    """

    requests: NDArray[np.void]
    block_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    class_names: tuple[str, ...] = ("default",)
    name: str = "trace"
    block_size: int | None = None
    block_size_stated: bool = True
    origin: tuple[Trace, NDArray[np.int64]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = self.requests
        if rows.dtype != REQUEST_DTYPE:
            raise TypeError(f"requests: expected REQUEST_DTYPE, got {rows.dtype}")
        if len(rows) == 0:
            raise UserError(f"{self.name}: the trace holds no request")
        for name in ("prompt_tokens", "output_tokens"):
            if rows[name].min() < 1:
                bad = int(np.argmax(rows[name] < 1))
                raise UserError(f"{self.name}: request {bad}: {name}={rows[name][bad]}: must be at least 1")
        times = rows["arrival_ns"]
        back = times[1:] < times[:-1]
        if times[0] < 0 or back.any():
            index = int(np.argmax(back)) + 1 if back.any() else 0
            raise UserError(f"{self.name}: request {index}: arrival_ns={times[index]}: goes back in time")

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def segments(self) -> Segments:
        """The chains in segments; found at first use."""
        if self.origin is not None:
            whole, places = self.origin
            return whole.segments.take(places)
        if len(self.block_ids) and self.block_ids.min() < 0:
            raise UserError(f"{self.name}: block_ids: {self.block_ids.min()}: must not be negative")
        return find_segments(self.block_ids, self.requests["block_start"], self.requests["block_count"])


def make_trace(
    arrival_ns: NDArray[np.int64],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    *,
    name: str = "trace",
    priority: NDArray[np.int64] | int = 0,
    class_id: NDArray[np.int64] | int = 0,
    class_names: tuple[str, ...] = ("default",),
    chains: list[NDArray[np.int64]] | None = None,
    block_size: int | None = None,
    block_size_stated: bool = True,
) -> Trace:
    """Assemble a `Trace` from columns.

    Parameters
    ----------
    arrival_ns : ndarray of int64, shape (R,)
        Ascending, at least 0.
    prompt_tokens, output_tokens : ndarray of int64, shape (R,)
        At least 1.
    name : str
        As messages call it.
    priority : int or ndarray of int64, shape (R,)
        Smaller is more important.
    class_id : int or ndarray of int64, shape (R,)
        Index into ``class_names``.
    class_names : tuple of str
    chains : list of ndarray of int64, length R, optional
        Content ids of each request's blocks, perhaps none; of any shape (K,).
    block_size : int, optional
        Tokens that one content id names; None: not known.
    block_size_stated : bool
        Whether somebody said so.

    Raises
    ------
    UserError
        No request, a length below 1, or a time that goes back.
    """
    rows = np.zeros(len(arrival_ns), REQUEST_DTYPE)
    rows["arrival_ns"] = arrival_ns
    rows["prompt_tokens"] = prompt_tokens
    rows["output_tokens"] = output_tokens
    rows["priority"] = priority
    rows["class_id"] = class_id
    block_ids = np.zeros(0, np.int64)
    if chains is not None:
        counts = np.array([len(chain) for chain in chains], np.int64)
        rows["block_count"] = counts
        rows["block_start"] = np.cumsum(counts) - counts
        block_ids = np.concatenate(chains).astype(np.int64, copy=False) if counts.sum() else block_ids
    return Trace(rows, block_ids, class_names, name, block_size, block_size_stated)

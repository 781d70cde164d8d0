"""Traces of any length in bounded memory.

A trace is fed in parts. Between parts the requests that are over leave the arrays and those still in flight move to
the front; their order stays, so that nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.kernel.engine import KernelEngine
from fleetgym.envs.cluster.kernel.lockstep import INDEX_BITS, INDEX_MASK
from fleetgym.envs.cluster.kernel.state import FINISHED, NONE, REJECTED
from fleetgym.envs.cluster.requests import REQUEST_DTYPE, RESULT_DTYPE, Trace
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.errors import UserError

Route = Callable[[int, Trace], NDArray[np.int64]]
LINKS = ("partial", "run_head", "run_tail", "wait_head", "wait_tail", "head", "tail")


class Completed(NamedTuple):
    """Requests that are over, in order of arrival.

    Attributes
    ----------
    position : ndarray of int64, shape (M,)
        Place in the whole trace.
    requests : ndarray of REQUEST_DTYPE, shape (M,)
        Arrival, lengths and priority; the other fields are zero.
    results : ndarray of RESULT_DTYPE, shape (M,)
    """

    position: NDArray[np.int64]
    requests: NDArray[np.void]
    results: NDArray[np.void]


NOTHING = Completed(np.zeros(0, np.int64), np.zeros(0, REQUEST_DTYPE), np.zeros(0, RESULT_DTYPE))


class Stream:
    """One cluster that takes a trace in parts; its memory holds one part and the requests in flight.

    Parameters
    ----------
    cluster : ClusterSpec
        Without prefix caching.
    slo : Slo, optional
        As for `KernelEngine`.

    Raises
    ------
    UserError
        An instance caches prefixes.

    Attributes
    ----------
    engine : KernelEngine
        For ``instance_stats(0)`` and ``gap_histogram(0)``, which count from the beginning.
    """

    def __init__(self, cluster: ClusterSpec, slo: Slo | None = None) -> None:
        if any(spec.engine.enable_prefix_caching for spec in cluster.instances):
            raise UserError("enable_prefix_caching=True: a streamed trace is simulated without prefix caching only")
        self.engine = KernelEngine(cluster, columns=("in_flight_requests",), slo=slo)
        self._fed = 0
        self._position = np.zeros(0, np.int64)

    def feed(self, trace: Trace, actions: NDArray[np.int64]) -> Completed:
        """Dispatch the next part of the trace.

        Parameters
        ----------
        trace : Trace
            Must not begin before the end of the part before it.
        actions : ndarray of int64, shape (len(trace),)
            Instance of each request.

        Returns
        -------
        Completed
            Requests of the parts before it that have finished meanwhile.

        Raises
        ------
        UserError
            It begins too early, or an action is no instance.
        """
        engine, first = self.engine, int(trace.requests["arrival_ns"][0])
        completed = NOTHING
        numbers = np.arange(self._fed, self._fed + len(trace))
        if self._fed == 0:
            engine.reset(0, trace)
            self._position = numbers
        else:
            if first < engine.now_ns[0]:
                raise UserError(f"{trace.name}: begins at {first} ns: before the end of the part before it")
            completed = self._compact()
            self._append(trace)
            self._position = np.concatenate([self._position, numbers])
        self._fed += len(trace)
        engine.run(np.asarray(actions, np.int64).reshape(1, -1))
        return completed

    def drain(self) -> Completed:
        """Let everything fed so far finish."""
        self.engine.drain(0)
        return self._compact()

    def _compact(self) -> Completed:
        """Take the requests that are over out of the arrays."""
        state = self.engine.state
        count = len(self._position)
        rows = state.req[0, :count]
        over = (rows["state"] == FINISHED) | (rows["state"] == REJECTED)
        completed = Completed(self._position[over], self.engine.requests(0)[over], self.engine.results(0)[over])
        left = rows[~over].copy()
        place = np.full(count + 1, NONE)  # the last entry is that of NONE
        place[:-1][~over] = np.arange(len(left))
        for name in ("previous", "next"):
            left[name] = place[left[name]]
        left["link"] = (place[(left["link"] >> 2) - 1] + 1) << 2 | left["link"] & 3
        rows[: len(left)] = left
        instances = state.inst[0]
        for name in LINKS:
            instances[name] = place[instances[name]]
        for heap, size in zip(state.heap[0], instances["heap_size"], strict=True):
            keys = heap[:size]
            heap[:size] = keys >> INDEX_BITS << INDEX_BITS | place[keys & INDEX_MASK]
        self._position = self._position[~over]
        state.cluster["requests"][0] = len(left)
        return completed

    def _append(self, trace: Trace) -> None:
        engine, kept = self.engine, len(self._position)
        count = kept + len(trace)
        engine.write_requests(0, kept, trace)
        engine.state.cluster["requests"][0] = count
        engine.pending[0] = kept
        engine.now_ns[0] = trace.requests["arrival_ns"][0]
        engine.done[0] = False


def stream(
    cluster: ClusterSpec, parts: Iterable[Trace], route: Route, *, slo: Slo | None = None
) -> Iterator[Completed]:
    """Simulate a trace that comes in parts, and give its requests back as they finish.

    Parameters
    ----------
    cluster : ClusterSpec
    parts : iterable of Trace
        In order of arrival.
    route : callable
        ``(number of the first request, part) -> actions``.
    slo : Slo, optional
    """
    run = Stream(cluster, slo)
    number = 0
    for part in parts:
        yield run.feed(part, route(number, part))
        number += len(part)
    yield run.drain()


def round_robin(instances: int) -> Route:
    """Route to the instances in turn.

    Parameters
    ----------
    instances : int
        N.
    """
    return lambda number, part: np.arange(number, number + len(part)) % instances

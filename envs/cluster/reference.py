"""The reference engine: one SimPy environment per cluster, one process per instance, written to be read.

It is the specification that the compiled engine has to match in every nanosecond, and the place to try a new
mechanism first. How iterations are composed is in ``scheduler.py``, how they take time in ``instance.py``; here
arrivals become decisions and decisions become dispatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import Engine
from fleetgym.envs.cluster.instance import make_instance
from fleetgym.envs.cluster.outcomes import Outcomes
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.scheduler import Request
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.errors import UserError
from fleetgym.envs.signals import SIGNAL_INDEX, SIGNAL_NAMES


class Cluster:
    """One simulated cluster, advanced from decision to decision.

    Parameters
    ----------
    spec : ClusterSpec
    trace : Trace
    slo : Slo
    available : ndarray of bool, shape (N,)
        Instances that a request may be dispatched to.

    Attributes
    ----------
    pending : int
        Index of the request that waits to be dispatched; the number of requests once all are.
    actions : list of int
        All dispatches so far; with the other parameters they are the whole state.
    """

    def __init__(self, spec: ClusterSpec, trace: Trace, slo: Slo, available: NDArray[np.bool_]) -> None:
        self.trace = trace
        self.available = available
        self.env = simpy.Environment(initial_time=0)
        self.outcomes = Outcomes(trace.requests, slo)
        self._arrivals: list[int] = trace.requests["arrival_ns"].tolist()
        self.instances = [
            make_instance(self.env, index, instance, self.outcomes, self._arrivals[0])
            for index, instance in enumerate(spec.expanded)
        ]
        self.pending = 0
        self.actions: list[int] = []
        self.drained = False
        self.now_ns = self._arrivals[0]
        self._advance()

    @property
    def done(self) -> bool:
        """Whether the last request has been dispatched."""
        return self.pending == len(self.trace)

    def dispatch(self, action: int) -> None:
        """Hand the pending request to an instance and advance to the next arrival.

        After the last one the clock stays, but an idle instance still starts its iteration.

        Parameters
        ----------
        action : int
            The instance, an available one.

        Raises
        ------
        LivelockError
            An instance stopped making progress.
        """
        self.instances[action].receive(self._request(self.pending))
        self.actions.append(action)
        self.pending += 1
        if not self.done:
            self.now_ns = self._arrivals[self.pending]
        self._advance()

    def drain(self) -> None:
        """Let the instances work until nothing is left.

        Raises
        ------
        LivelockError
            A request can never be admitted.
        """
        self.env.run()
        for instance in self.instances:
            instance.check_drained()
        self.drained = True

    def signals(self) -> NDArray[np.float64]:
        """All signals of all instances at the present decision, shape (N, len(SIGNALS))."""
        request = self.trace.requests[min(self.pending, len(self.trace) - 1)]
        of_request = {name: request[name] for name in ("prompt_tokens", "priority", "output_tokens")}
        rows = [of_request | one.signals for one in self.instances]
        values = np.array([[row[name] for name in SIGNAL_NAMES] for row in rows], float)
        values[~self.available] = 0.0
        return values

    def mask(self) -> NDArray[np.bool_]:
        """Available instances that can hold the pending prompt and one token, or all if none can, shape (N,)."""
        prompt = self.trace.requests["prompt_tokens"][min(self.pending, len(self.trace) - 1)]
        large = np.array([prompt + 1 <= instance.max_model_len for instance in self.instances])
        fitting: NDArray[np.bool_] = self.available & large
        return fitting if fitting.any() else self.available

    def _advance(self) -> None:
        """Process every event up to the present decision, those at its very instant included."""
        if self.now_ns > self.env.now:
            self.env.timeout(self.now_ns - self.env.now)  # carries the clock there even if nothing else happens then
        while self.env.peek() <= self.now_ns:
            self.env.step()

    def _request(self, index: int) -> Request:
        row = self.trace.requests[index]
        start = int(row["block_start"])
        return Request(
            index=index,
            prompt_tokens=int(row["prompt_tokens"]),
            output_tokens=int(row["output_tokens"]),
            priority=int(row["priority"]),
            arrival_ns=int(row["arrival_ns"]),
            chain=self.trace.block_ids[start : start + int(row["block_count"])].tolist(),
        )


class ReferenceEngine(Engine):
    """B independent `Cluster` objects behind the engine interface."""

    def __init__(
        self,
        clusters: ClusterSpec | Sequence[ClusterSpec],
        batch: int = 1,
        *,
        columns: Sequence[str] = SIGNAL_NAMES,
        high: Sequence[float] | None = None,
        slo: Slo | None = None,
    ) -> None:
        super().__init__(clusters, batch, columns=columns, high=high, slo=slo)
        self._columns = [SIGNAL_INDEX[name] for name in self.columns]
        self._live: list[Cluster | None] = [None] * batch

    def reset(self, index: int, trace: Trace, available: NDArray[np.bool_] | None = None) -> None:
        """Start cluster ``index`` on ``trace`` and stop at its first decision."""
        if available is None:
            available = np.ones(self.num_instances, np.bool_)
        available = np.array(available, np.bool_)
        if available.shape != (self.num_instances,) or not available.any():
            raise UserError(
                f"available={available.tolist()}: need {self.num_instances} flags, at least one of them set"
            )
        self._live[index] = Cluster(self.clusters[index], trace, self.slo, available)
        self.terms[index] = 0.0
        self._observe(index)

    def step(self, actions: NDArray[np.int64]) -> None:
        """Dispatch each pending request to instance ``actions[b]`` and advance to the next decisions."""
        self.run(np.asarray(actions).reshape(self.batch, 1))

    def run(self, actions: NDArray[np.int64]) -> None:
        """Take ``actions[b, k]``, shape (B, K), for the next K decisions; only the last is observed."""
        rows: list[list[int]] = np.asarray(actions).tolist()
        for index, row in enumerate(rows):
            cluster = self._cluster(index)
            for action in row[: len(cluster.trace) - cluster.pending]:
                self._check(index, action)
        for index, row in enumerate(rows):
            cluster = self._cluster(index)
            if cluster.done:
                self.terms[index] = 0.0
                continue
            for action in row[: len(cluster.trace) - cluster.pending]:
                cluster.dispatch(action)
            self.terms[index] = cluster.outcomes.take_terms(cluster.now_ns)
            self._observe(index)

    def drain(self, index: int) -> None:
        """Advance cluster ``index``, all of whose requests are dispatched, until nothing is left to do."""
        cluster = self._cluster(index)
        if not cluster.done:
            left = len(cluster.trace) - cluster.pending
            raise UserError(f"drain: cluster {index} has {left} requests that are not dispatched yet")
        cluster.drain()

    def requests(self, index: int) -> NDArray[np.void]:
        """Return the requests of the episode: REQUEST_DTYPE, shape (R,), a copy without classes and block chains."""
        rows = self._cluster(index).trace.requests.copy()
        for name in ("class_id", "block_start", "block_count"):
            rows[name] = 0
        return rows

    def results(self, index: int) -> NDArray[np.void]:
        """Return what became of each request: RESULT_DTYPE, shape (R,), a copy."""
        return self._cluster(index).outcomes.results.copy()

    def instance_stats(self, index: int) -> NDArray[np.void]:
        """Return the totals of each instance: INSTANCE_STATS_DTYPE, shape (N,), a copy."""
        return np.stack([instance.stats for instance in self._cluster(index).instances])

    def gap_histogram(self, index: int) -> NDArray[np.int64]:
        """Return how many token gaps of all requests fell into each bin of `gap_bin`, shape (GAP_BINS,)."""
        return self._cluster(index).outcomes.gaps.copy()

    def snapshot(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the history of cluster ``index``: its trace, its actions so far, and its last terms."""
        cluster = self._cluster(index)
        return {
            "requests": cluster.trace.requests.copy(),
            "block_ids": cluster.trace.block_ids.copy(),
            "available": cluster.available.copy(),
            "actions": np.array(cluster.actions, np.int64),
            "drained": np.array(cluster.drained),
            "terms": self.terms[index].copy(),
        }

    def restore(self, index: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Bring cluster ``index`` back by replaying its history, which takes as long as it took before."""
        trace = Trace(state["requests"].copy(), state["block_ids"].copy())
        self.reset(index, trace, state["available"])
        cluster = self._cluster(index)
        for action in state["actions"].tolist():
            self._check(index, action)
            cluster.dispatch(action)
        cluster.outcomes.take_terms(cluster.now_ns)
        self.terms[index] = state["terms"]
        self._observe(index)
        if state["drained"]:
            cluster.drain()

    def _cluster(self, index: int) -> Cluster:
        cluster = self._live[index]
        if cluster is None:
            raise UserError(f"cluster {index} has no trace yet: call reset first")
        return cluster

    def _check(self, index: int, action: int) -> None:
        available = self._cluster(index).available
        if not 0 <= action < self.num_instances or not available[action]:
            allowed = np.flatnonzero(available).tolist()
            raise UserError(f"action={action!r} of cluster {index}: no such instance is available (allowed: {allowed})")

    def _observe(self, index: int) -> None:
        cluster = self._cluster(index)
        self.obs[index] = np.minimum(cluster.signals()[:, self._columns], self.high)
        self.mask[index] = cluster.mask()
        self.now_ns[index] = cluster.now_ns
        self.pending[index] = min(cluster.pending, len(cluster.trace) - 1)
        self.done[index] = cluster.done

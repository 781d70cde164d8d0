"""The one interface of both engines: B independent clusters, advanced from decision to decision.

A *decision* is one arriving request that waits to be dispatched. ``reset`` brings a cluster to its first
decision, ``step`` dispatches the pending request of every cluster and advances each to its next one.
At one instant the order is: iteration ends first, then arrivals in index order, each its own decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.judging import EpisodeTotals, since_s, tpot_s, within_slo
from fleetgym.envs.cluster.requests import FINISHED, REJECTED, Trace
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.signals import SIGNAL_INDEX, SIGNAL_NAMES, TERM_NAMES

EWMA_WEIGHT = 0.1


class Engine(ABC):
    """B clusters of N instances each.

    The output arrays are owned by the engine and overwritten by ``reset`` and ``step``: copy what must last.

    Parameters
    ----------
    clusters : ClusterSpec or sequence of ClusterSpec, length B
        One for all, or one for each; all with the same number of instances.
    batch : int
        B.
    columns : sequence of str, length F
        The signals that ``obs`` holds, of `fleetgym.envs.signals.SIGNALS`; all by default.
    high : sequence of float, length F, optional
        Largest value of each column, in its own unit; no limit by default.
    slo : Slo, optional
        Objectives that ``slo_met`` and `episode_totals` count by; the default ones if not given.

    Raises
    ------
    UserError
        Not as many clusters as B, unequal numbers of instances, or a signal that does not exist.

    Attributes
    ----------
    clusters : list of ClusterSpec, length B
    batch, num_instances : int
        B and N.
    columns : tuple of str
        The selected signals, F of them.
    obs : ndarray of float32, shape (B, N, F)
        ``min(signal, high)`` of every instance at the pending decision; an unavailable instance's row is 0.
    mask : ndarray of bool, shape (B, N)
        Available instances that can ever hold the pending request's prompt and one token; all available
        ones where none can.
    terms : ndarray of float64, shape (B, len(TERM_NAMES))
        What happened between the last two decisions.
    now_ns : ndarray of int64, shape (B,)
        Time of the pending decision.
    pending : ndarray of int64, shape (B,)
        Index of the pending request.
    done : ndarray of bool, shape (B,)
        The last request has been dispatched. The clock then stays at that instant, ``obs`` shows the
        cluster right after it, with the last request's own signals; further steps ignore the cluster.
    """

    obs: NDArray[np.float32]
    mask: NDArray[np.bool_]
    terms: NDArray[np.float64]
    now_ns: NDArray[np.int64]
    pending: NDArray[np.int64]
    done: NDArray[np.bool_]

    def __init__(
        self,
        clusters: ClusterSpec | Sequence[ClusterSpec],
        batch: int = 1,
        *,
        columns: Sequence[str] = SIGNAL_NAMES,
        high: Sequence[float] | None = None,
        slo: Slo | None = None,
    ) -> None:
        self.clusters = [clusters] * batch if isinstance(clusters, ClusterSpec) else list(clusters)
        if len(self.clusters) != batch or len({c.num_instances for c in self.clusters}) != 1:
            raise UserError("clusters: need one per environment, all with the same number of instances")
        for name in columns:
            if name not in SIGNAL_INDEX:
                raise UserError(f"columns: signal {name!r} is unknown{did_you_mean(name, SIGNAL_NAMES)}")
        self.batch = batch
        self.num_instances = self.clusters[0].num_instances
        self.columns = tuple(columns)
        self.high = np.full(len(self.columns), np.inf) if high is None else np.asarray(high, np.float64)
        self.slo = slo or Slo()
        shape = (batch, self.num_instances)
        self.obs = np.zeros((*shape, len(self.columns)), np.float32)
        self.mask = np.ones(shape, np.bool_)
        self.terms = np.zeros((batch, len(TERM_NAMES)), np.float64)
        self.now_ns = np.zeros(batch, np.int64)
        self.pending = np.zeros(batch, np.int64)
        self.done = np.zeros(batch, np.bool_)

    @abstractmethod
    def reset(self, index: int, trace: Trace, available: NDArray[np.bool_] | None = None) -> None:
        """Start cluster ``index`` on ``trace`` and stop at its first decision.

        Parameters
        ----------
        index : int
            Which cluster.
        trace : Trace
            R requests; its blocks are the instances' own (`fleetgym.envs.workloads.blocks.fit_chains`).
        available : ndarray of bool, shape (N,), optional
            Instances that exist in this episode; at least one. All by default.

        Raises
        ------
        UserError
            ``available`` has another shape or no True, or there are more requests than the engine can number.
        """

    @abstractmethod
    def step(self, actions: NDArray[np.int64]) -> None:
        """Dispatch each pending request and advance to the next decisions.

        Parameters
        ----------
        actions : ndarray of int64, shape (B,)
            The instance that each cluster's request goes to; those of clusters that are done mean nothing.

        Raises
        ------
        UserError
            An action outside ``[0, N)`` or at an unavailable instance; nothing has moved then.
        LivelockError
            An instance stopped making progress.
        """

    @abstractmethod
    def run(self, actions: NDArray[np.int64]) -> None:
        """Take the next K decisions at once; only the last is observed.

        ``terms`` then holds the sums over the K intervals.

        Parameters
        ----------
        actions : ndarray of int64, shape (B, K)
            Instances; what comes after a cluster's last request means nothing.

        Raises
        ------
        UserError, LivelockError
            As `step`.
        """

    @abstractmethod
    def drain(self, index: int) -> None:
        """Advance a cluster, all of whose requests are dispatched, until nothing is left to do.

        Parameters
        ----------
        index : int
            Which cluster.

        Raises
        ------
        UserError
            It has no trace yet, or requests that are not dispatched.
        LivelockError
            A request can never be admitted.
        """

    @abstractmethod
    def requests(self, index: int) -> NDArray[np.void]:
        """Return the requests of the episode: REQUEST_DTYPE, shape (R,), a copy without classes and block chains.

        Parameters
        ----------
        index : int
            Which cluster.

        Raises
        ------
        UserError
            It has no trace yet.
        """

    @abstractmethod
    def results(self, index: int) -> NDArray[np.void]:
        """Return what became of each request: RESULT_DTYPE, shape (R,), a copy.

        Parameters
        ----------
        index : int
            Which cluster.

        Raises
        ------
        UserError
            It has no trace yet.
        """

    def episode_totals(self, index: int) -> EpisodeTotals:
        """Return sums over the requests of a cluster, to its present.

        Parameters
        ----------
        index : int
            Which cluster.

        Raises
        ------
        UserError
            It has no trace yet.
        """
        totals = dict.fromkeys(EpisodeTotals._fields, 0.0)
        for request, result in zip(self.requests(index), self.results(index), strict=True):
            arrival, first, finish = int(request["arrival_ns"]), int(result["first_token_ns"]), int(result["finish_ns"])
            prompt_tokens, output_tokens = int(request["prompt_tokens"]), int(request["output_tokens"])
            if first >= 0:
                totals["ttft_s"] += since_s(arrival, first)
                totals["with_ttft"] += 1
            if result["status"] == FINISHED:
                ttft, tpot = since_s(arrival, first), tpot_s(first, finish, output_tokens)
                if output_tokens > 1:
                    totals["tpot_s"] += tpot
                    totals["with_tpot"] += 1
                totals["e2e_s"] += since_s(arrival, finish)
                totals["finished"] += 1
                totals["slo_met"] += within_slo(ttft, tpot, prompt_tokens, self.slo.limits)
            totals["rejected"] += int(result["status"] == REJECTED)
            totals["preemptions"] += int(result["preemptions"])
        return EpisodeTotals(**totals)

    @abstractmethod
    def instance_stats(self, index: int) -> NDArray[np.void]:
        """Return the totals of each instance: INSTANCE_STATS_DTYPE, shape (N,), a copy.

        Parameters
        ----------
        index : int
            Which cluster.
        """

    @abstractmethod
    def gap_histogram(self, index: int) -> NDArray[np.int64]:
        """Return how many token gaps of all requests fell into each bin of `gap_bin`, shape (GAP_BINS,).

        Parameters
        ----------
        index : int
            Which cluster.
        """

    @abstractmethod
    def snapshot(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the full state of a cluster, for `restore`.

        Parameters
        ----------
        index : int
            Which cluster.

        Returns
        -------
        dict of str to ndarray
            Plain arrays, whose names and shapes are the engine's own.

        Raises
        ------
        UserError
            It has no trace yet.
        """

    @abstractmethod
    def restore(self, index: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Put a cluster back into a state of `snapshot`; what follows is the same, bit for bit.

        Parameters
        ----------
        index : int
            The one that the state was taken of, in this engine or one that was made alike.
        state : mapping of str to ndarray
            Arrays as `snapshot` gave them, of the same shapes.
        """


GAP_SUB_BINS = 64
GAP_BINS = 58 * GAP_SUB_BINS


def gap_bin(gap_ns: int) -> int:
    """Bin of a token gap: 64 per power of two (as an HDR histogram), so its edges are 1.6 % apart.

    Parameters
    ----------
    gap_ns : int
        At least 0.

    Returns
    -------
    int
        From 0 to ``GAP_BINS - 1``.
    """
    shift = max(0, int(gap_ns).bit_length() - 7)
    return shift * GAP_SUB_BINS + (gap_ns >> shift)


def gap_bin_low_ns(index: int) -> int:
    """Smallest gap of a bin in nanoseconds, the inverse of `gap_bin`.

    Parameters
    ----------
    index : int
        From 0 to ``GAP_BINS``, which is the upper edge of the last bin.
    """
    if index < 2 * GAP_SUB_BINS:
        return index
    shift = index // GAP_SUB_BINS - 1
    return (index - shift * GAP_SUB_BINS) << shift

"""The compiled engine: `ReferenceEngine`'s results, bit for bit, some hundred times faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import GAP_BINS, Engine
from fleetgym.envs.cluster.judging import EpisodeTotals
from fleetgym.envs.cluster.kernel import entry_points
from fleetgym.envs.cluster.kernel.spec_row import SPEC, spec_row
from fleetgym.envs.cluster.kernel.state import CLUSTER, FINISHED, GROWING, LAYOUTS, NONE, STATUS, State
from fleetgym.envs.cluster.kernel.totals import episode_totals
from fleetgym.envs.cluster.latency import pad_tokens
from fleetgym.envs.cluster.requests import (
    INSTANCE_STATS_DTYPE,
    REQUEST_DTYPE,
    RESULT_DTYPE,
    Trace,
)
from fleetgym.envs.cluster.spec import ClusterSpec, InstanceSpec, Slo
from fleetgym.envs.errors import LivelockError, UserError
from fleetgym.envs.signals import SIGNAL_INDEX, SIGNAL_NAMES

MAX_REQUESTS = 2**28
GIVEN = ("arrival_ns", "prompt_tokens", "output_tokens", "priority")  # what a request row takes from the trace


class KernelEngine(Engine):
    """B independent clusters in arrays, advanced by compiled code.

    Parameters
    ----------
    clusters, batch, columns, high, slo
        As `Engine`.
    journal : int
        Room for so many numbers of admissions and preemptions, for replays of recorded schedules; 0: none.
    """

    def __init__(
        self,
        clusters: ClusterSpec | Sequence[ClusterSpec],
        batch: int = 1,
        *,
        columns: Sequence[str] = SIGNAL_NAMES,
        high: Sequence[float] | None = None,
        slo: Slo | None = None,
        journal: int = 0,
    ) -> None:
        super().__init__(clusters, batch, columns=columns, high=high, slo=slo)
        kinds = [cluster.expanded for cluster in self.clusters]
        self._specs = list(dict.fromkeys(spec for row in kinds for spec in row))
        number = {spec: index for index, spec in enumerate(self._specs)}
        self._kinds = np.array([[number[spec] for spec in row] for row in kinds], np.int64)
        self._rows, self._first_ranks = _rank_rows(self._kinds, np.array([spec.dp for spec in self._specs]))
        self._caching = any(spec.engine.enable_prefix_caching for spec in self._specs)
        self._actions_shape = (batch,)
        self.state = self._allocate(journal)
        self.handle = entry_points.make_handle(self.state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the handle out of copies and pickles: it holds addresses."""
        return {name: value for name, value in vars(self).items() if name != "handle"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self.handle = entry_points.make_handle(self.state)

    def _allocate(self, journal: int) -> State:
        batch, rows = self._rows.shape
        specs, caching = self._specs, self._caching
        block_size = max(spec.engine.block_size for spec in specs)
        lengths = {
            "B": batch,
            "U": rows,
            "block_size": block_size,
            "heap_entries": max(spec.max_num_seqs for spec in specs) + 1,
            "gap_bins": GAP_BINS,
            "signals": len(SIGNAL_NAMES),
            "journal_entries": 1 + journal,
            "cached_blocks": max(spec.num_gpu_blocks for spec in specs) if caching else 1,
            "cached_block_size": block_size if caching else 1,
            **dict.fromkeys(GROWING, 1),
        }
        given = {
            **{name: getattr(self, name) for name in ("obs", "mask", "terms", "now_ns", "pending", "done")},
            "spec": np.array([spec_row(spec) for spec in specs], SPEC),
            **_latency_tables(specs),
            "columns": np.array([SIGNAL_INDEX[name] for name in self.columns], np.int64),
            "high": np.ascontiguousarray(self.high),
            "slo": np.array(self.slo.limits),
        }
        zeros = {
            name: np.zeros([lengths[axis] for axis in layout.axes], layout.dtype)
            for name, layout in LAYOUTS.items()
            if name not in given
        }
        return State(**given, **zeros)

    def _make_room(self, **lengths: int) -> None:
        """Let the named axes be at least so long."""
        grown = {}
        for name, layout in LAYOUTS.items():
            old, length = getattr(self.state, name), lengths.get(layout.axes[-1], 0)
            if length > old.shape[-1]:
                grown[name] = np.zeros((*old.shape[:-1], length), old.dtype)
                grown[name][..., : old.shape[-1]] = old
        if grown:
            self.state = self.state._replace(**grown)
            self.handle = entry_points.make_handle(self.state)

    def reset(self, index: int, trace: Trace, available: NDArray[np.bool_] | None = None) -> None:
        """Start cluster ``index`` on ``trace`` and stop at its first decision."""
        flags = np.ones(self.num_instances, np.bool_) if available is None else np.array(available, np.bool_)
        if flags.shape != (self.num_instances,) or not flags.any():
            raise UserError(f"available={flags.tolist()}: need {self.num_instances} flags, at least one of them set")
        count = len(trace)
        if count > MAX_REQUESTS:
            raise UserError(f"{trace.name}: {count} requests: at most {MAX_REQUESTS} are possible, stream the trace")
        self.write_requests(index, 0, trace)
        state = self.state
        state.cluster[index] = np.zeros((), CLUSTER)
        state.cluster[index]["requests"] = count
        state.inst[index].view(np.uint8).fill(0)
        state.inst[index]["spec"] = self._rows[index]
        state.inst[index, : self.num_instances]["first_rank"] = self._first_ranks[index]
        state.inst[index, : self.num_instances]["available"] = flags
        if self._caching:
            self._set_chains(index, trace)
        entry_points.begin(self.handle, index)

    def write_requests(self, index: int, start: int, trace: Trace) -> None:
        """Write a trace into the request rows of a cluster; there is room for it afterwards.

        Parameters
        ----------
        index : int
            Which cluster.
        start : int
            Row of the first request.
        trace : Trace
        """
        self._make_room(requests=start + len(trace))
        rows = self.state.req[index, start : start + len(trace)]
        rows.view(np.uint8).fill(0)  # assigning a zero record goes field by field, 15 times slower
        for name in GIVEN:
            rows[name] = trace.requests[name]
        for name in ("scheduled_ns", "first_token_ns", "instance"):
            rows[name] = -1

    def _set_chains(self, index: int, trace: Trace) -> None:
        rows, count, segments = trace.requests, len(trace), trace.segments
        size = min(spec.engine.block_size for spec in self._specs)
        tokens = rows["prompt_tokens"].astype(np.int64) + rows["output_tokens"]
        entries = -(-tokens // size)
        ends = np.cumsum(entries)
        self._make_room(
            cached_requests=count,
            cached_entries=int(ends[-1]),
            cached_links=len(segments.links),
            cached_segments=segments.number + count,
        )
        chain = self.state.chain[index, :count]
        chain.view(np.uint8).fill(0)
        chain["links"], chain["link_count"] = segments.start, segments.count
        chain["own"] = segments.number + np.arange(count)
        chain["table"], chain["table_count"] = ends - entries, entries
        self.state.links[index, : len(segments.links)] = segments.links

    def step(self, actions: NDArray[np.int64]) -> None:
        """Dispatch each pending request to instance ``actions[b]`` and advance to the next decisions."""
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.shape != self._actions_shape:
            raise UserError(f"actions: shape {actions.shape}: must be {self._actions_shape}")
        code = entry_points.step(self.handle, actions)
        if code != NONE:
            self._complain(code, actions.reshape(-1, 1))

    def run(self, actions: NDArray[np.int64]) -> None:
        """Take ``actions[b, k]``, shape (B, K), for the next K decisions; only the last is observed."""
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.ndim != 2 or len(actions) != self.batch:
            raise UserError(f"actions: shape {actions.shape}: must be ({self.batch}, K)")
        code = entry_points.run(self.handle, actions)
        if code != NONE:
            self._complain(code, actions)

    def _complain(self, code: int, actions: NDArray[np.int64]) -> None:
        if code < 0:
            index = -2 - code
            instance = int(self.state.cluster[index]["stalled_instance"])
            self._raise_livelock(index, instance, "is computed again and again")
        left = self._check_started(code) - int(self.pending[code])
        allowed = np.flatnonzero(self.state.inst[code]["available"])
        bad = next(int(action) for action in actions[code, :left] if action not in allowed)
        raise UserError(f"action={bad} of cluster {code}: no such instance is available (allowed: {allowed.tolist()})")

    def _raise_livelock(self, index: int, instance: int, what: str) -> None:
        row = self.state.inst[index, instance]
        if (first := int(row["first_rank"])) > 0:
            ranks = self.state.inst[index, first : first + self._specs[row["spec"]].dp]
            row = next(rank for rank in ranks if rank["running"] or rank["waiting"])
        request = int(row["run_head"] if row["run_head"] >= 0 else row["wait_head"])
        prompt, output = (int(self.state.req[index, request][name]) for name in ("prompt_tokens", "output_tokens"))
        raise LivelockError(
            f"instance {instance}: no progress at {row['counted_ns'] * 1e-9:.3f} s; "
            f"request {request} ({prompt} + {output} tokens) {what}"
        )

    def drain(self, index: int) -> None:
        """Advance cluster ``index``, all of whose requests are dispatched, until nothing is left to do."""
        self._check_started(index)
        if not self.done[index]:
            left = int(self.state.cluster[index]["requests"] - self.pending[index])
            raise UserError(f"drain: cluster {index} has {left} requests that are not dispatched yet")
        code = entry_points.drain(self.handle, index)
        if code < NONE:
            self._complain(code, np.zeros((self.batch, 0), np.int64))
        elif code != NONE:
            self._raise_livelock(index, code, "can never be admitted")

    def _check_started(self, index: int) -> int:
        count = int(self.state.cluster[index]["requests"])
        if count == 0:
            raise UserError(f"cluster {index} has no trace yet: call reset first")
        return count

    def requests(self, index: int) -> NDArray[np.void]:
        """Return the requests of the episode: REQUEST_DTYPE, shape (R,), a copy without classes and block chains."""
        rows = self.state.req[index, : self._check_started(index)]
        out = np.zeros(len(rows), REQUEST_DTYPE)
        for name in GIVEN:
            out[name] = rows[name]
        return out

    def results(self, index: int) -> NDArray[np.void]:
        """Return what became of each request: RESULT_DTYPE, shape (R,), a copy."""
        count = self._check_started(index)
        rows = self.state.req[index, :count]
        out = np.zeros(count, RESULT_DTYPE)
        finished = rows["state"] == FINISHED
        out["status"] = STATUS[rows["state"]]
        out["finish_ns"] = np.where(finished, rows["last_token_ns"], -1)
        for name in ("instance", "scheduled_ns", "first_token_ns", "preemptions", "recomputed_tokens"):
            out[name] = rows[name]
        if self._caching:
            out["cached_tokens"] = self.state.chain["cached_tokens"][index, :count]
        return out

    def episode_totals(self, index: int) -> EpisodeTotals:
        """Return sums over the requests of cluster ``index``, to its present."""
        return episode_totals(self.state.req[index, : self._check_started(index)], self.state.slo)

    def instance_stats(self, index: int) -> NDArray[np.void]:
        """Return the totals of each instance: INSTANCE_STATS_DTYPE, shape (N,), a copy."""
        out = np.zeros(self.num_instances, INSTANCE_STATS_DTYPE)
        for name in INSTANCE_STATS_DTYPE.names or ():
            out[name] = self.state.inst[index, : self.num_instances][name]
        return out

    def gap_histogram(self, index: int) -> NDArray[np.int64]:
        """Return how many token gaps of all requests fell into each bin of `gap_bin`, shape (GAP_BINS,)."""
        return self.state.gaps[index].astype(np.int64)

    def snapshot(self, index: int) -> dict[str, NDArray[Any]]:
        """Return cluster ``index``'s full state as plain arrays, for `restore`."""
        count = self._check_started(index)
        out = {}
        for name, layout in LAYOUTS.items():
            if layout.axes[0] == "B":
                part = getattr(self.state, name)[index : index + 1]
                out[name] = (part[:, :count] if layout.axes[-1] in ("requests", "cached_requests") else part).copy()
        return out

    def restore(self, index: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Put cluster ``index`` back into a state of `snapshot`; what follows is the same, bit for bit."""
        lengths = {LAYOUTS[name].axes[-1]: row.shape[-1] for name, row in state.items()}
        self._make_room(**{axis: lengths[axis] for axis in GROWING})
        for name, row in state.items():
            target = getattr(self.state, name)[index : index + 1]
            if row.ndim > 1:
                target = target[..., : row.shape[-1]]
            target[...] = row


def _rank_rows(kinds: NDArray[np.int64], dp: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each rank of a data-parallel group a row behind the N endpoints.

    Returns
    -------
    rows : ndarray of int64, shape (B, U)
        Spec of each row; 0 where a cluster has fewer ranks than another.
    first_ranks : ndarray of int64, shape (B, N)
        Row of each group's first rank, 0 for an instance that is no group.
    """
    batch, instances = kinds.shape
    ranks = np.where(dp[kinds] > 1, dp[kinds], 0)
    ends = instances + np.cumsum(ranks, axis=1)
    first_ranks = np.where(ranks > 0, ends - ranks, 0)
    rows = np.zeros((batch, ends[:, -1].max()), np.int64)
    rows[:, :instances] = kinds
    for b in range(batch):
        rows[b, instances : ends[b, -1]] = np.repeat(kinds[b], ranks[b])
    return rows, first_ranks


def _latency_tables(specs: list[InstanceSpec]) -> dict[str, NDArray[Any]]:
    """The latency tables of all specs, each with a row per spec; behind its end a row repeats its last number."""
    tables = [spec.tables() for spec in specs]
    out: dict[str, list[NDArray[Any]]]
    out = {"decode_s": [one.decode_s for one in tables], "mixed_s": [one.mixed_s for one in tables]}
    if any(spec.dp > 1 for spec in specs):
        out["moe_s"] = [one.moe_s for one in tables]
        out["padded_tokens"] = [_padded_tokens(spec) for spec in specs]
    else:
        out["moe_s"] = [one.moe_s[:1] for one in tables]
        out["padded_tokens"] = [np.zeros(1, np.int64) for _ in tables]
    longest = {name: max(map(len, rows)) for name, rows in out.items()}
    return {
        name: np.array([np.pad(row, (0, longest[name] - len(row)), mode="edge") for row in rows])
        for name, rows in out.items()
    }


def _padded_tokens(spec: InstanceSpec) -> NDArray[np.int64]:
    """What an iteration of so many tokens of one rank is padded to."""
    args = spec.max_num_seqs, spec.engine.cuda_graph_padding
    return np.array([pad_tokens(tokens, *args) for tokens in range(spec.max_num_batched_tokens + 1)])

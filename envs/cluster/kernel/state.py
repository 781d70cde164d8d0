"""The kernel's state: plain structured arrays, and the bundles in which they are handed around.

Times are int64 ns, counts and tokens integers. ``-1`` is "none" in every link.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.kernel.jit import jit

Array = NDArray[Any]

NONE = -1
NEVER = 2**62  # a time that never comes
EMPTY = -1  # end of an iteration without tokens
IN_STEP = -2  # in place of the time of a last token: the instance's `returned_ns`

# States of a request.
NEW = 0  # not dispatched
WAITING = 1  # in the waiting queue
PREFILL = 2  # running, its known tokens are partly computed
DECODE = 3  # running in lock step with all others in this state
LOOSE = 4  # running, decoding, not in lock step
LAST = 5  # running, its last token is in flight
DONE = 6
REFUSED = 7

# What an iteration in flight will return to a request, bits of `link`.
TOKEN = 1  # a token that is accounted for one by one
FINISH = 2  # its last token

REQUEST = np.dtype(
    [
        ("arrival_ns", np.int64),
        ("scheduled_ns", np.int64),
        ("first_token_ns", np.int64),
        ("last_token_ns", np.int64),  # or IN_STEP; kept up to date only out of lock step; the finish time once DONE
        ("prompt", np.int32),
        ("output", np.int32),
        ("priority", np.int32),
        ("sampled", np.int32),  # tokens sampled by composed iterations; less the instance's clock in DECODE
        ("previous", np.int32),  # neighbours in the running list or in the waiting queue
        ("next", np.int32),
        ("link", np.int32, 2),  # per iteration in flight: (next request in its list + 1) << 2 | bits
        ("preemptions", np.int32),
        ("recomputed", np.int32),
        ("computed", np.int32),  # in PREFILL: tokens with KV entries; WAITING: those that the latest preemption lost
        ("instance", np.int16),
        ("state", np.int16),
    ],
    align=True,
)

INSTANCE = np.dtype(
    [
        # read at every decision: together, so that they share two cache lines
        ("next_ns", np.int64),  # end of the oldest iteration in flight; NEVER: idle, or blocked until an arrival
        ("available", np.int64),
        ("spec", np.int64),
        ("in_flight", np.int64),
        ("prompt_tokens", np.int64),
        ("awaiting", np.int64),
        ("awaiting_tokens", np.int64),
        ("streamed", np.int64),
        ("dispatch_ns", np.int64),
        ("ttft_ewma_s", np.float64),  # negative: none yet
        ("running", np.int64),
        ("waiting", np.int64),
        ("used", np.int64),  # KV blocks
        ("output_tokens", np.int64),
        # time
        ("last_end_ns", np.int64),  # end of the latest composed iteration
        ("returned_ns", np.int64),  # end of the latest returned iteration
        ("counted_ns", np.int64),  # kv_block_ns is integrated up to here
        ("due", np.int64),  # schedule() is to be called now
        # iterations in flight, oldest first: slots front, front ^ 1
        ("front", np.int64),
        ("flight", np.int64),
        ("start_ns", np.int64, 2),
        ("end_ns", np.int64, 2),  # EMPTY: no tokens, takes no time
        ("decodes", np.int64, 2),
        ("bulk", np.int64, 2),  # decodes accounted together, the others are in the list
        ("prefill", np.int64, 2),
        ("head", np.int64, 2),  # list of requests with something to be done at the end
        ("tail", np.int64, 2),
        # composition
        ("lockstep", np.int64),  # never with `exact_path`
        ("clock", np.int64),  # lock-step decode iterations so far
        ("n", np.int64),  # requests in DECODE
        ("context", np.int64),  # sum of their context lengths at their next token, that token included
        ("heap", np.int64),  # entries in the heap of finish clocks
        ("step_context", np.int64),  # K and 2 A of the iteration being composed
        ("step_pairs", np.int64),
        ("partial", np.int64),  # the request in PREFILL, or NONE; with `exact_path` there may be others
        ("run_head", np.int64),
        ("run_tail", np.int64),
        ("wait_head", np.int64),
        ("wait_tail", np.int64),
        ("blocked", np.int64),  # the head of the queue has to wait until a request finishes
        (
            "stalled_iterations",
            np.int64,
        ),  # iterations composed since the last token was returned or the last request arrived
        # totals
        ("busy_ns", np.int64),
        ("iterations", np.int64),
        ("prefill_tokens", np.int64),
        ("decode_tokens", np.int64),
        ("kv_block_ns", np.int64),
        ("peak_kv_blocks", np.int64),
        ("preemptions", np.int64),
        ("recomputed_tokens", np.int64),
        ("dispatched", np.int64),
        ("finished", np.int64),
        ("rejected", np.int64),
        # data-parallel groups
        ("first_rank", np.int64),  # of the endpoint: row of its first rank
        (
            "published_tick",
            np.int64,
        ),  # of the endpoint: multiple of the balancer's period at which loads were refreshed
        ("load", np.int64),  # of a rank: what the balancer believes
    ],
    align=True,
)

CLUSTER = np.dtype(
    [
        ("requests", np.int64),
        ("unfinished", np.int64),
        ("awaiting", np.int64),
        # sum of (change of the count above) * (time of the change) since the last decision
        ("unfinished_moment", np.int64),
        ("awaiting_moment", np.int64),
        ("finished", np.int64),
        ("slo_met", np.int64),
        ("rejected", np.int64),
        ("preempted", np.int64),
        ("recomputed", np.int64),
        ("stalled_instance", np.int64),  # NONE, or where no progress was made
    ],
    align=True,
)

EXTENT = np.dtype(  # see `fleetgym.envs.cluster.kernel.extents`; 0 is "none" in every link
    [
        ("segment", np.int32),  # what it holds: blocks first, first + 1, ... of this segment
        ("first", np.int32),
        ("count", np.int32),
        ("references", np.int32),  # requests that hold it
        ("before", np.int32),  # the extent with the blocks before, for all that hold it (see `CHAIN`)
        ("older", np.int32),  # extents of one segment by age; the oldest one's is the youngest
        ("younger", np.int32),
        ("free_previous", np.int32),  # ring of those that nobody references, the next to be evicted first
        ("free_next", np.int32),
    ],
    align=True,
)

CHAIN = np.dtype(
    [
        ("links", np.int64),  # first of its segments in `State.links`
        ("table", np.int64),  # its first entry of `State.table`, and how many it has
        ("table_count", np.int32),
        ("link_count", np.int32),
        ("own", np.int32),  # number of the segment that is the request's alone: what lies past its chain
        ("cached", np.int32),  # tokens hit by the first admission
        # while it runs
        ("registered", np.int32),  # leading blocks that are registered
        ("last", np.int32),  # extent that holds the last one of them
        ("link", np.int32),  # segment of its next block, counted from `links`, and the place at which this begins
        ("begin", np.int32),
        ("next_member", np.int32),  # the next request in DECODE of its class (see `State.members`)
        ("mixed", np.int32),  # whether `State.table` says where its extents are not those that `before` leads to
    ],
    align=True,
)


class State(NamedTuple):
    """All clusters of an engine: B clusters, N instances, S distinct specs, R requests at most.

    An instance is a row of U >= N: the first N are the endpoints, the others the ranks of data-parallel groups
    (``first_rank``), whose endpoint rows hold sums and the common flight. Without groups U = N.

    The arrays from ``extents`` on have length 1 along their last axis without prefix caching.
    """

    req: Array  # (B, R) REQUEST
    inst: Array  # (B, U) INSTANCE
    env: Array  # (B,) CLUSTER
    classes: Array  # (B, U, block size) int32: lock-step decodes by the clock, modulo block size, of their next block
    heap: Array  # (B, U, max_num_seqs) int64: finish clock << INDEX_BITS | request
    gaps: Array  # (B, GAP_BINS) uint32
    spec: Array  # (S,) SPEC
    tables: Array  # (2 or 4, S, tokens) float64: decode_s, mixed_s; with groups also moe_s, padded tokens
    obs: Array  # as in Engine, down to done
    mask: Array
    terms: Array
    now_ns: Array
    pending: Array
    done: Array
    columns: Array  # (F,) int64 indices into SIGNALS
    high: Array  # (F,) float64
    slo: Array  # (3,) float64: ttft_s, ttft_s_per_1k_prompt_tokens, tpot_s
    values: Array  # (signals,) float64: scratch
    journal: Array  # (B, entries) int64: [length, kind, request, tokens, ...]; nothing is written to length 1
    extents: Array  # (B, U, blocks) EXTENT, one of them the anchor
    copies: Array  # (B, U, segments + R) int32: oldest extent of each segment
    members: Array  # (B, U, block size) int32: 1 + the last request of each class; `next_member` closes a ring
    chain: Array  # (B, R) CHAIN
    table: Array  # (B, blocks of all requests) int32: of each request, by block: the extent before, where not `before`
    links: Array  # (B, entries) LINK_DTYPE: segments of all chains


class Unit(NamedTuple):
    """What the scheduler of one instance works on: records and rows of `State`."""

    inst: Any
    env: Any
    spec: Any
    req: Array
    classes: Array
    heap: Array
    gaps: Array
    decode_s: Array
    mixed_s: Array
    slo: Array
    journal: Array
    extents: Array
    copies: Array
    members: Array
    chain: Array
    table: Array
    links: Array


@functools.partial(jit, inline="always")
def unit(st: State, b: int, i: int) -> Unit:
    """What the scheduler in row ``i`` of cluster ``b`` works on."""
    inst = st.inst[b, i]
    kind = inst["spec"]
    return Unit(
        inst, st.env[b], st.spec[kind], st.req[b], st.classes[b, i], st.heap[b, i], st.gaps[b], st.tables[0, kind],
        st.tables[1, kind], st.slo, st.journal[b], st.extents[b, i], st.copies[b, i], st.members[b, i],
        st.chain[b], st.table[b], st.links[b],
    )  # fmt: skip

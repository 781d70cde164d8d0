"""The kernel's state: plain structured arrays, and the bundles in which they are handed around.

Times are int64 ns, counts and tokens integers. ``-1`` is "none" in every link. A new array is one row of `State`.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster import requests
from fleetgym.envs.cluster.kernel.jit import jit_text
from fleetgym.envs.cluster.kernel.spec_row import SPEC
from fleetgym.envs.cluster.segments import LINK_DTYPE

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
FINISHED = 6
REJECTED = 7

# What an iteration in flight will return to a request, bits of `link`.
TOKEN = 1  # a token that is accounted for one by one
FINISH = 2  # its last token

STATUS = np.array([requests.UNFINISHED] * FINISHED + [requests.FINISHED, requests.REJECTED])  # of results, by state

REQUEST = np.dtype(
    [
        ("arrival_ns", np.int64),
        ("scheduled_ns", np.int64),
        ("first_token_ns", np.int64),
        ("last_token_ns", np.int64),  # or IN_STEP; kept up to date only out of lock step; the finish time once FINISHED
        ("prompt_tokens", np.int32),
        ("output_tokens", np.int32),
        ("priority", np.int32),
        ("sampled_tokens", np.int32),  # returned ones and placeholders; less the instance's clock in DECODE
        ("previous", np.int32),  # neighbours in the running list or in the waiting queue
        ("next", np.int32),
        ("link", np.int32, 2),  # per iteration in flight: (next request in its list + 1) << 2 | bits
        ("preemptions", np.int32),
        ("recomputed_tokens", np.int32),
        ("computed_tokens", np.int32),  # in PREFILL; in WAITING those that the latest preemption lost
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
        ("in_flight_requests", np.int64),
        ("in_flight_prompt_tokens", np.int64),
        ("awaiting_requests", np.int64),
        ("awaiting_prompt_tokens", np.int64),
        ("streamed_tokens", np.int64),
        ("last_dispatch_ns", np.int64),
        ("ttft_ewma_s", np.float64),  # negative: none yet
        ("running", np.int64),
        ("waiting", np.int64),
        ("used_blocks", np.int64),
        ("in_flight_output_tokens", np.int64),
        # time
        ("busy_until_ns", np.int64),  # end of the latest composed iteration
        ("returned_ns", np.int64),  # end of the latest returned iteration
        ("counted_ns", np.int64),  # kv_block_ns is integrated up to here
        ("due", np.int64),  # schedule() is to be called now
        # iterations in flight, oldest first: slots front, front ^ 1
        ("front", np.int64),
        ("flight", np.int64),
        ("start_ns", np.int64, 2),
        ("end_ns", np.int64, 2),  # EMPTY: no tokens, takes no time
        ("plan_decodes", np.int64, 2),
        ("bulk", np.int64, 2),  # decodes accounted together, the others are in the list
        ("plan_prefill_tokens", np.int64, 2),
        ("head", np.int64, 2),  # list of requests with something to be done at the end
        ("tail", np.int64, 2),
        # composition
        ("lockstep", np.int64),  # never with `exact_path`
        ("clock", np.int64),  # lock-step decode iterations so far
        ("lockstep_decodes", np.int64),  # requests in DECODE
        ("lockstep_context", np.int64),  # sum of their context lengths at their next token, that token included
        ("heap_size", np.int64),  # entries in the heap of finish clocks
        ("plan_context", np.int64),  # K and 2 A of the iteration being composed
        ("plan_pairs_x2", np.int64),
        ("partial", np.int64),  # the request in PREFILL, or NONE; with `exact_path` there may be others
        ("run_head", np.int64),
        ("run_tail", np.int64),
        ("wait_head", np.int64),
        ("wait_tail", np.int64),
        ("blocked", np.int64),  # the head of the queue has to wait until a request finishes
        ("stalled_iterations", np.int64),  # composed since the last token was returned or the last request arrived
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
        ("published_tick", np.int64),  # of the endpoint: period of the balancer in which loads were refreshed
        ("published_load", np.int64),  # of a rank: what the balancer believes
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
        ("recomputed_tokens", np.int64),
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
        ("cached_tokens", np.int32),  # tokens hit by the first admission
        # while it runs
        ("registered_blocks", np.int32),  # leading blocks that are registered
        ("last", np.int32),  # extent that holds the last one of them
        ("link", np.int32),  # segment of its next block, counted from `links`, and the place at which this begins
        ("begin", np.int32),
        ("next_member", np.int32),  # the next request in DECODE of its phase (see `State.members`)
        ("mixed", np.int32),  # whether `State.table` says where its extents are not those that `before` leads to
    ],
    align=True,
)


class Layout(NamedTuple):
    """How an array of the state is laid out; everything else follows: allocation, growth, snapshots, opening, `unit`.

    Attributes
    ----------
    dtype : numpy.dtype or scalar type
    axes : tuple of str
        What each axis counts, as `State` lists it.
    unit : bool
        Whether the scheduler of an instance works on it: the array's part for the instance is in `Unit`.
    """

    dtype: Any
    axes: tuple[str, ...]
    unit: bool = False

    @property
    def part(self) -> str:
        """Text of the index that takes an instance's part of the array."""
        first, *others = self.axes
        return {"B": "[b, i]" if others[:1] == ["U"] else "[b]", "S": "[kind]"}.get(first, "")


class State(NamedTuple):
    """All arrays of an engine.

    ====================  =============================================================================================
    ``B``, ``N``          clusters, and instances of each
    ``U``                 rows of instances, U >= N: the first N are the endpoints, the others the ranks of data-parallel
                          groups (``first_rank``), whose endpoint rows hold sums and the common flight
    ``S``                 distinct specs
    ``F``                 observed signals
    ``requests`` ...      `GROWING`: as long as the longest trace so far needs
    ``cached_*``          1 without prefix caching
    ``group_*``           1 without data-parallel groups
    ====================  =============================================================================================
    """

    req: Annotated[Any, Layout(REQUEST, ("B", "requests"), unit=True)]
    inst: Annotated[Any, Layout(INSTANCE, ("B", "U"), unit=True)]
    cluster: Annotated[Any, Layout(CLUSTER, ("B",), unit=True)]
    # lock-step decodes by their phase (see `lockstep`)
    phases: Annotated[Any, Layout(np.int32, ("B", "U", "block_size"), unit=True)]
    # finish clock << INDEX_BITS | request
    heap: Annotated[Any, Layout(np.int64, ("B", "U", "heap_entries"), unit=True)]
    gaps: Annotated[Any, Layout(np.uint32, ("B", "gap_bins"), unit=True)]
    spec: Annotated[Any, Layout(SPEC, ("S",), unit=True)]
    decode_s: Annotated[Any, Layout(np.float64, ("S", "tokens"), unit=True)]  # as in `LatencyTables`
    mixed_s: Annotated[Any, Layout(np.float64, ("S", "tokens"), unit=True)]
    moe_s: Annotated[Any, Layout(np.float64, ("S", "group_tokens"))]
    padded_tokens: Annotated[Any, Layout(np.int64, ("S", "group_rank_tokens"))]
    obs: Annotated[Any, Layout(np.float32, ("B", "N", "F"))]  # as in `Engine`, down to done
    mask: Annotated[Any, Layout(np.bool_, ("B", "N"))]
    terms: Annotated[Any, Layout(np.float64, ("B", "terms"))]
    now_ns: Annotated[Any, Layout(np.int64, ("B",))]
    pending: Annotated[Any, Layout(np.int64, ("B",))]
    done: Annotated[Any, Layout(np.bool_, ("B",))]
    columns: Annotated[Any, Layout(np.int64, ("F",))]  # places in SIGNALS
    high: Annotated[Any, Layout(np.float64, ("F",))]
    slo: Annotated[Any, Layout(np.float64, ("limits",), unit=True)]  # `Slo.limits`
    signals: Annotated[Any, Layout(np.float64, ("signals",))]  # scratch
    # [length, kind, request, tokens, ...]; nothing is written to length 1
    journal: Annotated[Any, Layout(np.int64, ("B", "journal_entries"), unit=True)]
    # one of them the anchor
    extents: Annotated[Any, Layout(EXTENT, ("B", "U", "cached_blocks"), unit=True)]
    # oldest extent of each segment
    copies: Annotated[Any, Layout(np.int32, ("B", "U", "cached_segments"), unit=True)]
    # 1 + the last request of each phase; `next_member` closes a ring
    members: Annotated[Any, Layout(np.int32, ("B", "U", "cached_block_size"), unit=True)]
    chain: Annotated[Any, Layout(CHAIN, ("B", "cached_requests"), unit=True)]
    # of each request, by block: the extent before, where that is not its `before`
    table: Annotated[Any, Layout(np.int32, ("B", "cached_entries"), unit=True)]
    # segments of all chains
    links: Annotated[Any, Layout(LINK_DTYPE, ("B", "cached_links"), unit=True)]


GROWING = ("requests", "cached_requests", "cached_segments", "cached_entries", "cached_links")
LAYOUTS: dict[str, Layout] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(State, include_extras=True).items()
}
UNIT = tuple(name for name, layout in LAYOUTS.items() if layout.unit)

if TYPE_CHECKING:
    Unit = State
else:
    Unit = namedtuple("Unit", UNIT)  # what the scheduler of one instance works on

_PARTS = ", ".join(f"st.{name}{LAYOUTS[name].part}" for name in UNIT)
unit = jit_text(
    f"""def unit(st, b, i):
    "What the scheduler in row ``i`` of cluster ``b`` works on."
    kind = st.inst[b, i]["spec"]
    return Unit({_PARTS})""",
    {"Unit": Unit},
    inline="always",
)

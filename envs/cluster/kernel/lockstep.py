"""Decoding in lock step.

As long as every decode gets its token in every iteration, the instance's *clock* (the number of such iterations)
says it all: a request that has sampled s tokens at clock d stores s - d and finishes at clock d + output - s; it
needs a new KV block whenever its *phase*, prompt + stored - 1, plus the clock is a multiple of the block size. A heap
of finish clocks, a histogram of the phases and the sum of the contexts then make an iteration O(1) instead of
O(batch).

A request falls out of lock step (`loosen`) when blocks or budget run short, and comes back (`relock`) as soon as one
iteration has served all. Meanwhile a decode that has got a token from two iterations on end is *in step*: its tokens
are returned in one sum with those of others until an iteration passes it over (`fall_out`).
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import register_up_to
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.lists import heap_pop, heap_push, note
from fleetgym.envs.cluster.kernel.spec_row import PRIORITY
from fleetgym.envs.cluster.kernel.state import DECODE, EMPTY, FINISH, LAST, LOOSE, NONE, TOKEN, Unit

INDEX_BITS = 28
INDEX_MASK = (1 << INDEX_BITS) - 1


@jit
def block_phase(u: Unit, r: int) -> Any:
    """Phase of a request in DECODE: it needs a block when phase + clock is a multiple of the block size."""
    return (u.req[r]["prompt_tokens"] + u.req[r]["sampled_tokens"] - 1) % u.spec["block_size"]


@jit
def phase_at(u: Unit, clock: int) -> Any:
    """The phase that needs a block in the iteration after ``clock``."""
    return -clock % u.spec["block_size"]


@jit
def add_member(u: Unit, r: int) -> None:
    """List a request that enters lock step behind the others of its phase: their order is that of the running list.

    Listed are those whose next block is of their chain, so that others may hit it once it is registered. Blocks that
    are a request's own can be registered at any time before it is released.
    """
    phase = block_phase(u, r)
    last = u.members[phase] - 1
    if last < 0:
        u.chain[r]["next_member"] = r
    else:
        u.chain[r]["next_member"] = u.chain[last]["next_member"]
        u.chain[last]["next_member"] = r
    u.members[phase] = r + 1


@jit
def remove_member(u: Unit, r: int) -> None:
    """Take a request out of the list of its phase."""
    phase = block_phase(u, r)
    before = u.members[phase] - 1
    while u.chain[before]["next_member"] != r:
        before = u.chain[before]["next_member"]
    u.chain[before]["next_member"] = u.chain[r]["next_member"]
    if u.members[phase] == r + 1:
        u.members[phase] = 0 if before == r else before + 1


@jit
def enter(u: Unit, r: int) -> None:
    """Bring a running request with ``sampled`` tokens, not its last, into lock step."""
    inst, row = u.inst, u.req[r]
    inst["lockstep_context"] += row["prompt_tokens"] + row["sampled_tokens"]
    row["sampled_tokens"] -= inst["clock"]
    row["state"] = DECODE
    u.phases[block_phase(u, r)] += 1
    if u.spec["enable_prefix_caching"]:
        u.chain[r]["next_member"] = NONE
        if u.chain[r]["link"] < u.chain[r]["link_count"]:
            add_member(u, r)
    finish_clock = int(row["output_tokens"]) - int(row["sampled_tokens"])
    heap_push(u.heap, inst["heap_size"], (finish_clock << INDEX_BITS) | int(r))
    inst["heap_size"] += 1
    inst["lockstep_decodes"] += 1


@jit
def retire(u: Unit, slot: int) -> None:
    """Take the decodes that sample their last token at the current clock out of lock step, into the slot's list."""
    inst = u.inst
    clock = inst["clock"]
    size = inst["heap_size"]
    count = 0
    while size > 0 and u.heap[0] >> INDEX_BITS == clock:
        r = heap_pop(u.heap, size) & INDEX_MASK
        size -= 1
        count += 1
        row = u.req[r]
        u.phases[block_phase(u, r)] -= 1
        if u.spec["enable_prefix_caching"] and u.chain[r]["next_member"] != NONE:
            remove_member(u, r)
        row["sampled_tokens"] = row["output_tokens"]
        row["state"] = LAST
        # The aggregate already counts the token after this one.
        inst["lockstep_context"] -= row["prompt_tokens"] + row["output_tokens"]
        note(u, slot, r, FINISH)
    inst["heap_size"] = size
    inst["lockstep_decodes"] -= count
    if count > 1 and u.spec["scheduling_policy"] == PRIORITY:
        sort_by_admission(u, slot)


@jit
def sort_by_admission(u: Unit, slot: int) -> None:
    """Bring the slot's list into the order of the running list (under fcfs the heap does it by itself)."""
    inst, req = u.inst, u.req
    inst["head"][slot] = NONE
    inst["tail"][slot] = NONE
    r = inst["run_head"]
    while r >= 0:
        bits = req[r]["link"][slot] & 3
        if bits:
            note(u, slot, r, bits)
        r = req[r]["next"]


@jit
def tokens_in_flight(u: Unit) -> bool:
    """Whether an iteration with tokens is in flight (while another is composed)."""
    inst = u.inst
    return inst["flight"] > 0 and inst["end_ns"][inst["front"]] != EMPTY


@jit
def loosen(u: Unit) -> None:
    """Take all decodes out of lock step: each keeps its own counts and the time of its last returned token."""
    inst, req = u.inst, u.req
    front = inst["front"]
    bulk = tokens_in_flight(u)
    r = inst["run_head"]
    while r >= 0:
        row = req[r]
        if row["state"] == DECODE:
            u.phases[block_phase(u, r)] = 0
            if u.spec["enable_prefix_caching"]:
                u.members[block_phase(u, r)] = 0
                register_up_to(u, r, row["prompt_tokens"] + row["sampled_tokens"] + inst["clock"] - 1 - bulk)
            row["sampled_tokens"] += inst["clock"]
            row["state"] = LOOSE
            if not (bulk and row["link"][front] & TOKEN):
                fall_out(u, r)
        r = row["next"]
    inst["lockstep_decodes"] = 0
    inst["lockstep_context"] = 0
    inst["heap_size"] = 0
    inst["lockstep"] = 0


@jit
def fall_out(u: Unit, r: int) -> None:
    """Return the tokens of a decode on its own again, one in flight included; so far they were part of the sum."""
    inst, row = u.inst, u.req[r]
    front = inst["front"]
    row["last_token_ns"] = inst["returned_ns"]
    if tokens_in_flight(u) and not row["link"][front] & TOKEN:
        note(u, front, r, TOKEN)
        inst["bulk"][front] -= 1


@jit
def relock(u: Unit) -> None:
    """Bring all decodes back into lock step, after an iteration that had a token for each."""
    r = u.inst["run_head"]
    while r >= 0:
        if u.req[r]["state"] == LOOSE:
            enter(u, r)
        r = u.req[r]["next"]
    u.inst["lockstep"] = 1

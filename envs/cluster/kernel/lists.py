"""Linked lists of requests, lists of an iteration in flight, the heap of finish clocks."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.spec_row import PRIORITY
from fleetgym.envs.cluster.kernel.state import NONE, Array, Unit


@jit
def running_append(u: Unit, r: int) -> None:
    """Put ``r`` at the end of the running list."""
    inst, req = u.inst, u.req
    tail = inst["run_tail"]
    req[r]["previous"] = tail
    req[r]["next"] = NONE
    if tail >= 0:
        req[tail]["next"] = r
    else:
        inst["run_head"] = r
    inst["run_tail"] = r
    inst["running"] += 1


@jit
def running_remove(u: Unit, r: int) -> None:
    """Take ``r`` out of the running list."""
    inst, req = u.inst, u.req
    before, after = req[r]["previous"], req[r]["next"]
    if before >= 0:
        req[before]["next"] = after
    else:
        inst["run_head"] = after
    if after >= 0:
        req[after]["previous"] = before
    else:
        inst["run_tail"] = before
    inst["running"] -= 1


@jit
def waiting_remove(u: Unit, r: int) -> None:
    """Take ``r`` out of the waiting queue."""
    inst, req = u.inst, u.req
    before, after = req[r]["previous"], req[r]["next"]
    if before >= 0:
        req[before]["next"] = after
    else:
        inst["wait_head"] = after
    if after >= 0:
        req[after]["previous"] = before
    else:
        inst["wait_tail"] = before
    inst["waiting"] -= 1


@jit
def waiting_insert_after(u: Unit, r: int, before: int) -> None:
    """Put ``r`` behind ``before`` in the waiting queue; behind NONE is its front."""
    inst, req = u.inst, u.req
    after = req[before]["next"] if before >= 0 else inst["wait_head"]
    req[r]["previous"] = before
    req[r]["next"] = after
    if before >= 0:
        req[before]["next"] = r
    else:
        inst["wait_head"] = r
    if after >= 0:
        req[after]["previous"] = r
    else:
        inst["wait_tail"] = r
    inst["waiting"] += 1


@jit
def goes_before(req: Array, a: int, b: int) -> bool:
    """Whether ``a`` precedes ``b`` in the queue of the priority policy."""
    if req[a]["priority"] != req[b]["priority"]:
        return bool(req[a]["priority"] < req[b]["priority"])
    if req[a]["arrival_ns"] != req[b]["arrival_ns"]:
        return bool(req[a]["arrival_ns"] < req[b]["arrival_ns"])
    return a < b


@jit
def enqueue(u: Unit, r: int, preempted: bool) -> None:
    """Queue ``r``: by `goes_before` with the priority policy, else at the end, a preempted one at the front."""
    inst = u.inst
    before = inst["wait_tail"]
    if u.spec["scheduling_policy"] == PRIORITY:
        while before >= 0 and goes_before(u.req, r, before):
            before = u.req[before]["previous"]
        inst["blocked"] = 0
    elif preempted:
        before = NONE
    waiting_insert_after(u, r, before)


@jit
def note(u: Unit, slot: int, r: int, bits: int) -> None:
    """Append ``r`` to the list of what the iteration in ``slot`` returns."""
    inst, req = u.inst, u.req
    tail = inst["tail"][slot]
    req[r]["link"][slot] = bits
    if tail >= 0:
        req[tail]["link"][slot] |= (r + 1) << 2
    else:
        inst["head"][slot] = r
    inst["tail"][slot] = r


@jit
def heap_push(heap: Array, size: int, key: int) -> None:
    """Add ``key`` to a heap of ``size`` entries."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= key:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = key


@jit
def heap_pop(heap: Array, size: int) -> Any:
    """Remove and return the smallest of ``size`` entries."""
    top = heap[0]
    size -= 1
    key = heap[size]
    place = 0
    child = 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    heap[place] = key
    return top

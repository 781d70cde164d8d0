"""Driving one instance through time: ``depth`` iterations in flight, as `fleetgym.envs.cluster.instance` does it."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.compose import register_decodes
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import enqueue
from fleetgym.envs.cluster.kernel.lockstep import INDEX_BITS, phase_at, retire
from fleetgym.envs.cluster.kernel.request_counts import count_blocks
from fleetgym.envs.cluster.kernel.schedule import schedule
from fleetgym.envs.cluster.kernel.state import EMPTY, NEVER, NONE, WAITING, Unit
from fleetgym.envs.cluster.kernel.update import gap_bin, update


@large
def advance(u: Unit, until: int) -> None:
    """Let everything happen at the instance that happens up to ``until``, that instant included."""
    inst, depth = u.inst, u.spec["depth"]
    while True:
        if inst["due"]:
            inst["due"] = 0
            preempted = schedule(u, inst["counted_ns"])
            slot = inst["front"] ^ (inst["flight"] & 1)
            inst["flight"] += 1
            if inst["end_ns"][slot] == EMPTY and inst["end_ns"][inst["front"]] == EMPTY and not preempted:
                inst["flight"] = 0  # blocked: only an arrival can change anything
            elif inst["stalled_iterations"] > u.spec["stall_limit_iterations"]:
                return
            elif inst["flight"] < depth:
                inst["due"] = 1
                continue
        if inst["flight"] == 0:
            inst["next_ns"] = NEVER
            inst["stalled_iterations"] = 0
            return
        end = inst["end_ns"][inst["front"]]
        if end != EMPTY:
            inst["next_ns"] = end
            if end > until:
                return
            if cruise(u, until) > 0:
                continue
        update(u)
        inst["due"] = inst["running"] + inst["waiting"] > 0


@jit
def queue(u: Unit, r: int) -> None:
    """Put a request that arrives into the waiting queue."""
    u.req[r]["state"] = WAITING
    if u.inst["waiting"] == 0:
        u.inst["blocked"] = 0
    enqueue(u, r, False)


@jit
def wake(u: Unit, now: int) -> None:
    """Let an instance that has received a request schedule at once, if it sleeps."""
    inst = u.inst
    if inst["next_ns"] == NEVER:
        count_blocks(u, now)
        inst["due"] = 1
        advance(u, now)


@jit
def is_plain(u: Unit, slot: int) -> bool:
    """Whether an iteration in flight returns one token to each of its requests, all in lock step, and ends none."""
    inst = u.inst
    plain = inst["head"][slot] == NONE and inst["plan_prefill_tokens"][slot] == 0 and inst["end_ns"][slot] != EMPTY
    return bool(plain and inst["bulk"][slot] == inst["plan_decodes"][slot])


@jit
def cruise(u: Unit, until: int) -> Any:
    """Return and compose pure-decode iterations in a tight loop, as long as nothing else happens; return how many.

    It does what `update` and `schedule` would do, on local variables. Measured with it over without it: 2.8, 1.9 and 1.4
    times the simulated requests/s at 30, 50 and 70 % load, 1.26 and 1.17 times the environment steps/s at B = 64 and 256.
    """
    inst, spec = u.inst, u.spec
    n = inst["lockstep_decodes"]
    idle_queue = inst["waiting"] == 0 or inst["blocked"]
    if not (inst["lockstep"] and idle_queue and inst["partial"] < 0 and 0 < n <= spec["max_num_scheduled_tokens"]):
        return 0
    front, depth = inst["front"], spec["depth"]
    back = front ^ (depth - 1)
    plain0, plain1 = is_plain(u, front), is_plain(u, back)
    if not plain0 or inst["flight"] < depth:
        return 0
    start0, end0, n0 = inst["start_ns"][front], inst["end_ns"][front], inst["bulk"][front]
    start1, end1, n1 = inst["start_ns"][back], inst["end_ns"][back], inst["bulk"][back]
    if end1 == EMPTY:
        return 0
    size, caching, kd = spec["block_size"], spec["enable_prefix_caching"], spec["kd"]
    # What running requests register may be a hit of the queue's head, which then fits before anybody finishes.
    waiting = inst["waiting"] > 0
    free = spec["usable_blocks"] - inst["used_blocks"]
    used, counted, kv_block_ns = inst["used_blocks"], inst["counted_ns"], inst["kv_block_ns"]
    returned, busy_ns, tokens = inst["returned_ns"], 0, 0
    clock, context = inst["clock"], inst["lockstep_context"]
    place = phase_at(u, clock)
    next_retire = u.heap[0] >> INDEX_BITS
    low = high = bin_tokens = bin_index = 0
    loops = 0
    base_s = u.decode_s[n]
    while end0 <= until and plain0:
        needed = u.phases[place]
        if needed > free:
            break
        following = place - 1 if place > 0 else size - 1
        registers = caching and u.members[following if depth == 1 else place] > 0
        if registers and waiting:
            break
        # the oldest iteration returns
        gap = end0 - returned
        if gap < low or gap >= high:
            u.gaps[bin_index] += bin_tokens
            bin_index = gap_bin(gap)
            shift = max(0, (bin_index >> 6) - 1)
            low = (gap >> shift) << shift
            high = low + (1 << shift)
            bin_tokens = 0
        bin_tokens += n0
        tokens += n0
        busy_ns += end0 - start0
        returned = end0
        kv_block_ns += used * (end0 - counted)
        counted = end0
        # the next one is composed
        if registers:
            inst["used_blocks"] = used + needed
            register_decodes(u, place, following, clock, depth == 2)
        used += needed
        free -= needed
        begin = max(end0, end1)
        end = begin + max(1, int((base_s + kd * context) * 1e9 + 0.5))
        composed, plain = n, True
        clock += 1
        context += n
        place = following
        if next_retire == clock:
            plain = False
            inst["clock"], inst["lockstep_context"] = clock, context
            inst["head"][front] = inst["tail"][front] = NONE
            retire(u, front)
            n, context = inst["lockstep_decodes"], inst["lockstep_context"]
            base_s = u.decode_s[n]
            next_retire = u.heap[0] >> INDEX_BITS
        loops += 1
        if depth == 2:
            start0, end0, n0, plain0 = start1, end1, n1, plain1
            front ^= 1
        else:
            start0, end0, n0, plain0 = begin, end, composed, plain
        start1, end1, n1, plain1 = begin, end, composed, plain
        if n == 0:
            break
    if loops == 0:
        return 0
    u.gaps[bin_index] += bin_tokens
    inst["clock"], inst["lockstep_context"] = clock, context
    inst["used_blocks"], inst["counted_ns"], inst["kv_block_ns"] = used, counted, kv_block_ns
    inst["peak_kv_blocks"] = max(inst["peak_kv_blocks"], used)
    inst["returned_ns"], inst["busy_until_ns"] = returned, end1
    inst["busy_ns"] += busy_ns
    inst["iterations"] += loops
    inst["decode_tokens"] += tokens
    inst["streamed_tokens"] += tokens
    inst["stalled_iterations"] = 1
    inst["front"] = front
    back = front ^ (depth - 1)
    write_slot(u, back, start1, end1, n1, plain1)
    if loops > 1:
        write_slot(u, front, start0, end0, n0, plain0)
    return loops


@jit
def write_slot(u: Unit, slot: int, start: int, end: int, n: int, plain: bool) -> None:
    """Store an iteration composed by `cruise`."""
    inst = u.inst
    inst["start_ns"][slot], inst["end_ns"][slot] = start, end
    inst["plan_decodes"][slot] = inst["bulk"][slot] = n
    inst["plan_prefill_tokens"][slot] = 0
    if plain:
        inst["head"][slot] = inst["tail"][slot] = NONE

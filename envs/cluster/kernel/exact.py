"""Serving the running requests one by one: when blocks or budget run short."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import blocks_for
from fleetgym.envs.cluster.kernel.compose import prefill, sample
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import enqueue, running_remove
from fleetgym.envs.cluster.kernel.lockstep import loosen, relock
from fleetgym.envs.cluster.kernel.spec_row import PRIORITY
from fleetgym.envs.cluster.kernel.state import LAST, LOOSE, NONE, PREFILL, TOKEN, WAITING, Unit
from fleetgym.envs.cluster.kernel.tokens import PREEMPTED, computed_tokens, give_blocks, known_tokens, log, take_blocks


@large
def schedule_exact(u: Unit, slot: int, largest: int) -> tuple[int, bool]:
    """Serve the running requests one by one, each with ``largest`` tokens at most.

    Returns the budget left, and whether anyone was preempted. While it walks, ``link[slot] >> 2`` holds the tokens that a request was given in this iteration.
    """
    inst, req = u.inst, u.req
    if inst["lockstep"]:
        loosen(u)
    budget = u.spec["max_num_scheduled_tokens"]
    preempted = False
    r = inst["run_head"]
    while r >= 0 and budget > 0:
        if req[r]["state"] != LAST:
            past = computed_tokens(u, r)
            tokens = min(known_tokens(u, r) - past, largest, budget)
            size = u.spec["block_size"]
            needed = blocks_for(past + tokens, size) - blocks_for(past, size)
            while needed > u.spec["usable"] - inst["used"]:
                victim = choose_victim(u)
                preempted = True
                budget += preempt(u, slot, victim)
                if victim == r:
                    break
            if req[r]["state"] == WAITING:
                break
            in_flight = req[r]["link"][slot ^ 1] & TOKEN
            take_blocks(u, r, past, past + tokens, known_tokens(u, r) - in_flight)
            req[r]["link"][slot] = tokens << 2
            budget -= tokens
        r = req[r]["next"]
    commit(u, slot)
    return budget, preempted


@jit
def commit(u: Unit, slot: int) -> None:
    """Turn the tokens given by `schedule_exact` into the iteration; back to lock step if it serves all decodes."""
    inst, req = u.inst, u.req
    complete = True
    r = inst["run_head"]
    while r >= 0:
        tokens = req[r]["link"][slot] >> 2
        req[r]["link"][slot] = 0
        if tokens > 0 and req[r]["state"] == PREFILL:
            prefill(u, slot, r, tokens)
        elif tokens > 0:
            inst["decodes"][slot] += 1
            inst["step_context"] += known_tokens(u, r)
            sample(u, slot, r)
        elif req[r]["state"] == LOOSE:
            complete = False
        r = req[r]["next"]
    if complete and not u.spec["exact_path"]:
        relock(u)


@jit
def choose_victim(u: Unit) -> Any:
    """Whom to preempt: the latest admitted, or the least important by (priority, arrival), the first of equals."""
    req = u.req
    if u.spec["scheduling_policy"] != PRIORITY:
        return u.inst["run_tail"]
    best = r = u.inst["run_head"]
    while r >= 0:
        least, row = req[best], req[r]
        if row["priority"] > least["priority"] or (
            row["priority"] == least["priority"] and row["arrival_ns"] > least["arrival_ns"]
        ):
            best = r
        r = row["next"]
    return best


@jit
def preempt(u: Unit, slot: int, r: int) -> Any:
    """Send a running request back to the queue, to be recomputed; return the tokens it had in this iteration."""
    inst, row = u.inst, u.req[r]
    computed = computed_tokens(u, r)
    given = row["link"][slot] >> 2
    row["link"][slot] = 0
    give_blocks(u, r, computed + given)
    log(u, PREEMPTED, r, computed)
    if inst["partial"] == r:
        inst["partial"] = NONE
    running_remove(u, r)
    row["state"] = WAITING
    row["computed"] = computed
    row["preemptions"] += 1
    inst["preemptions"] += 1
    u.env["preempted"] += 1
    inst["blocked"] = 0
    enqueue(u, r, True)
    return given

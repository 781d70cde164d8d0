"""Serving the running requests one by one: when blocks or budget run short."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import more_blocks
from fleetgym.envs.cluster.kernel.compose import prefill, sample
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import enqueue, running_remove
from fleetgym.envs.cluster.kernel.lockstep import fall_out, loosen, relock
from fleetgym.envs.cluster.kernel.request_counts import (
    PREEMPTED,
    computed_tokens,
    give_blocks,
    log,
    take_blocks,
    tokens_with_placeholders,
)
from fleetgym.envs.cluster.kernel.spec_row import PRIORITY
from fleetgym.envs.cluster.kernel.state import IN_STEP, LAST, LOOSE, NONE, PREFILL, TOKEN, WAITING, Unit


@large
def schedule_running(u: Unit, slot: int, largest: int) -> tuple[int, bool]:
    """Serve the running requests one by one, each with ``largest`` tokens at most; a rule gives some of them fewer.

    Returns the budget left, and whether anyone was preempted. Tokens count in the iteration as they are given, unless
    a victim may have some already: then ``link[slot] >> 2`` holds them until the walk is over.
    """
    inst, req = u.inst, u.req
    if inst["lockstep"]:
        loosen(u)
    budget, size = u.spec["max_num_scheduled_tokens"], u.spec["block_size"]
    at_once = u.spec["scheduling_policy"] != PRIORITY  # no victim comes before the request that needs its blocks
    preempted = False
    complete = True
    behind = NONE
    r = inst["run_head"]
    while r >= 0:
        known, past = tokens_with_placeholders(u, r), computed_tokens(u, r)
        tokens = 0 if req[r]["state"] == LAST else min(known - past, largest, budget)
        needed = more_blocks(past, past + tokens, size)
        while needed > u.spec["usable_blocks"] - inst["used_blocks"]:
            victim, behind = choose_victim(u), req[r]["next"]
            preempted = True
            budget += preempt(u, slot, victim)
            if victim == r:
                budget = tokens = 0  # requests behind it get nothing
                break
        if tokens > 0:
            in_flight = req[r]["link"][slot ^ 1] & TOKEN
            take_blocks(u, r, needed, past + tokens, known - in_flight)
            if at_once:
                serve(u, slot, r, tokens)
            else:
                req[r]["link"][slot] = tokens << 2
            budget -= tokens
        elif req[r]["state"] == LOOSE:
            pass_over(u, r)
            complete = False
        r = behind if req[r]["state"] == WAITING else req[r]["next"]
    if not at_once:
        serve_all(u, slot)
    if complete and not u.spec["exact_path"]:
        relock(u)
    return budget, preempted


@jit
def pass_over(u: Unit, r: int) -> None:
    """Let a decode go without a token in this iteration."""
    if u.req[r]["last_token_ns"] == IN_STEP:
        fall_out(u, r)


@jit
def serve(u: Unit, slot: int, r: int, tokens: int) -> None:
    """Count tokens given to a running request in the iteration; with a decode's comes the next one."""
    if u.req[r]["state"] == PREFILL:
        prefill(u, slot, r, tokens)
    else:
        u.inst["plan_decodes"][slot] += 1
        u.inst["plan_context"] += tokens_with_placeholders(u, r)
        sample(u, slot, r)


@jit
def serve_all(u: Unit, slot: int) -> None:
    """Count what `schedule_running` has given to those that still run."""
    req = u.req
    r = u.inst["run_head"]
    while r >= 0:
        tokens = req[r]["link"][slot] >> 2
        req[r]["link"][slot] = 0
        if tokens > 0:
            serve(u, slot, r, tokens)
        r = req[r]["next"]


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
    if row["state"] == LOOSE:
        pass_over(u, r)
    given = row["link"][slot] >> 2
    row["link"][slot] = 0
    give_blocks(u, r, computed + given)
    log(u, PREEMPTED, r, computed)
    if inst["partial"] == r:
        inst["partial"] = NONE
    running_remove(u, r)
    row["state"] = WAITING
    row["computed_tokens"] = computed
    row["preemptions"] += 1
    inst["preemptions"] += 1
    u.cluster["preempted"] += 1
    inst["blocked"] = 0
    enqueue(u, r, True)
    return given

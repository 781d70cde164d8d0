"""What goes into an iteration: decodes in lock step, chunks of prefill, sampled tokens."""

from __future__ import annotations

from fleetgym.envs.cluster.kernel.blocks import register_up_to
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import note
from fleetgym.envs.cluster.kernel.lockstep import block_phase, enter, phase_at, retire, tokens_in_flight
from fleetgym.envs.cluster.kernel.request_counts import tokens_with_placeholders
from fleetgym.envs.cluster.kernel.state import DECODE, FINISH, IN_STEP, LAST, LOOSE, NONE, PREFILL, TOKEN, Unit


@jit
def decode_all(u: Unit, slot: int) -> None:
    """One token for each request in DECODE; enough blocks are free."""
    inst = u.inst
    clock = inst["clock"]
    begins = phase_at(u, clock)
    inst["used_blocks"] += u.phases[begins]
    if u.spec["enable_prefix_caching"]:
        register_decodes(u, begins, phase_at(u, clock + 1), clock, tokens_in_flight(u))
    inst["plan_decodes"][slot] = inst["lockstep_decodes"]
    inst["bulk"][slot] = inst["lockstep_decodes"]
    inst["plan_context"] = inst["lockstep_context"]
    inst["lockstep_context"] += inst["lockstep_decodes"]
    inst["clock"] += 1
    retire(u, slot)


@large
def register_decodes(u: Unit, begins: int, fills: int, clock: int, in_flight: bool) -> None:
    """Register what an iteration fills, or the one before has filled, with returned tokens: two phases."""
    if in_flight:
        register_phase(u, begins, clock - 1)  # the block before
    elif u.spec["depth"] == 1:
        register_phase(u, fills, clock)
    else:
        register_both(u, begins, fills, clock)


@jit
def register_phase(u: Unit, number: int, clock: int) -> None:
    """Register full blocks of the listed members of a phase, in the order of the running list."""
    last = u.members[number] - 1
    if last < 0:
        return
    r = last
    while True:
        r = u.chain[r]["next_member"]
        register_up_to(u, r, u.req[r]["prompt_tokens"] + u.req[r]["sampled_tokens"] + clock)
        if r == last:
            return


@large
def register_both(u: Unit, begins: int, fills: int, clock: int) -> None:
    """As `register_phase` for two phases, which may register the same block: in the order of the running list."""
    r = u.inst["run_head"]
    while r >= 0:
        if u.req[r]["state"] == DECODE and (block_phase(u, r) == begins or block_phase(u, r) == fills):
            register_up_to(u, r, u.req[r]["prompt_tokens"] + u.req[r]["sampled_tokens"] + clock)
        r = u.req[r]["next"]


@jit
def prefill(u: Unit, slot: int, r: int, tokens: int) -> None:
    """Count a chunk whose blocks are taken; the one that reaches the last known token samples the next."""
    inst, row = u.inst, u.req[r]
    past = int(row["computed_tokens"])
    inst["plan_prefill_tokens"][slot] += tokens
    inst["plan_pairs_x2"] += tokens * (2 * past + tokens + 1)
    row["computed_tokens"] = past + tokens
    if past + tokens < tokens_with_placeholders(u, r):
        row["state"] = PREFILL
        inst["partial"] = r
        return
    if inst["partial"] == r:
        inst["partial"] = NONE
    row["state"] = LOOSE
    sample(u, slot, r)
    if inst["lockstep"] and row["state"] == LOOSE:
        enter(u, r)


@jit
def sample(u: Unit, slot: int, r: int) -> None:
    """Give a request out of lock step its next token, to be returned on its own unless it is in step."""
    row = u.req[r]
    bits = TOKEN
    if row["last_token_ns"] == IN_STEP:
        u.inst["bulk"][slot] += 1
        bits = 0
    row["sampled_tokens"] += 1
    if row["sampled_tokens"] == row["output_tokens"]:
        row["state"] = LAST
        bits |= FINISH
    if bits:
        note(u, slot, r, bits)

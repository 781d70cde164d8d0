"""One ``update()`` call of the kernel: an iteration returns its tokens."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.engine import EWMA_WEIGHT
from fleetgym.envs.cluster.kernel.blocks import register_up_to
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.judging import since_s, tpot_s, within_slo
from fleetgym.envs.cluster.kernel.lists import running_remove, waiting_remove
from fleetgym.envs.cluster.kernel.lockstep import tokens_in_flight
from fleetgym.envs.cluster.kernel.request_counts import computed_tokens, count_blocks, give_blocks
from fleetgym.envs.cluster.kernel.state import DECODE, EMPTY, FINISH, FINISHED, IN_STEP, LOOSE, TOKEN, WAITING, Unit


@jit
def update(u: Unit) -> None:
    """Return the tokens of the oldest iteration in flight, at its end."""
    inst, req = u.inst, u.req
    slot = inst["front"]
    end = inst["end_ns"][slot]
    inst["front"] = slot ^ (u.spec["depth"] - 1)
    inst["flight"] -= 1
    if end == EMPTY:
        return
    count_blocks(u, end)
    inst["busy_ns"] += end - inst["start_ns"][slot]
    inst["iterations"] += 1
    inst["prefill_tokens"] += inst["plan_prefill_tokens"][slot]
    inst["decode_tokens"] += inst["plan_decodes"][slot]
    in_step = returned = inst["bulk"][slot]  # in step: those that the iteration before had a token for, too
    r = inst["head"][slot]
    while r >= 0:
        link = req[r]["link"][slot]
        req[r]["link"][slot] = 0
        if u.spec["enable_prefix_caching"]:
            register_returned(u, slot, r)
        if link & TOKEN:
            in_step += give_token(u, slot, r, end)
            returned += 1
        if link & FINISH:
            finish(u, r, end)
        r = (link >> 2) - 1
    if in_step > 0:
        u.gaps[gap_bin(end - inst["returned_ns"])] += in_step
    if returned > 0:
        inst["stalled_iterations"] = 0
        inst["streamed_tokens"] += returned
    inst["returned_ns"] = end


@jit
def register_returned(u: Unit, slot: int, r: int) -> None:
    """Register the blocks of a running request whose token has come back, as far as its tokens are known."""
    row = u.req[r]
    if row["state"] == WAITING:
        return
    in_flight = row["link"][slot ^ 1] != 0
    if row["state"] == DECODE:
        in_flight = tokens_in_flight(u)
    register_up_to(u, r, computed_tokens(u, r) - in_flight)


@jit
def give_token(u: Unit, slot: int, r: int, now: int) -> bool:
    """Return one token to a request; True leaves the gap to be counted, which is that of two iterations on end."""
    inst, row = u.inst, u.req[r]
    if row["first_token_ns"] >= 0:
        last = row["last_token_ns"]
        if last == IN_STEP:
            return True
        row["last_token_ns"] = IN_STEP if goes_on(u, slot, r) else now
        if last == inst["returned_ns"]:
            return True
        u.gaps[gap_bin(now - last)] += 1
        return False
    row["first_token_ns"] = row["last_token_ns"] = now
    inst["awaiting_requests"] -= 1
    inst["awaiting_prompt_tokens"] -= row["prompt_tokens"]
    u.cluster["awaiting"] -= 1
    u.cluster["awaiting_moment"] -= now
    ttft = since_s(row["arrival_ns"], now)
    ewma = inst["ttft_ewma_s"]
    inst["ttft_ewma_s"] = ttft if ewma < 0.0 else ewma + EWMA_WEIGHT * (ttft - ewma)
    return False


@jit
def goes_on(u: Unit, slot: int, r: int) -> bool:
    """Whether a decode is in step from its returned token on; never where each may have a block to be registered."""
    if u.req[r]["state"] != LOOSE or u.spec["enable_prefix_caching"]:
        return False
    return bool(u.inst["flight"] == 0 or u.req[r]["link"][slot ^ 1] & TOKEN)


@jit
def finish(u: Unit, r: int, now: int) -> None:
    """Take a request that has all its tokens out of the instance."""
    inst, cluster, row = u.inst, u.cluster, u.req[r]
    if row["state"] == WAITING:  # preempted while its last token was in flight
        waiting_remove(u, r)
    else:
        give_blocks(u, r, computed_tokens(u, r))
        running_remove(u, r)
    inst["blocked"] = 0
    row["last_token_ns"] = now
    inst["finished"] += 1
    inst["in_flight_requests"] -= 1
    inst["in_flight_prompt_tokens"] -= row["prompt_tokens"]
    inst["in_flight_output_tokens"] -= row["output_tokens"]
    inst["streamed_tokens"] -= row["output_tokens"]
    cluster["unfinished"] -= 1
    cluster["unfinished_moment"] -= now
    cluster["finished"] += 1
    ttft = since_s(row["arrival_ns"], row["first_token_ns"])
    tpot = tpot_s(row["first_token_ns"], now, row["output_tokens"])
    cluster["slo_met"] += within_slo(ttft, tpot, row["prompt_tokens"], u.slo)
    row["state"] = FINISHED


@jit
def gap_bin(gap_ns: int) -> Any:
    """As `fleetgym.envs.cluster.engine.gap_bin`."""
    shift = 0
    for width in (32, 16, 8, 4, 2, 1):
        if gap_ns >> (shift + width) >= 64:
            shift += width
    return shift * 64 + (gap_ns >> shift)

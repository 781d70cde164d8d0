"""One ``schedule()`` call of the kernel: the rules of `fleetgym.envs.cluster.scheduler`, on arrays.

`schedule` composes from aggregates. Where lock step does not hold or blocks are short it hands over to
`schedule_exact`, which walks the running list.
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import blocks_for, grow, lookup, register_up_to, release, share
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import (
    enqueue,
    note,
    running_append,
    running_remove,
    waiting_remove,
)
from fleetgym.envs.cluster.kernel.lockstep import class_at, enter, loosen, relock, retire, tokens_in_flight
from fleetgym.envs.cluster.kernel.state import (
    DECODE,
    DONE,
    EMPTY,
    FINISH,
    LAST,
    LOOSE,
    NONE,
    PREFILL,
    TOKEN,
    WAITING,
    Unit,
)

ADMITTED, PREEMPTED = 0, 1  # kinds of journal entries


@jit
def schedule(u: Unit, now: int) -> bool:
    """Compose the next iteration into the free slot; return whether it preempted."""
    inst, spec = u.inst, u.spec
    slot = inst["front"] ^ (inst["flight"] & 1)
    inst["decodes"][slot] = 0
    inst["bulk"][slot] = 0
    inst["prefill"][slot] = 0
    inst["head"][slot] = NONE
    inst["tail"][slot] = NONE
    inst["step_context"] = 0
    inst["step_pairs"] = 0
    count_blocks(u, now)
    preempted = False
    budget = spec["max_tokens"] - inst["n"]
    chunk = needed = past = 0
    partial = inst["partial"]
    if partial >= 0:
        past = inst["partial_computed"]
        chunk = max(0, min(known_tokens(u, partial) - past, budget))
        needed = blocks_for(past + chunk, spec["block_size"]) - blocks_for(past, spec["block_size"])
    if inst["n"] > 0:
        needed += u.classes[class_at(u, inst["clock"])]
    if inst["lockstep"] == 0 or budget < 0 or needed > spec["usable"] - inst["used"]:
        budget, preempted = schedule_exact(u, slot)
    else:
        if inst["n"] > 0:
            decode_all(u, slot)
        if chunk > 0:
            take_blocks(u, partial, past, past + chunk, known_tokens(u, partial))
            prefill(u, slot, partial, past, chunk)
            budget -= chunk
    if not preempted:
        admit(u, slot, now, budget)
    close(u, slot, now)
    return preempted


@jit
def close(u: Unit, slot: int, now: int) -> None:
    """Time the composed iteration."""
    inst, spec = u.inst, u.spec
    n, prefill_tokens, context = inst["decodes"][slot], inst["prefill"][slot], inst["step_context"]
    inst["peak_kv_blocks"] = max(inst["peak_kv_blocks"], inst["used"])
    inst["stall"] += max(1, n + prefill_tokens)
    if n + prefill_tokens == 0:
        inst["end_ns"][slot] = EMPTY
        return
    # As in latency.iteration_seconds: the same terms, added in the same order.
    if prefill_tokens == 0:
        seconds = u.decode_s[n] + spec["kd"] * context
    else:
        seconds = (
            u.mixed_s[n + prefill_tokens]
            + spec["km"] * context
            + spec["a"] * (0.5 * inst["step_pairs"])
            + spec["sm"] * n
            + spec["om"]
        )
    start = max(now, inst["last_end_ns"])
    inst["start_ns"][slot] = start
    inst["last_end_ns"] = inst["end_ns"][slot] = start + max(1, int(seconds * 1e9 + 0.5))


@jit
def known_tokens(u: Unit, r: int) -> Any:
    """Tokens of the prompt and the answer so far, of a request that is not in lock step."""
    return u.req[r]["prompt"] + u.req[r]["sampled"]


@jit
def computed_tokens(u: Unit, r: int) -> Any:
    """Tokens of a running request with KV entries, those of iterations in flight included."""
    row = u.req[r]
    if row["state"] == PREFILL:
        return u.inst["partial_computed"]
    sampled = row["sampled"] + u.inst["clock"] if row["state"] == DECODE else row["sampled"]
    return row["prompt"] + sampled - 1


@jit
def count_blocks(u: Unit, now: int) -> None:
    """Integrate the used blocks up to ``now``."""
    u.inst["kv_block_ns"] += u.inst["used"] * (now - u.inst["counted_ns"])
    u.inst["counted_ns"] = now


@jit
def take_blocks(u: Unit, r: int, past: int, end: int, returned: int) -> None:
    """Let a request grow from ``past`` to ``end`` tokens, of which ``returned`` are known."""
    held = blocks_for(past, u.spec["block_size"])
    if u.spec["caching"]:
        grow(u, r, held, end, returned)
    else:
        u.inst["used"] += blocks_for(end, u.spec["block_size"]) - held


@jit
def give_blocks(u: Unit, r: int, computed: int) -> None:
    """Free the blocks of a request's ``computed`` tokens."""
    held = blocks_for(computed, u.spec["block_size"])
    if u.spec["caching"]:
        release(u, r, held)
    else:
        u.inst["used"] -= held


@jit
def decode_all(u: Unit, slot: int) -> None:
    """One token for each request in DECODE; enough blocks are free."""
    inst = u.inst
    if u.spec["caching"]:
        grow_decodes(u)
    else:
        inst["used"] += u.classes[class_at(u, inst["clock"])]
    inst["decodes"][slot] = inst["n"]
    inst["bulk"][slot] = inst["n"]
    inst["step_context"] = inst["context"]
    inst["context"] += inst["n"]
    inst["clock"] += 1
    retire(u, slot)


@jit
def grow_decodes(u: Unit) -> None:
    """Draw and register blocks for the decodes that begin one or, with all tokens returned, fill one."""
    inst, req = u.inst, u.req
    in_flight = 1 if tokens_in_flight(u) else 0
    clock = inst["clock"]
    if u.classes[class_at(u, clock)] == 0 and (in_flight or u.classes[class_at(u, clock + 1)] == 0):
        return
    r = inst["run_head"]
    while r >= 0:
        if req[r]["state"] == DECODE:
            known = req[r]["prompt"] + req[r]["sampled"] + clock
            take_blocks(u, r, known - 1, known, known - in_flight)
        r = req[r]["next"]


@jit
def prefill(u: Unit, slot: int, r: int, past: int, chunk: int) -> None:
    """Count a chunk whose blocks are taken; the one that reaches the last known token samples the next."""
    inst, row = u.inst, u.req[r]
    inst["prefill"][slot] += chunk
    inst["step_pairs"] += chunk * (2 * past + chunk + 1)
    if past + chunk < known_tokens(u, r):
        row["state"] = PREFILL
        inst["partial"] = r
        inst["partial_computed"] = past + chunk
        return
    if inst["partial"] == r:
        inst["partial"] = NONE
    row["state"] = LOOSE
    sample(u, slot, r)
    if inst["lockstep"] and row["state"] == LOOSE:
        enter(u, r)


@jit
def sample(u: Unit, slot: int, r: int) -> None:
    """Give a request out of lock step its next token, to be returned on its own."""
    row = u.req[r]
    row["sampled"] += 1
    last = row["sampled"] == row["output"]
    if last:
        row["state"] = LAST
    note(u, slot, r, TOKEN | FINISH if last else TOKEN)


@large
def admit(u: Unit, slot: int, now: int, budget: int) -> None:
    """Admit from the head of the queue while budget, sequences and blocks last."""
    inst, spec, req = u.inst, u.spec, u.req
    size = spec["block_size"]
    while inst["waiting"] > 0 and budget > 0 and inst["running"] < spec["max_seqs"]:
        r = inst["wait_head"]
        known = known_tokens(u, r)
        hits = free_hits = 0
        if spec["caching"]:
            hits, free_hits = lookup(u, r, known)
        past = hits * size
        chunk = min(known - past, budget)
        needed = blocks_for(known if spec["reserve"] else past + chunk, size) - hits + free_hits
        if inst["running"] > 0:
            needed += spec["watermark"]
        if needed > spec["usable"] - inst["used"]:
            break
        waiting_remove(u, r)
        running_append(u, r)
        start(u, r, now, past)
        if spec["caching"]:
            share(u, r, hits)
        take_blocks(u, r, past, past + chunk, known)
        prefill(u, slot, r, past, chunk)
        budget -= chunk
    inst["blocked"] = inst["waiting"] > 0 and budget > 0


@jit
def start(u: Unit, r: int, now: int, hit_tokens: int) -> None:
    """Write an admission down, first or resumed."""
    row = u.req[r]
    if row["scheduled_ns"] < 0:
        row["scheduled_ns"] = now
        if u.spec["caching"]:
            u.chain[r]["cached"] = hit_tokens
    if row["lost"] > 0:
        again = max(0, row["lost"] - hit_tokens)
        row["lost"] = 0
        row["recomputed"] += again
        u.inst["recomputed_tokens"] += again
        u.env["recomputed"] += again
    log(u, ADMITTED, r, hit_tokens)


@jit
def log(u: Unit, kind: int, r: int, tokens: int) -> None:
    """Add an entry to the journal, if one is kept."""
    if len(u.journal) > 1:
        end = u.journal[0]
        u.journal[end + 1] = kind
        u.journal[end + 2] = r
        u.journal[end + 3] = tokens
        u.journal[0] = end + 3


@large
def schedule_exact(u: Unit, slot: int) -> tuple[int, bool]:
    """Serve the running requests one by one: return the budget left, and whether anyone was preempted.

    While it walks, ``link[slot] >> 2`` holds the tokens that a request was given in this iteration.
    """
    inst, req = u.inst, u.req
    loosen(u)
    budget = u.spec["max_tokens"]
    preempted = False
    r = inst["run_head"]
    while r >= 0 and budget > 0:
        skip = 0
        if req[r]["state"] != LAST:
            past = computed_tokens(u, r)
            tokens = min(known_tokens(u, r) - past, budget)
            size = u.spec["block_size"]
            needed = blocks_for(past + tokens, size) - blocks_for(past, size)
            while needed > u.spec["usable"] - inst["used"]:
                victim = choose_victim(u)
                preempted = True
                ahead = is_ahead(u, victim, r)
                given_back = preempt(u, slot, victim)
                budget += given_back
                if victim == r:
                    break
                # As in vLLM: its index into the running list is not corrected for a victim without tokens.
                skip += ahead and given_back == 0
            if req[r]["state"] == WAITING:
                break
            in_flight = req[r]["link"][slot ^ 1] & TOKEN
            take_blocks(u, r, past, past + tokens, known_tokens(u, r) - in_flight)
            req[r]["link"][slot] = tokens << 2
            budget -= tokens
        r = req[r]["next"]
        while skip > 0 and r >= 0:
            r = req[r]["next"]
            skip -= 1
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
            prefill(u, slot, r, inst["partial_computed"], tokens)
        elif tokens > 0:
            inst["decodes"][slot] += 1
            inst["step_context"] += known_tokens(u, r)
            sample(u, slot, r)
        elif req[r]["state"] == LOOSE:
            complete = False
        r = req[r]["next"]
    if complete:
        relock(u)


@jit
def choose_victim(u: Unit) -> Any:
    """Whom to preempt: the latest admitted, or the least important by (priority, arrival), the first of equals."""
    req = u.req
    if not u.spec["by_priority"]:
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
def is_ahead(u: Unit, victim: int, r: int) -> bool:
    """Whether ``victim`` stands before ``r`` in the running list."""
    while r >= 0 and r != victim:
        r = u.req[r]["next"]
    return r < 0


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
    row["lost"] = computed
    row["preemptions"] += 1
    inst["preemptions"] += 1
    u.env["preempted"] += 1
    inst["blocked"] = 0
    enqueue(u, r, True)
    return given


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
    bulk = inst["bulk"][slot]
    inst["busy_ns"] += end - inst["start_ns"][slot]
    inst["iterations"] += 1
    inst["prefill_tokens"] += inst["prefill"][slot]
    inst["decode_tokens"] += inst["decodes"][slot]
    inst["streamed"] += bulk
    if bulk > 0:
        u.gaps[gap_bin(end - inst["returned_ns"])] += bulk
        inst["stall"] = 0
    inst["returned_ns"] = end
    r = inst["head"][slot]
    while r >= 0:
        link = req[r]["link"][slot]
        req[r]["link"][slot] = 0
        if u.spec["caching"]:
            register_returned(u, slot, r)
        if link & TOKEN:
            give_token(u, r, end)
        if link & FINISH:
            finish(u, r, end)
        r = (link >> 2) - 1


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
def give_token(u: Unit, r: int, now: int) -> None:
    """Return one token to a request."""
    inst, row = u.inst, u.req[r]
    inst["stall"] = 0
    inst["streamed"] += 1
    if row["first_token_ns"] >= 0:
        u.gaps[gap_bin(now - row["last_token_ns"])] += 1
        row["last_token_ns"] = now
        return
    row["first_token_ns"] = row["last_token_ns"] = now
    inst["awaiting"] -= 1
    inst["awaiting_tokens"] -= row["prompt"]
    u.env["awaiting"] -= 1
    u.env["awaiting_moment"] -= now
    ttft_s = (now - row["arrival_ns"]) * 1e-9
    ewma = inst["ttft_ewma_s"]
    inst["ttft_ewma_s"] = ttft_s if ewma < 0.0 else ewma + 0.1 * (ttft_s - ewma)


@jit
def finish(u: Unit, r: int, now: int) -> None:
    """Take a request that has all its tokens out of the instance."""
    inst, env, row = u.inst, u.env, u.req[r]
    if row["state"] == WAITING:  # preempted while its last token was in flight
        waiting_remove(u, r)
    else:
        give_blocks(u, r, computed_tokens(u, r))
        running_remove(u, r)
    inst["blocked"] = 0
    row["last_token_ns"] = now
    inst["finished"] += 1
    inst["in_flight"] -= 1
    inst["prompt_tokens"] -= row["prompt"]
    inst["output_tokens"] -= row["output"]
    inst["streamed"] -= row["output"]
    env["unfinished"] -= 1
    env["unfinished_moment"] -= now
    env["finished"] += 1
    first, output = row["first_token_ns"], row["output"]
    ttft_s = (first - row["arrival_ns"]) * 1e-9
    tpot_s = (now - first) * 1e-9 / (output - 1) if output > 1 else 0.0
    limit_s = u.slo[0] + u.slo[1] * row["prompt"] / 1000
    env["slo_met"] += ttft_s <= limit_s and tpot_s <= u.slo[2]
    row["state"] = DONE


@jit
def gap_bin(gap_ns: int) -> Any:
    """As `fleetgym.envs.cluster.engine.gap_bin`."""
    shift = 0
    for width in (32, 16, 8, 4, 2, 1):
        if gap_ns >> (shift + width) >= 64:
            shift += width
    return shift * 64 + (gap_ns >> shift)

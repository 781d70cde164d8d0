"""One ``schedule()`` call of the kernel: the rules of `fleetgym.envs.cluster.scheduler`, on arrays.

`schedule` composes from aggregates. Where lock step does not hold or blocks are short it hands over to
`fleetgym.envs.cluster.kernel.exact`, which walks the running list.
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import blocks_for, lookup, more_blocks, share
from fleetgym.envs.cluster.kernel.compose import decode_all, prefill
from fleetgym.envs.cluster.kernel.exact import schedule_exact
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import running_append, waiting_remove
from fleetgym.envs.cluster.kernel.lockstep import class_at
from fleetgym.envs.cluster.kernel.state import EMPTY, NONE, Unit
from fleetgym.envs.cluster.kernel.tokens import ADMITTED, computed_tokens, count_blocks, known_tokens, log, take_blocks


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
    largest = largest_share(u)
    budget = spec["max_num_scheduled_tokens"] - inst["n"]
    chunk = past = grown = 0
    partial = inst["partial"]
    if partial >= 0:
        past = computed_tokens(u, partial)
        chunk = max(0, min(known_tokens(u, partial) - past, budget))
        grown = more_blocks(past, past + chunk, spec["block_size"])
    needed = grown
    if inst["n"] > 0:
        needed += u.classes[class_at(u, inst["clock"])]
    if inst["lockstep"] == 0 or budget < 0 or needed > spec["usable"] - inst["used"]:
        budget, preempted = schedule_exact(u, slot, largest)
    else:
        if inst["n"] > 0:
            decode_all(u, slot)
        if chunk > 0:
            take_blocks(u, partial, grown, past + chunk, known_tokens(u, partial))
            prefill(u, slot, partial, chunk)
            budget -= chunk
    if not preempted:
        admit(u, slot, now, largest, budget)
    close(u, slot, now)
    return preempted


@jit
def largest_share(u: Unit) -> Any:
    """Tokens that one request gets in this iteration at most; a lone request is not held back."""
    threshold = u.spec["long_prefill_token_threshold"]
    if threshold > 0 and u.inst["running"] + u.inst["waiting"] > 1:
        return threshold
    return u.spec["max_num_scheduled_tokens"]


@jit
def close(u: Unit, slot: int, now: int) -> None:
    """Time the composed iteration."""
    inst = u.inst
    n, prefill_tokens, context = inst["decodes"][slot], inst["prefill"][slot], inst["step_context"]
    inst["peak_kv_blocks"] = max(inst["peak_kv_blocks"], inst["used"])
    inst["stalled_iterations"] += 1
    if n + prefill_tokens == 0:
        inst["end_ns"][slot] = EMPTY
        return
    seconds = iteration_seconds(u, n, prefill_tokens, context, inst["step_pairs"])
    start = max(now, inst["last_end_ns"])
    inst["start_ns"][slot] = start
    inst["last_end_ns"] = inst["end_ns"][slot] = start + max(1, int(seconds * 1e9 + 0.5))


@jit
def iteration_seconds(u: Unit, n: int, prefill_tokens: int, context: int, pairs_x2: int) -> Any:
    """As `fleetgym.envs.cluster.latency.iteration_seconds`: the same terms, added in the same order."""
    spec = u.spec
    if prefill_tokens == 0:
        return u.decode_s[n] + spec["kd"] * context
    return (
        u.mixed_s[n + prefill_tokens]
        + spec["km"] * context
        + spec["a"] * (0.5 * pairs_x2)
        + spec["sm"] * n
        + spec["om"]
    )


@large
def admit(u: Unit, slot: int, now: int, largest: int, budget: int) -> None:
    """Admit from the head of the queue while budget, sequences and blocks last."""
    inst, spec = u.inst, u.spec
    size = spec["block_size"]
    while inst["waiting"] > 0 and budget > 0 and inst["running"] < spec["max_num_seqs"]:
        r = inst["wait_head"]
        known = known_tokens(u, r)
        hits = free_hits = 0
        if spec["enable_prefix_caching"]:
            hits, free_hits = lookup(u, r, known)
        past = hits * size
        chunk = min(known - past, largest, budget)
        needed = blocks_for(known if spec["reserve_full_prompt"] else past + chunk, size) - hits + free_hits
        if inst["running"] > 0:
            needed += spec["watermark_blocks"]
        if needed > spec["usable"] - inst["used"]:
            break
        waiting_remove(u, r)
        running_append(u, r)
        start(u, r, now, past)
        if spec["enable_prefix_caching"]:
            share(u, r, hits)
        take_blocks(u, r, more_blocks(past, past + chunk, size), past + chunk, known)
        prefill(u, slot, r, chunk)
        budget -= chunk
    inst["blocked"] = inst["waiting"] > 0 and budget > 0


@jit
def start(u: Unit, r: int, now: int, hit_tokens: int) -> None:
    """Write an admission down, first or resumed."""
    row = u.req[r]
    if row["scheduled_ns"] < 0:
        row["scheduled_ns"] = now
        if u.spec["enable_prefix_caching"]:
            u.chain[r]["cached"] = hit_tokens
    again = max(0, row["computed"] - hit_tokens)  # another request may have cached more than this one had computed
    row["recomputed"] += again
    u.inst["recomputed_tokens"] += again
    u.env["recomputed"] += again
    row["computed"] = hit_tokens
    log(u, ADMITTED, r, hit_tokens)

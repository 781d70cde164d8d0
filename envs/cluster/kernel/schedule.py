"""One ``schedule()`` call of the kernel: the rules of `fleetgym.envs.cluster.scheduler`, on arrays.

`schedule` composes from aggregates. Where lock step does not hold or blocks are short it hands over to
`fleetgym.envs.cluster.kernel.schedule_running`, which walks the running list.
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import blocks_for, lookup, more_blocks, share
from fleetgym.envs.cluster.kernel.compose import decode_all, prefill
from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.lists import running_append, waiting_remove
from fleetgym.envs.cluster.kernel.lockstep import phase_at
from fleetgym.envs.cluster.kernel.request_counts import (
    ADMITTED,
    computed_tokens,
    count_blocks,
    log,
    take_blocks,
    tokens_with_placeholders,
)
from fleetgym.envs.cluster.kernel.schedule_running import schedule_running
from fleetgym.envs.cluster.kernel.state import EMPTY, NONE, Unit


@jit
def schedule(u: Unit, now: int) -> bool:
    """Compose the next iteration into the free slot; return whether it preempted."""
    inst, spec = u.inst, u.spec
    slot = inst["front"] ^ (inst["flight"] & 1)
    inst["plan_decodes"][slot] = 0
    inst["bulk"][slot] = 0
    inst["plan_prefill_tokens"][slot] = 0
    inst["head"][slot] = NONE
    inst["tail"][slot] = NONE
    inst["plan_context"] = 0
    inst["plan_pairs_x2"] = 0
    count_blocks(u, now)
    preempted = False
    largest = largest_share(u)
    budget = spec["max_num_scheduled_tokens"] - inst["lockstep_decodes"]
    tokens = past = grown = 0
    partial = inst["partial"]
    if partial >= 0:
        past = computed_tokens(u, partial)
        tokens = max(0, min(tokens_with_placeholders(u, partial) - past, budget))
        grown = more_blocks(past, past + tokens, spec["block_size"])
    needed = grown
    if inst["lockstep_decodes"] > 0:
        needed += u.phases[phase_at(u, inst["clock"])]
    if inst["lockstep"] == 0 or budget < 0 or needed > spec["usable_blocks"] - inst["used_blocks"]:
        budget, preempted = schedule_running(u, slot, largest)
    else:
        if inst["lockstep_decodes"] > 0:
            decode_all(u, slot)
        if tokens > 0:
            take_blocks(u, partial, grown, past + tokens, tokens_with_placeholders(u, partial))
            prefill(u, slot, partial, tokens)
            budget -= tokens
    if not preempted:
        admit_waiting(u, slot, now, largest, budget)
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
    n, prefill_tokens, context = inst["plan_decodes"][slot], inst["plan_prefill_tokens"][slot], inst["plan_context"]
    inst["peak_kv_blocks"] = max(inst["peak_kv_blocks"], inst["used_blocks"])
    inst["stalled_iterations"] += 1
    if n + prefill_tokens == 0:
        inst["end_ns"][slot] = EMPTY
        return
    seconds = iteration_seconds(u, n, prefill_tokens, context, inst["plan_pairs_x2"])
    start = max(now, inst["busy_until_ns"])
    inst["start_ns"][slot] = start
    inst["busy_until_ns"] = inst["end_ns"][slot] = start + max(1, int(seconds * 1e9 + 0.5))


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
def admit_waiting(u: Unit, slot: int, now: int, largest: int, budget: int) -> None:
    """Admit from the head of the queue while budget, sequences and blocks last."""
    inst, spec = u.inst, u.spec
    size = spec["block_size"]
    while inst["waiting"] > 0 and budget > 0 and inst["running"] < spec["max_num_seqs"]:
        r = inst["wait_head"]
        known = tokens_with_placeholders(u, r)
        hits = free_hits = 0
        if spec["enable_prefix_caching"]:
            hits, free_hits = lookup(u, r, known)
        past = hits * size
        tokens = min(known - past, largest, budget)
        needed = blocks_for(known if spec["reserve_full_prompt"] else past + tokens, size) - hits + free_hits
        if inst["running"] > 0:
            needed += spec["watermark_blocks"]
        if needed > spec["usable_blocks"] - inst["used_blocks"]:
            break
        waiting_remove(u, r)
        running_append(u, r)
        start(u, r, now, past)
        if spec["enable_prefix_caching"]:
            share(u, r, hits)
        take_blocks(u, r, more_blocks(past, past + tokens, size), past + tokens, known)
        prefill(u, slot, r, tokens)
        budget -= tokens
    inst["blocked"] = inst["waiting"] > 0 and budget > 0


@jit
def start(u: Unit, r: int, now: int, hit_tokens: int) -> None:
    """Write an admission down, first or resumed."""
    row = u.req[r]
    if row["scheduled_ns"] < 0:
        row["scheduled_ns"] = now
        if u.spec["enable_prefix_caching"]:
            u.chain[r]["cached_tokens"] = hit_tokens
    again = max(0, row["computed_tokens"] - hit_tokens)  # another may have cached more than this one had computed
    row["recomputed_tokens"] += again
    u.inst["recomputed_tokens"] += again
    u.cluster["recomputed_tokens"] += again
    row["computed_tokens"] = hit_tokens
    log(u, ADMITTED, r, hit_tokens)

"""Driving a data-parallel group: ranks in lock step, as `fleetgym.envs.cluster.instance.DataParallelGroup` does it.

Each rank is a row of `State.inst` with a scheduler of its own; `schedule` and `update` serve it like an instance. The
endpoint's row holds the flight that the ranks share, and after each advance the sums over them, so that whoever looks
at endpoints need not know of ranks. An iteration costs O(ranks); it is not skipped over in a tight loop.
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.request_counts import count_blocks
from fleetgym.envs.cluster.kernel.schedule import iteration_seconds, schedule
from fleetgym.envs.cluster.kernel.state import EMPTY, NEVER, State, unit
from fleetgym.envs.cluster.kernel.update import update

BALANCER_PERIOD_NS = 100_000_000


@jit
def rank_rows(st: State, b: int, i: int) -> Any:
    """Rows of the ranks of endpoint ``i``."""
    inst = st.inst[b, i]
    return range(inst["first_rank"], inst["first_rank"] + st.spec[inst["spec"]]["dp"])


@large
def advance_group(st: State, b: int, i: int, until: int) -> None:
    """Let everything happen at the group that happens up to ``until``, as `advance` at an instance."""
    inst = st.inst[b, i]
    spec = st.spec[inst["spec"]]
    while True:
        if inst["due"]:
            inst["due"] = 0
            preempted = schedule_group(st, b, i)
            slot = inst["front"] ^ (inst["flight"] & 1)
            inst["flight"] += 1
            if inst["end_ns"][slot] == EMPTY and inst["end_ns"][inst["front"]] == EMPTY and not preempted:
                inst["flight"] = 0  # blocked: only an arrival can change anything
                for k in rank_rows(st, b, i):
                    st.inst[b, k]["flight"] = 0
            elif inst["stalled_iterations"] > spec["stall_limit_iterations"]:
                break
            elif inst["flight"] < spec["depth"]:
                inst["due"] = 1
                continue
        if inst["flight"] == 0:
            inst["next_ns"] = NEVER
            inst["stalled_iterations"] = 0
            break
        end = inst["end_ns"][inst["front"]]
        if end != EMPTY:
            inst["next_ns"] = end
            if end > until:
                break
        update_group(st, b, i)
    add_up(st, b, i)


@large
def schedule_group(st: State, b: int, i: int) -> bool:
    """Compose the next iteration of all ranks into the free slot; return whether any preempted.

    It lasts as long as its slowest rank, plus the experts' time for the padded tokens of all ranks.
    """
    inst = st.inst[b, i]
    kind, now = inst["spec"], inst["counted_ns"]
    slot = inst["front"] ^ (inst["flight"] & 1)
    preempted = False
    slowest, padded, tokens, used = 0.0, 0, 0, 0
    for k in rank_rows(st, b, i):
        u = unit(st, b, k)
        if schedule(u, now):
            preempted = True
        n, prefill_tokens = u.inst["plan_decodes"][slot], u.inst["plan_prefill_tokens"][slot]
        context, pairs = u.inst["plan_context"], u.inst["plan_pairs_x2"]
        tokens += n + prefill_tokens
        used += u.inst["used_blocks"]
        if n + prefill_tokens == 0:
            n = context = 1  # a rank without work takes part with a dummy token
        slowest = max(slowest, iteration_seconds(u, n, prefill_tokens, context, pairs))
        padded += st.padded_tokens[kind, n + prefill_tokens]
    inst["peak_kv_blocks"] = max(inst["peak_kv_blocks"], used)
    inst["stalled_iterations"] += 1
    inst["end_ns"][slot] = EMPTY
    if tokens > 0:
        seconds = slowest + st.moe_s[kind, min(padded, st.moe_s.shape[1] - 1)]
        start = max(now, inst["busy_until_ns"])
        inst["start_ns"][slot] = start
        inst["busy_until_ns"] = inst["end_ns"][slot] = start + max(1, int(seconds * 1e9 + 0.5))
    for k in rank_rows(st, b, i):
        st.inst[b, k]["flight"] += 1
        if st.inst[b, k]["end_ns"][slot] != EMPTY:
            st.inst[b, k]["end_ns"][slot] = inst["end_ns"][slot]
    return preempted


@large
def update_group(st: State, b: int, i: int) -> None:
    """Return the tokens of the oldest iteration in flight, rank by rank."""
    inst = st.inst[b, i]
    slot = inst["front"]
    end = inst["end_ns"][slot]
    if end != EMPTY:
        publish(st, b, i, end - 1)  # counts published at this very instant come after the iteration's end
        inst["counted_ns"] = end
        inst["busy_ns"] += end - inst["start_ns"][slot]
        inst["iterations"] += 1
    left = 0
    for k in rank_rows(st, b, i):
        u = unit(st, b, k)
        u.inst["ttft_ewma_s"] = inst["ttft_ewma_s"]
        u.inst["stalled_iterations"] = 1
        count_blocks(u, inst["counted_ns"])
        update(u)
        if u.inst["stalled_iterations"] == 0:  # a token was returned
            inst["stalled_iterations"] = 0
        inst["ttft_ewma_s"] = u.inst["ttft_ewma_s"]
        left += u.inst["running"] + u.inst["waiting"]
    inst["front"] = slot ^ (st.spec[inst["spec"]]["depth"] - 1)
    inst["flight"] -= 1
    inst["due"] = left > 0


@jit
def choose_rank(st: State, b: int, i: int, now: int) -> Any:
    """The rank with the least load by the balancer's count, the first of equals."""
    publish(st, b, i, now)
    best = st.inst[b, i]["first_rank"]
    for k in rank_rows(st, b, i):
        if st.inst[b, k]["published_load"] < st.inst[b, best]["published_load"]:
            best = k
    st.inst[b, best]["published_load"] += 4
    return best


@jit
def publish(st: State, b: int, i: int, now: int) -> None:
    """Refresh the balancer's loads if a multiple of its period has passed; called before any change."""
    tick = now // BALANCER_PERIOD_NS
    if tick <= st.inst[b, i]["published_tick"]:
        return
    st.inst[b, i]["published_tick"] = tick
    for k in rank_rows(st, b, i):
        rank = st.inst[b, k]
        rank["published_load"] = 4 * rank["waiting"] + rank["running"]


@jit
def wake_group(st: State, b: int, i: int, now: int) -> None:
    """Let a group that has received a request schedule at once, if it sleeps."""
    inst = st.inst[b, i]
    if inst["next_ns"] == NEVER:
        inst["counted_ns"] = now
        inst["due"] = 1
    advance_group(st, b, i, now)  # adds up, whether it slept or not


@jit
def add_up(st: State, b: int, i: int) -> None:
    """Write the sums over the ranks into the endpoint's row."""
    inst, first = st.inst[b, i], st.inst[b, i]["first_rank"]
    for k in rank_rows(st, b, i):
        rank, kept = st.inst[b, k], k > first  # the first one overwrites
        inst["in_flight_requests"] = kept * inst["in_flight_requests"] + rank["in_flight_requests"]
        inst["in_flight_prompt_tokens"] = kept * inst["in_flight_prompt_tokens"] + rank["in_flight_prompt_tokens"]
        inst["in_flight_output_tokens"] = kept * inst["in_flight_output_tokens"] + rank["in_flight_output_tokens"]
        inst["awaiting_requests"] = kept * inst["awaiting_requests"] + rank["awaiting_requests"]
        inst["awaiting_prompt_tokens"] = kept * inst["awaiting_prompt_tokens"] + rank["awaiting_prompt_tokens"]
        inst["streamed_tokens"] = kept * inst["streamed_tokens"] + rank["streamed_tokens"]
        inst["running"] = kept * inst["running"] + rank["running"]
        inst["waiting"] = kept * inst["waiting"] + rank["waiting"]
        inst["used_blocks"] = kept * inst["used_blocks"] + rank["used_blocks"]
        inst["prefill_tokens"] = kept * inst["prefill_tokens"] + rank["prefill_tokens"]
        inst["decode_tokens"] = kept * inst["decode_tokens"] + rank["decode_tokens"]
        inst["kv_block_ns"] = kept * inst["kv_block_ns"] + rank["kv_block_ns"]
        inst["preemptions"] = kept * inst["preemptions"] + rank["preemptions"]
        inst["recomputed_tokens"] = kept * inst["recomputed_tokens"] + rank["recomputed_tokens"]
        inst["finished"] = kept * inst["finished"] + rank["finished"]

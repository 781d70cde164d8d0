"""B clusters: dispatching, advancing to the next decision, observing."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.advance import advance, queue, wake
from fleetgym.envs.cluster.kernel.blocks import clear
from fleetgym.envs.cluster.kernel.group import advance_group, choose_rank, wake_group
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.state import NEVER, NONE, REJECTED, Array, State, unit
from fleetgym.envs.signals import SIGNAL_AT, TERM_AT


@jit
def catch_up(st: State, b: int, i: int, until: int) -> bool:
    """Advance one instance; return whether it stopped making progress."""
    if st.inst[b, i]["next_ns"] > until:
        return False
    u = unit(st, b, i)
    if u.spec["dp"] > 1:
        advance_group(st, b, i, until)
    else:
        advance(u, until)
    return bool(u.inst["stalled_iterations"] > u.spec["stall_limit_iterations"])


@jit
def catch_up_all(st: State, b: int, until: int) -> None:
    """Advance all instances of a cluster."""
    for i in range(st.mask.shape[1]):
        if catch_up(st, b, i, until):
            st.cluster[b]["stalled_instance"] = i
            return


@jit
def dispatch(st: State, b: int, i: int) -> None:
    """Send the pending request of a cluster to instance ``i``, which is up to date."""
    now, r = st.now_ns[b], st.pending[b]
    cluster, inst, row = st.cluster[b], st.inst[b, i], st.req[b, r]
    row["instance"] = i
    inst["dispatched"] += 1
    inst["last_dispatch_ns"] = now
    inst["stalled_iterations"] = 0
    spec = st.spec[inst["spec"]]
    if row["prompt_tokens"] + row["output_tokens"] > spec["max_model_len"]:
        row["state"] = REJECTED
        inst["rejected"] += 1
        cluster["rejected"] += 1
        return
    cluster["unfinished"] += 1
    cluster["unfinished_moment"] += now
    cluster["awaiting"] += 1
    cluster["awaiting_moment"] += now
    place = i if spec["dp"] == 1 else choose_rank(st, b, i, now)
    u = unit(st, b, place)
    u.inst["in_flight_requests"] += 1
    u.inst["in_flight_prompt_tokens"] += row["prompt_tokens"]
    u.inst["in_flight_output_tokens"] += row["output_tokens"]
    u.inst["awaiting_requests"] += 1
    u.inst["awaiting_prompt_tokens"] += row["prompt_tokens"]
    queue(u, r)
    if place == i:
        wake(u, now)
    else:
        wake_group(st, b, i, now)
    if inst["stalled_iterations"] > spec["stall_limit_iterations"]:
        cluster["stalled_instance"] = i


@jit
def move_on(st: State, b: int) -> None:
    """Make the next request of a cluster the pending one; the clock follows."""
    if st.pending[b] + 1 == st.cluster[b]["requests"]:
        st.done[b] = True
        return
    st.pending[b] += 1
    st.now_ns[b] = st.req[b, st.pending[b]]["arrival_ns"]


@jit
def begin_terms(st: State, b: int) -> None:
    """Start an interval now."""
    cluster, now = st.cluster[b], st.now_ns[b]
    cluster["unfinished_moment"] = cluster["unfinished"] * now
    cluster["awaiting_moment"] = cluster["awaiting"] * now
    cluster["finished"] = 0
    cluster["slo_met"] = 0
    cluster["rejected"] = 0
    cluster["preempted"] = 0
    cluster["recomputed_tokens"] = 0


@jit
def end_terms(st: State, b: int) -> None:
    """Write the terms of the interval that ends now: integrals in exact ns, converted once."""
    cluster, now, terms = st.cluster[b], st.now_ns[b], st.terms[b]
    terms[TERM_AT.unfinished_request_s] = (cluster["unfinished"] * now - cluster["unfinished_moment"]) * 1e-9
    terms[TERM_AT.awaiting_first_token_request_s] = (cluster["awaiting"] * now - cluster["awaiting_moment"]) * 1e-9
    terms[TERM_AT.finished] = cluster["finished"]
    terms[TERM_AT.slo_met] = cluster["slo_met"]
    terms[TERM_AT.rejected] = cluster["rejected"]
    terms[TERM_AT.preempted] = cluster["preempted"]
    terms[TERM_AT.recomputed_tokens] = cluster["recomputed_tokens"]


@jit
def observe(st: State, b: int) -> None:
    """Write the observation and the mask of the pending decision."""
    now = st.now_ns[b]
    row = st.req[b, st.pending[b]]
    prompt = row["prompt_tokens"]
    signals = st.signals
    signals[SIGNAL_AT.prompt_tokens] = prompt
    signals[SIGNAL_AT.priority] = row["priority"]
    signals[SIGNAL_AT.output_tokens] = row["output_tokens"]
    in_order = True
    for f in range(len(st.columns)):
        in_order = in_order and st.columns[f] == f
    fitting = 0
    for i in range(st.mask.shape[1]):
        inst = st.inst[b, i]
        spec = st.spec[inst["spec"]]
        st.mask[b, i] = inst["available"] and prompt + 1 <= spec["max_model_len"]
        fitting += st.mask[b, i]
        if not inst["available"]:
            st.obs[b, i] = 0.0
            continue
        signals[SIGNAL_AT.in_flight_requests] = inst["in_flight_requests"]
        signals[SIGNAL_AT.in_flight_prompt_tokens] = inst["in_flight_prompt_tokens"]
        signals[SIGNAL_AT.awaiting_first_token_requests] = inst["awaiting_requests"]
        signals[SIGNAL_AT.awaiting_first_token_prompt_tokens] = inst["awaiting_prompt_tokens"]
        signals[SIGNAL_AT.streamed_tokens] = inst["streamed_tokens"]
        signals[SIGNAL_AT.since_dispatch_s] = (now - inst["last_dispatch_ns"]) * 1e-9
        signals[SIGNAL_AT.ttft_ewma_s] = max(inst["ttft_ewma_s"], 0.0)
        signals[SIGNAL_AT.running_requests] = inst["running"]
        signals[SIGNAL_AT.waiting_requests] = inst["waiting"]
        signals[SIGNAL_AT.kv_usage] = inst["used_blocks"] / spec["group_usable_blocks"]
        signals[SIGNAL_AT.kv_capacity_tokens] = spec["kv_capacity_tokens"]
        signals[SIGNAL_AT.prefill_tokens_per_s] = spec["prefill_tokens_per_s"]
        signals[SIGNAL_AT.decode_tokens_per_s] = spec["decode_tokens_per_s"]
        signals[SIGNAL_AT.remaining_tokens] = (
            inst["awaiting_prompt_tokens"] + inst["in_flight_output_tokens"] - inst["streamed_tokens"]
        )
        if in_order:  # the usual case, which the compiler turns into vector instructions
            for f in range(len(st.columns)):
                st.obs[b, i, f] = min(signals[f], st.high[f])
        else:
            for f in range(len(st.columns)):
                st.obs[b, i, f] = min(signals[st.columns[f]], st.high[f])
    if fitting == 0:
        for i in range(st.mask.shape[1]):
            st.mask[b, i] = st.inst[b, i]["available"]


@jit
def is_possible(st: State, b: int, i: int) -> bool:
    """Whether instance ``i`` can be chosen."""
    return bool(0 <= i < st.mask.shape[1] and st.inst[b, i]["available"])


@jit
def outcome(st: State, b: int) -> Any:
    """What to report of a cluster: NONE, or -2 - b if one of its instances stalled."""
    return NONE if st.cluster[b]["stalled_instance"] == NONE else -2 - b


@jit
def step(st: State, actions: Array) -> Any:
    """Take one action per cluster (B,); return NONE, b for an impossible action, -2 - b for a stalled instance."""
    for b in range(len(actions)):
        if not (st.done[b] or is_possible(st, b, actions[b])):
            return b
    for b in range(len(actions)):
        if st.done[b]:
            st.terms[b] = 0.0
            continue
        begin_terms(st, b)
        dispatch(st, b, actions[b])
        move_on(st, b)
        catch_up_all(st, b, st.now_ns[b])
        end_terms(st, b)
        observe(st, b)
        if outcome(st, b) != NONE:
            return outcome(st, b)
    return NONE


@jit
def run(st: State, actions: Array) -> Any:
    """Take K actions per cluster (B, K), as `step`; an instance is brought up to date only when it matters."""
    for b in range(actions.shape[0]):
        left = 0 if st.done[b] else st.cluster[b]["requests"] - st.pending[b]
        for k in range(min(actions.shape[1], left)):
            if not is_possible(st, b, actions[b, k]):
                return b
    for b in range(actions.shape[0]):
        if st.done[b]:
            st.terms[b] = 0.0
            continue
        begin_terms(st, b)
        for k in range(actions.shape[1]):
            if st.done[b]:
                break
            if catch_up(st, b, actions[b, k], st.now_ns[b]):
                st.cluster[b]["stalled_instance"] = actions[b, k]
                break
            dispatch(st, b, actions[b, k])
            if outcome(st, b) != NONE:
                break
            move_on(st, b)
        catch_up_all(st, b, st.now_ns[b])
        end_terms(st, b)
        observe(st, b)
        if outcome(st, b) != NONE:
            return outcome(st, b)
    return NONE


@jit
def drain(st: State, b: int) -> Any:
    """Advance a cluster until nothing is left to do; return an instance whose queue is blocked for ever, or NONE."""
    catch_up_all(st, b, NEVER - 1)
    if outcome(st, b) != NONE:
        return outcome(st, b)
    for i in range(st.mask.shape[1]):
        if st.inst[b, i]["waiting"] > 0:
            return i
    return NONE


@jit
def begin(st: State, b: int) -> None:
    """Prepare a cluster whose requests, specs and available instances are filled in, up to its first decision."""
    st.pending[b] = 0
    st.done[b] = False
    now = st.now_ns[b] = st.req[b, 0]["arrival_ns"]
    st.terms[b] = 0.0
    st.gaps[b] = 0
    st.phases[b] = 0
    st.members[b] = 0
    st.cluster[b]["stalled_instance"] = NONE
    for i in range(st.inst.shape[1]):
        inst = st.inst[b, i]
        inst["next_ns"] = NEVER
        inst["last_dispatch_ns"] = now
        inst["ttft_ewma_s"] = -1.0
        inst["partial"] = NONE
        inst["run_head"] = inst["run_tail"] = NONE
        inst["wait_head"] = inst["wait_tail"] = NONE
        spec = st.spec[inst["spec"]]
        inst["lockstep"] = not spec["exact_path"]
        if spec["enable_prefix_caching"]:
            clear(st.extents[b, i], st.copies[b, i])
    observe(st, b)

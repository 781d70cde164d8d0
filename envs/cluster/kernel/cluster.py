"""B clusters: dispatching, advancing to the next decision, observing."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.advance import advance, queue, wake
from fleetgym.envs.cluster.kernel.blocks import clear
from fleetgym.envs.cluster.kernel.group import advance_group, choose_rank, wake_group
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.state import NEVER, NONE, REFUSED, Array, State, unit
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
    return bool(u.inst["stalled_iterations"] > u.spec["stall_limit"])


@jit
def catch_up_all(st: State, b: int, until: int) -> None:
    """Advance all instances of a cluster."""
    for i in range(st.mask.shape[1]):
        if catch_up(st, b, i, until):
            st.env[b]["stalled_instance"] = i
            return


@jit
def dispatch(st: State, b: int, i: int) -> None:
    """Send the pending request of a cluster to instance ``i``, which is up to date."""
    now, r = st.now_ns[b], st.pending[b]
    env, inst, row = st.env[b], st.inst[b, i], st.req[b, r]
    row["instance"] = i
    inst["dispatched"] += 1
    inst["dispatch_ns"] = now
    inst["stalled_iterations"] = 0
    spec = st.spec[inst["spec"]]
    if row["prompt"] + row["output"] > spec["max_model_len"]:
        row["state"] = REFUSED
        inst["rejected"] += 1
        env["rejected"] += 1
        return
    env["unfinished"] += 1
    env["unfinished_moment"] += now
    env["awaiting"] += 1
    env["awaiting_moment"] += now
    place = i if spec["dp"] == 1 else choose_rank(st, b, i, now)
    u = unit(st, b, place)
    u.inst["in_flight"] += 1
    u.inst["prompt_tokens"] += row["prompt"]
    u.inst["output_tokens"] += row["output"]
    u.inst["awaiting"] += 1
    u.inst["awaiting_tokens"] += row["prompt"]
    queue(u, r)
    if place == i:
        wake(u, now)
    else:
        wake_group(st, b, i, now)
    if inst["stalled_iterations"] > spec["stall_limit"]:
        env["stalled_instance"] = i


@jit
def move_on(st: State, b: int) -> None:
    """Make the next request of a cluster the pending one; the clock follows."""
    if st.pending[b] + 1 == st.env[b]["requests"]:
        st.done[b] = True
        return
    st.pending[b] += 1
    st.now_ns[b] = st.req[b, st.pending[b]]["arrival_ns"]


@jit
def begin_terms(st: State, b: int) -> None:
    """Start an interval now."""
    env, now = st.env[b], st.now_ns[b]
    env["unfinished_moment"] = env["unfinished"] * now
    env["awaiting_moment"] = env["awaiting"] * now
    env["finished"] = 0
    env["slo_met"] = 0
    env["rejected"] = 0
    env["preempted"] = 0
    env["recomputed"] = 0


@jit
def end_terms(st: State, b: int) -> None:
    """Write the terms of the interval that ends now: integrals in exact ns, converted once."""
    env, now, terms = st.env[b], st.now_ns[b], st.terms[b]
    terms[TERM_AT.unfinished_request_s] = (env["unfinished"] * now - env["unfinished_moment"]) * 1e-9
    terms[TERM_AT.awaiting_first_token_request_s] = (env["awaiting"] * now - env["awaiting_moment"]) * 1e-9
    terms[TERM_AT.finished] = env["finished"]
    terms[TERM_AT.slo_met] = env["slo_met"]
    terms[TERM_AT.rejected] = env["rejected"]
    terms[TERM_AT.preempted] = env["preempted"]
    terms[TERM_AT.recomputed_tokens] = env["recomputed"]


@jit
def observe(st: State, b: int) -> None:
    """Write the observation and the mask of the pending decision."""
    now = st.now_ns[b]
    row = st.req[b, st.pending[b]]
    prompt = row["prompt"]
    values = st.values
    values[SIGNAL_AT.prompt_tokens] = prompt
    values[SIGNAL_AT.priority] = row["priority"]
    values[SIGNAL_AT.output_tokens] = row["output"]
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
        values[SIGNAL_AT.in_flight_requests] = inst["in_flight"]
        values[SIGNAL_AT.in_flight_prompt_tokens] = inst["prompt_tokens"]
        values[SIGNAL_AT.awaiting_first_token_requests] = inst["awaiting"]
        values[SIGNAL_AT.awaiting_first_token_prompt_tokens] = inst["awaiting_tokens"]
        values[SIGNAL_AT.streamed_tokens] = inst["streamed"]
        values[SIGNAL_AT.since_dispatch_s] = (now - inst["dispatch_ns"]) * 1e-9
        values[SIGNAL_AT.ttft_ewma_s] = max(inst["ttft_ewma_s"], 0.0)
        values[SIGNAL_AT.running_requests] = inst["running"]
        values[SIGNAL_AT.waiting_requests] = inst["waiting"]
        values[SIGNAL_AT.kv_usage] = inst["used"] / spec["group_blocks"]
        values[SIGNAL_AT.kv_capacity_tokens] = spec["kv_capacity_tokens"]
        values[SIGNAL_AT.prefill_tokens_per_s] = spec["prefill_tokens_per_s"]
        values[SIGNAL_AT.decode_tokens_per_s] = spec["decode_tokens_per_s"]
        values[SIGNAL_AT.remaining_tokens] = inst["awaiting_tokens"] + inst["output_tokens"] - inst["streamed"]
        if in_order:  # the usual case, which the compiler turns into vector instructions
            for f in range(len(st.columns)):
                st.obs[b, i, f] = min(values[f], st.high[f])
        else:
            for f in range(len(st.columns)):
                st.obs[b, i, f] = min(values[st.columns[f]], st.high[f])
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
    return NONE if st.env[b]["stalled_instance"] == NONE else -2 - b


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
        left = 0 if st.done[b] else st.env[b]["requests"] - st.pending[b]
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
                st.env[b]["stalled_instance"] = actions[b, k]
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
    st.classes[b] = 0
    st.members[b] = 0
    st.env[b]["stalled_instance"] = NONE
    for i in range(st.inst.shape[1]):
        inst = st.inst[b, i]
        inst["next_ns"] = NEVER
        inst["dispatch_ns"] = now
        inst["ttft_ewma_s"] = -1.0
        inst["partial"] = NONE
        inst["run_head"] = inst["run_tail"] = NONE
        inst["wait_head"] = inst["wait_tail"] = NONE
        spec = st.spec[inst["spec"]]
        inst["lockstep"] = not spec["exact_path"]
        if spec["enable_prefix_caching"]:
            clear(st.extents[b, i], st.copies[b, i])
    observe(st, b)

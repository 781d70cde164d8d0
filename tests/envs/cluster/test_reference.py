from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgym.envs.cluster.engine import Engine, gap_bin
from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import FINISHED, REJECTED, UNFINISHED, Trace, make_trace
from fleetgym.envs.cluster.scheduler import Request, Scheduler
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec, Slo
from fleetgym.envs.errors import LivelockError, UserError
from fleetgym.envs.signals import SIGNAL_INDEX, TERM_NAMES

MS = 1_000_000
TERM = {name: index for index, name in enumerate(TERM_NAMES)}
TEN_MS = LatencyModel(w0_s=0.01)  # every iteration lasts 10 ms


def instance(latency: LatencyModel = TEN_MS, count: int = 1, dp: int = 1, **args: object) -> InstanceSpec:
    defaults: dict[str, object] = {
        "max_num_batched_tokens": 8,
        "max_num_seqs": 256,
        "block_size": 4,
        "num_gpu_blocks": 101,
    }
    return InstanceSpec(
        "any",
        "any",
        count=count,
        dp=dp,
        latency=latency,
        engine=EngineArgs(**{**defaults, **args}),  # type: ignore[arg-type]
    )


def engine_of(*instances: InstanceSpec, **kwargs: object) -> Engine:
    return make_engine("reference", ClusterSpec(instances), 1, **kwargs)


def trace_of(*rows: tuple[float, int, int], **kwargs: object) -> Trace:
    """Rows of (arrival in ms, prompt, output)."""
    at_ms, prompt, output = np.array(rows).T
    return make_trace((at_ms * MS).astype(np.int64), prompt, output, **kwargs)  # type: ignore[arg-type]


def replay(engine: Engine, trace: Trace, actions: list[int]) -> np.ndarray:
    """Dispatch everything, drain, and return the terms of every step."""
    engine.reset(0, trace)
    terms = []
    for action in actions:
        engine.step(np.array([action]))
        terms.append(engine.terms[0].copy())
    engine.drain(0)
    return np.array(terms)


def times_ms(engine: Engine, name: str) -> list[float]:
    return (engine.results(0)[name] / MS).tolist()


def signal(engine: Engine, name: str, row: int = 0) -> float:
    return float(engine.obs[0, row, SIGNAL_INDEX[name]])


THREE = trace_of((0, 6, 3), (5, 7, 2), (5, 2, 1))


def test_three_requests_walked_by_hand_one_iteration_in_flight():
    # Budget 8 tokens, two sequences, blocks of 4 tokens; requests A (6+3), B (7+2), C (2+1).
    #   0-10   A prefill 6           -> A1         blocks A 2
    #  10-20   A decode, B prefill 7 -> A2 B1      blocks A 2, B 2   (C: no third sequence)
    #  20-30   A decode, B decode    -> A3 B2 end  blocks A 2, B 2
    #  30-40   C prefill 2           -> C1 end     blocks C 1
    engine = engine_of(instance(max_num_seqs=2, async_scheduling=False))
    terms = replay(engine, THREE, [0, 0, 0])
    assert times_ms(engine, "scheduled_ns") == [0, 10, 30]
    assert times_ms(engine, "first_token_ns") == [10, 20, 40]
    assert times_ms(engine, "finish_ns") == [30, 30, 40]
    stats = engine.instance_stats(0)[0]
    assert stats["busy_ns"] == 40 * MS
    assert (stats["iterations"], stats["prefill_tokens"], stats["decode_tokens"]) == (4, 15, 3)
    assert stats["kv_block_ns"] == (2 + 4 + 4 + 1) * 10 * MS
    assert (stats["peak_kv_blocks"], stats["dispatched"], stats["finished"]) == (4, 3, 3)
    gaps = engine.gap_histogram(0)
    assert gaps[gap_bin(10 * MS)] == gaps.sum() == 3
    assert terms[:, TERM["unfinished_request_s"]].tolist() == [5 * MS * 1e-9, 0.0, 0.0]


def test_three_requests_walked_by_hand_two_iterations_in_flight():
    #   0-10   A prefill 6           -> A1         composed at 0
    #  10-20   A decode              -> A2         composed at 0, before B and C arrive; blocks A 2
    #  20-30   A decode, B prefill 7 -> A3 end B1  composed at 10; blocks A 2, B 2
    #  30-40   B decode              -> B2 end     composed at 20: A's last token is in flight, C finds no sequence free
    #  40-50   C prefill 2           -> C1 end     composed at 30, when A has left; blocks B 2, C 1, from 40 on C 1
    engine = engine_of(instance(max_num_seqs=2))
    replay(engine, THREE, [0, 0, 0])
    assert times_ms(engine, "scheduled_ns") == [0, 10, 30]
    assert times_ms(engine, "first_token_ns") == [10, 30, 50]
    assert times_ms(engine, "finish_ns") == [30, 40, 50]
    stats = engine.instance_stats(0)[0]
    assert stats["busy_ns"] == 50 * MS
    assert (stats["iterations"], stats["prefill_tokens"], stats["decode_tokens"]) == (5, 15, 3)
    assert stats["kv_block_ns"] == (2 + 4 + 4 + 3 + 1) * 10 * MS


def test_the_router_sees_the_cluster_at_the_decision():
    # As above with one iteration in flight; C's decision is at 5 ms, B has just been queued.
    engine = engine_of(instance(max_num_seqs=2, async_scheduling=False), instance())
    engine.reset(0, trace_of((0, 6, 3), (5, 7, 2), (15, 2, 1)))
    assert engine.now_ns[0] == 0
    assert signal(engine, "prompt_tokens") == 6
    engine.step(np.array([0]))
    assert engine.now_ns[0] == 5 * MS
    engine.step(np.array([0]))
    # At 15 ms A has one token and decodes, B is being prefilled.
    expected = {
        "in_flight_requests": 2,
        "in_flight_prompt_tokens": 13,
        "awaiting_first_token_requests": 1,
        "awaiting_first_token_prompt_tokens": 7,
        "streamed_tokens": 1,
        "since_dispatch_s": 0.010,
        "ttft_ewma_s": 0.010,
        "running_requests": 2,
        "waiting_requests": 0,
        "kv_usage": 4 / 100,
        "kv_capacity_tokens": 400,
        "prompt_tokens": 2,
        "output_tokens": 1,
        "remaining_tokens": 2 + 7 + 2,
    }
    assert {name: signal(engine, name) for name in expected} == pytest.approx(expected)
    assert signal(engine, "since_dispatch_s", row=1) == pytest.approx(0.015)
    assert signal(engine, "in_flight_requests", row=1) == 0
    assert not engine.done[0]
    engine.step(np.array([1]))
    assert engine.done[0]
    assert engine.now_ns[0] == 15 * MS
    assert signal(engine, "running_requests", row=1) == 1
    assert engine.terms[0].tolist() == [0.0] * len(TERM_NAMES)


def test_an_iteration_that_ends_at_an_arrival_is_over_when_it_is_decided():
    engine = engine_of(instance(async_scheduling=False))
    engine.reset(0, trace_of((0, 4, 2), (10, 4, 1)))
    engine.step(np.array([0]))
    assert signal(engine, "streamed_tokens") == 1
    assert engine.terms[0, TERM["awaiting_first_token_request_s"]] == 10 * MS * 1e-9
    engine.step(np.array([0]))
    engine.drain(0)
    # The iteration from 10 to 20 was composed before the arrival at 10.
    assert times_ms(engine, "first_token_ns") == [10, 30]


@pytest.mark.parametrize(("async_scheduling", "second"), [(False, 20), (True, 30)])
def test_of_two_arrivals_at_once_the_first_starts_an_idle_instance_alone(async_scheduling: bool, second: int):
    engine = engine_of(instance(async_scheduling=async_scheduling))
    replay(engine, trace_of((0, 4, 2), (0, 4, 1)), [0, 0])
    assert times_ms(engine, "first_token_ns") == [10, second]


def test_a_request_that_can_never_run_is_rejected_at_arrival():
    engine = engine_of(instance(num_gpu_blocks=3))  # holds 8 tokens
    terms = replay(engine, trace_of((0, 6, 3), (1, 6, 2)), [0, 0])
    results = engine.results(0)
    assert results["status"].tolist() == [REJECTED, FINISHED]
    assert results["finish_ns"].tolist()[0] == -1
    assert results["instance"].tolist() == [0, 0]
    assert terms[:, TERM["rejected"]].tolist() == [1.0, 0.0]
    assert terms[0, TERM["unfinished_request_s"]] == 0.0
    stats = engine.instance_stats(0)[0]
    assert (stats["dispatched"], stats["rejected"], stats["finished"]) == (2, 1, 1)


def test_the_mask_leaves_out_instances_too_small_for_the_prompt_unless_all_are():
    engine = engine_of(instance(num_gpu_blocks=3), instance(max_model_len=20))
    engine.reset(0, trace_of((0, 7, 1), (1, 8, 1), (2, 50, 1)))
    masks = [engine.mask[0].tolist()]
    for _ in range(2):
        engine.step(np.array([1]))
        masks.append(engine.mask[0].tolist())
    assert masks == [[True, True], [False, True], [True, True]]


def test_unavailable_instances_are_blank_and_refused():
    engine = engine_of(instance(count=3))
    engine.reset(0, THREE, np.array([True, False, True]))
    assert engine.mask[0].tolist() == [True, False, True]
    assert not engine.obs[0, 1].any()
    for action in (1, 3, -1):
        with pytest.raises(UserError, match=rf"action={action} of cluster 0: .*\(allowed: \[0, 2\]\)"):
            engine.step(np.array([action]))
    assert engine.pending[0] == 0
    with pytest.raises(UserError, match="available"):
        engine.reset(0, THREE, np.zeros(3, bool))


def test_calls_out_of_order_are_refused():
    engine = engine_of(instance())
    with pytest.raises(UserError, match="call reset first"):
        engine.results(0)
    engine.reset(0, THREE)
    with pytest.raises(UserError, match="3 requests that are not dispatched"):
        engine.drain(0)


def test_slo_limits_are_inclusive_and_grow_with_the_prompt():
    # TTFT 10 ms and TPOT 10 ms, both exactly.
    for ttft_s, per_1k, tpot_s, met in (
        (0.01, 0.0, 0.01, 1),
        (0.009, 0.0, 0.01, 0),
        (0.004, 1.5, 0.01, 1),
        (1, 0, 0.009, 0),
    ):
        slo = Slo(ttft_s=ttft_s, ttft_s_per_1k_prompt_tokens=per_1k, tpot_s=tpot_s)
        engine = engine_of(instance(async_scheduling=False), slo=slo)
        terms = replay(engine, trace_of((0, 4, 3), (90, 4, 1)), [0, 0])
        assert terms[0, TERM["finished"]] == 1
        assert terms[0, TERM["slo_met"]] == met


def test_signals_are_selected_and_clipped():
    engine = engine_of(instance(), columns=("prompt_tokens", "kv_usage"), high=(5.0, 1.0))
    engine.reset(0, THREE)
    assert engine.obs.shape == (1, 1, 2)
    assert engine.obs[0, 0].tolist() == [5.0, 0.0]


# ---- preemption, progress ----


def test_a_preempted_request_recomputes_and_is_counted():
    # Four usable blocks of 4 tokens, both prompts take two; at 10 ms the first needs a third block.
    #  0-10 both prompts;  10-20 first decodes alone, second preempted with 8 tokens;  20-30 it is resumed (8+1 tokens)
    engine = engine_of(instance(num_gpu_blocks=5, max_num_batched_tokens=16, async_scheduling=False))
    engine.reset(0, trace_of((0, 1, 1), (5, 8, 2), (5, 8, 2), (25, 1, 1)))
    for _ in range(3):
        engine.step(np.array([0]))
    assert engine.terms[0, TERM["preempted"]] == 1  # the idle start shifts all by 10 ms: preempted at 20 ms
    engine.step(np.array([0]))
    engine.drain(0)
    results = engine.results(0)
    assert results["preemptions"].tolist() == [0, 0, 1, 0]
    assert results["recomputed_tokens"].tolist() == [0, 0, 8, 0]
    assert times_ms(engine, "first_token_ns")[1:3] == [20, 20]
    assert times_ms(engine, "finish_ns")[1:3] == [30, 40]
    stats = engine.instance_stats(0)[0]
    assert (stats["preemptions"], stats["recomputed_tokens"]) == (1, 8)


@pytest.mark.parametrize(
    ("reserve_full_prompt", "message"),
    [
        (False, r"instance 0: no progress at .* request 0 \(12 \+ 1 tokens\)"),
        (True, r"instance 0: blocked .* request 0"),
    ],
)
def test_no_progress_is_an_error_that_names_the_request(reserve_full_prompt: bool, message: str):
    engine = engine_of(instance(num_gpu_blocks=3, reserve_full_prompt=reserve_full_prompt))
    engine.reset(0, trace_of((0, 12, 1)))
    one = engine._live[0].instances[0]  # type: ignore[attr-defined]
    one.max_model_len = one.ranks[0].max_model_len = 100  # let pass what would be rejected
    engine.step(np.array([0]))
    with pytest.raises(LivelockError, match=message):
        engine.drain(0)


# ---- data-parallel groups ----


def test_a_group_takes_as_long_as_its_slowest_rank_plus_the_experts():
    # 6 prompt tokens on rank 0, a dummy on rank 1: w0 + 6 c1 = 16 ms, and 1 ms for each of pad(6) + pad(1) = 9 tokens.
    latency = LatencyModel(w0_s=0.0, c0_s=0.01, c1_s_per_tok=0.001, moe_g_s_per_tok=0.001)
    engine = engine_of(instance(latency, dp=2))
    replay(engine, trace_of((0, 6, 1)), [0])
    assert times_ms(engine, "first_token_ns") == [25]


def test_a_group_balances_on_counts_refreshed_every_100_ms(monkeypatch):
    engine = engine_of(instance(dp=2, max_num_batched_tokens=400))
    engine.reset(0, trace_of((1, 8, 99), (1, 8, 1), (50, 8, 1), (150, 8, 1), (150, 8, 1), (150, 8, 1)))
    ranks = engine._live[0].instances[0].ranks  # type: ignore[attr-defined]
    placed: list[int] = []
    add = Scheduler.add

    def record(self: Scheduler, request: Request) -> None:
        placed.append(ranks.index(self))
        add(self, request)

    monkeypatch.setattr(Scheduler, "add", record)
    for _ in range(6):
        engine.step(np.array([0]))
    # At 50 ms rank 1 is idle again, but the balancer still counts 4 for each and the lower rank wins.
    # At 100 ms rank 0 runs one request: loads 1 and 0, then 1 and 4, then 5 and 4.
    assert placed == [0, 1, 0, 1, 0, 1]
    engine.drain(0)
    assert engine.results(0)["status"].tolist() == [FINISHED] * 6


# ---- laws ----


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[ClusterSpec, Trace, list[int]]:
    latency = LatencyModel(w0_s=0.003, w1_s_per_tok=1e-4, c1_s_per_tok=3e-4, kd_s_per_ctxtok=1e-6, a_s_per_pair=1e-7)
    kinds = [
        instance(
            latency,
            dp=draw(st.integers(1, 2)),
            num_gpu_blocks=draw(st.integers(4, 30)),
            max_num_batched_tokens=draw(st.integers(4, 64)),
            max_num_seqs=draw(st.integers(1, 8)),
            async_scheduling=draw(st.booleans()),
            enable_prefix_caching=draw(st.booleans()),
            scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    count = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([1, 3 * MS, 200 * MS]))
    trace = make_trace(
        np.cumsum(rng.integers(0, 4, count)) * grid,
        rng.integers(1, 50, count),
        rng.integers(1, 30, count),
        priority=rng.integers(0, 3, count),
        chains=[np.arange(rng.integers(0, 8)) for _ in range(count)],
    )
    return ClusterSpec(tuple(kinds)), trace, rng.integers(0, len(kinds), count).tolist()


def everything(engine: Engine) -> list[np.ndarray]:
    return [engine.results(0), engine.instance_stats(0), engine.gap_histogram(0)]


@settings(max_examples=60, deadline=None)
@given(scenarios())
def test_requests_and_tokens_are_conserved(scenario: tuple[ClusterSpec, Trace, list[int]]):
    spec, trace, actions = scenario
    engine = make_engine("reference", spec, 1)
    terms = replay(engine, trace, actions)
    results, stats, requests = engine.results(0), engine.instance_stats(0), trace.requests
    finished, rejected = results["status"] == FINISHED, results["status"] == REJECTED
    assert (finished | rejected).all()
    assert stats["finished"].sum() == finished.sum()
    assert stats["rejected"].sum() == rejected.sum() == terms[:, TERM["rejected"]].sum()
    for name in ("preemptions", "recomputed_tokens"):
        assert stats[name].sum() == results[name].sum()
    rows = results[finished]
    assert (rows["scheduled_ns"] >= requests["arrival_ns"][finished]).all()
    assert (rows["first_token_ns"] > rows["scheduled_ns"]).all()
    assert (rows["finish_ns"] >= rows["first_token_ns"]).all()
    assert engine.gap_histogram(0).sum() == (requests["output_tokens"][finished] - 1).sum()
    for index, one in enumerate(spec.expanded):
        mine = finished & (results["instance"] == index)
        computed = stats["prefill_tokens"][index] + stats["decode_tokens"][index]
        whole = (requests["prompt_tokens"] + requests["output_tokens"] - 1)[mine].sum()
        balance = whole - results["cached_tokens"][mine].sum() + results["recomputed_tokens"][mine].sum()
        # A resumed request may also hit more than it had computed, if others have cached it meanwhile.
        assert computed == balance or (one.engine.enable_prefix_caching and computed < balance)
        assert stats["peak_kv_blocks"][index] <= one.dp * (one.num_gpu_blocks - 1)


@settings(max_examples=40, deadline=None)
@given(scenarios())
def test_integral_terms_equal_the_sums_over_requests(scenario: tuple[ClusterSpec, Trace, list[int]]):
    spec, trace, actions = scenario
    engine = make_engine("reference", spec, 1)
    engine.reset(0, trace)
    engine.run(np.array([actions]))
    terms, end = engine.terms[0].copy(), int(engine.now_ns[0])
    engine.drain(0)
    results, arrival = engine.results(0), trace.requests["arrival_ns"]
    accepted = results["status"] != REJECTED
    for name, field in (("unfinished_request_s", "finish_ns"), ("awaiting_first_token_request_s", "first_token_ns")):
        assert terms[TERM[name]] == int((np.minimum(results[field], end) - arrival)[accepted].sum()) * 1e-9
    assert terms[TERM["finished"]] == (results["finish_ns"][accepted] <= end).sum()


@settings(max_examples=25, deadline=None)
@given(scenarios(), st.data())
def test_runs_repeat_and_snapshots_replay_bit_for_bit(
    scenario: tuple[ClusterSpec, Trace, list[int]], data: st.DataObject
):
    spec, trace, actions = scenario
    at = data.draw(st.integers(0, len(actions)))
    engine, other = make_engine("reference", spec, 1), make_engine("reference", spec, 1)
    engine.reset(0, trace)
    for action in actions[:at]:
        engine.step(np.array([action]))
    state = engine.snapshot(0)
    assert all(isinstance(value, np.ndarray) for value in state.values())
    other.restore(0, state)
    for action in [None, *actions[at:]]:
        if action is not None:
            engine.step(np.array([action]))
            other.step(np.array([action]))
        for name in ("obs", "mask", "terms", "now_ns", "pending", "done"):
            np.testing.assert_array_equal(getattr(engine, name), getattr(other, name))
    engine.drain(0)
    other.drain(0)
    assert all((left == right).all() for left, right in zip(everything(engine), everything(other), strict=True))
    other.restore(0, engine.snapshot(0))
    assert all((left == right).all() for left, right in zip(everything(engine), everything(other), strict=True))


def test_clusters_of_a_batch_do_not_touch_each_other():
    spec = ClusterSpec((instance(count=2),))
    pair, single = make_engine("reference", spec, 2), make_engine("reference", spec, 1)
    long = trace_of((0, 6, 3), (5, 7, 2), (5, 2, 1), (9, 3, 3))
    pair.reset(0, THREE)
    pair.reset(1, long)
    single.reset(0, long)
    for action in (0, 1, 0, 0):
        pair.step(np.array([action, action]))  # cluster 0 is done after three steps and ignores the fourth
        single.step(np.array([action]))
        np.testing.assert_array_equal(pair.obs[1], single.obs[0])
        np.testing.assert_array_equal(pair.terms[1], single.terms[0])
    assert pair.done.all()
    assert pair.results(0)["status"].tolist() == [UNFINISHED] * 3
    assert pair.terms[0].tolist() == [0.0] * len(TERM_NAMES)

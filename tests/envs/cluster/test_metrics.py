import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import DOCS

from fleetgym.envs.cluster import judging
from fleetgym.envs.cluster.engine import GAP_BINS, gap_bin
from fleetgym.envs.cluster.kernel import judging as compiled
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.metrics import (
    METRICS,
    RANKING,
    distribution,
    find_metric,
    find_ranking,
    flatten,
    gap_distribution,
    markdown_table,
    per_request,
    slo_attainment_curve,
    summarize,
)
from fleetgym.envs.cluster.requests import (
    FINISHED,
    INSTANCE_STATS_DTYPE,
    REJECTED,
    RESULT_DTYPE,
    UNFINISHED,
    make_trace,
)
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec, Slo
from fleetgym.envs.errors import UserError

S = 1_000_000_000
SLO = Slo(1.0, 0.0625, 0.1)


def make_cluster() -> ClusterSpec:
    engine = EngineArgs(max_num_batched_tokens=2048, max_num_seqs=256, num_gpu_blocks=101, max_model_len=1000)
    return ClusterSpec((InstanceSpec("gpu", "model", count=2, engine=engine, latency=LatencyModel(w0_s=0.01)),))


def make_run():
    """Four requests: finished within SLO, finished with one token, rejected, unfinished; judged by hand below."""
    trace = make_trace(
        np.array([1, 2, 3, 4]) * S,
        np.array([100, 200, 5000, 50]),
        np.array([11, 1, 10, 20]),
        class_id=np.array([0, 1, 1, 0]),
        class_names=("chat", "code"),
    )
    results = np.zeros(4, RESULT_DTYPE)
    results["status"] = FINISHED, FINISHED, REJECTED, UNFINISHED
    results["instance"] = 0, 1, 0, 1
    results["scheduled_ns"] = 1 * S, 3 * S, -1, 5 * S
    results["first_token_ns"] = 1.5 * S, 4 * S, -1, 6 * S
    results["finish_ns"] = 2.5 * S, 4 * S, -1, -1
    results["preemptions"] = 0, 0, 0, 2
    results["recomputed_tokens"] = 0, 0, 0, 40
    results["cached_tokens"] = 35, 0, 0, 0
    stats = np.zeros(2, INSTANCE_STATS_DTYPE)
    stats["busy_ns"] = 1 * S, 3 * S
    stats["prefill_tokens"] = 100, 250
    stats["decode_tokens"] = 0, 50
    stats["kv_block_ns"] = 100 * S, 300 * S
    stats["peak_kv_blocks"] = 50, 90
    return trace, results, stats


def test_a_small_run_judged_by_hand() -> None:
    trace, results, stats = make_run()
    summary = summarize(trace, results, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO, failure_s=60.0)
    assert summary["requests"] == {"arrived": 4, "finished": 2, "rejected": 1, "unfinished": 1}
    assert summary["makespan_s"] == 5.0  # first arrival 1 s, last event (a first token) 6 s
    assert summary["ttft_s"]["mean"] == pytest.approx((0.5 + 2.0 + 2.0) / 3)
    assert summary["tpot_s"] == dict.fromkeys(("mean", "p50", "p90", "p99", "max"), pytest.approx(0.1))
    assert summary["e2e_s"]["mean"] == pytest.approx((1.5 + 2.0) / 2)
    assert summary["e2e_s"]["p90"] == pytest.approx(1.5 + 0.9 * 0.5)
    assert summary["e2e_charged_s"]["mean"] == pytest.approx((1.5 + 2.0 + 60.0 + 60.0) / 4)
    assert summary["ttft_charged_s"]["mean"] == pytest.approx(
        (0.5 + 2.0 + 60.0 + 60.0) / 4
    )  # a first token alone is no answer
    assert summary["queue_s"]["max"] == pytest.approx(1.0)
    assert summary["norm_latency_s_per_token"]["mean"] == pytest.approx((1.5 / 11 + 2.0) / 2)
    assert summary["slo_attainment"] == 0.25  # only the first: 2 s exceed 1 s + 0.0625 s/1k tokens
    assert summary["goodput_rps"] == pytest.approx(1 / 3)  # per second of arrivals
    assert summary["throughput_rps"] == pytest.approx(2 / 5)
    assert summary["output_tokens_per_s"] == pytest.approx(12 / 5)
    assert summary["prompt_tokens_per_s"] == pytest.approx(300 / 5)
    assert summary["kv_usage_mean"] == pytest.approx(400 / (200 * 5))
    assert summary["kv_usage_peak"] == pytest.approx(0.9)
    assert (summary["preemptions"], summary["preemptions_per_1k_requests"]) == (2, 500.0)
    assert (summary["recomputed_tokens"], summary["cached_tokens"]) == (40, 35)
    assert summary["cache_hit_fraction"] == pytest.approx(35 / 350)
    assert summary["busy_fraction"] == pytest.approx(0.4)
    assert summary["imbalance_busy_cv"] == pytest.approx(0.5)
    assert summary["imbalance_tokens_cv"] == pytest.approx(0.5)
    assert summary["max_over_mean_tokens"] == pytest.approx(1.5)
    assert summary["token_gap_s"]["p50"] is None


def test_instances_and_classes_are_judged_apart() -> None:
    trace, results, stats = make_run()
    summary = summarize(trace, results, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO, failure_s=60.0)
    first, second = summary["per_instance"]
    assert first["requests"] == {"arrived": 2, "finished": 1, "rejected": 1, "unfinished": 0}
    assert first["hardware"] == "gpu/model/tp1"
    assert second["kv_usage_mean"] == pytest.approx(300 / (100 * 5))
    assert second["tpot_s"]["mean"] is None
    assert summary["per_class"]["chat"]["slo_attainment"] == 0.5
    assert summary["per_class"]["code"]["requests"]["rejected"] == 1


def test_json_holds_a_summary_of_nothing_but_failures() -> None:
    trace, results, stats = make_run()
    results["status"], results["scheduled_ns"], results["first_token_ns"] = REJECTED, -1, -1
    stats[:] = np.zeros(2, INSTANCE_STATS_DTYPE)
    summary = summarize(trace, results, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO, failure_s=60.0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["e2e_s"]["mean"] is None
    assert summary["imbalance_busy_cv"] is None
    assert summary["slo_attainment"] == 0.0


def test_a_finish_time_left_by_an_unfinished_request_is_ignored() -> None:
    trace, results, _ = make_run()
    results["finish_ns"][3] = 7 * S
    assert np.isnan(per_request(trace, results, SLO, failure_s=60.0)["e2e_s"][3])


def test_the_slo_looks_at_tpot_too() -> None:
    trace, results, _ = make_run()
    assert per_request(trace, results, SLO, failure_s=60.0)["slo_met"].tolist() == [True, False, False, False]
    assert not per_request(trace, results, replace(SLO, tpot_s=0.099), failure_s=60.0)["slo_met"].any()
    assert per_request(trace, results, replace(SLO, ttft_s=2.0), failure_s=60.0)["slo_met"].tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_a_later_end_lengthens_the_makespan_and_no_figure_that_ranks() -> None:
    trace, results, stats = make_run()
    run = trace, results, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO
    early, late = (summarize(*run, failure_s=60.0, end_ns=end_ns) for end_ns in (6 * S, 11 * S))
    assert late["makespan_s"] == 10.0
    for name in RANKING:
        assert early[name] == late[name]


def test_failing_a_request_never_improves_a_figure_that_ranks() -> None:
    """Whatever was served within failure_s counts for more than a failure, in every ranking figure."""
    trace, results, stats = make_run()
    dropped = results.copy()
    dropped["status"][1], dropped["finish_ns"][1], dropped["first_token_ns"][1] = REJECTED, -1, -1
    served, lost = (
        flatten(summarize(trace, r, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO, failure_s=60.0))
        for r in (results, dropped)
    )
    for key in ("e2e_charged_s.mean", "e2e_charged_s.p50", "ttft_charged_s.mean"):
        assert lost[key] > served[key]
    for key in ("e2e_charged_s.p99", "ttft_charged_s.p90"):
        assert lost[key] >= served[key]
    assert lost["slo_attainment"] <= served["slo_attainment"]
    assert lost["goodput_rps"] <= served["goodput_rps"]
    assert lost["e2e_s.mean"] < served["e2e_s.mean"]  # which is why this one may not rank


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("e2e_s.mean", "leaves failures out"),
        ("throughput_rps", "leaves failures out"),
        ("e2e_charged_s", "must be one of e2e_charged_s"),
        ("e2e_charged_s.p98", "must be one of"),
        ("e2e_charged_s.p90", "must be one of"),
        ("goodput_rps.mean", "must be one of"),
        ("e2e_chraged_s.mean", "did you mean e2e_charged_s"),
    ],
)
def test_only_failure_aware_figures_may_rank(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_ranking(key)


def test_attainment_grows_with_the_scale_of_the_objectives() -> None:
    trace, results, _ = make_run()
    curve = slo_attainment_curve(trace.requests, results, SLO, (0.25, 1.0, 2.0, 4.0))
    assert curve == [0.0, 0.25, 0.5, 0.5]  # 0.5 s of 1 s, 2 s of 1 s; a failure meets no objective


def test_scalars_arrays_and_compiled_code_judge_alike() -> None:
    """One definition serves both engines and the metrics."""
    rng = np.random.default_rng(0)
    arrival = rng.integers(0, 10**10, 500)
    first = arrival + rng.integers(1, 2 * 10**9, 500)
    outputs = rng.integers(1, 6, 500)
    finish = np.where(outputs > 1, first + rng.integers(1, 4 * 10**8, 500), first)
    prompts = rng.integers(1, 5000, 500)
    together = judging.within_slo(
        judging.since_s(arrival, first), judging.tpot_s(first, finish, outputs), prompts, SLO.limits
    )
    for definitions in (judging, compiled):
        alone = [
            definitions.within_slo(
                definitions.since_s(int(a), int(f)), definitions.tpot_s(int(f), int(e), int(o)), int(p), SLO.limits
            )
            for a, f, e, o, p in zip(arrival, first, finish, outputs, prompts, strict=True)
        ]
        assert alone == together.tolist()
    assert 0.1 < together.mean() < 0.9


def test_columns_keep_one_row_per_request() -> None:
    trace, results, _ = make_run()
    columns = per_request(trace, results, SLO, failure_s=60.0)
    assert {len(column) for column in columns.values()} == {4}
    assert columns["status"].tolist() == ["finished", "finished", "rejected", "unfinished"]
    assert columns["class"].tolist() == ["chat", "code", "code", "chat"]
    with pytest.raises(ValueError, match="3 rows for 4 requests"):
        per_request(trace, results[:3], SLO, failure_s=60.0)


def histogram_of(gaps_ns: list[int]) -> np.ndarray:
    histogram = np.zeros(GAP_BINS, np.int64)
    for gap in gaps_ns:
        histogram[gap_bin(gap)] += 1
    return histogram


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
def test_gap_figures_lie_within_a_bin_of_the_exact_ones(gaps_ns: list[int]) -> None:
    exact = distribution(np.array(gaps_ns) * 1e-9)
    estimate = gap_distribution(histogram_of(gaps_ns))
    for name, value in exact.items():
        assert estimate[name] == pytest.approx(value, rel=1 / 64, abs=1e-12), name


def test_small_gaps_are_exact() -> None:
    gaps_ns = [3, 3, 70, 127, 1]
    assert gap_distribution(histogram_of(gaps_ns)) == pytest.approx(distribution(np.array(gaps_ns) * 1e-9))


def test_a_histogram_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        gap_distribution(np.zeros(10, np.int64))


def test_percentiles_are_numpy_linear() -> None:
    values = np.array([5.0, np.nan, 1.0, 3.0])
    assert distribution(values) == {"mean": 3.0, "p50": 3.0, "p90": 4.6, "p99": pytest.approx(4.96), "max": 5.0}


def test_every_summary_key_is_registered_and_the_reverse() -> None:
    trace, results, stats = make_run()
    summary = summarize(trace, results, stats, np.zeros(GAP_BINS, np.int64), make_cluster(), SLO, failure_s=60.0)
    assert sorted(summary) == sorted(metric.name for metric in METRICS)
    assert {metric.better for metric in METRICS} == {"lower", "higher", "none"}


def test_the_documented_table_is_the_registry() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert markdown_table() in page


def test_find_metric_knows_dotted_keys_and_offers_near_names() -> None:
    assert find_metric("ttft_s.p90").better == "lower"
    with pytest.raises(UserError, match="did you mean ttft_s"):
        find_metric("tttf_s.p90")


def test_flatten_makes_dotted_keys_and_leaves_lists_out() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": 2.0, "f": [1]}) == {"a.b.c": 1, "a.d": None, "e": 2.0}

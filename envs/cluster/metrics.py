"""Every figure that a run is judged by, defined once.

A run leaves four things: the requests, what became of each (RESULT_DTYPE), the totals of each instance
(INSTANCE_STATS_DTYPE) and a histogram of the gaps between tokens. `per_request` turns the first two into columns,
`summarize` turns all four into one nested mapping that JSON can hold. `METRICS` says what each key means.

Conventions
-----------
* A figure covers the whole run, from the first arrival to its end; nothing is cut off as warm-up or drain.
* Latencies are over the requests that have them: TTFT and queue time over those that got that far, the others over the
  finished ones.
* A rejected or unfinished request is a *failure*: counted, charged the constant ``failure_s`` in ``ttft_charged_s`` and
  ``e2e_charged_s``, and missed in ``slo_attainment`` and ``goodput_rps``. Only these four may rank (`RANKING`):
  every arrived request counts in them, and none depends on when a policy's own run ends.
* Percentiles interpolate linearly between order statistics (NumPy's ``linear``).
* What does not exist (the TPOT of a one-token answer, the mean of nothing) is NaN in columns and None in summaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import GAP_BINS, gap_bin_low_ns
from fleetgym.envs.cluster.judging import since_s, tpot_s, within_slo
from fleetgym.envs.cluster.requests import FINISHED, REJECTED, STATUS_NAMES, UNFINISHED, Trace
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.errors import UserError, did_you_mean

Summary = dict[str, Any]


class Metric(NamedTuple):
    """One key of `summarize`.

    Attributes
    ----------
    name : str
    unit : str
        ``-`` where it is no number.
    better : {"lower", "higher", "none"}
    definition : str
    source : str
        Who defines it so.
    """

    name: str
    unit: str
    better: str
    definition: str
    source: str


# fmt: off
METRICS = (
    Metric("requests", "requests", "none", "counts: arrived, finished, rejected, unfinished", "this project"),
    Metric("ttft_s", "s", "lower", "first token − arrival at the router", "this project"),
    Metric("tpot_s", "s", "lower", "(finish − first token) / (output tokens − 1); one-token answers have none", "DistServe"),
    Metric("e2e_s", "s", "lower", "finish − arrival, finished requests only", "Intelligent Router"),
    Metric("ttft_charged_s", "s", "lower", "TTFT of finished requests, `failure_s` for every other one", "this project"),
    Metric("e2e_charged_s", "s", "lower", "E2E of finished requests, `failure_s` for every other one", "this project"),
    Metric("queue_s", "s", "lower", "first time in an iteration − arrival", "vLLM"),
    Metric("norm_latency_s_per_token", "s/token", "lower", "(finish − arrival) / output tokens", "vLLM, ALISE"),
    Metric("token_gap_s", "s", "lower", "gaps between successive tokens, all gaps of all requests", "Sarathi"),
    Metric("slo_attainment", "fraction", "higher", "finished within SLO / arrived", "Mooncake"),
    Metric("goodput_rps", "requests/s", "higher", "finished within SLO / time from the first to the last arrival", "this project"),
    Metric("throughput_rps", "requests/s", "higher", "finished / makespan", "vLLM"),
    Metric("output_tokens_per_s", "tokens/s", "higher", "output tokens of finished requests / makespan", "vLLM"),
    Metric("prompt_tokens_per_s", "tokens/s", "higher", "prompt tokens of finished requests / makespan", "vLLM"),
    Metric("makespan_s", "s", "lower", "end of the run − first arrival", "Intelligent Router"),
    Metric("kv_usage_mean", "fraction", "none", "used KV blocks / usable ones, over time and the fleet", "vLLM"),
    Metric("kv_usage_peak", "fraction", "none", "largest share of its KV blocks that an instance used", "vLLM"),
    Metric("preemptions", "count", "lower", "times that a request was thrown out of a running batch", "vLLM"),
    Metric("preemptions_per_1k_requests", "count", "lower", "1,000 · preemptions / arrived", "FastSwitch"),
    Metric("recomputed_tokens", "tokens", "lower", "computed, lost by preemption, computed again", "Intelligent Router"),
    Metric("cached_tokens", "tokens", "higher", "prompt tokens found in the prefix cache", "Mooncake"),
    Metric("cache_hit_fraction", "fraction", "higher", "cached tokens / prompt tokens of scheduled requests", "Mooncake"),
    Metric("busy_fraction", "fraction", "none", "time with an iteration executing, mean over instances", "vLLM"),
    Metric("imbalance_tokens_cv", "ratio", "lower", "standard deviation / mean, over instances, of computed tokens", "Llumnix"),
    Metric("imbalance_busy_cv", "ratio", "lower", "the same of busy time: fair to unequal hardware", "this project"),
    Metric("max_over_mean_tokens", "ratio", "lower", "computed tokens of the busiest instance / mean", "Llumnix"),
    Metric("per_instance", "-", "none", "figures of each instance, in instance order", "this project"),
    Metric("per_class", "-", "none", "counts, latencies and SLO attainment of each request class", "QLLM"),
)
# fmt: on
_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

LATENCIES = (
    "ttft_s", "tpot_s", "e2e_s", "ttft_charged_s", "e2e_charged_s", "queue_s", "norm_latency_s_per_token",
)  # fmt: skip
RANKING = ("e2e_charged_s", "ttft_charged_s", "slo_attainment", "goodput_rps")
SLO_SCALES = tuple(float(scale) for scale in np.geomspace(0.25, 4.0, 17))
PERCENTILES = (50, 90, 99)

_EDGES_NS = np.array([float(gap_bin_low_ns(index)) for index in range(GAP_BINS + 1)])


def find_metric(key: str) -> Metric:
    """Return the registry row of a summary key.

    Parameters
    ----------
    key : str
        Dotted or not: ``"ttft_s.p90"`` gives the row of ``ttft_s``.

    Raises
    ------
    UserError
        No such metric.
    """
    name = key.split(".", 1)[0]
    if name not in _BY_NAME:
        raise UserError(f"metric={key!r}: unknown{did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]


def markdown_table() -> str:
    """`METRICS` as the table of ``docs/metrics.md``."""
    head = "| key | unit | better | definition | source |\n|---|---|---|---|---|\n"
    return head + "".join(f"| `{m.name}` | {m.unit} | {m.better} | {m.definition} | {m.source} |\n" for m in METRICS)


def find_ranking(key: str) -> Metric:
    """Return the registry row of a figure that policies may be ranked by.

    Parameters
    ----------
    key : str
        One of `RANKING`; of a latency its ``mean`` or ``p99``, as in ``"e2e_charged_s.p99"``.

    Raises
    ------
    UserError
        Unknown, or a figure in which failures do not count, or not all of them.
    """
    metric = find_metric(key)
    statistic = key.partition(".")[2]
    wanted = ("mean", "p99") if metric.name in LATENCIES else ("",)  # below P99 a tenth or half may fail unseen
    allowed = ", ".join(f"{name}.{{mean, p99}}" if name in LATENCIES else name for name in RANKING)
    if metric.name not in RANKING:
        raise UserError(
            f"rank_by={key!r}: leaves failures out, so that dropping requests would win (allowed: {allowed})"
        )
    if statistic not in wanted:
        raise UserError(f"rank_by={key!r}: must be one of {allowed}")
    return metric


def slo_met(requests: NDArray[np.void], results: NDArray[np.void], slo: Slo) -> NDArray[np.bool_]:
    """Whether each request finished within its objectives, shape (R,).

    Parameters
    ----------
    requests : ndarray of REQUEST_DTYPE, shape (R,)
    results : ndarray of RESULT_DTYPE, shape (R,)
    slo : Slo
    """
    first, finish = results["first_token_ns"], results["finish_ns"]
    ttft = since_s(requests["arrival_ns"], first)
    tpot = tpot_s(first, finish, requests["output_tokens"])
    met: NDArray[np.bool_] = within_slo(ttft, tpot, requests["prompt_tokens"], slo.limits)
    return met & (results["status"] == FINISHED)


def slo_attainment_curve(
    requests: NDArray[np.void], results: NDArray[np.void], slo: Slo, scales: Sequence[float] = SLO_SCALES
) -> list[float]:
    """Share of all requests, in [0, 1], that finished within their objectives, these multiplied by each of some scales.

    Parameters
    ----------
    requests : ndarray of REQUEST_DTYPE, shape (R,)
    results : ndarray of RESULT_DTYPE, shape (R,)
    slo : Slo
    scales : sequence of float
        Above 1: looser. In the order of the result.

    Raises
    ------
    UserError
        A scale that is not positive and finite.
    """
    return [float(slo_met(requests, results, slo.scaled(scale)).mean()) for scale in scales]


def _run_end_ns(trace: Trace, results: NDArray[np.void]) -> int:
    """Instant of the last arrival, first token or finish: the end of a run that was drained."""
    last = max(int(results[name].max()) for name in ("scheduled_ns", "first_token_ns", "finish_ns"))
    return max(last, int(trace.requests["arrival_ns"][-1]))


def latencies(
    requests: NDArray[np.void], results: NDArray[np.void]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """TTFT, TPOT and E2E of each request in seconds, shape (R,) each, NaN where they do not exist.

    Parameters
    ----------
    requests : ndarray of REQUEST_DTYPE, shape (R,)
    results : ndarray of RESULT_DTYPE, shape (R,)
    """
    arrival, first, outputs = requests["arrival_ns"], results["first_token_ns"], requests["output_tokens"]
    finished = results["status"] == FINISHED
    tpot = np.where(finished & (outputs > 1), tpot_s(first, results["finish_ns"], outputs), np.nan)
    return _since(arrival, first), tpot, np.where(finished, since_s(arrival, results["finish_ns"]), np.nan)


def charged(latency_s: NDArray[np.float64], results: NDArray[np.void], failure_s: float) -> NDArray[np.float64]:
    """Latency of each finished request, and the charge for each of the others, in seconds, shape (R,).

    Parameters
    ----------
    latency_s : ndarray of float64, shape (R,)
    results : ndarray of RESULT_DTYPE, shape (R,)
    failure_s : float
        What a rejected or unfinished request is charged.
    """
    return np.where(results["status"] == FINISHED, latency_s, failure_s)


def per_request(trace: Trace, results: NDArray[np.void], slo: Slo, *, failure_s: float) -> dict[str, NDArray[Any]]:
    """One column per quantity, one row per request, in arrival order.

    Parameters
    ----------
    trace : Trace
        R requests.
    results : ndarray of RESULT_DTYPE, shape (R,)
    slo : Slo
    failure_s : float
        Latency that a request is charged which did not finish.

    Returns
    -------
    dict of str to ndarray, shape (R,)
        Latencies in seconds, NaN where they do not exist.

    Raises
    ------
    ValueError
        Not as many results as requests.
    """
    rows = trace.requests
    if len(results) != len(rows):
        raise ValueError(f"results: {len(results)} rows for {len(rows)} requests")
    arrival = rows["arrival_ns"]
    ttft, tpot, e2e = latencies(rows, results)
    return {
        "request": np.arange(len(rows)),
        "arrival_s": arrival * 1e-9,
        "class": np.array(trace.class_names)[rows["class_id"]],
        "priority": rows["priority"].copy(),
        "prompt_tokens": rows["prompt_tokens"].copy(),
        "output_tokens": rows["output_tokens"].copy(),
        "instance": results["instance"].copy(),
        "status": np.array(STATUS_NAMES)[results["status"]],
        "queue_s": _since(arrival, results["scheduled_ns"]),
        "ttft_s": ttft,
        "tpot_s": tpot,
        "e2e_s": e2e,
        "ttft_charged_s": charged(ttft, results, failure_s),
        "e2e_charged_s": charged(e2e, results, failure_s),
        "norm_latency_s_per_token": e2e / rows["output_tokens"],
        "slo_met": slo_met(rows, results, slo),
        "preemptions": results["preemptions"].copy(),
        "recomputed_tokens": results["recomputed_tokens"].copy(),
        "cached_tokens": results["cached_tokens"].copy(),
    }


def _since(earlier_ns: NDArray[np.int64], later_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(later_ns >= 0, since_s(earlier_ns, later_ns), np.nan)


def distribution(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean, P50, P90, P99 and maximum of the finite values.

    Parameters
    ----------
    values : ndarray of float64, shape (R,)
        Of any unit; NaN where there is none.

    Returns
    -------
    dict of str to (float or None)
        ``mean``, ``p50``, ``p90``, ``p99``, ``max`` in the same unit; None without any finite value.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return dict.fromkeys(("mean", *(f"p{q}" for q in PERCENTILES), "max"))
    points = np.percentile(finite, PERCENTILES, method="linear")
    named = {f"p{q}": float(value) for q, value in zip(PERCENTILES, points, strict=True)}
    return {"mean": float(finite.mean()), **named, "max": float(finite.max())}


def gap_distribution(histogram: NDArray[np.int64]) -> dict[str, float | None]:
    """Estimate the `distribution` of token gaps in seconds from their histogram.

    Within a bin the gaps are taken to be spread evenly, so a figure is off by at most the bin's width:
    nothing below 128 ns, 1.6 % above.

    Parameters
    ----------
    histogram : ndarray of int64, shape (GAP_BINS,)
        Counts per bin of `fleetgym.envs.cluster.engine.gap_bin`.

    Raises
    ------
    ValueError
        Another shape.
    """
    if histogram.shape != (GAP_BINS,):
        raise ValueError(f"histogram: shape {histogram.shape}, expected ({GAP_BINS},)")
    total = int(histogram.sum())
    if total == 0:
        return distribution(np.zeros(0))
    before = np.concatenate([[0], np.cumsum(histogram)])
    widths = np.diff(_EDGES_NS) - 1.0

    def order_statistic(rank: int) -> float:
        index = int(np.searchsorted(before, rank, side="right")) - 1
        inside = (rank - before[index] + 0.5) / histogram[index]
        return float(_EDGES_NS[index] + inside * widths[index]) * 1e-9

    figures: dict[str, float | None] = {"mean": float(histogram @ (_EDGES_NS[:-1] + 0.5 * widths)) / total * 1e-9}
    for q in PERCENTILES:
        rank = q / 100.0 * (total - 1)
        low, high = order_statistic(int(rank)), order_statistic(min(int(rank) + 1, total - 1))
        figures[f"p{q}"] = low + (rank - int(rank)) * (high - low)
    return {**figures, "max": order_statistic(total - 1)}


def summarize(
    trace: Trace,
    results: NDArray[np.void],
    instance_stats: NDArray[np.void],
    gap_histogram: NDArray[np.int64],
    cluster: ClusterSpec,
    slo: Slo,
    *,
    failure_s: float,
    end_ns: int | None = None,
) -> Summary:
    """Judge one run.

    Parameters
    ----------
    trace : Trace
        R requests.
    results : ndarray of RESULT_DTYPE, shape (R,)
    instance_stats : ndarray of INSTANCE_STATS_DTYPE, shape (N,)
    gap_histogram : ndarray of int64, shape (GAP_BINS,)
    cluster : ClusterSpec
        N instances; their KV capacities turn blocks into fractions.
    slo : Slo
    failure_s : float
        Latency that a request is charged which did not finish, in the charged figures.
    end_ns : int, optional
        When a run that was not drained ended; by default the last event of any request.

    Returns
    -------
    dict
        The keys of `METRICS`; plain int, float, str or None at the leaves, so that JSON holds it as it is.
    """
    end = _run_end_ns(trace, results) if end_ns is None else end_ns
    columns = per_request(trace, results, slo, failure_s=failure_s)
    arrivals = trace.requests["arrival_ns"]
    span_s = since_s(int(arrivals[0]), end)
    offered_s = since_s(int(arrivals[0]), int(arrivals[-1]))
    tokens = (instance_stats["prefill_tokens"] + instance_stats["decode_tokens"]).astype(np.float64)
    preemptions = int(results["preemptions"].sum())
    scheduled_prompt = int(columns["prompt_tokens"][results["scheduled_ns"] >= 0].sum())
    cached = int(results["cached_tokens"].sum())
    blocks = np.array([instance.dp * (instance.num_gpu_blocks - 1) for instance in cluster.expanded], np.float64)
    finished = results["status"] == FINISHED
    return {
        **_group(columns, np.ones(len(trace), np.bool_)),
        "token_gap_s": gap_distribution(gap_histogram),
        "goodput_rps": _ratio(int(columns["slo_met"].sum()), offered_s),
        "throughput_rps": _ratio(int(finished.sum()), span_s),
        "output_tokens_per_s": _ratio(int(columns["output_tokens"][finished].sum()), span_s),
        "prompt_tokens_per_s": _ratio(int(columns["prompt_tokens"][finished].sum()), span_s),
        "makespan_s": span_s,
        "kv_usage_mean": _ratio(float(instance_stats["kv_block_ns"].sum()) * 1e-9, float(blocks.sum()) * span_s),
        "kv_usage_peak": float((instance_stats["peak_kv_blocks"] / blocks).max()),
        "preemptions": preemptions,
        "preemptions_per_1k_requests": preemptions * 1000.0 / len(trace),
        "recomputed_tokens": int(results["recomputed_tokens"].sum()),
        "cached_tokens": cached,
        "cache_hit_fraction": _ratio(cached, scheduled_prompt),
        "busy_fraction": _ratio(float(instance_stats["busy_ns"].mean()) * 1e-9, span_s),
        "imbalance_tokens_cv": _ratio(float(tokens.std()), float(tokens.mean())),
        "imbalance_busy_cv": _ratio(float(instance_stats["busy_ns"].std()), float(instance_stats["busy_ns"].mean())),
        "max_over_mean_tokens": _ratio(float(tokens.max()), float(tokens.mean())),
        "per_instance": _per_instance(columns, instance_stats, cluster, blocks, span_s),
        "per_class": {name: _group(columns, columns["class"] == name) for name in trace.class_names},
    }


def _group(columns: Mapping[str, NDArray[Any]], members: NDArray[np.bool_]) -> Summary:
    """Count and judge the requests in ``members``."""
    status = columns["status"][members]
    counts = {
        STATUS_NAMES[code]: int((status == STATUS_NAMES[code]).sum()) for code in (FINISHED, REJECTED, UNFINISHED)
    }
    return {
        "requests": {"arrived": len(status), **counts},
        **{name: distribution(columns[name][members]) for name in LATENCIES},
        "slo_attainment": _ratio(int(columns["slo_met"][members].sum()), len(status)),
    }


def _per_instance(
    columns: Mapping[str, NDArray[Any]],
    stats: NDArray[np.void],
    cluster: ClusterSpec,
    blocks: NDArray[np.float64],
    span_s: float,
) -> list[Summary]:
    """Figures of each instance; ``arrived`` is what the router sent there."""
    rows: list[Summary] = []
    for index, instance in enumerate(cluster.expanded):
        row = stats[index]
        rows.append(
            {
                "instance": index,
                "hardware": f"{instance.gpu}/{instance.model}/tp{instance.tp}",
                **_group(columns, columns["instance"] == index),
                "iterations": int(row["iterations"]),
                "prefill_tokens": int(row["prefill_tokens"]),
                "decode_tokens": int(row["decode_tokens"]),
                "busy_fraction": _ratio(float(row["busy_ns"]) * 1e-9, span_s),
                "kv_usage_mean": _ratio(float(row["kv_block_ns"]) * 1e-9, float(blocks[index]) * span_s),
                "kv_usage_peak": float(row["peak_kv_blocks"] / blocks[index]),
                "preemptions": int(row["preemptions"]),
                "recomputed_tokens": int(row["recomputed_tokens"]),
            }
        )
    return rows


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def flatten(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float | int | str | None]:
    """Turn a summary into one table row: ``{"ttft_s": {"mean": 1.0}}`` gives ``{"ttft_s.mean": 1.0}``.

    Parameters
    ----------
    summary : mapping
        As `summarize` gives it; lists in it are left out.
    prefix : str
        Put before each key.
    """
    row: dict[str, float | int | str | None] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            row |= flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            row[f"{prefix}{key}"] = value
    return row

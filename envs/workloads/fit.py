"""Fit a `Profile` to a trace and measure how good the fit is (``fleetgym fit-workload``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.workloads.arrivals import Arrivals
from fleetgym.envs.workloads.lengths import Lengths, Profile

PROMPT_QUANTILES, PROMPT_CLASSES, OUTPUT_QUANTILES = 401, 20, 101
WINDOWS_S = (1, 10, 60, 300)


def ks_distance(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Return the two-sample Kolmogorov-Smirnov distance, in [0, 1]: the largest gap between the empirical CDFs.

    Parameters
    ----------
    first, second : ndarray, shape (A,) and (B,)
        Samples in any order, of the same unit; at least one each.
    """
    a, b = np.sort(first), np.sort(second)
    points = np.concatenate([a, b])
    cdf_a = np.searchsorted(a, points, side="right") / len(a)
    cdf_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(cdf_a - cdf_b).max())


def gap_cv(arrival_ns: NDArray[np.int64]) -> float:
    """Return the coefficient of variation of the gaps between arrivals (1 for Poisson).

    Parameters
    ----------
    arrival_ns : ndarray of int64, shape (R,)
        Ascending; not all at once.
    """
    gaps = np.diff(arrival_ns)
    return float(gaps.std() / gaps.mean())


def _dispersion(arrival_ns: NDArray[np.int64], window_s: float) -> float:
    """Return variance over mean of the arrivals per window (1 for Poisson), over full windows."""
    counts = np.bincount(((arrival_ns - arrival_ns[0]) / (window_s * 1e9)).astype(np.int64))[:-1]
    return float(counts.var() / counts.mean())


def _fit_lengths(prompt: NDArray[np.int64], output: NDArray[np.int64]) -> Lengths:
    """Return quantile tables: of the prompt, and of the output within prompt classes of equal probability."""
    by_prompt = np.argsort(prompt, kind="stable")
    classes = np.array_split(output[by_prompt], PROMPT_CLASSES)
    table = [np.quantile(part, np.linspace(0, 1, OUTPUT_QUANTILES)) for part in classes]
    return Lengths(np.quantile(prompt, np.linspace(0, 1, PROMPT_QUANTILES)).round(1), np.array(table).round(1))


def _fit_arrivals(arrival_ns: NDArray[np.int64]) -> Arrivals:
    """Fit a Poisson process with log-normal drift to the counts per 10 s by moments.

    The variance of counts beyond Poisson gives ``drift_cv``; the lag at which their autocovariance has fallen
    to 1/e of it gives ``drift_s`` (at least one window). A trace of finite length shows less variance around
    its own mean than the process has; the factor for an exponential correlation is divided out.
    """
    window_s = 10.0
    counts = np.bincount(((arrival_ns - arrival_ns[0]) / (window_s * 1e9)).astype(np.int64))[:-1].astype(float)
    excess = counts.var() - counts.mean()
    if excess <= 0:
        return Arrivals("poisson")
    centred = counts - counts.mean()
    lags = range(1, len(counts) // 3)
    correlation = [float(np.mean(centred[:-lag] * centred[lag:]) / excess) for lag in lags]
    below = next((lag for lag, value in zip(lags, correlation, strict=True) if value < np.exp(-1)), len(lags))
    drift_s = below * window_s
    ratio = drift_s / (len(counts) * window_s)
    shown = 1.0 - 2.0 * ratio * (1.0 - ratio * (1.0 - np.exp(-1.0 / ratio)))
    drift_cv = float(np.sqrt(excess / shown) / counts.mean())
    return Arrivals("poisson", drift_cv=round(drift_cv, 3), drift_s=round(drift_s, 1))


def fit_profile(trace: Trace) -> Profile:
    """Fit everything that the generator needs.

    Parameters
    ----------
    trace : Trace
        First arrival at 0, and a span of at least some times 10 s, the window in which arrivals are counted.

    Returns
    -------
    Profile
        Rate, arrivals with their drift, and the joint distribution of the lengths.
    """
    rows = trace.requests
    span_s = float(rows["arrival_ns"][-1]) * 1e-9
    rate_rps = round((len(trace) - 1) / span_s, 4)
    lengths = _fit_lengths(rows["prompt_tokens"].astype(np.int64), rows["output_tokens"].astype(np.int64))
    source = f"{trace.name}: {len(trace)} requests in {span_s:.0f} s"
    return Profile(source, rate_rps, _fit_arrivals(rows["arrival_ns"]), lengths)


def length_quality(profile: Profile, trace: Trace, rng: np.random.Generator, draws: int = 200_000) -> dict[str, float]:
    """Compare generated lengths with the trace's: KS distances, errors of mean and quantiles in percent.

    ``between_halves`` is the yardstick: the KS distance between the trace's own first and second half.

    Parameters
    ----------
    profile : Profile
    trace : Trace
        What it was fitted to, or another one.
    rng : numpy.random.Generator
    draws : int
        Generated requests.

    Returns
    -------
    dict of str to float
        Figures by name.
    """
    rows = trace.requests
    prompt, output = rows["prompt_tokens"].astype(np.int64), rows["output_tokens"].astype(np.int64)
    made_prompt, made_output = profile.lengths.sample(rng, draws)
    edges = np.quantile(prompt, [0.25, 0.5, 0.75])
    real_class, made_class = np.searchsorted(edges, prompt), np.searchsorted(edges, made_prompt)
    report = {
        "ks_prompt": ks_distance(made_prompt, prompt),
        "ks_output": ks_distance(made_output, output),
        "ks_total": ks_distance(made_prompt + made_output, prompt + output),
        "ks_output_given_prompt_quartile_max": max(
            ks_distance(made_output[made_class == k], output[real_class == k]) for k in range(4)
        ),
    }
    for name, real, made in (("prompt", prompt, made_prompt), ("output", output, made_output)):
        report[f"{name}_mean_error_pct"] = 100.0 * float(made.mean() / real.mean() - 1.0)
        for q in (0.5, 0.9, 0.99):
            error = float(np.quantile(made, q) / np.quantile(real, q) - 1.0)
            report[f"{name}_p{q * 100:.0f}_error_pct"] = 100.0 * error
    half = len(trace) // 2
    report["ks_prompt_between_halves"] = ks_distance(prompt[:half], prompt[half:])
    report["ks_output_between_halves"] = ks_distance(output[:half], output[half:])
    return report


def arrival_quality(
    profile: Profile, trace: Trace, rng: np.random.Generator, replications: int = 20
) -> dict[str, float]:
    """Compare arrival statistics of the trace with their means over replications of the same length.

    Parameters
    ----------
    profile : Profile
    trace : Trace
        What it was fitted to, or another one.
    rng : numpy.random.Generator
    replications : int
        Generated sequences of as many arrivals as the trace has.

    Returns
    -------
    dict of str to float
        KS distance and coefficients of variation of the gaps; dispersion (variance over mean of the arrivals) in each
        of `WINDOWS_S`, in seconds.

    Raises
    ------
    UserError
        The profile's rate is so low that the times leave int64 nanoseconds.
    """
    real_ns = trace.requests["arrival_ns"]
    made = [profile.arrivals.sample_ns(rng, len(trace), profile.rate_rps) for _ in range(replications)]
    report = {
        "ks_gap": ks_distance(np.concatenate([np.diff(times) for times in made]), np.diff(real_ns)),
        "gap_cv_trace": gap_cv(real_ns),
        "gap_cv_fit": float(np.mean([gap_cv(times) for times in made])),
    }
    for window_s in WINDOWS_S:
        report[f"dispersion_{window_s}s_trace"] = _dispersion(real_ns, window_s)
        report[f"dispersion_{window_s}s_fit"] = float(np.mean([_dispersion(times, window_s) for times in made]))
    return report

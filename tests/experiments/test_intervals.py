import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from fleetgym.envs.errors import UserError
from fleetgym.experiments.comparison.intervals import (
    MIN_WINDOWS,
    Scores,
    collect,
    geometric_mean_ratio,
    mean_interval,
    places,
    relative_change,
)


def scores_of(*policies: list[float]) -> Scores:
    values = np.array(policies, np.float64)[:, :, None]
    return Scores(tuple("abcdefgh"[: len(policies)]), tuple(range(values.shape[1])), ("default",), values)


def ranks(scores: Scores, lower_is_better: bool = True) -> list[int]:
    return places(scores, lower_is_better=lower_is_better)


def test_rows_of_one_window_are_averaged_before_anything_else() -> None:
    rows = [
        {"policy": "p", "window": 1, "x": 1.0},
        {"policy": "p", "window": 1, "x": 3.0},
        {"policy": "p", "window": 0, "x": 5.0},
        {"policy": "q", "window": 0, "x": None},
    ]
    scores = collect(rows, "x")
    assert (scores.policies, scores.windows) == (("p", "q"), (0, 1))
    assert scores.values[0, :, 0].tolist() == [5.0, 2.0]
    assert np.isnan(scores.values[1]).all()
    assert scores.complete.tolist() == [True, False]


def test_an_unknown_metric_offers_near_names_and_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean ttft"):
        collect([{"policy": "p", "window": 0, "ttft": 1.0}], "tfft")
    with pytest.raises(UserError, match="nothing to compare"):
        collect([], "x")


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(3).normal(7.0, 1.0, 8)
    low, high = stats.t.interval(0.95, 7, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values[:, None]) == pytest.approx((values.mean(), low, high))


def test_strata_have_satterthwaites_degrees_of_freedom() -> None:
    """Two scenarios weigh one half each: the interval of the sum of two means, as Welch's test has it."""
    a, b = np.random.default_rng(4).normal(0.0, (1.0, 5.0), (9, 2)).T
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    got = mean_interval(np.stack([a, b], axis=1))
    assert (2 * got.low, 2 * got.high) == pytest.approx((welch.low, welch.high))


@pytest.mark.parametrize(
    ("windows", "sigma", "least"), [(6, None, 0.93), (7, None, 0.93), (7, 0.5, 0.9), (20, 0.5, 0.9)]
)
def test_a_few_windows_cover_the_truth_as_often_as_they_say(windows: int, sigma: float | None, least: float) -> None:
    """Window means are normal or, in overload, skewed; resampling six of them would cover 86 %."""
    rng = np.random.default_rng(5)
    draw = rng.normal(0.0, 1.0, (2000, windows)) if sigma is None else rng.lognormal(0.0, sigma, (2000, windows))
    truth = 0.0 if sigma is None else math.exp(sigma**2 / 2)
    intervals = [mean_interval(values[:, None]) for values in draw]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert least < covered < 0.97


def test_a_ratio_of_correlated_means_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    common = rng.gamma(20.0, 0.5, (2000, 7))
    theirs, ours = common + rng.normal(0.0, 0.3, common.shape), 0.9 * common + rng.normal(0.0, 0.3, common.shape)
    intervals = [relative_change(a[:, None], b[:, None]) for a, b in zip(ours, theirs, strict=True)]
    covered = np.mean([i.low <= -0.1 <= i.high for i in intervals])
    assert 0.93 < covered < 0.97


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(MIN_WINDOWS, 12), st.floats(-0.2, 0.2))
def test_a_relative_change_excludes_zero_exactly_where_the_difference_does(seed: int, windows: int, by: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.gamma(30.0, 0.3, (windows, 1))
    values = reference * (1.0 + by) + rng.normal(0.0, 0.5, reference.shape)
    change, difference = relative_change(values, reference), mean_interval(values - reference)
    assume(not math.isnan(change.low))
    assert change.excludes_zero == difference.excludes_zero
    assert change.low <= change.estimate <= change.high


def test_a_constant_shift_is_found_under_noise_common_to_both() -> None:
    noise = np.random.default_rng(0).normal(0.0, 10.0, 10)
    scores = scores_of(list(100.0 + noise), list(100.5 + noise))
    assert mean_interval(scores.values[1] - scores.values[0]) == pytest.approx((0.5, 0.5, 0.5))
    assert mean_interval(scores.values[0]).high > 102.0  # each alone is far more uncertain than the difference
    assert ranks(scores) == [1, 2]


def test_a_reference_that_may_be_zero_bounds_no_ratio() -> None:
    around_zero = np.array([-1.0, 1.0, -2.0, 2.0, -0.5, 1.0])[:, None]
    assert math.isnan(relative_change(around_zero + 5.0, around_zero).low)
    assert math.isnan(relative_change(around_zero, np.zeros((6, 1))).estimate)


@pytest.mark.parametrize("windows", range(1, MIN_WINDOWS))
def test_fewer_than_six_windows_give_no_interval_and_everyone_shares_the_first_place(windows: int) -> None:
    scores = scores_of([1.0] * windows, [2.0] * windows)
    interval = mean_interval(scores.values[0])
    assert interval.estimate == 1.0
    assert math.isnan(interval.low)
    assert not interval.excludes_zero
    assert ranks(scores) == [1, 1]


def test_places_are_shared_by_those_that_nothing_tells_apart() -> None:
    best, alike = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.1, 1.9, 3.1, 3.9, 5.0, 6.0]
    worse = [value + 2.0 for value in best]
    assert ranks(scores_of(worse, best, alike)) == [3, 1, 1]
    assert ranks(scores_of(worse, best, alike), lower_is_better=False) == [1, 2, 2]


def test_a_policy_with_a_missing_figure_comes_last() -> None:
    nan = float("nan")
    assert ranks(scores_of([0.1] * 5 + [nan], [5.0 + i for i in range(6)], [1.0 + i for i in range(6)])) == [3, 2, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 1000))
def test_places_start_at_one_and_do_not_depend_on_row_order(policies: int, windows: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(policies, windows, 1))
    forward = ranks(scores_of(*values[:, :, 0].tolist()))
    backward = ranks(scores_of(*values[::-1, :, 0].tolist()))
    assert min(forward) == 1
    assert forward == backward[::-1]
    assert forward[int(values.mean(axis=(1, 2)).argmin())] == 1


def test_a_geometric_mean_weighs_scenarios_alike_whatever_their_scale() -> None:
    rng = np.random.default_rng(8)
    reference = [rng.gamma(30.0, 0.3, 8), rng.gamma(30.0, 0.3, 6)]
    values = [0.5 * reference[0], 2.0 * reference[1]]
    numbers = [tuple(range(8)), tuple(range(6))]
    assert geometric_mean_ratio(values, reference, numbers) == pytest.approx((1.0, 1.0, 1.0))
    scaled = [1000.0 * values[0], values[1]], [1000.0 * reference[0], reference[1]]
    assert geometric_mean_ratio(*scaled, numbers) == pytest.approx((1.0, 1.0, 1.0))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(MIN_WINDOWS, 12))
def test_of_one_scenario_it_is_the_ratio_with_nearly_fiellers_interval(seed: int, windows: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.gamma(400.0, 0.01, windows)
    values = 0.9 * reference + rng.normal(0.0, 0.05, windows)
    got = geometric_mean_ratio([values], [reference], [tuple(range(windows))])
    fieller = relative_change(values[:, None], reference[:, None])
    assert got.estimate == pytest.approx(1.0 + fieller.estimate)
    assert (got.low, got.high) == pytest.approx((1.0 + fieller.low, 1.0 + fieller.high), abs=0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_a_geometric_mean_covers_the_truth_whether_or_not_scenarios_share_their_traffic(shared: bool) -> None:
    rng = np.random.default_rng(9)
    truth, covered = math.sqrt(0.9 * 0.8), 0
    for _ in range(2000):
        noise = rng.normal(0.0, 0.1, (2, 7))
        if shared:
            noise[1] = noise[0]
        reference = [5.0 * (1.0 + rng.normal(0.0, 0.1, 7)) for _ in range(2)]
        values = [factor * (r + 5.0 * n) for factor, r, n in zip((0.9, 0.8), reference, noise, strict=True)]
        numbers = [tuple(range(7)), tuple(range(7)) if shared else tuple(range(7, 14))]
        interval = geometric_mean_ratio(values, reference, numbers)
        covered += interval.low <= truth <= interval.high
    assert 0.92 < covered / 2000 < 0.97


def test_scenarios_of_other_windows_are_strata_and_those_of_the_same_are_summed() -> None:
    rng = np.random.default_rng(10)
    values, one = [1.0 + rng.normal(0.0, 0.05, 8) for _ in range(2)], [np.ones(8)] * 2
    logs = [v / v.mean() - 1.0 for v in values]
    separate = geometric_mean_ratio(values, one, [tuple(range(8)), tuple(range(8, 16))])
    together = geometric_mean_ratio(values, one, [tuple(range(8))] * 2)
    assert separate.estimate == pytest.approx(together.estimate)
    width = mean_interval(np.stack(logs, axis=1))
    assert math.log(separate.high / separate.estimate) == pytest.approx(width.high - width.estimate)
    summed = mean_interval(((logs[0] + logs[1]) / 2.0)[:, None])
    assert math.log(together.high / together.estimate) == pytest.approx(summed.high - summed.estimate)


def test_a_geometric_mean_needs_a_figure_everywhere_and_six_windows_for_an_interval() -> None:
    good, numbers = np.arange(1.0, 7.0), tuple(range(6))
    for bad in (np.zeros(6), np.full(6, np.nan), np.full(6, np.inf)):
        assert math.isnan(geometric_mean_ratio([good, bad], [good, good], [numbers] * 2).estimate)
        assert math.isnan(geometric_mean_ratio([good, good], [good, bad], [numbers] * 2).estimate)
    few = geometric_mean_ratio([good, 2.0 * good[:5]], [good, good[:5]], [numbers, numbers[:5]])
    assert few.estimate == pytest.approx(math.sqrt(2.0))
    assert math.isnan(few.low)

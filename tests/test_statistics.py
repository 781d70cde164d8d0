import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fleetgym.envs.errors import UserError
from fleetgym.experiments.statistics import (
    Scores,
    bootstrap_for,
    collect,
    iqm,
    mean,
    places,
)


def scores_of(*policies: list[float]) -> Scores:
    values = np.array(policies, np.float64)[:, :, None]
    return Scores(tuple("abcdefgh"[: len(policies)]), tuple(range(values.shape[1])), ("default",), values)


def ranks(scores: Scores, lower_is_better: bool = True) -> list[int]:
    return places(scores, bootstrap_for(scores, replicates=2000), lower_is_better=lower_is_better)


def test_rows_of_one_seed_are_averaged_before_anything_else() -> None:
    rows = [
        {"policy": "p", "seed": 1, "x": 1.0},
        {"policy": "p", "seed": 1, "x": 3.0},
        {"policy": "p", "seed": 0, "x": 5.0},
        {"policy": "q", "seed": 0, "x": None},
    ]
    scores = collect(rows, "x")
    assert (scores.policies, scores.seeds) == (("p", "q"), (0, 1))
    assert scores.values[0, :, 0].tolist() == [5.0, 2.0]
    assert np.isnan(scores.values[1]).all()
    assert scores.complete.tolist() == [True, False]


def test_an_unknown_metric_offers_near_names_and_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean ttft"):
        collect([{"policy": "p", "seed": 0, "ttft": 1.0}], "tfft")
    with pytest.raises(UserError, match="nothing to compare"):
        collect([], "x")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_iqm_is_the_trimmed_mean(values: list[float]) -> None:
    assert iqm(np.array(values)[:, None]) == pytest.approx(trim_mean(values, 0.25), rel=1e-9, abs=1e-6)


def test_a_constant_shift_is_found_under_noise_common_to_both() -> None:
    noise = np.random.default_rng(0).normal(0.0, 10.0, 10)
    scores = scores_of(list(100.0 + noise), list(100.5 + noise))
    bootstrap = bootstrap_for(scores)
    difference = bootstrap.difference(scores.values[1], scores.values[0])
    assert difference == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap.interval(scores.values[0]).high > 102.0  # each alone is far more uncertain than the difference
    assert ranks(scores) == [1, 2]


def test_the_same_generator_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=(6, 2))
    scores = Scores(("a",), tuple(range(6)), ("x", "y"), values[None])
    first, again, other = (bootstrap_for(scores, seed, 500).interval(values) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    scores = Scores(("a",), tuple(range(20)), ("default",), np.zeros((1, 20, 1)))
    bootstrap = bootstrap_for(scores, replicates=1000)
    intervals = [bootstrap.interval(rng.normal(7.0, 1.0, (20, 1))) for _ in range(400)]
    covered = np.mean([i.low <= 7.0 <= i.high for i in intervals])
    assert 0.89 < covered < 0.98


def test_relative_change_is_a_ratio_of_means() -> None:
    scores = scores_of([2.0, 4.0], [1.0, 2.0])
    change = bootstrap_for(scores).relative_change(scores.values[0], scores.values[1])
    assert change == pytest.approx((1.0, 1.0, 1.0))


def test_one_seed_gives_no_interval_and_everyone_shares_the_first_place() -> None:
    scores = scores_of([1.0], [2.0])
    interval = bootstrap_for(scores).interval(scores.values[0])
    assert interval.estimate == 1.0
    assert math.isnan(interval.low)
    assert not interval.excludes_zero
    assert ranks(scores) == [1, 1]


def test_places_are_shared_by_those_that_nothing_tells_apart() -> None:
    best, alike, worse = [1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 1.9, 3.1, 3.9, 5.0], [3.0, 4.0, 5.0, 6.0, 7.0]
    assert ranks(scores_of(worse, best, alike)) == [3, 1, 1]
    assert ranks(scores_of(worse, best, alike), lower_is_better=False) == [1, 2, 2]


def test_a_policy_with_a_missing_figure_comes_last() -> None:
    assert ranks(scores_of([0.1, float("nan")], [5.0, 6.0], [1.0, 2.0])) == [3, 2, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000))
def test_places_start_at_one_and_do_not_depend_on_row_order(policies: int, seeds: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(policies, seeds, 1))
    forward = ranks(scores_of(*values[:, :, 0].tolist()))
    backward = ranks(scores_of(*values[::-1, :, 0].tolist()))
    assert min(forward) == 1
    assert forward == backward[::-1]
    assert forward[int(mean(values).argmin())] == 1


def test_iqm_and_interval_agree_with_rliable() -> None:
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    values = np.random.default_rng(2).gamma(2.0, 1.0, (10, 4))
    scores = Scores(("a",), tuple(range(10)), tuple("wxyz"), values[None])
    ours = bootstrap_for(scores, replicates=5000).interval(values, iqm)
    np.random.seed(0)  # the library draws from the global generator
    estimate, bounds = library.get_interval_estimates(
        {"a": values}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    assert ours.estimate == pytest.approx(estimate["a"][0])
    assert (ours.low, ours.high) == pytest.approx(bounds["a"][:, 0], abs=0.05)

"""Figures beside a yardstick's."""

import math

import pytest

from fleetgym.envs.relative import geometric_mean, ratio


def test_a_ratio_is_below_one_for_the_better_of_two_whichever_way_the_figure_goes() -> None:
    assert ratio(3.0, 4.0, "e2e_charged_s.mean") == 0.75
    assert ratio(0.8, 0.6, "slo_attainment") == pytest.approx(0.75)
    assert ratio(0.0, 0.6, "slo_attainment") == math.inf
    assert ratio(0.6, 0.0, "goodput_rps") == 0.0
    assert math.isnan(ratio(0.0, 0.0, "goodput_rps"))
    assert math.isnan(ratio(None, 1.0, "goodput_rps"))
    assert geometric_mean([0.5, 8.0]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([0.5, math.nan]))
    assert all(math.isnan(geometric_mean([0.5, other])) for other in (0.0, math.inf))

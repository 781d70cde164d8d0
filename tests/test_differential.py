from __future__ import annotations

import differential
import numpy as np
import pytest
from differential import Case
from hypothesis import HealthCheck, given, settings

from fleetgym.envs.cluster.engine import make_engine

SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@settings(SETTINGS, max_examples=100)
@given(differential.cases())
def test_both_engines_agree_at_every_decision(case: Case):
    differential.check(case)


@pytest.mark.slow
@settings(SETTINGS, max_examples=5000)
@given(differential.cases())
def test_both_engines_agree_at_every_decision_of_thousands_of_cases(case: Case):
    differential.check(case)


@settings(SETTINGS, max_examples=50)
@given(differential.cases())
def test_a_run_without_looking_ends_as_step_by_step(case: Case):
    whole, steps = (make_engine("kernel", case.cluster, 1, slo=case.slo) for _ in range(2))
    for engine in (whole, steps):
        engine.reset(0, case.trace, case.available)
    whole.run(case.actions.reshape(1, -1))
    terms = np.zeros_like(steps.terms)
    for action in case.actions:
        steps.step(np.array([action]))
        terms += steps.terms
    np.testing.assert_allclose(whole.terms, terms, rtol=1e-12)
    for engine in (whole, steps):
        engine.terms[:] = 0.0
        engine.drain(0)
    differential.same(whole, steps)

"""Heuristics that look at nothing decide anywhere."""

import numpy as np
import pytest

from fleetgym.baselines import make_heuristic
from fleetgym.envs.episodes import play
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing


def test_round_robin_takes_turns_and_skips_what_is_masked() -> None:
    policy = make_heuristic("round_robin", ENV_ID)
    policy.reset([0], 4)
    mask = np.array([[True, False, True, True]])
    assert [int(policy.act(np.zeros((1, 4, 0), np.float32), mask)[0]) for _ in range(5)] == [0, 2, 3, 0, 2]


@pytest.mark.parametrize("all_signals", [True, False])
def test_a_policy_without_columns_plays(all_signals: bool) -> None:
    problem = Routing.resolve(num_requests=30)
    batch = problem.make_batch(4, keep_traces=True, all_signals=all_signals)
    for index in range(4):
        batch.rngs[index] = np.random.default_rng(index)
        batch.start(index)
    assert batch.obs[:, :, batch.places(())].shape == (4, 8, 0)
    played = play(batch, [make_heuristic(name, ENV_ID) for name in ("random", "round_robin")], [0, 1])
    assert batch.done.all()
    assert np.isfinite(played.returns).all()

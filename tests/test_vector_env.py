"""The batched environments: results do not depend on B, autoreset and masks as declared."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from test_routing_env import ENGINES, make

from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.errors import UserError
from fleetgym.envs.vector import RoutingVectorEnv

LENGTH = 30


def vector(num_envs: int, **arguments: object) -> RoutingVectorEnv:
    return RoutingVectorEnv(num_envs, **{"num_requests": LENGTH, **arguments})


@pytest.mark.parametrize("engine", ENGINES)
def test_each_environment_equals_the_single_one_with_its_seed(engine: str) -> None:
    env = vector(3, engine=engine)
    singles = [make(num_requests=LENGTH, engine=engine) for _ in range(3)]
    observations, info = env.reset(seed=10)
    for i, single in enumerate(singles):
        own, own_info = single.reset(seed=10 + i)
        assert np.array_equal(observations[i], own)
        assert np.array_equal(info["action_mask"][i], own_info["action_mask"])
    rng = np.random.default_rng(0)
    for step in range(LENGTH):
        actions = rng.integers(0, 8, 3)
        observations, rewards, terminated, truncated, info = env.step(actions)
        assert not terminated.any()
        for i, single in enumerate(singles):
            own, reward, _, own_truncated, own_info = single.step(actions[i])
            assert rewards[i] == reward
            assert truncated[i] == own_truncated == (step == LENGTH - 1)
            seen = info["final_obs"][i] if own_truncated else observations[i]
            assert np.array_equal(seen, own)
            if own_truncated:
                metrics = info["final_info"]["episode_metrics"]
                assert metrics["mean_e2e_s"][i] == own_info["episode_metrics"]["mean_e2e_s"]


def test_results_do_not_depend_on_the_number_of_environments() -> None:
    few, many = vector(2), vector(5)
    a, b = few.reset(seed=7)[0], many.reset(seed=7)[0]
    for step in range(2 * LENGTH):
        assert np.array_equal(a, b[:2])
        actions = (np.arange(5) * 3 + step) % 8
        a, ra, *_ = few.step(actions[:2])
        b, rb, *_ = many.step(actions)
        assert np.array_equal(ra, rb[:2])


def test_autoreset_is_same_step_and_declared() -> None:
    env = gym.make_vec("fleetgym.envs:fleetgym/Routing-v0", num_envs=2, num_requests=LENGTH)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.reset(seed=0)
    for _ in range(LENGTH):
        observations, _, _, truncated, info = env.step(np.zeros(2, np.int64))
    assert truncated.all()
    assert info["_final_obs"].all()
    assert not np.array_equal(observations[0], info["final_obs"][0])
    assert observations[0, :, 0].sum() == 0  # the new episode's cluster is empty


def test_staggered_episodes_end_at_different_steps() -> None:
    env = vector(16, stagger=True)
    env.reset(seed=0)
    ends = [np.flatnonzero(env.step(np.zeros(16, np.int64))[3]).tolist() for _ in range(LENGTH)]
    assert sum(len(e) > 0 for e in ends) > 5
    assert sorted(i for e in ends for i in e)[:1] == [0]


def test_sb3_adapter_reports_terminal_observation_truncation_and_masks() -> None:
    env = FleetVecEnv(vector(4))
    env.seed(3)
    observations = env.reset()
    assert observations.shape == (4, *env.observation_space.shape)
    total = np.zeros(4)
    for _ in range(LENGTH):
        masks = np.stack(env.env_method("action_masks"))
        assert masks.shape == (4, 8)
        observations, rewards, dones, infos = env.step(np.array([0, 1, 2, 3]))
        total += rewards
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"]
        assert info["terminal_observation"].shape == env.observation_space.shape
        assert info["episode"]["l"] == LENGTH
        assert info["episode"]["r"] == pytest.approx(total[i], rel=1e-5)
        assert info["episode_metrics"]["mean_e2e_s"] > 0


def test_no_environment_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="num_envs=0"):
        vector(0)

"""The batched environments: those of `SyncVectorEnv` in every mode, whatever B is; wrappers and refusals included."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from test_routing_env import ENGINES

from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs import ROUTING_ID
from fleetgym.envs.errors import UserError
from fleetgym.envs.routing.env import RoutingEnv
from fleetgym.envs.vector import RoutingVectorEnv

LENGTH = 30
ID = f"fleetgym.envs:{ROUTING_ID}"
MODES = tuple(AutoresetMode)
PAIR = {"cluster": {"instances": [{"gpu": "RTX4090", "model": "Llama-3.1-8B", "count": 2}]}}


def vector(num_envs: int, **arguments: object) -> RoutingVectorEnv:
    return RoutingVectorEnv(num_envs, **{"num_requests": LENGTH, **arguments})


def sync(num_envs: int, mode: AutoresetMode, **arguments: object) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: RoutingEnv(**{"num_requests": LENGTH, **arguments})] * num_envs, autoreset_mode=mode)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in values, types, shapes and keys."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(ours, np.ndarray) and ours.dtype != object:
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"), f"{where}: {ours} != {theirs}"
    elif isinstance(ours, np.ndarray):
        assert_same(tuple(ours), tuple(theirs), where)
    else:
        assert ours == theirs, where


def answer(call: Callable[[], Any]) -> Any:
    """What a call returns, or that it refuses: SyncVectorEnv's refusals are of several kinds."""
    try:
        return call()
    except (AssertionError, ValueError, TypeError, gym.error.Error):
        return "refused"


seeds = st.none() | st.integers(0, 99)
masks = st.lists(st.booleans(), min_size=3, max_size=3).map(np.array)
moves = st.one_of(
    st.tuples(st.just("step"), st.lists(st.integers(0, 1), min_size=3, max_size=3)),
    st.tuples(st.just("step"), st.lists(st.integers(0, 1), min_size=3, max_size=3)),
    st.tuples(st.just("reset"), st.tuples(seeds | st.lists(seeds, min_size=3, max_size=3), st.none() | masks)),
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(2, 4), available=st.sampled_from([None, [1, 2]]), play=st.lists(moves, max_size=14))
def test_everything_is_as_sync_vector_env_gives_it(
    mode: AutoresetMode, engine: str, length: int, available: Any, play: list[tuple[str, Any]]
) -> None:
    arguments = {**PAIR, "num_requests": length, "available": available, "engine": engine, "render_mode": "ansi"}
    ours, theirs = vector(3, autoreset_mode=mode, **arguments), sync(3, mode, **arguments)
    assert_same(ours.reset(seed=[5, 3, 9]), theirs.reset(seed=[5, 3, 9]))
    for kind, what in play:
        if kind == "step":
            # SyncVectorEnv moves the environments before a refused one; a choice that exists is refused nowhere.
            actions = np.where(ours.action_masks()[np.arange(3), what], what, ours.action_masks().argmax(1))
            calls = [lambda env=env, actions=actions: env.step(actions) for env in (ours, theirs)]
        else:
            seed, mask = what
            calls = [
                lambda env=env, seed=seed, mask=mask: env.reset(
                    seed=seed, options=None if mask is None else {"reset_mask": mask}
                )
                for env in (ours, theirs)
            ]
        mine, other = (answer(call) for call in calls)
        assert_same(mine, other, kind)
        if isinstance(mine, str):
            break  # what SyncVectorEnv refuses half way leaves it in no defined state
        assert ours.np_random_seed == theirs.np_random_seed
        assert ours.render() == theirs.render()


@pytest.mark.parametrize("mode", MODES)
def test_whole_episodes_are_those_of_sync_vector_env(mode: AutoresetMode) -> None:
    ours, theirs = vector(3, autoreset_mode=mode), sync(3, mode)
    assert_same(ours.reset(seed=np.int64(10)), theirs.reset(seed=10))
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(2 * LENGTH + 5):
        actions = rng.integers(0, 8, 3)
        mine = ours.step(actions)
        assert_same(mine, theirs.step(actions))
        if mode is AutoresetMode.DISABLED and mine[3].any():
            assert_same(*(env.reset(options={"reset_mask": mine[3].copy()}) for env in (ours, theirs)))
        ends += mine[3].any()
    assert ends >= 2


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

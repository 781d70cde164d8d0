"""A decision problem of one's own: its rows are not the engine's, all else is what every environment has."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3
from toy_pools import Pools

from fleetgym.envs import find_problem, register
from fleetgym.envs.arguments import SETTINGS
from fleetgym.envs.env import FleetEnv
from fleetgym.envs.errors import UserError
from fleetgym.envs.fingerprint import fingerprint
from fleetgym.envs.registry import _problems
from fleetgym.envs.signals import SIGNAL_INDEX
from fleetgym.envs.vector import FleetVectorEnv

POOLS = "toy/Pools-v0"
IN_FLIGHT = SIGNAL_INDEX["in_flight_requests"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(POOLS, Pools)
    yield
    _problems.pop(POOLS)
    gym.registry.pop(POOLS)


def test_it_is_a_gymnasium_environment_in_both_engines() -> None:
    for engine in ("kernel", "reference"):
        env = gym.make(POOLS, num_requests=30, engine=engine).unwrapped
        check_env(env, skip_render_check=True)
        check_sb3(env)
        assert env.observation_space.shape == (3, 2)
    assert fingerprint(POOLS, "kernel") == fingerprint(POOLS, "reference")


def test_the_batched_environment_gives_what_single_ones_give() -> None:
    arguments: dict[str, Any] = {"num_requests": 40, "load": [0.5, 1.2], "available": [2, 8]}
    batched, single = FleetVectorEnv(3, POOLS, **arguments), FleetEnv(POOLS, **arguments)
    observations, info = batched.reset(seed=5)
    masks = info["action_mask"]
    alone, own = single.reset(seed=6)
    for _ in range(39):
        np.testing.assert_array_equal(observations[1], alone)
        np.testing.assert_array_equal(masks[1], own["action_mask"])
        actions = masks.argmax(axis=1)
        observations, rewards, _, ended, info = batched.step(actions)
        masks = info["action_mask"]
        alone, reward, _, truncated, own = single.step(actions[1])
        assert (rewards[1], ended[1]) == (reward, truncated)


def test_every_in_flight_request_is_in_one_pool() -> None:
    env = FleetEnv(POOLS, num_requests=200)
    observation, info = env.reset(seed=0)
    for step in range(199):
        observation, *_, info = env.step(step % 3)
        assert observation[:, 0].sum() == env._engine.obs[0, :, IN_FLIGHT].sum()
        assert info["action_mask"].all()


def test_a_choice_that_cannot_be_made_is_named_and_moves_nothing() -> None:
    env = FleetEnv(POOLS, num_requests=30, available=1, pools=4)
    before, info = env.reset(seed=1)
    missing = int(np.flatnonzero(~info["action_mask"])[0])
    with pytest.raises(UserError, match=rf"action={missing} of cluster 0: no pool that may be chosen \(allowed: "):
        env.step(missing)
    with pytest.raises(UserError, match="action=4 of cluster 0"):
        env.step(4)
    np.testing.assert_array_equal(env._batch.observation(0), before)


def test_its_own_fields_are_arguments_and_settings() -> None:
    assert FleetEnv(POOLS, pools=2).action_space.n == 2
    settings = dict.fromkeys(SETTINGS)
    assert Pools.check_settings({**settings, "pools": 5}) == {**settings, "pools": 5}
    for wrong, message in (
        ({"pools": "x"}, "env.pools='x': expected a whole number"),
        ({"pool": 2}, "env.pool: unknown field; did you mean pools"),
        ({"oracle": 1}, "env.oracle=1: expected true or false"),
    ):
        with pytest.raises(UserError, match=message):
            Pools.check_settings({**settings, **wrong})
    with pytest.raises(UserError, match=r"env\.load: missing"):
        Pools.check_settings({name: None for name in settings if name != "load"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pools": 0}, f"{POOLS}: num_choices=0: must be at least 1"),
        ({"pools": "x"}, "pools='x': expected a whole number"),
        ({"pool": 2}, f"{POOLS}: unexpected keyword argument 'pool'; did you mean pools"),
        ({"features": ["kv_usage"]}, "features: 'kv_usage' is unknown"),
        ({"features": 3}, "features=3: must be a list of names"),
        ({"features": "pool_instances"}, "features='pool_instances': must be a list of names"),
        ({"failure_s": None}, "failure_s=None: must be a positive number"),
    ],
)
def test_what_is_impossible_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FleetEnv(POOLS, **arguments)


def test_an_unknown_keyword_is_a_type_error_as_trainers_that_try_theirs_expect() -> None:
    with pytest.raises(TypeError, match=f"{POOLS}: unexpected keyword argument 'frameskip'"):
        gym.make(POOLS, frameskip=1)


def test_a_problem_without_features_is_refused() -> None:
    class Blind(Pools):
        offers = ()

    with pytest.raises(UserError, match="offers no feature"):
        Blind.resolve()


def test_an_id_that_is_not_registered_names_the_near_ones() -> None:
    with pytest.raises(
        UserError, match=r"env.id='fleetgym/Routing-v1': is not registered; did you mean fleetgym/Routing-v0"
    ):
        find_problem("fleetgym/Routing-v1")
    with pytest.raises(UserError, match=r"env\.id='no_such:my/Toy-v0': cannot import 'no_such'"):
        find_problem("no_such:my/Toy-v0")


def test_one_id_stands_for_one_problem() -> None:
    class Other(Pools):
        pass

    with pytest.raises(UserError, match=f"env.id='{POOLS}': stands for .*:Pools already"):
        register(POOLS, Other)
    assert find_problem(POOLS) is Pools
    assert "env_id" not in vars(Other)


def test_one_problem_has_one_id_and_a_subclass_may_have_another() -> None:
    with pytest.raises(UserError, match=f"env.id='toy/Pools-v1': .*:Pools is '{POOLS}' already; register a subclass"):
        register("toy/Pools-v1", Pools)
    assert find_problem(POOLS).env_id == POOLS

    class Other(Pools):
        pass

    with pytest.raises(gym.error.Error):
        register("no id!", Other)
    register("test/Others-v0", Other)
    _problems.pop("test/Others-v0")
    gym.registry.pop("test/Others-v0")


def test_where_instances_come_and_go_choices_may_too() -> None:
    assert Pools.resolve().num_choices_range == (3, 3)
    some = Pools.resolve(pools=4, available=[1, 8], num_requests=2)
    assert some.num_choices_range == (1, 4)
    batch = some.make_batch(1)
    seen = set()
    for seed in range(30):
        batch.rngs[0] = np.random.default_rng(seed)
        batch.start(0)
        seen.add(int(batch.mask.sum()))
    assert seen == {1, 2, 3, 4}

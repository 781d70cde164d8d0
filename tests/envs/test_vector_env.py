"""The batched environments: those of `SyncVectorEnv` in every mode, whatever B is; wrappers and refusals included."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_envs import ROUTING_ID, RoutingEnv, RoutingVectorEnv
from test_routing_env import ENGINES, TIGHT_AND_WIDE, make

from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.errors import UserError
from fleetgym.envs.rewards import RewardTerms
from fleetgym.envs.signals import TERM_NAMES
from fleetgym.envs.vector import FleetVectorEnv
from fleetgym.envs.wrappers import MaskObservation, MaskVectorObservation, ScaleObservation, ScaleVectorObservation

LENGTH = 30
ID = f"fleetgym.envs:{ROUTING_ID}"
MODES = tuple(AutoresetMode)
PAIR = {"cluster": {"instances": [{"gpu": "RTX4090", "model": "Llama-3.1-8B", "count": 2}]}}


def vector(num_envs: int, **arguments: object) -> FleetVectorEnv:
    return RoutingVectorEnv(num_envs, **{"num_requests": LENGTH, **arguments})


def sync(num_envs: int, mode: AutoresetMode, **arguments: object) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: RoutingEnv(**{"num_requests": LENGTH, **arguments})] * num_envs, autoreset_mode=mode)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in values, types, shapes and keys."""
    # An array with names besides, which SyncVectorEnv cannot keep.
    ours, theirs = (np.asarray(x) if isinstance(x, RewardTerms) else x for x in (ours, theirs))
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
def test_whole_episodes_with_rejections_are_those_of_sync_vector_env(mode: AutoresetMode) -> None:
    arguments = {"num_requests": 7, "cluster": TIGHT_AND_WIDE}
    ours, theirs = vector(3, autoreset_mode=mode, **arguments), sync(3, mode, **arguments)
    assert_same(ours.reset(seed=np.int64(10)), theirs.reset(seed=10))
    rng = np.random.default_rng(0)
    ends = rejected_last = 0
    for step in range(100):
        if step == 3:  # from here on their ends do not coincide
            later = {"reset_mask": np.array([False, True, False])}
            assert_same(ours.reset(options=later), theirs.reset(options=dict(later)))
        actions = rng.integers(0, 2, 3)
        mine = ours.step(actions)
        assert_same(mine, theirs.step(actions))
        ends += mine[3].sum()
        # Between the last dispatch and the end no time goes by: all that an end can report is a rejection.
        rejected_last += np.count_nonzero(mine[1][mine[3]])
        if mode is AutoresetMode.DISABLED and mine[3].any():
            assert_same(*(env.reset(options={"reset_mask": mine[3].copy()}) for env in (ours, theirs)))
    assert ends > 30
    assert rejected_last > 3


def test_results_do_not_depend_on_the_number_of_environments() -> None:
    few, many = vector(2), vector(5)
    a, b = few.reset(seed=7)[0], many.reset(seed=7)[0]
    for step in range(2 * LENGTH):
        assert np.array_equal(a, b[:2])
        actions = (np.arange(5) * 3 + step) % 8
        a, ra, *_ = few.step(actions[:2])
        b, rb, *_ = many.step(actions)
        assert np.array_equal(ra, rb[:2])


@pytest.mark.parametrize("arguments", [{}, *({"autoreset_mode": m} for m in MODES), {"autoreset_mode": "Disabled"}])
def test_autoreset_mode_is_declared_and_same_step_by_default(arguments: dict[str, Any]) -> None:
    env = gym.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", num_requests=LENGTH, **arguments)
    mode = AutoresetMode(arguments.get("autoreset_mode", "SameStep"))
    assert env.autoreset_mode is env.metadata["autoreset_mode"] is mode
    assert FleetVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.spec.id == ROUTING_ID
    assert repr(env) == f"FleetVectorEnv({ROUTING_ID}, num_envs=2)"
    again = gym.make_vec(env.spec)
    assert (again.num_envs, again.autoreset_mode, again.problem) == (2, mode, env.problem)


def test_unknown_autoreset_mode_is_named() -> None:
    with pytest.raises(UserError, match=r"autoreset_mode='SAME'.*did you mean SameStep.*allowed: Disabled, NextStep"):
        vector(2, autoreset_mode="SAME")


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


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, "2"])
def test_impossible_number_of_environments_is_refused(num_envs: Any) -> None:
    with pytest.raises(UserError, match=f"num_envs={num_envs!r}"):
        vector(num_envs)


def test_the_sb3_adapter_serves_same_step_alone_and_passes_options_on() -> None:
    for mode in ("NextStep", "Disabled"):
        with pytest.raises(UserError, match=f"autoreset_mode='{mode}'.*SameStep"):
            FleetVecEnv(vector(2, autoreset_mode=mode))
    env = FleetVecEnv(vector(2))
    env.set_options({"bogus": 1})
    with pytest.raises(UserError, match="'bogus' is unknown"):
        env.reset()


def test_a_masked_reset_leaves_the_others_running() -> None:
    env, undisturbed = vector(3), vector(3)
    for one in (env, undisturbed):
        one.reset(seed=1)
        for _ in range(7):
            before = one.step(np.zeros(3, int))[0]
    mask = np.array([True, False, False])
    options = {"reset_mask": mask}
    observations, info = env.reset(options=options)
    assert options["reset_mask"] is mask  # a wrapper around it still needs the mask
    assert np.array_equal(observations[1:], before[1:])
    assert not np.array_equal(observations[0], before[0])
    assert info["_action_mask"].tolist() == mask.tolist()
    mine, theirs = (one.step(np.zeros(3, int)) for one in (env, undisturbed))
    assert np.array_equal(mine[0][1:], theirs[0][1:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bogus": 1}, UserError, r"'bogus' is unknown \(allowed: reset_mask\)"),
        ({"reset_mask": np.ones(3, bool), "bogus": 1}, UserError, "'bogus' is unknown"),
        ({"reset_mask": [True, False, False]}, TypeError, "list: must be a numpy array of bool"),
        ({"reset_mask": np.ones(3, int)}, TypeError, "array of int64: must be a numpy array of bool"),
        ({"reset_mask": None}, TypeError, "NoneType"),
        ({"reset_mask": np.ones(2, bool)}, UserError, r"must have shape \(3,\)"),
        ({"reset_mask": np.ones((3, 1), bool)}, UserError, r"must have shape \(3,\)"),
        ({"reset_mask": np.zeros(3, bool)}, UserError, "at least one True"),
    ],
)
def test_wrong_options_are_refused_and_nothing_moves(options: Any, error: type[Exception], message: str) -> None:
    env = vector(3)
    before, _ = env.reset(seed=0)
    with pytest.raises(error, match=message) as caught:
        env.reset(seed=9, options=options)
    assert "\n" not in str(caught.value)
    assert env.np_random_seed == (0, 1, 2)
    assert np.array_equal(env.batch.observations(), before)


@pytest.mark.parametrize(
    "seed", [np.int64(4), np.uint8(4), [4, 5, 6], (4, 5, 6), np.arange(4, 7), [np.int32(4), 5, np.array(6)]]
)
def test_numpy_integers_and_sequences_are_seeds(seed: Any) -> None:
    env = vector(3)
    env.reset(seed=seed)
    assert env.np_random_seed == (4, 5, 6)
    assert all(type(one) is int for one in env.np_random_seed)
    assert np.array_equal(env.batch.observations(), vector(3).reset(seed=4)[0])


def test_none_in_a_list_of_seeds_goes_on_with_the_generator() -> None:
    first, second = vector(2), vector(2)
    for env in (first, second):
        env.reset(seed=0)
    assert np.array_equal(first.reset(seed=[None, 7])[0][0], second.reset()[0][0])
    assert first.np_random_seed == (0, 7)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ([1, 2], "2 seeds for num_envs=3"),
        ([1, 2, 3, 4], "4 seeds for num_envs=3"),
        (np.arange(2), "2 seeds for num_envs=3"),
        ([], "0 seeds for num_envs=3"),
        (-1, "seed=-1"),
        ([1, -2, 3], "seed=-2"),
        (1.0, "seed=1.0"),
        (np.array([1.0, 2.0, 3.0]), r"seed=np.float64\(1.0\)"),
        ("abc", "seed='abc'"),
        (True, "seed=True"),
        ([[1], [2], [3]], r"seed=\[1\]"),
    ],
)
def test_wrong_seeds_are_refused(seed: Any, message: str) -> None:
    env = vector(3)
    with pytest.raises(UserError, match=message) as caught:
        env.reset(seed=seed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "actions",
    [[0, 1], [0, 1, 2, 3], 0, [[0], [1], [2]], [0.0, 1.0, 2.0], [True, False, True], None, ["0", "1", "2"], []],
)
def test_actions_of_wrong_type_or_shape_are_refused(actions: Any) -> None:
    env = vector(3)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"actions: .*must be integers of shape \(3,\)") as caught:
        env.step(actions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [-1, 8])
def test_an_impossible_action_moves_no_environment(bad: int) -> None:
    env = vector(3)
    before, _ = env.reset(seed=0)
    with pytest.raises(UserError, match=f"action={bad}"):
        env.step([0, 1, bad])
    assert np.array_equal(env.batch.observations(), before)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_integers_of_any_width_and_lists_are_actions(dtype: type) -> None:
    first, second = vector(3), vector(3)
    first.reset(seed=0)
    second.reset(seed=0)
    assert np.array_equal(first.step(np.array([0, 5, 7], dtype))[0], second.step([0, 5, 7])[0])


@pytest.mark.parametrize("mode", MODES)
def test_nothing_goes_before_the_first_reset(mode: AutoresetMode) -> None:
    env = vector(3, autoreset_mode=mode, render_mode="ansi")
    for call in (lambda: env.step([0, 0, 0]), env.render):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
    with pytest.raises(ResetNeeded, match=r"environments \[1, 2\], which have never been reset"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(options={"reset_mask": np.ones(3, bool)})
    env.step([0, 0, 0])


def test_disabled_refuses_to_step_what_has_ended() -> None:
    env = vector(3, autoreset_mode="Disabled", num_requests=4)
    env.reset(seed=0)
    env.step([0, 0, 0])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    for _ in range(3):
        *_, truncated, _ = env.step([0, 0, 0])
    assert truncated.tolist() == [True, False, True]
    with pytest.raises(ResetNeeded, match=r"environments \[0, 2\] have ended.*reset_mask"):
        env.step([0, 0, 0])
    env.reset(options={"reset_mask": truncated})
    env.step([0, 0, 0])


def test_next_step_ignores_the_action_of_the_step_that_begins_anew() -> None:
    env = vector(2, autoreset_mode="NextStep", num_requests=2)
    env.reset(seed=0)
    env.step([0, 0])
    assert env.step([0, 0])[3].all()
    observations, rewards, _, truncated, info = env.step([99, -1])
    assert not truncated.any()
    assert not rewards.any()
    assert observations[:, :, 0].sum() == 0  # the new episode's clusters are empty
    assert "reward_terms" not in info


def test_pictures_of_all_environments() -> None:
    for mode, kind in (("rgb_array", np.ndarray), ("ansi", str), (None, type(None))):
        env = vector(2, render_mode=mode)
        env.reset(seed=0)
        assert [type(picture) for picture in env.render()] == [kind, kind]
    with pytest.raises(UserError, match="render_mode='human'"):
        vector(2, render_mode="human")


def test_environments_survive_pickling_and_close_twice() -> None:
    env = vector(2)
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(env))
    for _ in range(LENGTH + 2):
        assert_same(env.step([0, 1]), copy.step([0, 1]))
    for _ in range(2):
        env.close()
    assert env.closed


STOCK: dict[str, Callable[[VectorEnv], VectorEnv]] = {
    "NormalizeObservation": wrappers.NormalizeObservation,
    "FlattenObservation": wrappers.FlattenObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "ClipReward": lambda env: wrappers.ClipReward(env, -1.0, 0.0),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda rewards: 0.5 * rewards),
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "DictInfoToList": wrappers.DictInfoToList,
    "together": lambda env: wrappers.DictInfoToList(
        wrappers.NormalizeObservation(wrappers.FlattenObservation(wrappers.RecordEpisodeStatistics(env)))
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_gymnasiums_vector_wrappers_do_what_they_do_around_sync_vector_env(name: str) -> None:
    mode = AutoresetMode.NEXT_STEP
    ours, theirs = STOCK[name](vector(2, autoreset_mode=mode)), STOCK[name](sync(2, mode))
    assert ours.observation_space == theirs.observation_space
    outputs = [ours.reset(seed=3), theirs.reset(seed=3)]
    for step in range(LENGTH + 5):
        assert_same(*(without_times(output) for output in outputs))
        outputs = [env.step(np.array([step % 8, 3])) for env in (ours, theirs)]


def without_times(answers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave the wall-clock time of an episode out of the infos."""
    infos = answers[-1] if isinstance(answers[-1], list) else [answers[-1]]
    for info in infos:
        info.get("episode", {}).pop("t", None)
    return (*answers[:-1], *infos)


@pytest.mark.parametrize("mode", MODES)
def test_statistics_count_an_episode_once_also_under_masked_resets(mode: AutoresetMode) -> None:
    env = wrappers.RecordEpisodeStatistics(vector(2, autoreset_mode=mode, num_requests=4))
    env.reset(seed=0)
    env.step([0, 0])
    env.reset(options={"reset_mask": np.array([True, False])})
    lengths = []
    for _ in range(3):
        *_, truncated, info = env.step([0, 0])
        if "episode" in info:
            lengths.append(info["episode"]["l"].tolist())
            if mode is AutoresetMode.DISABLED:
                env.reset(options={"reset_mask": truncated})
    assert lengths == [[0, 4]]
    assert env.step([0, 0])[4]["episode"]["l"][0] == 4


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_own_vector_wrappers_give_what_the_single_ones_give(mode: AutoresetMode) -> None:
    arguments = {"num_requests": LENGTH, "available": [2, 8]}
    env = MaskVectorObservation(ScaleVectorObservation(vector(2, autoreset_mode=mode, **arguments)), "obs", "mask")
    single = MaskObservation(ScaleObservation(make(**arguments)), "obs", "mask")
    assert env.autoreset_mode is mode
    assert env.single_observation_space == single.observation_space
    observations, own = env.reset(seed=4)[0], single.reset(seed=4)[0]
    for _ in range(LENGTH):
        assert observations in env.observation_space
        assert own in single.observation_space
        assert all(np.array_equal(observations[key][0], own[key]) for key in ("obs", "mask"))
        action = own["mask"].argmax()
        observations, own = env.step([action, observations["mask"][1].argmax()])[0], single.step(action)[0]


def test_scaling_what_is_flattened_already_is_refused() -> None:
    with pytest.raises(UserError, match="scale before other wrappers"):
        ScaleObservation(gym.wrappers.FlattenObservation(make()))
    with pytest.raises(UserError, match="scale before other wrappers"):
        ScaleVectorObservation(wrappers.FlattenObservation(vector(2, autoreset_mode="NextStep")))


def test_masks_need_discrete_actions() -> None:
    with pytest.raises(UserError, match="must be Discrete"):
        MaskObservation(gym.make("Pendulum-v1"))


def test_terms_have_names_in_every_step_and_at_the_end() -> None:
    envs = vector(2)
    envs.reset(seed=0)
    for _ in range(LENGTH):
        *_, ends, info = envs.step(np.zeros(2, np.int64))
    assert ends.all()
    final = info["final_info"]["reward_terms"]
    assert final["finished"].tolist() == final[:, TERM_NAMES.index("finished")].tolist()
    *_, info = envs.step(np.zeros(2, np.int64))
    assert dict(info["reward_terms"])["finished"].shape == (2,)

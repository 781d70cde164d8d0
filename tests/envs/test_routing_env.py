"""The registered environments keep Gymnasium's and SB3's contract, and results do not depend on how they are run."""

import hashlib
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from routing_envs import RoutingEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from fleetgym.envs import registered
from fleetgym.envs.cluster.metrics import per_request
from fleetgym.envs.cluster.requests import REJECTED, Trace
from fleetgym.envs.cluster.spec import ClusterSpec, InstanceSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import public
from fleetgym.envs.problem import Problem
from fleetgym.envs.saturation import saturation_rps
from fleetgym.envs.signals import SIGNAL_NAMES, TERM_NAMES
from fleetgym.envs.workloads import make_workload
from fleetgym.envs.wrappers import ScaleObservation

ENGINES = ("kernel", "reference")
SMALL = {"num_requests": 40}


def make(env_id: str = registered()[0], **arguments: object) -> gym.Env:
    return gym.make(f"fleetgym.envs:{env_id}", **{**SMALL, **arguments})


def rollout(env: gym.Env, seed: int) -> list[np.ndarray]:
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    seen = [observation, info["action_mask"]]
    truncated = False
    while not truncated:
        action = rng.choice(np.flatnonzero(info["action_mask"]))
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        seen += [observation, np.array([reward, *info["reward_terms"]]), info["action_mask"]]
    return [*seen, np.array(list(info["episode_metrics"].values()))]


def complaints(check: Callable[..., None], env: gym.Env) -> list[str]:
    """All that a checker warns of, errors apart."""
    assert gym.logger.min_level <= gym.logger.WARN  # otherwise Gymnasium keeps its warnings to itself
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env, skip_render_check=False)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("env_id", registered())
@pytest.mark.parametrize("engine", ENGINES)
def test_gymnasium_checker_has_no_complaint(env_id: str, engine: str) -> None:
    assert complaints(gymnasium_check_env, make(env_id, engine=engine).unwrapped) == []


@pytest.mark.parametrize("env_id", registered())
def test_sb3_checker_warns_of_the_two_dimensional_observation_alone(env_id: str) -> None:
    """The observation is a table with a row per instance, which SB3's own networks would flatten."""
    env = make(env_id, render_mode="rgb_array").unwrapped
    assert [text.split(" (")[0] for text in complaints(sb3_check_env, env)] == [
        "Your observation  has an unconventional shape"
    ]
    assert complaints(sb3_check_env, gym.wrappers.FlattenObservation(env)) == []


class OneBuffer(RoutingEnv):
    """Hands out one array for ever."""

    def step(self, action):
        observation, *rest = super().step(action)
        self.kept = getattr(self, "kept", observation)
        self.kept[:] = observation
        return self.kept, *rest


class DeafToSeeds(RoutingEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class Picture(RoutingEnv):
    """An observation of three dimensions, which is taken for an image."""

    def __init__(self) -> None:
        super().__init__(num_requests=40)
        box = self.observation_space
        self.observation_space = gym.spaces.Box(box.low[:, None], box.high[:, None], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return observation[:, None], info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation[:, None], *rest


@pytest.mark.parametrize(
    ("check", "broken", "complaint"),
    [
        (gymnasium_check_env, OneBuffer, "share an object"),
        (gymnasium_check_env, DeafToSeeds, "super().reset(seed=seed)"),
        (sb3_check_env, Picture, "image"),
    ],
)
def test_the_checkers_see_a_broken_environment(
    check: Callable[..., None], broken: type[RoutingEnv], complaint: str
) -> None:
    try:
        seen = complaints(check, broken())
    except AssertionError as error:
        seen = [str(error)]
    assert complaint in "".join(seen)


@pytest.mark.parametrize("env_id", registered())
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_seeds_give_equal_arrays(env_id: str, engine: str) -> None:
    first, second = rollout(make(env_id, engine=engine), 3), rollout(make(env_id, engine=engine), 3)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def test_both_engines_give_equal_arrays() -> None:
    first, second = (rollout(make(engine=engine), 5) for engine in ENGINES)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def test_a_fleet_with_data_parallel_groups_is_loaded_by_their_own_rate_in_both_engines() -> None:
    single = InstanceSpec("RTXPRO6000", "Qwen3-30B-A3B-Instruct-2507")
    fleet = ClusterSpec((replace(single, count=2), replace(single, dp=2)))
    envs = [make(cluster=fleet, engine=engine, load=0.8) for engine in ENGINES]
    rates = envs[0].unwrapped._batch._saturation_rps
    assert rates[0] == rates[1] < rates[2]
    first, second = (rollout(env, 5) for env in envs)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def test_a_new_process_gives_equal_arrays() -> None:
    digest = hashlib.sha256(b"".join(a.tobytes() for a in rollout(make(), 3))).hexdigest()
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; import hashlib; from test_routing_env import make, rollout; "
        "print(hashlib.sha256(b''.join(a.tobytes() for a in rollout(make(), 3))).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(__file__).rsplit("/", 1)[0]], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest


def test_different_seeds_give_different_episodes() -> None:
    env = make()
    assert not np.array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])


def test_an_unseeded_reset_goes_on_with_the_same_generator() -> None:
    first, second = make(), make()
    first.reset(seed=0)
    second.reset(seed=0)
    a, b = first.reset()[0], second.reset()[0]
    assert np.array_equal(a, b)
    assert not np.array_equal(a, make().reset(seed=0)[0])


def test_reset_takes_no_options() -> None:
    env = make()
    env.reset(seed=0, options={})
    with pytest.raises(UserError, match=r"options=\{'bogus': 1\}: reset takes no options"):
        env.reset(options={"bogus": 1})


@pytest.mark.parametrize("setting", [{"rate_rps": 3.0}, {"rate_scale": 2.0}, {"rate_scale_range": [1.0, 2.0]}])
def test_a_load_and_a_rate_exclude_each_other(setting: dict[str, object]) -> None:
    workload = {"kind": "synthetic", **setting}
    with pytest.raises(UserError, match=f"workload.{next(iter(setting))}=.*: load=0.5 sets the rate of arrivals"):
        make(load=0.5, workload=workload)
    make(load=None, workload=workload)


@pytest.mark.parametrize("value", [1, 2.5, True, "many"])
def test_an_episode_has_a_whole_number_of_requests(value: object) -> None:
    with pytest.raises(UserError, match=f"num_requests={value!r}: must be a whole number of at least 2"):
        make(num_requests=value)


def test_default_observation_holds_no_privileged_feature() -> None:
    env = make()
    assert env.observation_space.shape == (8, len(public(SIGNAL_NAMES)))
    assert "output_tokens" not in env.unwrapped.problem.features


def test_privileged_features_need_an_oracle() -> None:
    with pytest.raises(UserError, match=r"output_tokens.*privileged.*oracle"):
        make(features=["prompt_tokens", "output_tokens"])
    assert make(oracle=True).observation_space.shape == (8, len(SIGNAL_NAMES))


def test_selected_features_are_columns_of_the_full_observation() -> None:
    names = ["kv_usage", "in_flight_requests", "prompt_tokens"]
    full, picked = rollout(make(), 2), rollout(make(features=names), 2)
    columns = [public(SIGNAL_NAMES).index(name) for name in names]
    assert np.array_equal(full[5][:, columns], picked[5])


def test_observations_stay_inside_the_space_and_are_fresh_arrays() -> None:
    env = make(load=3.0, num_requests=200)
    observation, _ = env.reset(seed=0)
    kept = observation.copy()
    for _ in range(150):
        following, *_ = env.step(0)
        assert following in env.observation_space
    assert np.array_equal(observation, kept)


def terms(info: dict) -> dict[str, float]:
    return dict(info["reward_terms"])


def charge_s(config: Problem) -> float:
    """What the default reward takes for a failed request."""
    return config.failure_s


TIGHT_AND_WIDE = {
    "instances": [
        {"gpu": "RTX4090", "model": "Llama-3.1-8B", "engine": {"max_model_len": 1500}},
        {"gpu": "RTX4090", "model": "Llama-3.1-8B"},
    ]
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("load", [0.3, 2.0])
def test_return_is_minus_the_latency_up_to_the_last_dispatch_and_the_charge_of_failures(
    engine: str, load: float
) -> None:
    env = make(cluster=TIGHT_AND_WIDE, num_requests=120, load=load, engine=engine).unwrapped
    env.reset(seed=0)
    total, truncated, step = 0.0, False, 0
    while not truncated:
        _, reward, _, truncated, info = env.step(step % 2)
        assert reward == pytest.approx(
            -terms(info)["unfinished_request_s"] - charge_s(env.problem) * terms(info)["rejected"]
        )
        total, step = total + reward, step + 1
    arrival_ns, results = env._engine.requests(0)["arrival_ns"], env._engine.results(0)
    last_ns = arrival_ns.max()
    failed = results["status"] == REJECTED
    spent_s = np.where(failed, 0, np.minimum(results["finish_ns"], last_ns) - arrival_ns).sum() * 1e-9
    assert 0 < failed.sum() < 60
    assert total == pytest.approx(-spent_s - charge_s(env.problem) * failed.sum(), rel=1e-9)
    # What is still unfinished then is not in it: the whole latency is more.
    whole_s = np.where(failed, 0, results["finish_ns"] - arrival_ns).sum() * 1e-9
    assert spent_s < whole_s


def test_reward_weights_select_terms() -> None:
    env = make(reward={"unfinished_request_s": 0.0, "rejected": 0.0, "finished": 2.0})
    env.reset(seed=0)
    for _ in range(30):
        _, reward, _, _, info = env.step(0)
        assert reward == 2.0 * terms(info)["finished"]
    assert info["reward_terms"].shape == (len(TERM_NAMES),)
    assert list(terms(info)) == list(TERM_NAMES)
    assert info["reward_terms"]["finished"] == info["reward_terms"][TERM_NAMES.index("finished")]


def test_stepping_a_finished_episode_is_refused() -> None:
    env = make().unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    rollout(env, 0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("action", [-1, 8, 99, 2**70])
@pytest.mark.parametrize("engine", ENGINES)
def test_action_out_of_range_names_value_and_range(action: int, engine: str) -> None:
    env = make(engine=engine).unwrapped
    env.reset(seed=0)
    with pytest.raises(UserError, match=rf"{action}.*\b[0-8]\b"):
        env.step(action)


@pytest.mark.parametrize("action", [1.0, "1", None, np.array([1]), np.float32(1)])
def test_action_that_is_no_integer_is_refused(action: object) -> None:
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"action=.*must be an integer"):
        env.step(action)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), np.array(5)])
def test_numpy_integers_are_seeds(seed: object) -> None:
    first, second = make().unwrapped, make().unwrapped
    assert np.array_equal(first.reset(seed=seed)[0], second.reset(seed=5)[0])
    assert first.np_random_seed == 5


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, [1]])
def test_what_is_no_seed_is_refused(seed: object) -> None:
    with pytest.raises(UserError, match=r"seed=.*must be an integer of at least 0"):
        make().unwrapped.reset(seed=seed)


@pytest.mark.parametrize("engine", ENGINES)
def test_absent_instances_are_masked_zero_rows_and_cannot_be_chosen(engine: str) -> None:
    env = make(available=3, engine=engine).unwrapped
    observation, info = env.reset(seed=1)
    assert info["action_mask"].sum() == 3
    assert not observation[~info["action_mask"]].any()
    with pytest.raises(UserError, match=r"action=\d.*available"):
        env.step(int(np.flatnonzero(~info["action_mask"])[0]))


@pytest.mark.parametrize("load", [0.4, 1.5])
def test_load_stretches_arrivals_to_its_share_of_the_available_instances_saturation(load: float) -> None:
    loaded, plain = (make(available=[1, 8], load=value).unwrapped for value in (load, None))
    config, counts = loaded.problem, set()
    for seed in range(6):
        _, info = loaded.reset(seed=seed)
        plain.reset(seed=seed)
        there = [spec for spec, exists in zip(config.cluster.expanded, info["action_mask"], strict=True) if exists]
        rate_rps = load * sum(saturation_rps(spec, config.workload) for spec in there)
        given_ns, times_ns = (env._engine.requests(0)["arrival_ns"] for env in (plain, loaded))
        assert np.array_equal(times_ns, np.rint(given_ns * (config.workload.mean_rate_rps / rate_rps)))
        counts.add(len(there))
    assert len(counts) > 2


def test_saturation_is_that_of_all_traffic_and_not_of_its_beginning(tmp_path: Path) -> None:
    """Traffic that grows heavier and the same backwards are the same traffic."""
    light = [f'{{"arrival_s": 0, "prompt_tokens": {50 + i % 7}, "output_tokens": {10 + i % 5}}}' for i in range(4000)]
    heavy = [f'{{"arrival_s": 0, "prompt_tokens": {900 + i % 7}, "output_tokens": {200 + i % 5}}}' for i in range(4000)]
    (instance,) = ClusterSpec((InstanceSpec("A100-80GB", "Meta-Llama-3-8B"),)).expanded
    rates = []
    for name, rows in (("growing", light + heavy), ("falling", heavy + light)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(rows) + "\n")
        rates.append(saturation_rps(instance, make_workload({"kind": "jsonl", "path": str(path)})))
    assert rates[0] == pytest.approx(rates[1], rel=0.1)


@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_saturation_rate_is_what_an_overloaded_instance_serves(gpu: str) -> None:
    """Within the sampling error of the lengths, which differ between the probe and the episode."""
    count = 6000
    env = make(cluster={"instances": [{"gpu": gpu, "model": "Llama-3.1-8B"}]}, num_requests=count, load=2.0).unwrapped
    env.reset(seed=0)
    env._engine.run(np.zeros((1, count), np.int64))
    env._engine.drain(0)
    end_ns = env._engine.requests(0)["arrival_ns"].max()
    finish_ns = env._engine.results(0)["finish_ns"]
    served_rps = np.count_nonzero((end_ns / 2 < finish_ns) & (finish_ns <= end_ns)) / (end_ns / 2 * 1e-9)
    saturation = saturation_rps(env.problem.cluster.expanded[0], env.problem.workload)
    assert served_rps == pytest.approx(saturation, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_requests": 1}, "num_requests=1"),
        ({"load": -1.0}, r"load=-1.0.*within"),
        ({"load": [0.9, 0.5]}, r"load=\[0.9, 0.5\]"),
        ({"available": 9}, r"available=9.*\[1, 8\]"),
        ({"features": ["kv_usag"]}, "did you mean kv_usage"),
        ({"engine": "kernl"}, "did you mean kernel"),
        ({"reward": {"unfinishd": 1.0}}, "reward.unfinishd: unknown field"),
        ({"cluster": {"instances": [{"gpu": "A100", "model": "Meta-Llama-3-8B"}]}}, "did you mean A100-80GB"),
        ({"workload": {"kind": "azur"}}, "azure"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RoutingEnv(**arguments)


def test_environment_survives_pickling() -> None:
    env = make().unwrapped
    copy = pickle.loads(pickle.dumps(env))
    first, second = rollout(env, 4), rollout(copy, 4)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def test_renderings_show_every_instance() -> None:
    text_env, pixel_env = make(render_mode="ansi"), make(render_mode="rgb_array")
    for env in (text_env, pixel_env):
        env.reset(seed=0)
        for _ in range(20):
            env.step(1)
    assert len(text_env.render().splitlines()) == 9
    picture = pixel_env.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.std() > 10


def test_scaled_observations_are_of_order_one() -> None:
    env = ScaleObservation(make(num_requests=200))
    env.reset(seed=0)
    for _ in range(150):
        observation, *_ = env.step(env.action_space.sample())
        assert observation in env.observation_space
    assert np.abs(observation).max() < 3.0


@pytest.mark.parametrize("engine", ENGINES)
def test_episode_metrics_are_those_of_the_metrics_module(engine: str) -> None:
    env = make(engine=engine, num_requests=80, load=1.5).unwrapped
    env.reset(seed=0)
    truncated = False
    while not truncated:
        *_, truncated, info = env.step(6)
    requests, results = env._engine.requests(0), env._engine.results(0)
    columns = per_request(Trace(requests), results, env.problem.slo, failure_s=env.problem.failure_s)
    for name in ("ttft_s", "tpot_s", "e2e_s", "e2e_charged_s"):
        assert info["episode_metrics"][f"mean_{name}"] == pytest.approx(np.nanmean(columns[name]), rel=1e-12)
    assert info["episode_metrics"]["slo_attainment"] == columns["slo_met"].mean()
    assert info["episode_metrics"]["preemptions"] == columns["preemptions"].sum()

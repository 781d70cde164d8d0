"""Comparisons: independent windows, the charge of a failure, and a ranking that dropping requests cannot win."""

from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from fleetgym.baselines import Heuristic, Policy, make_heuristic
from fleetgym.envs.cluster.metrics import flatten
from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.workloads import Workload
from fleetgym.experiments.comparison.rollout import check_failure_s, run_policies
from fleetgym.experiments.comparison.scenario import Scenario, Windows, plan_windows
from fleetgym.experiments.report.tables import LeaderboardTable, build_table

CLUSTER = {
    "instances": [
        {"gpu": "RTX4090", "model": "Llama-3.1-8B", "count": 2},
        {"gpu": "RTX4090", "model": "Llama-3.1-8B", "engine": {"max_model_len": 1500}},
    ]
}
LONG = 1000


class Dropper(Heuristic):
    """Sends long prompts to the instance that must refuse most of them, and the rest to the least busy of all."""

    name = "dropper"
    features = ("prompt_tokens", "in_flight_requests")

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        s = self.columns.bind(observation)
        long = s["prompt_tokens"][:, 0] > LONG
        return np.where(long, observation.shape[1] - 1, s["in_flight_requests"].argmin(axis=1))


def scenario(**changes: object) -> Scenario:
    part = {"load": None, "available": None, "num_requests": None, "workload": {}}
    values = {
        "name": "test",
        "failure_s": 120.0,
        "rank_by": "e2e_charged_s.mean",
        "windows": 6,
        "beyond_windows": "refuse",
        "parts": {"train": part, "validate": part, "test": part},
    }
    return build(Scenario, {**values, **changes}, "scenario")


def problem(**arguments: object) -> Problem:
    return Routing.resolve(**{"cluster": CLUSTER, "num_requests": 300, "load": 0.9, "failure_s": 120.0, **arguments})


def board(config: Problem, policies: list[Policy], rank_by: str = "e2e_charged_s.mean") -> LeaderboardTable:
    windows = Windows(tuple(range(6)), "generated")
    episodes = run_policies(config, policies, windows, progress=False)
    rows = [{"policy": e.policy, "kind": e.kind, "window": e.window, **flatten(e.summary())} for e in episodes]
    return build_table(rows, scenario={}, rank_by=rank_by, failure_s=config.failure_s)


@pytest.mark.parametrize("rank_by", ["e2e_charged_s.mean", "ttft_charged_s.mean"])
def test_a_policy_that_drops_requests_ranks_last(rank_by: str) -> None:
    policies: list[Policy] = [
        Dropper(),
        make_heuristic("round_robin", ENV_ID),
        make_heuristic("least_inflight", ENV_ID),
    ]
    table = board(problem(), policies, rank_by)
    metrics = {entry.policy: entry.metrics for entry in table.entries}
    assert metrics["dropper"]["requests.rejected"] > 60
    # What it served was served fast: by served latencies alone it would win.
    assert metrics["dropper"]["e2e_s.mean"] < min(metrics[p]["e2e_s.mean"] for p in ("round_robin", "least_inflight"))
    assert table.entries[-1].policy == "dropper"
    assert table.entries[-1].place == 3
    assert table.reference != "dropper"


@pytest.mark.parametrize("rank_by", ["e2e_charged_s.p99", "slo_attainment", "goodput_rps"])
def test_dropping_beats_no_policy_that_serves_in_time(rank_by: str) -> None:
    """By attainment a refused request counts like a late one, so only who serves in time is ahead of a dropper."""
    table = board(problem(load=0.7), [Dropper(), make_heuristic("least_inflight", ENV_ID)], rank_by)
    place = {entry.policy: entry.place for entry in table.entries}
    assert place["least_inflight"] == 1
    if rank_by != "e2e_charged_s.p99":  # there both are charged the same
        assert table.entries[-1].policy == "dropper"


def test_dropping_earns_less_reward_than_serving() -> None:
    def total_reward(policy: Policy) -> float:
        config = problem()
        batch = config.make_batch(1)
        batch.rngs[0] = np.random.default_rng(0)
        batch.start(0)
        policy.reset([0], config.cluster.num_instances)
        total = 0.0
        while not batch.engine.done.all():
            total += float(batch.step(policy.act(batch.obs[:, :, batch.places(policy.features)], batch.mask))[0])
        return total

    assert total_reward(Dropper()) < total_reward(make_heuristic("least_inflight", ENV_ID))


def test_the_charge_is_the_scenarios_in_rewards_and_figures() -> None:
    for failure_s in (30.0, 500.0):
        config = problem(failure_s=failure_s, num_requests=60)
        (episode,) = run_policies(config, [Dropper()], Windows((0,), "generated"), progress=False)
        columns = episode.requests()
        failed = columns["status"] != "finished"
        assert failed.any()
        assert (columns["e2e_charged_s"][failed] == failure_s).all()
        assert (columns["ttft_charged_s"][failed] == failure_s).all()
        assert (columns["e2e_charged_s"][~failed] == columns["e2e_s"][~failed]).all()
        assert config.reward.weights(failure_s)[4] == -failure_s


def test_a_charge_that_round_robin_exceeds_is_refused() -> None:
    windows = Windows(tuple(range(3)), "generated")
    check_failure_s(problem(), windows)
    with pytest.raises(UserError, match=r"scenario.failure_s=1: round_robin serves a request here in \d+\.\d s"):
        check_failure_s(problem(failure_s=1.0), windows)


def test_generated_windows_are_as_many_as_asked_and_differ() -> None:
    config, windows = plan_windows(problem(), scenario(windows=7))
    assert windows == Windows(tuple(range(7)), "generated")
    assert "7 generated windows" in windows.text
    episodes = run_policies(config, [make_heuristic("round_robin", ENV_ID)], windows, progress=False)
    assert len({e.trace.requests["arrival_ns"][-1] for e in episodes}) == 7
    assert plan_windows(problem(), scenario(), [3, 9])[1].numbers == (3, 9)
    assert plan_windows(problem(), scenario(), 2)[1].numbers == (0, 1)
    assert len(plan_windows(problem(), scenario(windows=None))[1].numbers) == 10


def test_no_generated_window_is_an_episode_that_training_meets() -> None:
    config, windows = plan_windows(problem(), scenario(windows=3))
    judged = {
        e.trace.requests.tobytes()
        for e in run_policies(config, [make_heuristic("random", ENV_ID)], windows, progress=False)
    }
    trained = config.make_batch(4, keep_traces=True)
    for seed in range(4):
        trained.rngs[seed] = gym.utils.seeding.np_random(seed)[0]  # as environments are seeded
        trained.start(seed)
    assert judged.isdisjoint(trace.requests.tobytes() for trace in trained.traces if trace is not None)


@pytest.fixture
def recording(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "trace.jsonl"
    rows = (f'{{"arrival_s": {0.05 * i}, "prompt_tokens": {50 + i}, "output_tokens": 20}}' for i in range(1000))
    path.write_text("\n".join(rows) + "\n")
    return {"kind": "jsonl", "path": str(path), "start": 0.25, "window": "random"}


def test_recorded_windows_are_disjoint_whatever_way_training_cuts_them(recording: dict[str, object]) -> None:
    config, windows = plan_windows(problem(workload=recording, num_requests=100, load=None), scenario(windows=None))
    assert windows == Windows(tuple(range(7)), "recorded")  # 750 requests
    episodes = run_policies(config, [make_heuristic("round_robin", ENV_ID), Dropper()], windows, progress=False)
    prompts = [e.trace.requests["prompt_tokens"].tolist() for e in episodes]
    assert prompts[:7] == prompts[7:]
    assert len({p for window in prompts[:7] for p in window}) == 700


def test_more_windows_than_the_part_holds_are_refused_or_resampled(recording: dict[str, object]) -> None:
    config = problem(workload=recording, num_requests=100, load=None)
    for chosen in ([7], [0, 12], 8):
        with pytest.raises(
            UserError, match=r"the test part holds 7 disjoint windows of 100 requests \(numbers 0 to 6\)"
        ):
            plan_windows(config, scenario(), chosen)
    with pytest.raises(UserError, match=r"scenario\.windows=9: the test part holds 7"):
        plan_windows(config, scenario(windows=9))
    resampled, windows = plan_windows(config, scenario(beyond_windows="bootstrap"), 10)
    assert windows == Windows(tuple(range(10)), "bootstrap")
    assert "resampled in blocks" in windows.text
    episodes = run_policies(resampled, [make_heuristic("round_robin", ENV_ID)], windows, progress=False)
    assert len({e.trace.requests["prompt_tokens"].tobytes() for e in episodes}) == 10
    # Asked for no more than there are, the recording itself is used.
    assert plan_windows(config, scenario(beyond_windows="bootstrap"), 7)[1].kind == "recorded"


def test_a_seed_changes_what_is_drawn_and_not_a_recorded_window(recording: dict[str, object]) -> None:
    config = problem(workload=recording, num_requests=100, load=None, available=[1, 3])
    config, windows = plan_windows(config, scenario(windows=3))
    first, again, other = (
        run_policies(config, [make_heuristic("random", ENV_ID)], windows, seed=seed, progress=False)
        for seed in (0, 0, 5)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.results, b.results)
        assert np.array_equal(a.trace.requests, c.trace.requests)
    assert not all(np.array_equal(a.results, c.results) for a, c in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failure_s": 0.0}, "failure_s=0.0: must be a positive"),
        ({"failure_s": float("nan")}, "failure_s=nan"),
        ({"rank_by": "e2e_s.mean"}, "rank_by='e2e_s.mean': leaves failures out"),
        ({"rank_by": "e2e_charged"}, "did you mean e2e_charged_s"),
        ({"windows": 0}, "windows=0: must be at least 1"),
        ({"beyond_windows": "rotate"}, "beyond_windows='rotate': unknown"),
        ({"parts": {"train": {}, "validate": {}}}, "parts.test: missing"),
        ({"parts": {"train": {"laod": 1}, "validate": {}, "test": {}}}, "did you mean load"),
        ({"parts": {"train": {"workload": 3}, "validate": {}, "test": {}}}, "workload=3"),
    ],
)
def test_impossible_scenarios_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scenario(**changes)


def test_numpy_numbers_are_numbers() -> None:
    config = problem(failure_s=np.int64(60), load=np.float32(0.5), available=np.array([1, 3]))
    assert (config.failure_s, config.load, config.available) == (60.0, (0.5, 0.5), (1, 3))
    with pytest.raises(UserError, match=r"available=\[2.5, 3\]: must be a whole number"):
        problem(available=[2.5, 3])


@dataclass(frozen=True, kw_only=True)
class ThreeEpisodes(Workload):
    """A workload of somebody's own that knows how many episodes it has, and nothing else of recordings."""

    @property
    def native_rate_rps(self) -> float:
        return 10.0

    def num_windows(self, num_requests: int | None = None) -> int | None:
        return 3

    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        times = np.arange(num_requests or 5, dtype=np.int64) * 10**8
        return make_trace(times, np.full(len(times), 100 + (window or 0)), np.full(len(times), 5))


def test_a_workload_of_ones_own_has_windows_too() -> None:
    config = problem(workload=ThreeEpisodes(), num_requests=20, load=None)
    assert len(plan_windows(config, scenario(windows=None))[1].numbers) == 3
    with pytest.raises(UserError, match="seeds=4: the test part holds 3"):
        plan_windows(config, scenario(), 4)
    with pytest.raises(
        UserError, match=r"beyond_windows='bootstrap': ThreeEpisodes cannot be resampled; allowed: refuse"
    ):
        plan_windows(config, scenario(beyond_windows="bootstrap"), 4)


def test_replaced_arrivals_are_named(recording: dict[str, object]) -> None:
    config = problem(workload={**recording, "arrivals": {"process": "poisson"}}, num_requests=100, load=None)
    assert plan_windows(config, scenario(windows=None))[1].text == "7 disjoint recorded windows, with poisson arrivals"


def test_a_winner_that_fails_more_than_another_is_named() -> None:
    rows = [
        {
            "policy": policy,
            "kind": "heuristic",
            "window": w,
            "e2e_charged_s.mean": mean + w,
            "requests.rejected": failed,
        }
        for policy, mean, failed in (("sheds", 5.0, 40), ("serves", 9.0, 2))
        for w in range(6)
    ]
    notes = " ".join(build_table(rows, scenario={}).notes)
    assert "sheds is in place 1 and fails 40.0 requests per window; serves fails the fewest, 2.0" in notes


def test_an_impossible_charge_is_refused_by_the_environment_too() -> None:
    for bad in (0.0, -1.0, float("inf"), True, "60"):
        with pytest.raises(UserError, match="failure_s="):
            problem(failure_s=bad)
    assert replace(problem(), failure_s=3.0).failure_s == 3.0

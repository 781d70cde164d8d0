"""Each heuristic of routing: its formula on a small fleet by hand, and the columns that it says it reads."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from heuristic_cases import decide, observation_of
from hypothesis import given
from hypothesis import strategies as st

from fleetgym.baselines import LinearScore, ScorePolicy, make_heuristic, registered
from fleetgym.baselines.base import Columns
from fleetgym.envs.problem import Problem
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.signals import SIGNAL_NAMES, find_signal

IDLE = {"kv_capacity_tokens": 1e5, "prefill_tokens_per_s": 1e4, "decode_tokens_per_s": 1e3}
OWN = [name for name, cls in registered(ENV_ID).items() if cls.env_ids]


def choice(name: str, mask: list[bool] | None = None, **columns: list[float]) -> int:
    return decide(make_heuristic(name, ENV_ID), mask, **{**IDLE, **columns})


def test_power_of_two_never_takes_the_most_loaded() -> None:
    observation = observation_of(("in_flight_requests",), in_flight_requests=[1, 5, 9])
    policy = make_heuristic("power_of_two", ENV_ID)
    policy.reset([0], 3)
    seen = Counter(int(policy.act(observation, np.ones((1, 3), bool))[0]) for _ in range(300))
    assert seen[2] == 0
    assert 140 < seen[0] < 260  # 2 of the 3 pairs hold instance 0


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("least_inflight", {"in_flight_requests": [3, 1, 2]}, 1),
        ("least_kv", {"kv_usage": [0.5, 0.7, 0.2]}, 2),
        ("least_pending_tokens", {"awaiting_first_token_prompt_tokens": [10, 900, 30]}, 0),
        ("vllm_dp", {"running_requests": [20, 9, 30], "waiting_requests": [0, 3, 0]}, 0),
        ("llmd_queue_kv", {"waiting_requests": [0, 4, 2], "kv_usage": [0.9, 0.1, 0.3]}, 2),
        ("llumnix_freeness", {"running_requests": [1, 10, 2], "kv_usage": [0.9, 0.1, 0.5]}, 2),
        (
            "lmetric",
            {
                "running_requests": [9, 2, 2],
                "awaiting_first_token_prompt_tokens": [0, 50, 40],
                "prompt_tokens": [100] * 3,
            },
            2,
        ),
        ("dynamo_cost", {"in_flight_prompt_tokens": [500, 100, 100], "streamed_tokens": [0, 50, 20]}, 2),
        ("weighted_inflight", {"in_flight_requests": [4, 9], "decode_tokens_per_s": [1e3, 3e3]}, 1),
        (
            "smg_least_load",
            {"awaiting_first_token_prompt_tokens": [100, 150], "prefill_tokens_per_s": [1e4, 3e4]},
            1,
        ),
        ("least_latency", {"in_flight_requests": [40, 60], "decode_tokens_per_s": [1e3, 2e3]}, 1),
        ("oracle_least_work", {"remaining_tokens": [900, 300], "decode_tokens_per_s": [2e3, 1e3]}, 1),
    ],
)
def test_formula_by_hand(name: str, columns: dict[str, list[float]], expected: int) -> None:
    assert choice(name, **columns) == expected


def test_a_mask_overrules_the_score() -> None:
    assert choice("least_inflight", mask=[True, False, True], in_flight_requests=[3, 1, 2]) == 2


class Recorder(Columns):
    """Columns that remember which were read."""

    def __init__(self, features: tuple[str, ...]) -> None:
        super().__init__(features)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("name", OWN)
def test_it_reads_the_columns_that_it_names_and_no_other(name: str) -> None:
    policy = make_heuristic(name, ENV_ID)
    policy.columns = recorder = Recorder(SIGNAL_NAMES)
    policy.reset([0], 2)
    policy.act(np.ones((1, 2, len(SIGNAL_NAMES)), np.float32), np.ones((1, 2), bool))
    assert recorder.read == set(policy.features)


FORMULAS: dict[str, Callable[[Columns], Any]] = {
    "least_inflight": lambda s: -s["in_flight_requests"],
    "least_kv": lambda s: -s["kv_usage"],
    "least_pending_tokens": lambda s: -s["awaiting_first_token_prompt_tokens"],
    "vllm_dp": lambda s: -(4.0 * s["waiting_requests"] + s["running_requests"]),
    "dynamo_cost": lambda s: (
        -(
            (s["awaiting_first_token_prompt_tokens"] + s["prompt_tokens"])
            + (s["in_flight_prompt_tokens"] + s["streamed_tokens"] + s["prompt_tokens"])
        )
        / 16.0
    ),
}


def test_every_weighted_sum_has_its_formula_here() -> None:
    assert set(FORMULAS) == {name for name in OWN if issubclass(registered()[name], LinearScore)}


@pytest.mark.parametrize("name", FORMULAS)
@given(seed=st.integers(0, 2**32), most=st.sampled_from([3, 100, 1 << 20]))
def test_a_weighted_sum_is_its_formula_bit_for_bit_so_that_ties_stay_ties(name: str, seed: int, most: int) -> None:
    policy = make_heuristic(name, ENV_ID)
    assert isinstance(policy, ScorePolicy)
    observation = np.random.default_rng(seed).integers(0, most, (9, 8, len(policy.features))).astype(np.float32)
    if name == "least_kv":
        observation /= np.float32(most)
    columns = Columns(policy.features).bind(observation)
    np.testing.assert_array_equal(policy.score(columns), FORMULAS[name](columns), strict=True)


def test_ties_are_broken_as_if_all_columns_were_there() -> None:
    """Random numbers are drawn per choice, whatever a heuristic reads."""
    narrow, wide = make_heuristic("vllm_dp", ENV_ID), make_heuristic("vllm_dp", ENV_ID)
    wide.features = SIGNAL_NAMES
    rng = np.random.default_rng(0)
    observation = rng.integers(0, 3, (20, 6, len(SIGNAL_NAMES))).astype(np.float32)
    places = [SIGNAL_NAMES.index(name) for name in narrow.features]
    for policy in (narrow, wide):
        policy.reset(range(20), 6)
    mask = np.ones((20, 6), bool)
    for _ in range(5):
        np.testing.assert_array_equal(narrow.act(observation[:, :, places], mask), wide.act(observation, mask))


def test_no_privileged_column_reaches_a_heuristic_that_is_no_oracle() -> None:
    for name in OWN:
        policy = make_heuristic(name, ENV_ID)
        assert policy.kind == "oracle" or all(find_signal(f).tag != "privileged" for f in policy.features), name


def test_routing_falls_back_to_one_of_its_own_and_others_to_their_yardstick() -> None:
    class Other(Problem):
        yardstick = "round_robin"

    assert Routing.fallback_heuristic() == "least_inflight"
    assert Routing.fallback in OWN
    assert Routing.yardstick in registered(ENV_ID)

    class Blind(Routing):
        yardstick = "random"

    assert Other.fallback_heuristic() == "round_robin"
    assert Problem.fallback_heuristic() == Problem.yardstick == "random"
    assert Blind.fallback_heuristic() == "least_inflight", "what a base says is not lost"

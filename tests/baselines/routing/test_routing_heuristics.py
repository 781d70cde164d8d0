"""Every heuristic keeps the policy protocol; each one's formula is checked on a small fleet by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgym.baselines import REGISTRY, ScorePolicy, make_heuristic, register
from fleetgym.baselines.base import Columns
from fleetgym.envs.errors import UserError
from fleetgym.envs.signals import find_signal


def fleet(policy_name: str, **columns: list[float]) -> np.ndarray:
    """One observation [1, N, F] with the given columns, idle otherwise."""
    features = REGISTRY[policy_name].features
    n = len(next(iter(columns.values())))
    defaults = {"kv_capacity_tokens": 1e5, "prefill_tokens_per_s": 1e4, "decode_tokens_per_s": 1e3}
    observation = np.zeros((1, n, len(features)), np.float32)
    for name, value in {**defaults, **columns}.items():
        observation[0, :, features.index(name)] = value
    return observation


def choice(name: str, mask: list[bool] | None = None, **columns: list[float]) -> int:
    policy = make_heuristic(name)
    observation = fleet(name, **columns)
    policy.reset([0], observation.shape[1])
    allowed = np.ones(observation.shape[:2], bool) if mask is None else np.array([mask])
    return int(policy.act(observation, allowed)[0])


@pytest.mark.parametrize("name", sorted(REGISTRY))
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 5), n=st.integers(1, 9))
def test_actions_are_allowed_and_independent_of_the_batch(name: str, seed: int, batch: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    policy, alone = make_heuristic(name), make_heuristic(name)
    high = np.array([min(find_signal(f).high, 1e4) for f in policy.features])
    policy.reset(range(batch), n)
    alone.reset([0], n)
    for _ in range(3):
        observation = (rng.integers(0, 3, (batch, n, 1)) * rng.random(len(high)) * high).astype(np.float32)
        mask = rng.random((batch, n)) < 0.6
        mask[np.arange(batch), rng.integers(0, n, batch)] = True
        action = policy.act(observation, mask)
        assert action.shape == (batch,)
        assert action.dtype == np.int64
        assert mask[np.arange(batch), action].all()
        assert alone.act(observation[:1], mask[:1])[0] == action[0]


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"round_robin"}))
def test_ties_are_broken_at_random(name: str) -> None:
    policy = make_heuristic(name)
    observation = np.repeat(fleet(name, kv_usage=[0.0] * 4), 64, axis=0)
    policy.reset(range(64), 4)
    seen = Counter(int(a) for _ in range(4) for a in policy.act(observation, np.ones((64, 4), bool)))
    assert len(seen) == 4
    assert max(seen.values()) < 110


def test_round_robin_takes_turns_and_skips_absent_instances() -> None:
    policy = make_heuristic("round_robin")
    policy.reset([0], 4)
    observation = fleet("round_robin", kv_usage=[0.0] * 4)
    mask = np.array([[True, False, True, True]])
    assert [int(policy.act(observation, mask)[0]) for _ in range(5)] == [0, 2, 3, 0, 2]


def test_power_of_two_never_takes_the_most_loaded() -> None:
    observation = fleet("power_of_two", in_flight_requests=[1, 5, 9])
    policy = make_heuristic("power_of_two")
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


def test_unknown_policy_lists_near_matches() -> None:
    with pytest.raises(UserError, match=r"least_inflght.*did you mean least_inflight"):
        make_heuristic("least_inflght")


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(UserError, match="queu"):
        make_heuristic("llmd_queue_kv", queu=2.0)


def test_own_policy_by_module_and_class(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_router.py").write_text(
        "from fleetgym.baselines import ScorePolicy\n"
        "class LeastPrompt(ScorePolicy):\n"
        "    def score(self, s):\n"
        "        return -s['in_flight_prompt_tokens']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    policy = make_heuristic("my_router:LeastPrompt")
    assert policy.name == "LeastPrompt"
    with pytest.raises(UserError, match="Nothing"):
        make_heuristic("my_router:Nothing")


def test_a_name_cannot_be_registered_twice() -> None:
    class Other(ScorePolicy):
        def score(self, s: Columns) -> np.ndarray:
            return s["kv_usage"]

    with pytest.raises(ValueError, match="twice"):
        register("least_kv")(Other)

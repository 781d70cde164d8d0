"""Heuristics by name and environment; what every one of them keeps to."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgym.baselines import (
    Heuristic,
    LinearScore,
    ScorePolicy,
    contenders,
    make_heuristic,
    register,
    registered,
)
from fleetgym.baselines import registry as heuristics
from fleetgym.baselines.base import Columns
from fleetgym.envs import registry as problems
from fleetgym.envs.episodes import try_out
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import public
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.signals import SIGNAL_NAMES, find_signal

ROWS_ID = "test/Rows-v0"


@dataclass(frozen=True, kw_only=True)
class Rows(Routing):
    """Routing by few columns."""

    offers: ClassVar[tuple[str, ...]] = ("in_flight_requests", "prompt_tokens", "remaining_tokens")


class Fewest(LinearScore):
    weights: ClassVar[dict[str, float]] = {"in_flight_requests": -2.0}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An environment with one heuristic of its own."""
    monkeypatch.setattr(heuristics, "_heuristics", dict(heuristics._heuristics))
    problems.register(ROWS_ID, Rows)
    register("fewest", env_id=f"some_module:{ROWS_ID}")(Fewest)
    yield ROWS_ID
    problems._problems.pop(ROWS_ID)
    gym.registry.pop(ROWS_ID)


EACH = [(name, env_id) for name, cls in registered().items() for env_id in cls.env_ids or (ENV_ID,)]


@pytest.mark.parametrize(("name", "env_id"), EACH)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 5), n=st.integers(1, 9))
def test_actions_are_allowed_and_independent_of_the_batch(
    name: str, env_id: str, seed: int, batch: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    policy, alone = make_heuristic(name, env_id), make_heuristic(name, env_id)
    high = np.array([min(find_signal(f).high, 1e4) for f in policy.features], np.float32)
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


@pytest.mark.parametrize(("name", "env_id"), [each for each in EACH if each[0] != "round_robin"])
def test_ties_are_broken_at_random(name: str, env_id: str) -> None:
    policy = make_heuristic(name, env_id)
    observation = np.zeros((64, 4, len(policy.features)), np.float32)
    policy.reset(range(64), 4)
    seen = Counter(int(a) for _ in range(4) for a in policy.act(observation, np.ones((64, 4), bool)))
    assert len(seen) == 4
    assert max(seen.values()) < 110


def test_who_looks_at_nothing_belongs_to_every_environment(rows: str) -> None:
    assert list(registered(rows)) == ["round_robin", "random", "fewest"]
    assert "fewest" not in registered(ENV_ID)
    for name in registered(rows):
        try_out(make_heuristic(name, rows), Rows.resolve())


def test_a_board_ranks_all_of_an_environment_but_the_oracles(rows: str) -> None:
    assert set(registered(ENV_ID)) - set(contenders(ENV_ID)) == {"oracle_least_work"}
    assert contenders(f"fleetgym.envs:{ENV_ID}") == contenders(ENV_ID)
    assert contenders(rows) == ("round_robin", "random", "fewest")
    assert set(contenders(ENV_ID)) == {
        "round_robin", "random", "power_of_two", "least_inflight", "least_kv", "least_pending_tokens", "vllm_dp",
        "llmd_queue_kv", "llumnix_freeness", "lmetric", "dynamo_cost", "weighted_inflight", "smg_least_load",
        "least_latency",
    }  # fmt: skip


def test_a_heuristic_of_another_environment_is_refused_with_those_of_this_one(rows: str) -> None:
    message = rf"policy='least_kv': is a heuristic of {ENV_ID}, not of {rows} \(allowed: fewest, random, round_robin;"
    with pytest.raises(UserError, match=message):
        make_heuristic("least_kv", rows)
    with pytest.raises(UserError, match=rf"policy='fewest': is a heuristic of {rows}, not of {ENV_ID} "):
        make_heuristic("fewest", ENV_ID)


def test_an_unknown_name_lists_near_matches_of_the_environment(rows: str) -> None:
    with pytest.raises(UserError, match=r"least_inflght.*did you mean least_inflight"):
        make_heuristic("least_inflght", ENV_ID)
    with pytest.raises(UserError, match=r"'fewst': unknown; did you mean fewest\? \(allowed: fewest, random, round_r"):
        make_heuristic("fewst", rows)
    with pytest.raises(UserError, match=r"env.id='test/None-v0': is not registered"):
        make_heuristic("random", "test/None-v0")


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(UserError, match="queu"):
        make_heuristic("llmd_queue_kv", ENV_ID, queu=2.0)
    with pytest.raises(UserError, match="it takes none"):
        make_heuristic("least_kv", ENV_ID, queue=2.0)


OWN = """
from fleetgym.baselines import ScorePolicy

class LeastPrompt(ScorePolicy):
    def score(self, s):
        return -s['in_flight_prompt_tokens']

class Misspelt(ScorePolicy):
    def score(self, s):
        return -s['in_flight_prompt_token']

class Stated(ScorePolicy):
    features = ('in_flight_prompt_tokens',)
    def score(self, s):
        return -s['in_flight_prompt_tokens']

class Forgetful(Stated):
    features = ('kv_usage',)

class Cheat(ScorePolicy):
    features = ('remaining_tokens',)
    def score(self, s):
        return -s['remaining_tokens']

class Seer(Cheat):
    kind = 'oracle'

class AllSeeing(LeastPrompt):
    kind = 'oracle'
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_router.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_own_policy_by_module_and_class() -> None:
    policy = make_heuristic("my_router:LeastPrompt", ENV_ID)
    assert (policy.name, policy.features) == ("LeastPrompt", public(SIGNAL_NAMES))
    try_out(policy, Routing.resolve())
    assert make_heuristic("my_router:Stated", ENV_ID).features == ("in_flight_prompt_tokens",)
    assert make_heuristic("my_router:AllSeeing", ENV_ID).features == SIGNAL_NAMES
    with pytest.raises(UserError, match="Nothing"):
        make_heuristic("my_router:Nothing", ENV_ID)


@pytest.mark.usefixtures("own")
def test_own_policy_sees_what_its_environment_offers(rows: str) -> None:
    policy = make_heuristic("my_router:LeastPrompt", rows)
    assert policy.features == ("in_flight_requests", "prompt_tokens")
    with pytest.raises(
        UserError, match=r"policy='LeastPrompt': column 'in_flight_prompt_tokens': is none of its features"
    ):
        try_out(policy, Rows.resolve())
    message = rf"policy='Stated': needs 'in_flight_prompt_tokens', which {rows} does not offer"
    with pytest.raises(UserError, match=message):
        try_out(make_heuristic("my_router:Stated", rows), Rows.resolve())


@pytest.mark.usefixtures("own")
def test_a_column_that_is_not_there_is_found_by_trying() -> None:
    problem = Routing.resolve()
    with pytest.raises(UserError, match=r"policy='Misspelt': column .*did you mean in_flight_prompt_tokens"):
        try_out(make_heuristic("my_router:Misspelt", ENV_ID), problem)
    with pytest.raises(UserError, match=r"policy='Forgetful': column 'in_flight_prompt_tokens'.*allowed: kv_usage"):
        try_out(make_heuristic("my_router:Forgetful", ENV_ID), problem)


@pytest.mark.usefixtures("own")
def test_only_an_oracle_reads_what_is_privileged() -> None:
    with pytest.raises(UserError, match=r"policy='my_router:Cheat': reads 'remaining_tokens', which is privileged"):
        make_heuristic("my_router:Cheat", ENV_ID)
    assert make_heuristic("my_router:Seer", ENV_ID).kind == "oracle"


def test_a_name_cannot_be_registered_twice() -> None:
    class Other(ScorePolicy):
        def score(self, s: Columns) -> np.ndarray:
            return s["kv_usage"]

    with pytest.raises(ValueError, match="twice"):
        register("least_kv", ENV_ID)(Other)


def test_who_reads_columns_names_the_environment_that_offers_them() -> None:
    with pytest.raises(ValueError, match="reads 'in_flight_requests'; register it with the env_id"):
        register("everywhere")(Fewest)


def test_a_weighted_sum_has_no_score_of_its_own() -> None:
    with pytest.raises(TypeError, match="its weights are its score"):

        class Both(LinearScore):
            weights: ClassVar[dict[str, float]] = {"kv_usage": 1.0}

            def score(self, s: Columns) -> np.ndarray:
                return s["kv_usage"]


def test_a_class_that_calls_no_parent_constructor_works() -> None:
    class Own(Heuristic):
        features = ("kv_usage",)

        def __init__(self, margin: float = 0.5) -> None:
            self.margin = margin

        def act(self, observation: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return (self.columns.bind(observation)["kv_usage"] > self.margin).argmax(axis=1)

    policy = Own()
    policy.reset([0], 2)
    assert policy.act(np.array([[[0.1], [0.9]]], np.float32), np.ones((1, 2), bool)).tolist() == [1]

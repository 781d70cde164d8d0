"""The observation schema: complete, documented, and the only way to the signals."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from places import DOCS

from fleetgym.agents.networks import SchemaTransform
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import Transform, observation_space, public, scaled, schema_digest, schema_table, select
from fleetgym.envs.rewards import terms_table
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.signals import SIGNAL_NAMES, SIGNALS, declare, find_signal


def test_a_name_means_one_signal_everywhere() -> None:
    assert len(set(SIGNAL_NAMES)) == len(SIGNAL_NAMES)
    assert declare([find_signal("kv_usage")]) == ("kv_usage",)
    with pytest.raises(UserError, match="declared already, with other properties"):
        declare([replace(find_signal("kv_usage"), scale=2.0)])
    with pytest.raises(UserError, match="did you mean kv_usage"):
        find_signal("kv_usges")


def test_the_documented_table_is_the_schema() -> None:
    page = (DOCS / "observation.md").read_text(encoding="utf-8")
    assert schema_table(SIGNAL_NAMES, "instance") in page


def test_the_documented_reward_terms_are_those_of_the_table() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    assert terms_table() in page


def test_a_real_router_sees_all_but_the_privileged() -> None:
    assert set(SIGNAL_NAMES) - set(public(SIGNAL_NAMES)) == {"output_tokens", "remaining_tokens"}


def test_selection_refuses_unknown_repeated_and_empty() -> None:
    with pytest.raises(UserError, match="did you mean kv_usage"):
        select(["kv_usges"], SIGNAL_NAMES)
    with pytest.raises(UserError, match="each once"):
        select(["kv_usage", "kv_usage"], SIGNAL_NAMES)
    with pytest.raises(UserError, match="at least one"):
        select([], SIGNAL_NAMES)


def test_bounds_are_declared_per_column() -> None:
    box = observation_space(select(["kv_usage", "priority"], SIGNAL_NAMES), 3)
    assert box.shape == (3, 2)
    assert box.high[0].tolist() == [1.0, 1000.0]
    assert box.low[0].tolist() == [0.0, -1000.0]


def test_network_input_replaces_missing_and_clips() -> None:
    features = select(["in_flight_requests", "kv_usage"], SIGNAL_NAMES)
    raw = np.array([[np.nan, 2.0], [256.0, np.nan]], np.float32)
    assert scaled(Transform.of(features), raw) == pytest.approx(np.array([[0.0, 1.0], [1.0, 0.5]]))


def test_an_unreadable_gauge_does_not_look_idle() -> None:
    for feature in SIGNALS:
        assert (feature.missing > 0) == (feature.tag == "scraped"), feature.name


def test_torch_transform_equals_the_numpy_one() -> None:
    rng = np.random.default_rng(0)
    features = SIGNAL_NAMES
    high = np.array([find_signal(f).high for f in features])
    raw = (rng.random((50, 4, len(features))) ** 6 * 2 * high).astype(np.float32)
    raw[rng.random(raw.shape) < 0.05] = np.nan
    by_torch = SchemaTransform(features)(torch.as_tensor(raw)).numpy()
    assert by_torch == pytest.approx(scaled(Transform.of(features), raw), abs=1e-6)


def test_digest_depends_on_the_columns_and_their_order() -> None:
    assert schema_digest(public(SIGNAL_NAMES)) != schema_digest(public(SIGNAL_NAMES)[::-1])
    assert schema_digest(public(SIGNAL_NAMES)) == schema_digest(tuple(public(SIGNAL_NAMES)))


def test_the_documented_environment_is_its_docstring() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    assert inspect.getdoc(Routing) in page

"""The observation schema: complete, documented, and the only way to the signals."""

import inspect

import numpy as np
import pytest
import torch
from places import DOCS

from fleetgym.agents.networks import SchemaTransform
from fleetgym.baselines import REGISTRY
from fleetgym.envs.cluster.engine import SIGNAL_NAMES
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import (
    DEFAULT_FEATURES,
    FEATURES,
    ORACLE_FEATURES,
    observation_space,
    scaled,
    schema_digest,
    schema_table,
    select,
)
from fleetgym.envs.routing.env import RoutingEnv


def test_every_signal_has_a_row_in_the_same_order() -> None:
    assert tuple(f.name for f in FEATURES) == SIGNAL_NAMES


def test_the_documented_table_is_the_schema() -> None:
    page = (DOCS / "observation.md").read_text(encoding="utf-8")
    assert schema_table() in page


def test_no_privileged_feature_reaches_a_policy_that_is_no_oracle() -> None:
    privileged = set(ORACLE_FEATURES) - set(DEFAULT_FEATURES)
    assert privileged == {"output_tokens", "remaining_tokens"}
    for name, policy in REGISTRY.items():
        assert policy.kind == "oracle" or not privileged & set(policy.features), name


def test_selection_refuses_unknown_repeated_and_empty() -> None:
    with pytest.raises(UserError, match="did you mean kv_usage"):
        select(["kv_usges"])
    with pytest.raises(UserError, match="each once"):
        select(["kv_usage", "kv_usage"])
    with pytest.raises(UserError, match="at least one"):
        select([])


def test_bounds_are_declared_per_column() -> None:
    box = observation_space(select(["kv_usage", "priority"]), 3)
    assert box.shape == (3, 2)
    assert box.high[0].tolist() == [1.0, 1000.0]
    assert box.low[0].tolist() == [0.0, -1000.0]


def test_network_input_replaces_missing_and_clips() -> None:
    features = select(["in_flight_requests", "kv_usage"])
    raw = np.array([[np.nan, 2.0], [256.0, np.nan]], np.float32)
    assert scaled(features, raw) == pytest.approx(np.array([[0.0, 1.0], [1.0, 0.5]]))


def test_an_unreadable_gauge_does_not_look_idle() -> None:
    for feature in FEATURES:
        assert (feature.missing > 0) == (feature.tag == "scraped"), feature.name


def test_torch_transform_equals_the_numpy_one() -> None:
    rng = np.random.default_rng(0)
    features = select(oracle=True)
    high = np.array([f.high for f in features])
    raw = (rng.random((50, 4, len(features))) ** 6 * 2 * high).astype(np.float32)
    raw[rng.random(raw.shape) < 0.05] = np.nan
    by_torch = SchemaTransform([f.name for f in features])(torch.as_tensor(raw)).numpy()
    assert by_torch == pytest.approx(scaled(features, raw), abs=1e-6)


def test_digest_depends_on_the_columns_and_their_order() -> None:
    assert schema_digest(DEFAULT_FEATURES) != schema_digest(DEFAULT_FEATURES[::-1])
    assert schema_digest(DEFAULT_FEATURES) == schema_digest(tuple(DEFAULT_FEATURES))


def test_the_documented_environment_is_its_docstring() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    assert inspect.getdoc(RoutingEnv) in page

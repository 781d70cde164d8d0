import numpy as np
import pytest
import torch
from bundle_cases import NUM_CHOICES, Noise, observations
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from fleetgym.agents.scorer import MaskableScorerPolicy, RowScorer, ScorerPolicy
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import public
from fleetgym.envs.signals import SIGNAL_NAMES

KWARGS = {"features": public(SIGNAL_NAMES), "hidden": 8}
ALGORITHMS = [(PPO, ScorerPolicy), (MaskablePPO, MaskableScorerPolicy)]


def scorer(activation: str = "relu") -> RowScorer:
    torch.manual_seed(0)
    return RowScorer(public(SIGNAL_NAMES), 8, activation)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@given(n=st.integers(1, 9), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_permuting_instances_permutes_scores_and_keeps_the_value(activation: str, n: int, seed: int) -> None:
    observation, _ = observations(3, n, seed=seed)
    order = np.random.default_rng(seed).permutation(n)
    net = scorer(activation).double()  # in float32 the order of a sum shows: a backlog's value of 50 differs by 2e-5
    with torch.no_grad():
        scores, latent = net(torch.as_tensor(observation).double())
        permuted, permuted_latent = net(torch.as_tensor(observation[:, order]).double())
    np.testing.assert_allclose(permuted.numpy(), scores.numpy()[:, order], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(permuted_latent.numpy(), latent.numpy(), rtol=1e-12, atol=1e-12)


def test_absent_instances_change_nothing_for_the_others() -> None:
    observation, _ = observations(5, 3)
    padded = np.concatenate([observation, np.zeros((5, 4, len(public(SIGNAL_NAMES))), np.float32)], axis=1)
    with torch.no_grad():
        scores, latent = scorer()(torch.as_tensor(observation))
        padded_scores, padded_latent = scorer()(torch.as_tensor(padded))
    np.testing.assert_allclose(padded_scores.numpy()[:, :3], scores.numpy(), atol=1e-6)
    np.testing.assert_allclose(padded_latent.numpy(), latent.numpy(), atol=1e-6)
    assert (padded_scores.numpy()[:, 3:] <= -1e8).all()


def test_each_instance_sees_the_rest_of_the_fleet() -> None:
    observation, _ = observations(1, 2)
    changed = observation.copy()
    changed[0, 0] += 1000.0
    present = np.ones((1, 2), np.bool_)
    before = scorer().scores(torch.as_tensor(observation + 1), torch.as_tensor(present))
    after = scorer().scores(torch.as_tensor(changed + 1), torch.as_tensor(present))
    assert before[0, 1] != after[0, 1]


def test_unknown_values_are_replaced_before_the_network() -> None:
    observation, mask = observations(2, 3)
    observation[0, 0, 3] = np.nan
    known = np.nan_to_num(observation, nan=0.0)  # every feature's missing value is 0
    scores = [scorer().scores(torch.as_tensor(o), torch.as_tensor(mask)).detach().numpy() for o in (observation, known)]
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.mark.parametrize(("algorithm", "policy"), ALGORITHMS)
def test_training_moves_every_weight_and_survives_save_and_load(algorithm, policy, tmp_path) -> None:
    model = algorithm(policy, Noise(), n_steps=32, batch_size=32, policy_kwargs=KWARGS, seed=0)
    before = {name: weight.clone() for name, weight in model.policy.named_parameters()}
    model.learn(64)
    unmoved = [name for name, weight in model.policy.named_parameters() if torch.equal(weight, before[name])]
    assert unmoved == []
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    observation, mask = observations(20, NUM_CHOICES)
    np.testing.assert_array_equal(loaded.policy.scores(observation, mask), model.policy.scores(observation, mask))
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize(("algorithm", "policy"), ALGORITHMS)
def test_absent_instances_are_never_sampled_nor_chosen(algorithm, policy) -> None:
    model = algorithm(policy, Noise(), policy_kwargs=KWARGS, seed=0)
    observation, mask = observations(200, NUM_CHOICES)
    for deterministic in (False, True):
        action, _ = model.predict(observation, deterministic=deterministic)
        assert mask[np.arange(200), action].all()


def test_greedy_action_obeys_masks_that_the_rows_do_not_show() -> None:
    model = MaskablePPO(MaskableScorerPolicy, Noise(), policy_kwargs=KWARGS, seed=0)
    observation, _ = observations(50, NUM_CHOICES)
    masks = np.zeros((50, NUM_CHOICES), np.bool_)
    masks[:, 2] = True
    action, _ = model.predict(observation, deterministic=True, action_masks=masks)
    assert (action == 2).all()


def test_equal_instances_go_to_the_lowest_index() -> None:
    model = PPO(ScorerPolicy, Noise(), policy_kwargs=KWARGS, seed=0)
    row = np.full(len(public(SIGNAL_NAMES)), 7.0, np.float32)
    observation = np.tile(row, (1, NUM_CHOICES, 1))
    assert model.predict(observation, deterministic=True)[0].tolist() == [0]
    observation[0, 0] = 0.0
    assert model.predict(observation, deterministic=True)[0].tolist() == [1]


def test_greedy_action_is_the_best_score_even_when_probabilities_round_to_equal() -> None:
    model = PPO(ScorerPolicy, Noise(), policy_kwargs=KWARGS, seed=0)
    with torch.no_grad():
        model.policy.mlp_extractor.score.weight *= 1e-7
    observation, _ = observations(300, NUM_CHOICES)
    observation += 1.0
    scores = model.policy.scores(observation, np.ones((300, NUM_CHOICES), np.bool_))
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], scores.argmax(axis=1))


def test_inputs_far_beyond_the_typical_are_limited() -> None:
    observation = torch.full((1, 1, len(public(SIGNAL_NAMES))), 1e30)
    assert scorer().transform(observation).max() > 4.0
    assert scorer().inputs(observation).max() == 4.0


def test_training_starts_from_the_prior() -> None:
    prior = {"in_flight_requests": -2000.0, "kv_usage": -1.0}
    model = PPO(ScorerPolicy, Noise(), policy_kwargs=KWARGS | {"prior": prior}, seed=0)
    observation, mask = observations(100, NUM_CHOICES)
    observation[..., 0] = np.random.default_rng(1).permuted(np.arange(100 * NUM_CHOICES) % 50).reshape(100, -1) + 1
    in_flight = np.where(mask, observation[..., 0], np.inf)
    action, _ = model.predict(observation * mask[..., None], deterministic=True)
    np.testing.assert_array_equal(in_flight[np.arange(100), action], in_flight.min(axis=1))


def test_value_scale_multiplies_the_critic_alone() -> None:
    observation = torch.as_tensor(observations(5, NUM_CHOICES)[0])
    one, ten = (
        PPO(ScorerPolicy, Noise(), policy_kwargs=KWARGS | {"value_scale": scale}, seed=0).policy
        for scale in (1.0, 10.0)
    )
    torch.testing.assert_close(ten.predict_values(observation), 10 * one.predict_values(observation))
    torch.testing.assert_close(
        ten.mlp_extractor.forward_actor(observation), one.mlp_extractor.forward_actor(observation)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prior": {"in_flight": 1.0}}, "prior: 'in_flight' is no column; did you mean .*in_flight_requests"),
        ({"prior": dict.fromkeys(public(SIGNAL_NAMES), 1.0)}, "15 features need as many of 8 hidden units"),
        ({"value_scale": 0.0}, "value_scale=0.0: must be positive"),
        ({"activation": "gelu"}, "policy_kwargs.activation='gelu'"),
        ({"hidden": 0}, "policy_kwargs.hidden=0"),
        ({"features": ("kv_usage",)}, "the observation has 15 columns"),
    ],
)
def test_impossible_settings_are_named(kwargs, message) -> None:
    with pytest.raises(UserError, match=message):
        PPO(ScorerPolicy, Noise(), policy_kwargs=KWARGS | kwargs)

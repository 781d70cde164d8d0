"""Training: every algorithm learns a few steps, runs repeat, resume, keep their best model and refuse the impossible."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from routing_envs import ROUTING_ID

from fleetgym.agents.checkpoint import read_card
from fleetgym.agents.factory import AgentSpec, make_model
from fleetgym.agents.held_out import HELD_OUT_FIGURES, HeldOut
from fleetgym.agents.learned import load_checkpoint
from fleetgym.agents.training import TrainSpec, train
from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.baselines import make_heuristic
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import SCHEMA_VERSION, schema_digest
from fleetgym.envs.problem import Problem
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.vector import FleetVectorEnv

PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
SPECS = {
    "ppo": AgentSpec("ppo", num_envs=4, hyperparameters=PPO, normalize_reward=True),
    "maskable_ppo": AgentSpec("maskable_ppo", num_envs=4, hyperparameters=PPO, normalize_reward=True),
    "ppo_scorer": AgentSpec("ppo", "scorer", num_envs=4, hyperparameters=PPO),
    "maskable_scorer": AgentSpec("maskable_ppo", "scorer", num_envs=4, hyperparameters=PPO),
    "dqn": AgentSpec(
        "dqn",
        num_envs=4,
        hyperparameters={"learning_starts": 16, "batch_size": 16, "buffer_size": 500, "train_freq": 2},
    ),
}
PLAN = TrainSpec(128, eval_every_timesteps=64, checkpoint_every_timesteps=64)


worth = HeldOut(Routing.resolve(num_requests=40)).worth


def problem(**arguments: object) -> Problem:
    return Routing.resolve(**{"num_requests": 40, **arguments})


def card(spec: AgentSpec, config: Problem) -> dict[str, object]:
    return {
        "name": spec.algorithm,
        "env_id": ROUTING_ID,
        "algorithm": spec.algorithm,
        "network": spec.network,
        "features": list(config.features),
        "schema_version": SCHEMA_VERSION,
        "schema_digest": schema_digest(config.features),
        "fingerprint": "",
        "trained_ranges": {},
    }


def learn(
    folder: Path,
    name: str = "ppo_scorer",
    plan: TrainSpec = PLAN,
    seed: int = 0,
    rank_by: str = "e2e_charged_s.mean",
    **options: object,
):
    spec = SPECS[name]
    knows_fleet = spec.network == "scorer" or spec.algorithm == "maskable_ppo"
    config = problem(available=[4, 8] if knows_fleet else None)
    held_out = HeldOut(config, 2, rank_by)
    return train(spec, config, held_out, plan, folder, card(spec, config), seed=seed, progress_bar=False, **options)


def weights(folder: Path, name: str = "last_model.zip") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name).model.policy.state_dict()


@pytest.mark.parametrize("name", SPECS)
def test_every_algorithm_learns_and_its_checkpoint_decides(name: str, tmp_path: Path) -> None:
    model, history, _ = learn(tmp_path, name)
    assert model.num_timesteps >= 128
    assert [row["timesteps"] for row in history] == sorted({row["timesteps"] for row in history})
    for checkpoint in ("best_model.zip", "last_model.zip"):
        assert read_card(tmp_path / checkpoint)["algorithm"] == SPECS[name].algorithm
        policy = load_checkpoint(tmp_path / checkpoint)
        score = HeldOut(problem(), 2).score(policy)
        assert np.isfinite(list(score.values())).all()
    assert len(list((tmp_path / "checkpoints").glob("*_steps.zip"))) >= 1


def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        learn(tmp_path / folder, seed=seed)
    a, b, c = (weights(tmp_path / folder) for folder in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_best_model_is_the_one_with_the_best_held_out_figure(tmp_path: Path) -> None:
    history = learn(tmp_path).history
    best = min(row["e2e_charged_s.mean"] for row in history)
    config = problem(available=[4, 8])
    assert HeldOut(config, 2).score(load_checkpoint(tmp_path / "best_model.zip"))["e2e_charged_s.mean"] == best


def test_the_best_model_is_chosen_by_the_figure_that_ranks(tmp_path: Path) -> None:
    history = learn(tmp_path, rank_by="slo_attainment").history
    best = load_checkpoint(tmp_path / "best_model.zip")
    held_out = HeldOut(problem(available=[4, 8]), 2, "slo_attainment")
    score = held_out.score(best)
    assert score["slo_attainment"] == max(row["slo_attainment"] for row in history)
    assert held_out.worth({"slo_attainment": 0.9}) > held_out.worth({"slo_attainment": 0.8})
    assert worth({"e2e_charged_s.mean": 1.0}) > worth({"e2e_charged_s.mean": 2.0})


def test_resume_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    first = learn(tmp_path).history
    done = read_card(tmp_path / "last_model.zip")["num_timesteps"]
    longer = TrainSpec(done + 64, eval_every_timesteps=64)
    model, history, before = learn(tmp_path, plan=longer, resume=tmp_path / "last_model.zip")
    assert model.num_timesteps >= done + 64
    assert before == max(first, key=worth)
    assert history[0] == first[-1]
    assert [row["timesteps"] for row in history] == sorted({row["timesteps"] for row in history})
    with pytest.raises(UserError, match=f"total_timesteps={done}: the checkpoint has"):
        learn(tmp_path, plan=TrainSpec(done), resume=tmp_path / "last_model.zip")


def test_resume_keeps_the_best_model_unless_it_finds_a_better_one(tmp_path: Path) -> None:
    """A good model in the folder, a bad checkpoint to go on from: the good one must survive."""
    spec = SPECS["ppo_scorer"]
    prior = {"in_flight_requests": -100.0}
    good = replace(spec, policy_kwargs={"prior": prior})
    bad = replace(spec, policy_kwargs={"prior": {name: -weight for name, weight in prior.items()}})
    config = problem(load=0.9)
    options = {"seed": 0, "progress_bar": False}
    for folder, agent in (("good", good), ("bad", bad)):
        train(agent, config, HeldOut(config, 2), PLAN, tmp_path / folder, card(agent, config), **options)
    before = (tmp_path / "good" / "best_model.zip").read_bytes()
    resume = tmp_path / "bad" / "last_model.zip"
    longer = replace(PLAN, total_timesteps=256)
    done = train(
        good, config, HeldOut(config, 2), longer, tmp_path / "good", card(good, config), resume=resume, **options
    )
    assert (tmp_path / "good" / "best_model.zip").read_bytes() == before
    assert done.before is not None
    assert worth(done.before) > max(map(worth, done.history))


def test_a_checkpoint_has_learned_from_the_steps_that_it_is_named_after(tmp_path: Path) -> None:
    history = learn(tmp_path).history
    kept = load_checkpoint(tmp_path / "checkpoints" / "64_steps.zip")
    (row,) = (row for row in history if row["timesteps"] == 64)
    assert {"timesteps": 64.0, **HeldOut(problem(available=[4, 8]), 2).score(kept)} == row


def test_resume_refuses_another_observation_and_number_of_environments(tmp_path: Path) -> None:
    learn(tmp_path)
    spec = SPECS["ppo_scorer"]
    other = problem(features=["in_flight_requests", "kv_usage"])
    options = {"seed": 0, "progress_bar": False, "resume": tmp_path / "last_model.zip"}
    with pytest.raises(UserError, match="another observation"):
        train(spec, other, HeldOut(other), TrainSpec(999), tmp_path, card(spec, other), **options)
    wider = AgentSpec("ppo", "scorer", num_envs=8, hyperparameters=PPO)
    with pytest.raises(UserError, match="num_envs=4"):
        train(wider, problem(), HeldOut(problem()), TrainSpec(999), tmp_path, card(wider, problem()), **options)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_agents_without_masks_need_a_fixed_fleet(name: str, tmp_path: Path) -> None:
    spec, config = SPECS[name], problem(available=[4, 8])
    with pytest.raises(UserError, match=r"available=\[4, 8\].*cannot tell which instances exist"):
        train(spec, config, HeldOut(config), PLAN, tmp_path, card(spec, config), seed=0, progress_bar=False)


def test_a_scorer_serves_any_number_of_instances_and_an_mlp_does_not(tmp_path: Path) -> None:
    learn(tmp_path / "scorer")
    learn(tmp_path / "mlp", "ppo")
    load_checkpoint(tmp_path / "scorer" / "best_model.zip").reset([0], 3)
    with pytest.raises(UserError, match=r"exactly 8 choices, here are 3.*ppo_scorer"):
        load_checkpoint(tmp_path / "mlp" / "best_model.zip").reset([0], 3)


def test_checkpoints_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    learn(tmp_path)
    good = tmp_path / "best_model.zip"
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "nothing.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.zip")
    bare = tmp_path / "bare.zip"
    shutil.copy(good, bare)
    with pytest.raises(UserError, match="bare"):
        load_checkpoint(bare)
    for key, value, message in (
        ("env_id", "fleetgym/Partition-v0", "trained for 'fleetgym/Partition-v0'"),
        ("schema_digest", "0", "another version of the observation schema"),
    ):
        text = good.with_suffix(".json").read_text()
        changed = text.replace(f'"{key}": "{read_card(good)[key]}"', f'"{key}": "{value}"')
        assert changed != text
        bare.with_suffix(".json").write_text(changed)
        with pytest.raises(UserError, match=message):
            load_checkpoint(bare)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "ppo", "hyperparameters": {"learning_rat": 1}}, "did you mean learning_rate"),
        ({"algorithm": "ppo", "hyperparameters": {"learning_rate": "lin_fast"}}, "learning_rate='lin_fast'"),
        ({"algorithm": "ppo", "hyperparameters": {"learning_rate": "fast"}}, "learning_rate='fast': ppo takes"),
        ({"algorithm": "ppo", "hyperparameters": {"n_steps": 1.5}}, "n_steps=1.5: ppo takes int"),
        ({"algorithm": "dqn", "network": "scorer"}, "not available for algorithm='dqn'"),
        ({"algorithm": "ppo", "num_envs": 0}, "num_envs=0"),
    ],
)
def test_impossible_agents_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AgentSpec(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyperparameters": {**PPO, "n_steps": 0}}, "agent: ppo cannot be built: AssertionError"),
        (
            {"hyperparameters": {**PPO, "learning_rate": -1.0}},
            "agent: ppo cannot be built: ValueError: Invalid learning",
        ),
        ({"policy_kwargs": {"net_arch": 3}}, "agent: ppo cannot be built: TypeError"),
        (
            {"policy_kwargs": {"activation_fn": "Rely"}},
            "policy_kwargs.activation_fn='Rely': must be a class of torch.nn",
        ),
    ],
)
def test_what_the_library_refuses_is_the_users_to_mend(
    settings: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPECS, "broken", AgentSpec("ppo", num_envs=4, **settings))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        learn(tmp_path, "broken")


@pytest.mark.parametrize(
    "arguments",
    [{"total_timesteps": 0}, {"eval_every_timesteps": 0}, {"checkpoint_every_timesteps": 0}],
)
def test_impossible_plans_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        TrainSpec(**{"total_timesteps": 10, **arguments})


def test_impossible_held_out_episodes_are_named() -> None:
    with pytest.raises(UserError, match="eval_episodes=0: must be at least 1"):
        HeldOut(problem(), 0)
    with pytest.raises(UserError, match=r"rank_by='e2e_s\.mean'"):
        HeldOut(problem(), 1, "e2e_s.mean")


def test_held_out_episodes_are_the_same_for_every_policy() -> None:
    first, again = (HeldOut(problem(), 3).score(make_heuristic("least_inflight", ENV_ID)) for _ in range(2))
    assert first == again
    assert set(HELD_OUT_FIGURES) <= set(first)


def test_a_prior_of_the_environment_is_what_the_problem_says() -> None:
    env = FleetVecEnv(FleetVectorEnv(1, problem=Routing.resolve(num_requests=5)))
    spec = AgentSpec("ppo", "scorer", num_envs=1, policy_kwargs={"prior": "environment"})
    own = replace(spec, policy_kwargs={"prior": dict(Routing.prior)})
    weights = [make_model(s, env, seed=3).policy.state_dict() for s in (spec, own)]
    assert Routing.prior
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(
        UserError, match="prior='in_flight_requests': must be weights by feature, 'environment' or null"
    ):
        make_model(replace(spec, policy_kwargs={"prior": "in_flight_requests"}), env, seed=3)

"""Training on several problems at once: one environment of all, one best model by ratios, the same weights as alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import PLAN, SPECS, card, problem, weights

from fleetgym.agents.held_out import HeldOut, HeldOutSuite
from fleetgym.agents.learned import load_checkpoint
from fleetgym.agents.training import TrainSpec, shares, train
from fleetgym.agents.vec_env import FleetVecEnv, pad_choices
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.envs.vector import FleetVectorEnv

FOUR = "rtxpro6000_qwen3_32b_tp2_x4"


def problems(**arguments: object) -> dict[str, Problem]:
    """Eight instances and four, episodes of unequal length."""
    return {"eight": problem(**arguments), "four": problem(cluster=FOUR, num_requests=30, **arguments)}


def suite(chosen: dict[str, Problem], **yardstick: float) -> HeldOutSuite:
    figures = {"eight": "e2e_charged_s.mean", "four": "slo_attainment"}
    return HeldOutSuite(
        {name: HeldOut(one, 2, figures[name]) for name, one in chosen.items()},
        {name: yardstick.get(name, 1.0) for name in chosen},
    )


def learn(folder: Path, name: str = "ppo_scorer", plan: TrainSpec = PLAN, seed: int = 0, **options: object):
    chosen = problems()
    about = {**card(SPECS[name], chosen["eight"]), "trained_ranges": {"num_choices": [4, 8]}}
    return train(
        SPECS[name], [*chosen.values()], suite(chosen), plan, folder, about, seed=seed, progress_bar=False, **options
    )


def test_each_part_of_a_mixed_environment_is_what_it_is_alone() -> None:
    """Bit for bit, over several episodes; rows of zeros that the mask forbids follow where choices are fewer."""
    parts = [FleetVectorEnv(n, problem=one, stagger=True) for n, one in zip((3, 2), problems().values(), strict=True)]
    mixed = FleetVecEnv(*parts)
    alone = [
        FleetVecEnv(FleetVectorEnv(n, problem=one, stagger=True))
        for n, one in zip((3, 2), problems().values(), strict=True)
    ]
    assert (mixed.num_envs, mixed.observation_space, int(mixed.action_space.n)) == (5, alone[0].observation_space, 8)
    mixed.seed(7)
    for env, seed in zip(alone, (7, 10), strict=True):
        env.seed(seed)
    rng = np.random.default_rng(0)
    observations, own = mixed.reset(), [env.reset() for env in alone]
    ended = 0
    for _ in range(100):
        masks, their_masks = mixed.action_masks(), [env.action_masks() for env in alone]
        for rows, parts_of in ((observations, own), (masks, their_masks)):
            assert rows.shape[:2] == (5, 8)
            assert np.array_equal(rows[:3], parts_of[0])
            assert np.array_equal(rows[3:, :4], parts_of[1])
            assert not rows[3:, 4:].any()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observations, rewards, dones, infos = mixed.step(actions)
        steps = [env.step(actions[span]) for env, span in zip(alone, (slice(3), slice(3, 5)), strict=True)]
        own = [step[0] for step in steps]
        assert np.array_equal(rewards, np.concatenate([step[1] for step in steps]))
        assert np.array_equal(dones, np.concatenate([step[2] for step in steps]))
        for info, theirs in zip(infos, [info for step in steps for info in step[3]], strict=True):
            assert set(info) == set(theirs)
            if info:
                ended += 1
                last = theirs.pop("terminal_observation")
                assert np.array_equal(info.pop("terminal_observation"), pad_choices(last, 8))
                assert info == theirs
    assert ended > 10
    assert np.array_equal(mixed.env_method("action_masks", indices=[4]), mixed.action_masks()[[4]])
    assert [p.num_choices for p in mixed.get_attr("problem")] == [8, 8, 8, 4, 4]


def test_a_mixed_environment_is_of_one_observation() -> None:
    few = problem(features=["in_flight_requests", "kv_usage"])
    with pytest.raises(UserError, match="one environment id and have the same features"):
        FleetVecEnv(FleetVectorEnv(2, problem=problem()), FleetVectorEnv(2, problem=few))
    mixed = FleetVecEnv(*(FleetVectorEnv(1, problem=one) for one in problems().values()))
    mixed.set_options({"reset_mask": np.ones(1, np.bool_)})
    with pytest.raises(UserError, match="several problems take none"):
        mixed.reset()


@given(st.integers(1, 40), st.integers(0, 500))
def test_environments_are_shared_out_evenly(parts: int, more: int) -> None:
    found = shares(parts + more, parts)
    assert (len(found), sum(found)) == (parts, parts + more)
    assert max(found) - min(found) <= 1
    assert min(found) >= 1


@pytest.mark.parametrize("name", ["ppo_scorer", "maskable_ppo", "maskable_scorer"])
def test_an_agent_that_knows_what_exists_learns_on_fleets_of_several_sizes(name: str, tmp_path: Path) -> None:
    model, history, _ = learn(tmp_path, name)
    assert model.num_timesteps >= 128
    for row in history:
        ratios = [row["eight.e2e_charged_s.mean"], 1.0 / row["four.slo_attainment"]]
        assert [row["eight.ratio"], row["four.ratio"]] == pytest.approx(ratios)
        assert row["ratio"] == pytest.approx(np.sqrt(np.prod(ratios)))
    best = load_checkpoint(tmp_path / "best_model.zip")
    again = suite(problems()).score(best)
    assert again["ratio"] == min(row["ratio"] for row in history)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_agent_without_masks_learns_on_fleets_of_one_size_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4 to 8 choices: .* with network='mlp' cannot tell which instances exist"):
        learn(tmp_path, name)
    spec, alike = SPECS[name], {"eight": problem(), "four": problem(load=0.5)}
    train(spec, [*alike.values()], suite(alike), PLAN, tmp_path, card(spec, alike["eight"]), seed=0, progress_bar=False)
    assert (tmp_path / "best_model.zip").is_file()


def test_a_row_scorer_needs_a_column_that_tells_an_idle_row_from_an_absent_one(tmp_path: Path) -> None:
    spec, chosen = SPECS["ppo_scorer"], problems(features=["in_flight_requests", "kv_usage"])
    with pytest.raises(UserError, match=r"4 to 8 choices: ppo with network='scorer' cannot tell an idle row from one"):
        train(spec, [*chosen.values()], suite(chosen), PLAN, tmp_path, card(spec, chosen["eight"]), seed=0)


def test_there_must_be_an_environment_for_each_problem(tmp_path: Path) -> None:
    spec, chosen = replace(SPECS["ppo_scorer"], num_envs=1), problems()
    with pytest.raises(UserError, match=r"agent.num_envs=1: must be at least 2, one for each scenario"):
        train(spec, [*chosen.values()], suite(chosen), PLAN, tmp_path, card(spec, chosen["eight"]), seed=0)


def test_equal_seeds_give_equal_weights_and_resume_goes_on(tmp_path: Path) -> None:
    for folder in "ab":
        first = learn(tmp_path / folder)
    a, b = (weights(tmp_path / folder) for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    done = first.model.num_timesteps
    longer = replace(PLAN, total_timesteps=done + 64)
    model, history, before = learn(tmp_path / "b", plan=longer, resume=tmp_path / "b" / "last_model.zip")
    assert model.num_timesteps >= done + 64
    assert history[0] == first.history[-1]
    assert before == max(first.history, key=suite(problems()).worth)


def test_a_list_of_one_problem_gives_the_weights_of_the_problem_alone(tmp_path: Path) -> None:
    spec, one = SPECS["ppo_scorer"], problem(available=[4, 8])
    for folder, chosen, held_out in (
        ("alone", one, HeldOut(one, 2)),
        ("list", [one], suite({"eight": one}, eight=3.0)),
    ):
        train(spec, chosen, held_out, PLAN, tmp_path / folder, card(spec, one), seed=4, progress_bar=False)
    for name in ("best_model.zip", "last_model.zip"):
        alone, within = (weights(tmp_path / folder, name) for folder in ("alone", "list"))
        assert all(torch.equal(alone[key], within[key]) for key in alone)


def test_a_flat_network_serves_the_numbers_of_choices_that_it_was_trained_for(tmp_path: Path) -> None:
    learn(tmp_path, "maskable_ppo")
    policy = load_checkpoint(tmp_path / "best_model.zip")
    for count in (4, 6, 8):
        policy.reset([0], count)
        rng = np.random.default_rng(count)
        observation = rng.random((20, count, len(policy.features)), np.float32)
        mask = rng.random((20, count)) < 0.5
        mask[:, 0] = True
        chosen = policy.act(observation, mask)
        assert mask[np.arange(20), chosen].all()
        padded = policy.act(pad_choices(observation, 8, axis=1), pad_choices(mask, 8, axis=1))
        assert np.array_equal(chosen, padded)
    for count in (3, 9):
        with pytest.raises(UserError, match=f"trained for 4 to 8 choices, here are {count}"):
            policy.reset([0], count)

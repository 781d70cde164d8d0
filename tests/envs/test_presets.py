"""One name means one thing, from Python and on the command line, and so does leaving it out."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import gymnasium as gym
import pytest
from omegaconf import OmegaConf
from places import CONF
from routing_envs import ROUTING_ID

from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.presets import GROUPS, default_preset, names, preset
from fleetgym.envs.problem import Problem
from fleetgym.envs.rewards import RewardSpec
from fleetgym.envs.routing.problem import Routing
from fleetgym.experiments.harness.config import compose_config
from fleetgym.experiments.harness.from_config import problem_of

ALL = [(group, name) for group in GROUPS for name in names(group)]


def made(**arguments: Any) -> Problem:
    config = gym.make(f"fleetgym.envs:{ROUTING_ID}", **arguments).unwrapped.problem  # type: ignore[attr-defined]
    assert isinstance(config, Problem)
    return config


@pytest.mark.parametrize("field", [f.name for f in fields(Problem)])
@pytest.mark.parametrize("command", ["train", "evaluate", "leaderboard"])
def test_the_command_line_and_python_build_the_same_problem(command: str, field: str) -> None:
    problem = problem_of(compose_config(command))
    assert getattr(problem, field) == getattr(made(), field)
    envs = gym.make_vec(f"fleetgym.envs:{ROUTING_ID}", num_envs=2)
    assert getattr(problem, field) == getattr(envs.unwrapped.problem, field)  # type: ignore[attr-defined]


def test_both_see_the_same_hardware() -> None:
    ours, theirs = made().cluster.expanded, problem_of(compose_config("evaluate")).cluster.expanded
    for one, other in zip(ours, theirs, strict=True):
        assert one.row == other.row
        assert one.decode_tokens_per_s == other.decode_tokens_per_s
        assert one.prefill_tokens_per_s == other.prefill_tokens_per_s
    assert ours[0].row.tier == "A+", "the most trusted row"


@pytest.mark.parametrize(
    "choice",
    [{"cluster": name} for name in names("cluster")]
    + [{"reward": name} for name in names("reward")]
    + [{"slo": name} for name in names("slo")]
    + [{"cluster": "a100_llama3_8b_x8", "reward": "ttft"}],
    ids=str,
)
def test_a_name_means_the_same_on_the_command_line_and_in_python(choice: dict[str, str]) -> None:
    overrides = [f"{group}={name}" for group, name in choice.items()]
    # A load would be measured, which takes seconds and is the same for both.
    problem = problem_of(compose_config("evaluate", [*overrides, "env.load=null"]))
    assert made(**choice, load=None) == problem


def test_a_workload_has_a_name_too(data_path: object) -> None:
    problem = problem_of(compose_config("evaluate", ["workload=azure_conversation", "env.load=null"]))
    assert made(workload="azure_conversation", load=None).workload == problem.workload


@pytest.mark.parametrize(("group", "name"), ALL)
def test_a_preset_is_the_file_as_the_command_line_reads_it(group: str, name: str) -> None:
    text = CONF.joinpath(f"{group}/{name}.yaml").read_text(encoding="utf-8")
    assert "${" not in text, "plain data: nobody resolves interpolations here"
    fields = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(fields, dict)
    assert "defaults" not in fields
    if "???" in fields.values():
        with pytest.raises(UserError, match=f"{group}='{name}': path has no default; give the fields as a mapping"):
            preset(group, name)
    else:
        assert preset(group, name) == fields


def test_what_is_left_out_of_slo_and_reward_is_the_default_preset_s() -> None:
    assert Slo() == build(Slo, default_preset("slo"), "slo")
    assert RewardSpec() == build(RewardSpec, default_preset("reward"), "reward")
    assert made(load=None).slo == Slo()
    changed = made(load=None, slo={"tpot_s": 0.0123}).slo
    assert changed == build(Slo, default_preset("slo") | {"tpot_s": 0.0123}, "slo")


def test_a_preset_that_the_caller_changes_stays_what_it_was() -> None:
    fields = preset("cluster", "a100_llama3_8b_x8")
    fields["instances"][0]["gpu"] = "RTX4090"
    assert build(ClusterSpec, preset("cluster", "a100_llama3_8b_x8"), "cluster").instances[0].gpu == "A100-80GB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster": "a100_lama3_8b"}, "cluster='a100_lama3_8b': unknown; did you mean a100_llama3_8b_x8"),
        ({"workload": "azure"}, "workload='azure': unknown; did you mean azure_code"),
        ({"reward": "tft"}, r"reward='tft': unknown; did you mean ttft, default\? \(allowed: default, ttft\)"),
        ({"slo": "strickt"}, r"slo='strickt': unknown.* \(allowed: default"),
        ({"workload": 3}, "workload=3: expected a name, a mapping of fields or a Workload"),
        ({"slo": 3}, "slo=3: expected a mapping of fields"),
        ({"cluster": ["a100_llama3_8b_x8"]}, "cluster=.*: expected a mapping of fields"),
        ({"slo": {"tpot": 1.0}}, "slo.tpot: unknown field; did you mean tpot_s"),
    ],
)
def test_what_nothing_is_called_is_one_line_with_the_near_names(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)


def test_the_documented_defaults_are_the_presets() -> None:
    text, env = Routing.__doc__ or "", default_preset("env")
    assert re.search(r"num_requests : .*, default (\S+)", text)[1] == str(env["num_requests"])  # type: ignore[index]
    assert re.search(r"load : .*, default (\S+)", text)[1] == str(env["load"])  # type: ignore[index]
    assert f"default ``{default_preset('cluster')['name']}``" in text

from typing import Any

import pytest
from omegaconf import OmegaConf
from places import CONF

from fleetgym.envs.cluster.spec import ClusterSpec
from fleetgym.experiments.cli import COMMANDS, PLAIN
from fleetgym.experiments.harness.config import cluster_spec, compose_config, slo_spec

PRIMARY = sorted(name.replace("-", "_") for name in COMMANDS if name not in PLAIN)
ROUTING = ("train", "evaluate", "leaderboard")  # share conf/experiment_base.yaml, and so an experiment fits all three
GROUPS = sorted(entry.name for entry in CONF.iterdir() if entry.is_dir() and not entry.name.startswith("_"))


def options(group: str) -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in CONF.joinpath(group).iterdir() if f.name.endswith(".yaml"))


def load(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(CONF.joinpath(f"{name}.yaml").read_text(encoding="utf-8")))


def groups(name: str) -> set[str]:
    """Groups that the primary config chooses from, those of the configs that it is based on included."""
    found: set[str] = set()
    for entry in load(name)["defaults"]:
        if isinstance(entry, dict):
            found |= set(entry)
        elif CONF.joinpath(f"{entry}.yaml").is_file():  # else _self_, or what the code registers
            found |= groups(entry)
    return found


def choices() -> list[tuple[str, str, str]]:
    """Every option of every group, each with one command that has the group."""
    having = {group: primary for primary in PRIMARY for group in groups(primary) - {"hydra", "experiment"}}
    return [(primary, group, option) for group, primary in sorted(having.items()) for option in options(group)]


def test_every_group_is_used_by_some_command() -> None:
    assert set(GROUPS) == set().union(*map(groups, PRIMARY))


@pytest.mark.parametrize("primary", PRIMARY)
def test_a_primary_config_composes_and_names_its_job(primary: str) -> None:
    compose_config(primary)
    assert load(primary)["hydra"]["job"]["name"] == primary


@pytest.mark.parametrize("primary", PRIMARY)
def test_groups_beat_a_primary_config_and_the_experiment_beats_all(primary: str) -> None:
    entries = load(primary)["defaults"]
    assert entries[-1] == {"experiment": None}
    assert all(isinstance(entry, dict) for entry in entries[entries.index("_self_") + 1 :])
    assert not any(isinstance(entry, dict) for entry in entries[: entries.index("_self_")])


@pytest.mark.parametrize(("primary", "group", "option"), choices())
def test_every_option_composes_and_adds_no_top_level_key(primary: str, group: str, option: str) -> None:
    assert set(compose_config(primary, [f"{group}={option}"])) == set(compose_config(primary))


@pytest.mark.parametrize("primary", ROUTING)
@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_adds_no_top_level_key(primary: str, name: str) -> None:
    assert set(compose_config(primary, [f"experiment={name}"])) == set(compose_config(primary))


@pytest.mark.parametrize("name", options("cluster"))
def test_every_cluster_builds(name: str) -> None:
    cluster = cluster_spec(compose_config("simulate", [f"cluster={name}"]))
    assert isinstance(cluster, ClusterSpec)
    assert cluster.name == name
    assert cluster.num_instances in (4, 8)
    for instance in cluster.expanded:
        assert instance.kv_capacity_tokens > 4096
        assert instance.decode_tokens_per_s > 0


def test_the_slo_builds() -> None:
    assert slo_spec(compose_config("simulate", ["slo.tpot_s=0.05"])).tpot_s == 0.05


def test_an_override_beats_its_group() -> None:
    cfg = compose_config(
        "simulate", ["cluster=a100_llama3_8b_x8_tight", "cluster.instances.0.engine.num_gpu_blocks=900"]
    )
    assert cluster_spec(cfg).instances[0].num_gpu_blocks == 900

"""Commands with an environment of one's own: its heuristics, and no policy that was made for another."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from bundle_cases import Noise, card, checkpoint, reseal
from stable_baselines3 import PPO

from fleetgym.agents.bundle import load
from fleetgym.agents.checkpoint import card_path, write_card
from fleetgym.agents.export import from_checkpoint, write_bundle
from fleetgym.baselines import registry as heuristics
from fleetgym.envs import registry as problems
from fleetgym.experiments import cli

OTHER = """
from dataclasses import dataclass
from typing import ClassVar

from fleetgym.baselines import LinearScore, register as register_heuristic
from fleetgym.envs import register
from fleetgym.envs.routing.problem import Routing


@dataclass(frozen=True, kw_only=True)
class Other(Routing):
    choice: ClassVar[str] = "server"
    offers: ClassVar[tuple[str, ...]] = ("in_flight_requests", "kv_usage", "kv_capacity_tokens")
    yardstick: ClassVar[str] = "random"
    fallback: ClassVar[str] = "idlest"


register("test/Other-v0", Other)


@register_heuristic("idlest", env_id="test/Other-v0")
class Idlest(LinearScore):
    weights: ClassVar[dict[str, float]] = {"kv_usage": -1.0}

    def __init__(self, kv=-1.0):
        super().__init__()
        self.weights = {"kv_usage": kv}
"""
ENV = "env.id=other_environment:test/Other-v0"
SHORT = (ENV, "env.num_requests=40", "scenario.windows=2")


@pytest.fixture(autouse=True)
def _other(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("module")
    (folder / "other_environment.py").write_text(OTHER)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(heuristics, "_heuristics", dict(heuristics._heuristics))
    yield
    forget()


def forget() -> None:
    """What a new process knows nothing of."""
    sys.modules.pop("other_environment", None)
    problems._problems.pop("test/Other-v0", None)
    gym.registry.pop("test/Other-v0", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router that was trained for `fleetgym/Routing-v0`."""
    return checkpoint(tmp_path_factory.mktemp("trained"), ("in_flight_requests", "kv_usage"))


@pytest.fixture
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("exported") / "bundle", from_checkpoint(trained))


def test_a_board_ranks_the_environments_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["leaderboard", *SHORT, "checkpoint=null", "hydra.run.dir=board"])
    board = json.loads((tmp_path / "board" / "metrics.json").read_text())
    assert set(board["policies"]) == {"random", "round_robin", "idlest"}


def test_without_a_policy_the_fallback_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["simulate", ENV, "workload.num_requests=30", "hydra.run.dir=a"])
    assert "idlest" in capsys.readouterr().out
    cli.main(["simulate", "workload.num_requests=30", "hydra.run.dir=b"])
    assert "least_inflight" in capsys.readouterr().out


def test_a_heuristic_of_its_own_is_exported_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["export", "+policy.name=other_environment:Idlest", "bundle=b", "hydra.run.dir=x"])
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["environment"]["id"] == "test/Other-v0"
    assert (manifest["action"]["choice"], manifest["fallback"]) == ("server", "idlest")
    cli.main(["export", "+policy.name=other_environment:Idlest", "+policy.kv=5", "bundle=c", "hydra.run.dir=y"])
    one = np.array([[[0.0, 0.1, 100.0], [0.0, 0.9, 100.0]]], np.float32)[:, :, 1:2]
    chosen = [int(load(tmp_path / name).act(one, np.ones((1, 2), bool))[0]) for name in ("b", "c")]
    assert chosen == [0, 1], "what is exported is the heuristic with its parameters"


def test_a_policy_that_was_trained_for_it_is_exported_by_a_process_that_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("agent.num_envs=2", "agent.hyperparameters.n_steps=8", "agent.hyperparameters.batch_size=16")
    start = ("agent.policy_kwargs.prior=null", "total_timesteps=16", "eval_episodes=1", "progress_bar=false")
    cli.main(["train", ENV, "env.num_requests=20", *small, *start, "env.available=[2,6]", "hydra.run.dir=t"])
    forget()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "checkpoint=t/best_model.zip", "bundle=b", "hydra.run.dir=x"])
    assert "env.id=MODULE:test/Other-v0 imports the module that registers it" in capsys.readouterr().err
    assert "other_environment" not in sys.modules
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", ENV, "+policy.name=least_kv", "bundle=b", "hydra.run.dir=x"])
    assert "policy='least_kv': is a heuristic of fleetgym/Routing-v0, not of test/Other-v0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "env.id=fleetgym/Routing-v0", "checkpoint=t/best_model.zip", "hydra.run.dir=x"])
    assert (
        "env.id='fleetgym/Routing-v0': must be 'test/Other-v0', that of the policy, or null" in capsys.readouterr().err
    )
    cli.main(["export", ENV, "checkpoint=t/best_model.zip", "bundle=b", "hydra.run.dir=x"])
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["environment"]["id"] == "test/Other-v0"
    assert manifest["environment"]["fingerprint"]
    assert manifest["trained"]["num_choices"] == [2, 6]
    assert (manifest["action"]["choice"], manifest["fallback"]) == ("server", "idlest")
    cli.main(["leaderboard", *SHORT, "checkpoint=t/best_model.zip", "bundle=b", "hydra.run.dir=board"])
    board = json.loads((tmp_path / "board" / "metrics.json").read_text())["policies"]
    assert sorted(row["kind"] for row in board.values()) == ["bundle", "heuristic", "heuristic", "heuristic", "learned"]


@pytest.mark.parametrize("command", ["simulate", "evaluate"])
def test_a_heuristic_of_routing_is_refused(command: str, refused: Any) -> None:
    line = refused(command, ENV, "policy=least_inflight")
    assert line.startswith(
        "policy='least_inflight': is a heuristic of fleetgym/Routing-v0, not of test/Other-v0 (allowed: idl"
    )


def test_a_board_refuses_heuristics_of_routing(refused: Any) -> None:
    line = refused("leaderboard", ENV, "policies=[random,vllm_dp]", "checkpoint=null")
    assert line.startswith("policy='vllm_dp': is a heuristic of fleetgym/Routing-v0, not of test/Other-v0")
    assert "policy='idlest': is a heuristic of test/Other-v0" in refused("leaderboard", "policies=[idlest]")


def test_a_checkpoint_of_routing_is_refused(trained: Path, refused: Any) -> None:
    for words in (
        ("simulate", "policy=checkpoint"),
        ("evaluate", "policy=checkpoint"),
        ("leaderboard", "policies=[random]"),
    ):
        line = refused(words[0], ENV, *words[1:], f"checkpoint={trained}")
        assert "trained for 'fleetgym.envs:fleetgym/Routing-v0', not for 'test/Other-v0'" in line


def test_a_bundle_of_routing_is_refused(bundle: Path, refused: Any) -> None:
    for words in (
        ("simulate", "policy=bundle"),
        ("evaluate", "policy=bundle"),
        ("leaderboard", "policies=[random]", "checkpoint=null"),
    ):
        line = refused(words[0], ENV, *words[1:], f"bundle={bundle}")
        assert "exported from 'fleetgym/Routing-v0', not from 'test/Other-v0'" in line


def test_a_bundle_of_another_schema_is_refused(bundle: Path, refused: Any) -> None:
    observation = json.loads((bundle / "manifest.json").read_text())["observation"] | {"schema_version": 9}
    reseal(bundle, observation=observation)
    assert "made for version 9 of the observation schema" in refused("evaluate", "policy=bundle", f"bundle={bundle}")
    assert "made for version 9" in refused("leaderboard", "checkpoint=null", f"bundle={bundle}")
    reseal(bundle, schema_version=3)
    for words in (("export-verify",), ("evaluate", "policy=bundle"), ("leaderboard", "checkpoint=null")):
        assert "schema_version=3, this version reads 1 and 2" in refused(*words, f"bundle={bundle}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "my/Gone-v0"}, "trained for 'my/Gone-v0': env.id='my/Gone-v0': is not registered"),
        (
            {"env_id": "other_environment:my/Gone-v0"},
            "trained for 'my/Gone-v0': env.id='my/Gone-v0': is not registered",
        ),
        ({"env_id": "test/Other-v0", "features": ["prompt_tokens"]}, "another observation schema"),
        ({"schema_version": 9}, "trained on another observation schema (version 9"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], message: str, refused: Any
) -> None:
    path = tmp_path_factory.mktemp("copy") / "best_model.zip"
    path.write_bytes(trained.read_bytes())
    card_path(path).write_text(json.dumps(json.loads(card_path(trained).read_text()) | changes))
    told = [ENV] if changes.get("env_id") == "test/Other-v0" else []
    assert message in refused("export", f"checkpoint={path}", "bundle=out", *told)
    assert ("other_environment" in sys.modules) == bool(told), "a card's module is not imported"


def test_a_network_for_another_number_of_choices_is_refused(
    tmp_path_factory: pytest.TempPathFactory, refused: Any
) -> None:
    path = tmp_path_factory.mktemp("fixed") / "best_model.zip"
    features = ("in_flight_requests", "kv_usage")
    PPO("MlpPolicy", Noise(features), n_steps=2, batch_size=2).save(path)
    write_card(path, card(features, network="mlp"))
    for words in (("evaluate", "policy=checkpoint"), ("leaderboard", "policies=[random]")):
        line = refused(*words, f"checkpoint={path}")
        assert line.endswith("trained for 2 to 4 choices, here are 8; agent=ppo_scorer handles any number")

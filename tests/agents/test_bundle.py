import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from bundle_cases import NUM_CHOICES, OLD, OLD_FEATURES, card, checkpoint, observations, reseal
from stable_baselines3 import PPO

from fleetgym.agents.bundle import BundleError, load
from fleetgym.agents.bundle_format import MASKED_SCORE, MAX_BYTES, ONNX, PARITY, WEIGHTS
from fleetgym.agents.bundle_policy import BundlePolicy
from fleetgym.agents.bundle_verify import verify
from fleetgym.agents.checkpoint import card_path, read_card, write_card
from fleetgym.agents.evaluate_numpy import evaluate
from fleetgym.agents.export import Source, from_checkpoint, from_heuristic, write_bundle
from fleetgym.agents.learned import load_checkpoint
from fleetgym.baselines import LinearScore, make_heuristic, register, registered
from fleetgym.baselines import registry as heuristics
from fleetgym.baselines.base import Columns
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import SCHEMA_VERSION, public
from fleetgym.envs.registry import find_problem
from fleetgym.envs.routing import ENV_ID
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.signals import SIGNAL_NAMES
from fleetgym.experiments.export import evaluation_rows, heuristic_source


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "scorer", from_checkpoint(trained))


def exported(name: str, **parameters: Any) -> Source:
    return heuristic_source({"name": name, **parameters}, {})


def test_bundle_holds_exactly_the_documented_files(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == sorted(MAX_BYTES)
    assert list(bundle.parent.glob(".*")) == []


@pytest.mark.parametrize("n", [1, 2, 5, 8, 64])
def test_bundle_decides_as_the_checkpoint_does(trained: Path, bundle: Path, n: int) -> None:
    observation, mask = observations(100, n, seed=n)
    policy = PPO.load(trained, device="cpu").policy
    exported = load(bundle)
    expected = policy.scores(observation, mask) / exported.manifest["action"]["score_unit"]
    found = exported.scores(observation, mask)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert (found[~mask] == np.float32(MASKED_SCORE)).all()
    np.testing.assert_array_equal(load(bundle).act(observation, mask), np.where(mask, expected, -np.inf).argmax(axis=1))
    if n == NUM_CHOICES:
        np.testing.assert_array_equal(
            load(bundle).act(observation, mask), policy.predict(observation, deterministic=True)[0]
        )


def test_vectors_cover_sizes_masks_unknown_values_and_extremes(bundle: Path) -> None:
    groups = load(bundle).parity_vectors()
    assert [g["mask"].shape[1] for g in groups] == [1, 2, 3, 8, 64]
    assert sum(len(g["action"]) for g in groups) >= 256
    assert any((~g["mask"]).any() for g in groups)
    for check in (np.isnan, np.isposinf, np.isneginf):
        assert all(check(g["obs"]).any() for g in groups)
    assert len({int(a) for a in groups[3]["action"]}) > 1


def test_verify_passes_and_states_the_largest_differences(bundle: Path) -> None:
    report = verify(bundle)
    assert report["passed"]
    assert report["onnxruntime"]["actions_differ"] == report["numpy"]["actions_differ"] == 0
    assert 0 < report["onnxruntime"]["max_score_difference"] < 1e-5


def test_verify_fails_when_a_recorded_decision_is_another(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    tensors = {k: v.copy() for k, v in safetensors.numpy.load_file(copy / PARITY).items()}
    tensors["n8.action"][5] = (tensors["n8.action"][5] + 1) % 8
    safetensors.numpy.save_file(tensors, copy / PARITY)
    reseal(copy)
    report = verify(copy)
    assert not report["passed"]
    assert report["numpy"]["actions_differ"] == 1


def test_tanh_network_passes_too(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, activation="tanh")
    report = verify(write_bundle(tmp_path / "bundle", from_checkpoint(path)))
    assert report["passed"]
    assert report["vectors"] >= 256
    assert load(tmp_path / "bundle").manifest["architecture"] == {"hidden": 8, "activation": "tanh"}


def test_evaluator_needs_only_the_weights_file(bundle: Path) -> None:
    weights = safetensors.numpy.load_file(bundle / WEIGHTS)
    observation, mask = observations(10, 6)
    scores, action = evaluate("scorer_mlp", "relu", weights, observation, mask)
    np.testing.assert_allclose(scores[mask], load(bundle).scores(observation, mask)[mask], atol=1e-5)
    np.testing.assert_array_equal(action, load(bundle).act(observation, mask))


def test_any_onnx_runtime_can_use_the_file(bundle: Path) -> None:
    onnx.checker.check_model(onnx.load(bundle / ONNX), full_check=True)
    session = onnxruntime.InferenceSession(bundle / ONNX)
    observation, mask = observations(3, 7)
    scores, action = session.run(["scores", "action"], {"obs": observation, "mask": mask})
    assert scores.shape == (3, 7)
    assert action.dtype == np.int64
    np.testing.assert_array_equal(action, load(bundle).act(observation, mask))


def test_loads_and_acts_without_torch_gymnasium_and_sb3(bundle: Path) -> None:
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError("blocked: " + name)
ALLOWED = set(sys.stdlib_module_names) | {{"numpy", "onnxruntime", "fleetgym"}}
sys.meta_path.insert(0, Block())
import numpy as np
import fleetgym.agents.bundle as b
policy = b.load({str(bundle)!r})
observation = np.ones((1, 3, len(policy.features)), np.float32)
print(policy.act(observation, np.array([[False, True, True]])))
for name in ("torch", "gymnasium", "stable_baselines3", "hydra", "onnx", "safetensors"):
    assert name not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr


@pytest.mark.parametrize("name", [name for name, cls in registered(ENV_ID).items() if issubclass(cls, LinearScore)])
def test_exported_heuristic_scores_as_the_baseline_does(name: str, tmp_path: Path) -> None:
    policy = load(write_bundle(tmp_path / name, exported(name)))
    rng = np.random.default_rng(0)
    observation = np.floor(rng.random((50, 6, len(policy.features))) * 1000).astype(np.float32)
    if name == "least_kv":
        observation /= 1000
    mask = np.ones((50, 6), np.bool_)
    expected = make_heuristic(name, ENV_ID).score(Columns(policy.features).bind(observation))  # type: ignore[attr-defined]
    own = policy.scores(observation, mask) * policy.manifest["action"]["score_unit"]
    np.testing.assert_allclose(own, expected, rtol=1e-6)
    np.testing.assert_array_equal(policy.act(observation, mask), expected.argmax(axis=1))


def test_heuristic_without_a_linear_score_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy='round_robin': has no linear score .*least_inflight"):
        exported("round_robin")
    with pytest.raises(UserError, match=r"policy='least_inflight': queue: unknown; it takes none"):
        exported("least_inflight", queue=1.0)
    with pytest.raises(UserError, match=r"policy='least_inflght': unknown; did you mean least_inflight"):
        exported("least_inflght")


class Lightest(LinearScore):
    """A router of one's own."""

    weights: ClassVar[dict[str, float]] = {"prompt_tokens": 0.5, "kv_usage": -3.0}


def test_a_heuristic_of_ones_own_is_exported_once_it_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="register it with the env_id that it decides in"):
        exported(f"{__name__}:Lightest")
    monkeypatch.setattr(heuristics, "_heuristics", dict(heuristics._heuristics))
    register("lightest", ENV_ID)(Lightest)
    policy = load(write_bundle(tmp_path / "b", exported("lightest")))
    assert policy.features == ("prompt_tokens", "kv_usage")
    assert policy.manifest["environment"]["id"] == ENV_ID
    own = policy.weights["score.weight"] * np.float32(policy.manifest["action"]["score_unit"])
    assert own.tolist() == [[0.5, -3.0]]


def test_a_weighted_sum_of_what_no_router_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy='seer': uses feature 'remaining_tokens', which is privileged"):
        from_heuristic("seer", {"remaining_tokens": -1.0}, Routing)


def test_ties_can_be_broken_at_random_from_the_seed(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", exported("least_inflight"))
    observation = np.array([[[5.0], [2.0], [2.0], [2.0]]], np.float32)
    mask = np.array([[True, True, False, True]])
    assert load(path).act(observation, mask).tolist() == [1]
    policy = load(path, tie_break="random")
    runs = []
    for _ in range(2):
        policy.reset([7], 4)
        runs.append([int(policy.act(observation, mask)[0]) for _ in range(40)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {1, 3}
    with pytest.raises(BundleError, match="tie_break='first'"):
        load(path, tie_break="first")


def test_other_sizes_than_the_tested_work_and_are_flagged(bundle: Path) -> None:
    policy = load(bundle)
    observation, mask = observations(1, 65)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.act(observation[:, :64], mask[:, :64])
    assert not policy.outside_tested_n
    with pytest.warns(RuntimeWarning, match="65 instances, tested with 1 to 64"):
        action = policy.act(observation, mask)
    assert policy.outside_tested_n
    assert mask[0, action[0]]


def test_wrong_arguments_are_refused(bundle: Path) -> None:
    policy = load(bundle)
    observation, mask = observations(2, 3)
    cases = [
        (observation[:, :, 1:], mask, r"observation has shape \(2, 3, 14\), expected \(B, N, 15\)"),
        (observation[0], mask, r"observation has shape \(3, 15\)"),
        (observation.astype(np.float64), mask, "expected float32 and bool"),
        (observation, mask.astype(np.int64), "expected float32 and bool"),
        (observation, mask[:, :2], r"mask has shape \(2, 2\), expected \(2, 3\)"),
        (observation, mask & np.array([[True], [False]]), "nothing may be chosen"),
        (observation[:1], np.zeros((1, 3), np.bool_), "nothing may be chosen"),
    ]
    for o, m, message in cases:
        with pytest.raises(BundleError, match=message):
            policy.act(o, m)


def test_the_bare_graph_answers_a_mask_without_a_choice_with_0_and_the_card_says_so(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(bundle / "policy.onnx")
    observation, mask = observations(2, 3)
    (action,) = session.run(["action"], {"obs": observation, "mask": np.zeros_like(mask)})
    assert action.tolist() == [0, 0]
    assert "without any choice is answered with action 0" in (bundle / "README.md").read_text()


def test_manifest_and_model_card_say_what_a_router_must_know(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    features = {f["name"]: f for f in manifest["observation"]["features"]}
    assert tuple(features) == public(SIGNAL_NAMES)
    assert features["kv_usage"]["metrics"]["vllm"] == ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]
    assert manifest["trained"] == {"num_choices": [2, 4], "load": [0.6, 1.1], "staleness_s": [0.0, 0.0]}
    assert manifest["fallback"] == "least_inflight"
    assert manifest["environment"] == {"id": ENV_ID, "fingerprint": "0123456789abcdef"}
    assert manifest["action"]["kind"] == "choice_index"
    assert manifest["action"]["choice"] == "instance"
    assert manifest["schema_version"] == 2
    assert manifest["git_revision"] == "abc-dirty"
    readme = (bundle / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: fleetgym\n")
    assert "trained range of load (fraction of saturation): 0.6 to 1.1" in readme
    assert "Chooses one instance at each decision of `fleetgym/Routing-v0`" in readme
    assert "trained range of instances: 2 to 4" in readme
    assert "agent:" in (bundle / "train_config.yaml").read_text()


def test_same_checkpoint_gives_the_same_bytes(trained: Path, bundle: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", from_checkpoint(trained))
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in bundle.iterdir()}


def test_existing_folder_is_left_alone(bundle: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_bundle(bundle, exported("least_kv"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "mlp"}, "made for exactly 4 choices; a bundle serves any number"),
        ({"schema_version": SCHEMA_VERSION + 1}, "another observation schema"),
        ({"schema_digest": "0" * 16}, "another observation schema"),
        ({"features": ["kv_usage", "gone"]}, "another observation schema"),
    ],
)
def test_checkpoints_that_cannot_be_exported_are_refused(trained: Path, tmp_path: Path, changes, message) -> None:
    copy = tmp_path / "model.zip"
    copy.write_bytes(trained.read_bytes())
    write_card(copy, card() | changes)
    with pytest.raises(UserError, match=message):
        from_checkpoint(copy)


def test_privileged_feature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uses feature 'output_tokens', which is privileged"):
        from_checkpoint(checkpoint(tmp_path, ("kv_usage", "output_tokens")))


def test_changed_environment_is_a_warning(trained: Path) -> None:
    with pytest.warns(RuntimeWarning, match="behaved otherwise .*0123456789abcdef"):
        from_checkpoint(trained, lambda _: "f" * 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_checkpoint(trained, lambda _: "0123456789abcdef")


def test_missing_and_foreign_checkpoints_are_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with pytest.raises(UserError, match="no such file"):
        from_checkpoint(path)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"no model\.json beside it"):
        from_checkpoint(path)
    write_card(path, card())
    with pytest.raises(UserError, match="not a checkpoint that training wrote"):
        from_checkpoint(path)
    card_path(path).write_text("{}")
    with pytest.raises(UserError, match="env_id=None: expected str"):
        from_checkpoint(path)
    assert read_card(trained)["seed"] == 3


def test_bundle_is_a_policy_of_the_gym(bundle: Path, tmp_path: Path) -> None:
    policy = BundlePolicy(bundle)
    assert policy.kind == "bundle"
    assert policy.features == public(SIGNAL_NAMES)
    policy.reset([0, 1], 3)
    observation, mask = observations(2, 3)
    np.testing.assert_array_equal(policy.act(observation, mask), load(bundle).act(observation, mask))
    with pytest.raises(UserError, match=r"bundle=.*not a readable folder"):
        BundlePolicy(tmp_path / "none")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def test_a_bundle_of_another_environment_is_refused(copy: Path) -> None:
    problem = Routing.resolve()
    BundlePolicy(copy, problem)
    reseal(copy, environment={"id": "my/Toy-v0", "fingerprint": ""})
    with pytest.raises(UserError, match=rf"bundle=.*: exported from 'my/Toy-v0', not from '{ENV_ID}'"):
        BundlePolicy(copy, problem)
    reseal(copy, environment={"id": f"some_module:{ENV_ID}", "fingerprint": ""})
    BundlePolicy(copy, problem)
    reseal(copy, environment={"id": "", "fingerprint": ""}, action=manifest_of(copy)["action"] | {"choice": "pool"})
    with pytest.raises(UserError, match=rf"its choices are pools, those of {ENV_ID} instances"):
        BundlePolicy(copy, problem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gone"}, "signal 'gone': unknown|'gone'"),
        ({"unit": "ms"}, "feature 'in_flight_requests': unit='ms', here it is 'requests'"),
        ({"scope": "request"}, "feature 'in_flight_requests': scope='request', here it is 'choice'"),
    ],
)
def test_a_bundle_of_another_schema_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    observation = manifest_of(copy)["observation"]
    reseal(copy, observation=observation | {"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(UserError, match=rf"made for version {SCHEMA_VERSION + 1} of the observation schema, this is"):
        BundlePolicy(copy)
    observation["features"][0] |= changes
    reseal(copy, observation=observation)
    with pytest.raises(UserError, match=rf"bundle=.*({message})"):
        BundlePolicy(copy)


def test_a_bundle_of_version_1_decides_as_it_did_and_speaks_todays_words() -> None:
    policy = BundlePolicy(OLD / "bundle", Routing.resolve())
    manifest = policy.bundle.manifest
    assert manifest["trained"] == {"num_choices": [2, 4], "load": [0.6, 1.1], "staleness_s": [0.0, 0.0]}
    assert manifest["tested"] == {"num_choices": [1, 64]}
    assert manifest["environment"] == {"id": ENV_ID, "fingerprint": "0123456789abcdef"}
    assert (manifest["action"]["kind"], manifest["action"]["choice"]) == ("choice_index", "instance")
    report = verify(OLD / "bundle")
    assert report["passed"]
    assert report["vectors"] >= 256


def test_a_checkpoint_of_before_gives_the_same_graph_and_weights_today(tmp_path: Path) -> None:
    card = read_card(OLD / "best_model.zip")
    assert (card["fingerprint"], card["num_choices"]) == ("0123456789abcdef", 4)
    assert card["trained_ranges"]["num_choices"] == [2, 4]
    assert not {"golden_hash", "num_instances"} & (set(card) | set(card["trained_ranges"]))
    again = write_bundle(tmp_path / "b", from_checkpoint(OLD / "best_model.zip"))
    for name in (ONNX, WEIGHTS, PARITY):
        assert (again / name).read_bytes() == (OLD / "bundle" / name).read_bytes(), name
    old, new = load(OLD / "bundle").manifest, load(again).manifest
    assert {**old, "files": {}} == {**new, "files": {}}


def test_an_old_card_beside_a_checkpoint_is_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, OLD_FEATURES)
    card_path(path).write_bytes(card_path(OLD / "best_model.zip").read_bytes())
    policy = load_checkpoint(path, problem=find_problem(ENV_ID).resolve())
    assert policy.features == OLD_FEATURES


def test_a_checkpoint_of_another_environment_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.zip"
    copy.write_bytes(trained.read_bytes())
    write_card(copy, card(env_id="my/Toy-v0"))
    with pytest.raises(UserError, match=r"checkpoint=.*: trained for 'my/Toy-v0', not for"):
        load_checkpoint(copy, problem=find_problem(ENV_ID).resolve())
    with pytest.raises(
        UserError, match=r"checkpoint=.*: trained for 'my/Toy-v0': env.id='my/Toy-v0': is not registered"
    ):
        from_checkpoint(copy)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleetgym.experiments.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_commands_export_verify_and_tell_a_changed_decision(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = run(tmp_path, "export", "policy=vllm_dp", f"bundle={target}")
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    done = run(tmp_path, "export-verify", f"bundle={target}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["passed"] is True
    tensors = {k: v.copy() for k, v in safetensors.numpy.load_file(target / PARITY).items()}
    tensors["n3.action"] = (tensors["n3.action"] + 1) % 3
    safetensors.numpy.save_file(tensors, target / PARITY)
    done = run(tmp_path, "export-verify", f"bundle={target}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SHA-256" in done.stderr or "bytes" in done.stderr
    reseal(target)
    done = run(tmp_path, "export-verify", f"bundle={target}")
    assert done.returncode == 1
    assert "an action differs" in done.stderr


def test_model_card_takes_the_rows_of_a_leaderboard(bundle: Path, tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.json"
    entry = {"place": 1, "policy": "ppo", "kind": "learned", "main": {"estimate": 4.5, "low": 4.1, "high": 4.8}}
    about = {"name": "routing/azure", "windows": "7 disjoint recorded windows"}
    board.write_text(json.dumps({"rank_by": "e2e_charged_s.mean", "scenario": about, "entries": [entry]}))
    source = dataclasses.replace(exported("least_kv"), evaluation=evaluation_rows(board))
    readme = (write_bundle(tmp_path / "b", source) / "README.md").read_text()
    assert "| routing/azure | 1 | ppo | learned | 4.5 | 4.1 | 4.8 | 7 disjoint recorded windows |" in readme
    board.write_text("[1]")
    with pytest.raises(UserError, match="not what `fleetgym leaderboard` writes"):
        evaluation_rows(board)

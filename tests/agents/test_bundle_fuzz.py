"""Hostile bundles: each is refused in one line, before onnxruntime sees it, in bounded memory."""

import contextlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_cases import OLD, checkpoint, observations, reseal
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from fleetgym.agents import bundle as bundle_module
from fleetgym.agents.bundle import BundleError, load
from fleetgym.agents.bundle_checks import parse_json, read_safetensors
from fleetgym.agents.bundle_format import CARD, MANIFEST, MAX_BYTES, ONNX, PARITY, WEIGHTS
from fleetgym.agents.export import from_checkpoint, write_bundle
from fleetgym.agents.onnx_reader import read_onnx

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("fuzz")
    bundle = write_bundle(folder / "bundle", from_checkpoint(checkpoint(folder)))
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


@pytest.fixture(scope="module", params=["1", "2"])
def any_version(request: pytest.FixtureRequest) -> Files:
    """A bundle as it was written in version 1, and one as it is written today."""
    if request.param == "2":
        files: Files = request.getfixturevalue("original")
        return files
    return {path.name: path.read_bytes() for path in (OLD / "bundle").iterdir()}


@pytest.fixture
def folder(original: Files, tmp_path: Path) -> Path:
    put(tmp_path, original)
    return tmp_path


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(model: bytes) -> None:
        raise AssertionError("onnxruntime was given a file that should have been refused")

    monkeypatch.setattr(bundle_module, "open_session", refuse)
    return None


def put(folder: Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def refused(folder: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=message) as caught:
            load(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert peak < 100 << 20


@pytest.mark.parametrize("name", sorted(MAX_BYTES))
@pytest.mark.usefixtures("no_session")
def test_missing_truncated_linked_or_special_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refused(folder, name)
    (folder / name).unlink()
    refused(folder, f"{name}: missing")
    outside = folder.parent / "outside"
    outside.write_bytes(data)
    (folder / name).symlink_to(outside)
    refused(folder, f"{name}: cannot be read, links are not followed")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name}: not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name)


@pytest.mark.parametrize("name", sorted(MAX_BYTES))
@pytest.mark.usefixtures("no_session")
def test_terabyte_file_is_not_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 1 << 40)
    refused(folder, f"{name}: {1 << 40} bytes, at most {MAX_BYTES[name]}")


@pytest.mark.usefixtures("no_session")
def test_swapped_and_additional_files(folder: Path) -> None:
    (folder / ONNX).write_bytes((folder / WEIGHTS).read_bytes())
    refused(folder, r"policy\.onnx: \d+ bytes, the manifest says \d+")
    (folder / ONNX).write_bytes(bytes((folder / ONNX).stat().st_size))
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(folder, "evil.pkl': not a file of a bundle")


@pytest.mark.usefixtures("no_session")
def test_wrong_digest(folder: Path) -> None:
    data = bytearray((folder / CARD).read_bytes())
    data[-2] ^= 1
    (folder / CARD).write_bytes(data)
    refused(folder, r"README\.md: its SHA-256 is not the one in the manifest")


HOSTILE_JSON = [
    (b"[" * 500_000, "nested 500000 deep"),
    (b'{"a":' * 100_000, "nested 100000 deep"),
    (b"{}", "schema_version=None, this version reads 1 and 2"),
    (b"[]", "schema_version=None"),
    (b'{"schema_version": true}', "schema_version=True"),
    (b'{"schema_version": 3}', "schema_version=3, this version reads 1 and 2"),
    (b'{"schema_version": 0}', "schema_version=0"),
    (b'{"schema_version": 2.0}', "schema_version=2.0"),
    (b'{"schema_version": [2]}', r"schema_version=\[2\]"),
    (b'{"schema_version": 1, "schema_version": 1}', "a key occurs twice"),
    (b'{"schema_version": ' + b"9" * 100_000 + b"}", "more than 18 digits"),
    (b'{"schema_version": 1e999}', "a number beyond float64"),
    (b'{"schema_version": NaN}', "NaN is not a number"),
    (b'{"schema_version": 1}', "policy_id: missing"),
    (b'{"schema_version": 2}', "policy_id: missing"),
    (b"\xff\xfe", "not valid JSON"),
    (b"", "not valid JSON"),
]


@pytest.mark.parametrize(("data", "message"), HOSTILE_JSON)
@pytest.mark.usefixtures("no_session")
def test_hostile_manifest(folder: Path, data: bytes, message: str) -> None:
    (folder / MANIFEST).write_bytes(data)
    refused(folder, message)


def test_brackets_and_escapes_inside_strings_are_not_nesting() -> None:
    value = {"a": "[[[[[[[[[[[[[[[[[[[[[[" + '\\"' + "{" * 40, "b\\": ["]", '"']}
    assert parse_json(json.dumps(value).encode(), "x") == value


MANIFEST_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"extra": 1}, "'extra': unknown entry"),
    ({"kind": "python"}, "kind='python': allowed are scorer_mlp, linear_score"),
    ({"kind": "linear_score"}, "is missing or unknown"),
    ({"architecture": {"hidden": 10**9, "activation": "relu"}}, "hidden=1000000000"),
    (
        {"architecture": {"hidden": 9, "activation": "relu"}},
        r"row.weight is float32\(8, 15\), expected float32\(9, 15\)",
    ),
    ({"architecture": {"hidden": 8, "activation": "eval"}}, "activation='eval'"),
    ({"architecture": {"hidden": 8, "activation": "tanh"}}, "operator 11 is"),
    ({"trained": {"num_choices": [4, 2], "load": [], "staleness_s": []}}, r"num_choices=\[4, 2\]"),
    ({"trained": {"n_instances": [2, 4], "load": [], "staleness_s": []}}, "trained.num_choices: missing"),
    ({"tested": {"num_choices": []}}, "tested.num_choices: empty"),
    ({"policy_id": ["x"]}, r"policy_id=\['x'\]: expected str"),
    ({"policy_id": "a\nb"}, r"policy_id='a\\nb': expected up to 200 printable characters"),
    ({"fallback": "x" * 201}, "fallback='xxx"),
    ({"environment": {"id": "a\x1b[2J", "fingerprint": ""}}, r"environment\.id='a\\x1b\[2J'"),
    ({"schema_version": 1}, "action.'choice': unknown entry"),
    ({"versions": "a\nb" * 1000}, "expected dict"),
]


@pytest.mark.parametrize(("changes", "message"), MANIFEST_CHANGES)
@pytest.mark.usefixtures("no_session")
def test_changed_manifest(folder: Path, changes: dict[str, Any], message: str) -> None:
    reseal(folder, **changes)
    refused(folder, message)


ACTION_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "priority_and_index"}, "action.kind='priority_and_index': allowed is choice_index"),
    ({"kind": "instance_index"}, "action.kind='instance_index': allowed is choice_index"),
    ({"decode": "softmax"}, "action.decode='softmax': allowed is argmax"),
    ({"tie_break": "random"}, "action.tie_break='random': allowed is lowest_index"),
    ({"masked_score": 0.0}, "action.masked_score=0.0: allowed is -1e"),
    ({"none_available": "0"}, "action.none_available='0': allowed is refused"),
    ({"score_unit": 0}, "action.score_unit=0: must be positive"),
    ({"choice": ""}, "action.choice='': expected one word"),
    ({"choice": "a b\n"}, r"action.choice='a b\\n': expected one word"),
]


@pytest.mark.parametrize(("changes", "message"), ACTION_CHANGES)
@pytest.mark.usefixtures("no_session")
def test_changed_action(folder: Path, changes: dict[str, Any], message: str) -> None:
    reseal(folder, action=json.loads((folder / MANIFEST).read_text())["action"] | changes)
    refused(folder, message)


OLD_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"schema_version": 2}, "action.choice: missing"),
    ({"trained": {"n_instances": [4, 2], "load": [], "staleness_s": []}}, r"trained: range n_instances=\[4, 2\]"),
    ({"trained": {"num_choices": [2, 4], "load": [], "staleness_s": []}}, "trained.n_instances: missing"),
    ({"tested": {"n_instances": []}}, "tested.n_instances: empty"),
    ({"tested": {"n_instances": [1, "x"]}}, r"tested.n_instances\[1\]='x': expected int"),
    ({"environment": {"id": "", "fingerprint": ""}}, "environment.golden_hash: missing"),
    ({"environment": {"id": "", "golden_hash": "a\nb"}}, "environment.golden_hash='a"),
    ({"action": {}}, "action.kind: missing"),
    ({"kind": "python"}, "kind='python'"),
    ({"architecture": {"hidden": 5, "activation": "relu"}}, "row.weight is float32"),
]


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    put(tmp_path, {path.name: path.read_bytes() for path in (OLD / "bundle").iterdir()})
    return tmp_path


@pytest.mark.parametrize(("changes", "message"), OLD_CHANGES)
@pytest.mark.usefixtures("no_session")
def test_changed_manifest_of_version_1(old_folder: Path, changes: dict[str, Any], message: str) -> None:
    reseal(old_folder, **changes)
    refused(old_folder, message)


@pytest.mark.usefixtures("no_session")
def test_an_action_of_version_1_that_is_none_of_today_is_refused(old_folder: Path) -> None:
    action = json.loads((old_folder / MANIFEST).read_text())["action"]
    for changes, message in (
        ({"kind": "softmax"}, "action.kind='softmax': allowed is instance_index"),
        ({"kind": "choice_index"}, "action.kind='choice_index': allowed is instance_index"),
        ({"decode": "softmax"}, "action.decode='softmax'"),
    ):
        reseal(old_folder, action=action | changes)
        refused(old_folder, message)


def test_a_row_of_version_1_may_be_called_an_instance(old_folder: Path) -> None:
    """As the first bundles had it."""
    observation = json.loads((old_folder / MANIFEST).read_text())["observation"]
    observation["features"][0]["scope"] = "instance"
    reseal(old_folder, observation=observation)
    assert [spec.scope for spec in load(old_folder).feature_specs] == ["choice", "choice"]


FEATURE_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"tag": "privileged"}, "tag='privileged': a router cannot know it"),
    ({"low": -5.0}, "need scale > 0, and low > -1 with log1p"),
    ({"high": 1e300}, "finite float32"),
    ({"missing": -1.0}, "missing between them"),
    ({"missing": 2.0}, "features.missing differs from the manifest"),
    ({"scale": 0.0}, "need scale > 0"),
    ({"transform": "exec"}, "transform='exec'"),
    ({"scope": "world"}, "scope='world'"),
    ({"scope": "instance"}, "scope='instance': allowed are choice, request, cluster"),
    ({"name": "kv_usage"}, "a feature name occurs twice"),
    ({"metrics": {"vllm": [["x"]]}}, "expected str"),
    ({"metrics": {"vllm": "abc"}}, "expected list"),
]


@pytest.mark.parametrize(("changes", "message"), FEATURE_CHANGES)
@pytest.mark.usefixtures("no_session")
def test_changed_feature(folder: Path, changes: dict[str, Any], message: str) -> None:
    observation = json.loads((folder / MANIFEST).read_text())["observation"]
    observation["features"][0] |= changes
    reseal(folder, observation=observation)
    refused(folder, message)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/policy.onnx", "policy.onnx\x00", "..", ""])
@pytest.mark.usefixtures("no_session")
def test_path_escape_in_the_manifest(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"].pop(CARD)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    refused(folder, r"manifest\.json\.files: ")


def tensors_file(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE_TENSORS = [
    (b"", "header is cut off"),
    (struct.pack("<Q", 2**63), "header is cut off or larger"),
    (struct.pack("<Q", 1 << 40) + b"{}", "header is cut off or larger"),
    (tensors_file({"a": entry([1 << 40], 0, 1 << 42)}), "is cut off"),
    (tensors_file({"a": entry([1 << 62, 1 << 62], 0, 4)}, b"1234"), "does not follow"),
    (tensors_file({"a": entry([-1], 0, -4)}), "does not follow"),
    (tensors_file({"a": entry([0, -1], 0, 0)}), "does not follow"),
    (tensors_file({"a": entry([1], 4, 8)}, bytes(8)), "does not follow"),
    (tensors_file({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "does not follow"),
    (tensors_file({"a": entry([1], 0, 4)}, bytes(8)), "4 bytes after the last tensor"),
    (tensors_file({"a": entry([1] * 9, 0, 4)}, bytes(4)), "does not follow"),
    (tensors_file({"a": entry([1], 0, 8, "F64")}, bytes(8)), "element type 'F64'"),
    (tensors_file({"a": entry([1.5], 0, 4)}, bytes(4)), r"expected int"),
    (tensors_file({"a": {"dtype": "F32"}}), "missing"),
    (tensors_file({"a": 3}), "expected dict"),
]


@pytest.mark.parametrize(("data", "message"), HOSTILE_TENSORS)
@pytest.mark.usefixtures("no_session")
def test_hostile_weights(folder: Path, data: bytes, message: str) -> None:
    (folder / WEIGHTS).write_bytes(data)
    reseal(folder)
    refused(folder, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("no_session")
def test_weights_that_are_not_numbers(folder: Path, value: float) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])["mix.weight"]["data_offsets"][0] + 8 + length
    data[begin : begin + 4] = np.float32(value).tobytes()
    (folder / WEIGHTS).write_bytes(data)
    reseal(folder)
    refused(folder, "mix.weight holds NaN or infinity")


@pytest.mark.usefixtures("no_session")
def test_weights_that_the_graph_does_not_hold(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])["mix.weight"]["data_offsets"][0] + 8 + length
    data[begin : begin + 4] = np.float32(0.125).tobytes()
    (folder / WEIGHTS).write_bytes(data)
    reseal(folder)
    refused(folder, r"policy\.onnx: tensor mix\.weight differs from weights\.safetensors")


def external_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def subgraph(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", body))


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="evil", domain="")


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "com.evil"


def custom_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def operator(model: onnx.ModelProto) -> None:
    model.graph.node[6].op_type = "Loop"


def rewired(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "raw_scores"


def appended(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Expand", ["obs", "axis_1"], ["bomb"]))


def shortened(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]


def attribute(model: onnx.ModelProto) -> None:
    model.graph.node[-1].attribute.append(helper.make_attribute("select_last_index", 1))


def huge_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def other_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "more"))


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def string_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING


def fixed_n(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8


def third_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b"]))


def metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="k", value="v")


def many_nodes(model: onnx.ModelProto) -> None:
    for _ in range(5000):
        model.graph.node.append(model.graph.node[0])


HOSTILE_ONNX: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (external_data, "TensorProto carries external data, which a bundle may not"),
    (subgraph, "AttributeProto carries a subgraph"),
    (function, "ModelProto carries functions"),
    (custom_domain, "NodeProto carries an operator domain"),
    (custom_opset, r"operator sets \[\('', 17\), \('ai\.onnx\.ml', 3\)\]"),
    (other_opset, r"operator sets \[\('', 18\)\], expected"),
    (operator, "operator 6 is Node.op='Loop'"),
    (rewired, r"operator 26 is"),
    (appended, "28 operators, expected 27"),
    (shortened, "26 operators, expected 27"),
    (attribute, "operator 26 is"),
    (huge_tensor, r"of shape \[1099511627776, 1099511627776\] has \d+ bytes of data"),
    (other_tensor, "tensor 'more' is missing or unknown"),
    (twice, "occurs twice"),
    (string_tensor, "element type 8"),
    (fixed_n, "inputs "),
    (third_output, "outputs "),
    (metadata, "ModelProto carries field 14"),
    (many_nodes, "more than 4096 fields|far more than its weights"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE_ONNX, ids=lambda case: getattr(case, "__name__", ""))
@pytest.mark.usefixtures("no_session")
def test_hostile_onnx(folder: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = onnx.load_from_string((folder / ONNX).read_bytes())
    change(model)
    (folder / ONNX).write_bytes(model.SerializeToString())
    reseal(folder)
    refused(folder, message)


def decisions(folder: Path) -> list[int]:
    policy = load(folder)
    observation, mask = observations(8, 5, len(policy.features))
    return [int(action) for action in policy.act(observation, mask)]


@pytest.mark.parametrize("name", [ONNX, WEIGHTS, MANIFEST, PARITY])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_are_refused_or_without_effect(
    any_version: Files, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    put(folder, any_version)
    expected = decisions(folder)
    changed = bytearray(any_version[name])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(changed)
    if name != MANIFEST:
        reseal(folder)
    try:
        found = decisions(folder)
    except BundleError:
        return
    assert found == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_other_value_in_the_manifest_is_refused_or_harmless(
    any_version: Files, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("json")
    put(folder, any_version)
    manifest = json.loads(any_version[MANIFEST])
    place: Any = manifest
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    expected = None
    try:
        expected = decisions(folder)
    except BundleError:
        return
    put(folder, any_version)
    assert decisions(folder) == expected


@given(data=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_readers_take_any_bytes(data: bytes) -> None:
    for read in (read_onnx, lambda d: read_safetensors(d, WEIGHTS), lambda d: parse_json(d, MANIFEST)):
        with contextlib.suppress(BundleError):
            read(data)


def test_hostile_parity_vectors_are_refused(folder: Path) -> None:
    (folder / PARITY).write_bytes(tensors_file({"n1.obs": entry([1], 0, 4)}, bytes(4)))
    reseal(folder)
    with pytest.raises(BundleError, match="no vectors of 1 choices"):
        load(folder).parity_vectors()

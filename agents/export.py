"""Write a trained row scorer, or a heuristic that ranks by a weighted sum, as a bundle.

A checkpoint is read without unpickling: its weights as plain tensors, all else from the card beside it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import save as safetensors_bytes

from fleetgym.agents import model_card
from fleetgym.agents.bundle_format import (
    ACTION,
    BUNDLE_VERSION,
    CARD,
    CONFIG,
    IR_VERSION,
    MANIFEST,
    MASKED_SCORE,
    ONNX,
    OPSET,
    PARITY,
    PARITY_SIZES,
    UNKNOWN_VALUE,
    WEIGHTS,
    Array,
    FeatureSpec,
    Node,
    feature_tensors,
    graph,
    used_constants,
    used_weights,
    weight_shapes,
)
from fleetgym.agents.bundle_verify import verify
from fleetgym.agents.checkpoint import problem_of_card, read_card
from fleetgym.agents.evaluate_numpy import evaluate
from fleetgym.envs.atomic import making_folder
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import SCHEMA_VERSION, schema_digest
from fleetgym.envs.problem import Problem
from fleetgym.envs.signals import find_signal

_VECTORS_PER_SIZE = 64


@dataclass(frozen=True)
class Source:
    """All that a bundle is written from.

    Attributes
    ----------
    name : str
        Of the policy; the bundle's id adds a digest.
    kind : {"scorer_mlp", "linear_score"}
    problem : type
        What it decides, a subclass of `Problem`.
    features : tuple of FeatureSpec
        The F columns.
    weights : dict of str to ndarray
        Without the feature table's tensors; in the shapes of `fleetgym.agents.bundle_format.weight_shapes`.
    hidden : int
        H, width of the layers; 1 for ``linear_score``.
    activation : {"relu", "tanh"}
    trained : dict
        ``num_choices``, ``load``, ``staleness_s``: [low, high] each, empty where it does not apply.
    fingerprint : str
        Of the problem when it was trained; empty for a heuristic.
    training : dict
        Algorithm, seed and number of steps.
    config : mapping
        The resolved training config.
    versions : mapping
        Of Python and its packages.
    git_revision : str
        Of the code that trained it; empty if unknown.
    evaluation : list of dict
        Rows of a leaderboard.
    """

    name: str
    kind: str
    problem: type[Problem]
    features: tuple[FeatureSpec, ...]
    weights: dict[str, Array]
    hidden: int = 1
    activation: str = "relu"
    trained: Mapping[str, Sequence[float]] = field(default_factory=dict)
    fingerprint: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    git_revision: str = ""
    evaluation: Sequence[Mapping[str, Any]] = ()

    def tensors(self) -> dict[str, Array]:
        """Return everything that goes into ``weights.safetensors``, in the shapes of `weight_shapes`."""
        return feature_tensors(self.features) | self.weights


def from_checkpoint(checkpoint: str | Path, fingerprint: Callable[[str], str] | None = None) -> Source:
    """Read a checkpoint that training wrote.

    Parameters
    ----------
    checkpoint : path
        The zip, with its card beside it.
    fingerprint : callable, optional
        Gives what an environment's fixed rollout is today; a `RuntimeWarning` if it was another then.

    Raises
    ------
    UserError
        Fixed number of choices, privileged feature, another schema version, no checkpoint.
    """
    path = Path(checkpoint)
    where = f"checkpoint={str(path)!r}"
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    card = read_card(path)
    problem = problem_of_card(card, where)
    features = _exportable(card, problem, where)
    today = card["fingerprint"] if fingerprint is None else fingerprint(problem.env_id)
    if today != card["fingerprint"]:
        warnings.warn(
            f"{path}: trained when {problem.env_id} behaved otherwise (fingerprint {card['fingerprint'] or 'unknown'},"
            f" today {today}): evaluate it again before use",
            RuntimeWarning,
            stacklevel=2,
        )
    state = _state(path)
    weights = _weights(state, path)
    ranges = card["trained_ranges"]
    return Source(
        name=str(card.get("name", path.stem)),
        kind="scorer_mlp",
        problem=problem,
        features=features,
        weights=weights,
        hidden=len(weights["row.bias"]),
        activation="tanh" if bool(state["mlp_extractor.uses_tanh"]) else "relu",
        trained={
            "num_choices": ranges.get("num_choices") or [],
            "load": ranges.get("load") or [],
            "staleness_s": ranges.get("staleness_s") or [],
        },
        fingerprint=card["fingerprint"],
        training={key: card[key] for key in ("algorithm", "seed", "num_timesteps") if key in card},
        config=card.get("config") or {},
        versions=card.get("versions") or {},
        git_revision=revision_text(card.get("git")),
    )


def revision_text(state: Mapping[str, Any] | None) -> str:
    """Return a git revision as bundles say it, with ``-dirty`` where the checkout was changed.

    Parameters
    ----------
    state : mapping or None
        ``revision`` and ``dirty``; None outside a checkout, which gives an empty text.
    """
    if not state:
        return ""
    return str(state.get("revision", "")) + ("-dirty" if state.get("dirty") else "")


def policy_graph(policy: torch.nn.Module, features: Sequence[str]) -> bytes:
    """Return the ONNX graph of a row scorer as it is now, the same that a bundle of it holds but for the score unit.

    Parameters
    ----------
    policy : Module
        An SB3 policy with a `fleetgym.agents.scorer.RowScorer`; its weights are copied.
    features : sequence of str
        Columns of its observation.

    Returns
    -------
    bytes
        An ONNX file.

    Raises
    ------
    UserError
        A weight is NaN or infinite: training diverged.
    """
    state = policy.state_dict()
    weights = _weights(state, Path("policy"))
    specs = tuple(FeatureSpec.of(find_signal(name)).limited() for name in features)
    activation = "tanh" if bool(state["mlp_extractor.uses_tanh"]) else "relu"
    return onnx_bytes("scorer_mlp", activation, feature_tensors(specs) | weights)


def _exportable(card: Mapping[str, Any], problem: type[Problem], where: str) -> tuple[FeatureSpec, ...]:
    if card["network"] != "scorer":
        raise UserError(
            f"{where}: network={card['network']!r} is made for exactly {card.get('num_choices', 'N')} choices;"
            " a bundle serves any number: train agent=ppo_scorer"
        )
    names = tuple(card["features"])
    unknown = not set(names) <= set(problem.offers)
    if card["schema_version"] != SCHEMA_VERSION or unknown or card["schema_digest"] != schema_digest(names):
        raise UserError(
            f"{where}: trained on another observation schema (version {card['schema_version']}, digest"
            f" {card['schema_digest']}) than this one (version {SCHEMA_VERSION})"
        )
    return tuple(spec.limited() for spec in _public_specs(names, where))


def _public_specs(names: Sequence[str], where: str) -> tuple[FeatureSpec, ...]:
    for name in names:
        if find_signal(name).tag == "privileged":
            raise UserError(f"{where}: uses feature {name!r}, which is privileged: no router can know it")
    return tuple(FeatureSpec.of(find_signal(name)) for name in names)


def _state(path: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint={str(path)!r}: not a checkpoint that training wrote ({error})") from None
    if "mlp_extractor.uses_tanh" not in state:
        raise UserError(f"checkpoint={str(path)!r}: holds no row scorer; train agent=ppo_scorer")
    return dict(state)


def _weights(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Array]:
    arrays = {name: tensor.numpy() for name, tensor in state.items() if tensor.dtype == torch.float32}
    weights = {
        name: np.ascontiguousarray(arrays[f"mlp_extractor.{name}"])
        for name in ("row.weight", "mix.weight", "pool.weight", "score.weight")
    }
    for name in ("row.bias", "mix.bias"):
        weights[name] = np.ascontiguousarray(arrays[f"mlp_extractor.{name}"][:, None])
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(f"checkpoint={str(path)!r}: {name} holds NaN or infinity: training diverged")
    return weights


def from_heuristic(
    name: str, weights: Mapping[str, float], problem: type[Problem], config: Mapping[str, Any] | None = None
) -> Source:
    """Describe a heuristic whose score is a weighted sum of columns.

    Parameters
    ----------
    name : str
        Of the heuristic.
    weights : mapping of str to float
        By column, in the order in which they are summed.
    problem : type
        The decision problem, a subclass of `Problem`.
    config : mapping, optional
        The resolved config of the export, kept as ``train_config.yaml``.

    Raises
    ------
    UserError
        It reads a privileged column.
    """
    return Source(
        name,
        "linear_score",
        problem,
        _public_specs(tuple(weights), f"policy={name!r}"),
        {"score.weight": np.array([list(weights.values())], np.float32)},
        config=config or {},
    )


def check_target(folder: str | Path) -> Path:
    """Return where a bundle will lie, as an absolute path.

    Parameters
    ----------
    folder : path

    Raises
    ------
    UserError
        It exists already.
    """
    target = Path(folder).absolute()
    if target.exists():
        raise UserError(f"bundle={str(folder)!r}: exists already; remove it or name another folder")
    return target


def write_bundle(folder: str | Path, source: Source) -> Path:
    """Write the bundle, verify it, and only then give it its name.

    Parameters
    ----------
    folder : path
        Must not exist; the folder around it is made.
    source : Source

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    UserError
        The folder exists or cannot be written, or the bundle would not decide as the policy does.
    """
    target = check_target(folder)
    with making_folder(target) as temporary:
        for name, data in bundle_files(source).items():
            (temporary / name).write_bytes(data)
        report = verify(temporary)
        if not report["passed"]:
            raise UserError(f"{source.name}: the bundle would not compute what the policy does: {report}")
    return target


def bundle_files(source: Source) -> dict[str, bytes]:
    """Return name and content of every file of the bundle.

    Parameters
    ----------
    source : Source

    Raises
    ------
    ValueError
        The weights do not have the shapes of ``source.kind``.
    """
    source, score_unit = with_unit_scores(source)
    tensors = source.tensors()
    expected = weight_shapes(source.kind, len(source.features), source.hidden)
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError(f"weights of {source.name} do not have the shapes of {source.kind}")
    files = {
        ONNX: onnx_bytes(source.kind, source.activation, tensors),
        WEIGHTS: safetensors_bytes(tensors, {"kind": source.kind}),
        PARITY: safetensors_bytes(parity_tensors(source)),
        CONFIG: model_card.yaml_text(source.config).encode(),
    }
    manifest = _manifest(source, hashlib.sha256(files[WEIGHTS]).hexdigest(), score_unit)
    files[CARD] = model_card.text(manifest).encode()
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in sorted(files.items())
    }
    files[MANIFEST] = (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()
    return files


def with_unit_scores(source: Source) -> tuple[Source, float]:
    """Divide the scores by a power of two, so that none in the parity vectors exceeds 1.

    That is exact in binary floating point and changes no decision, and it gives scores of every policy the
    same scale, on which a fixed tolerance means something.

    Parameters
    ----------
    source : Source

    Returns
    -------
    source, score_unit : Source, float
        The policy's own score is ``score_unit`` times the exported one.
    """
    groups = parity_tensors(source)
    scores = np.concatenate([a[groups[f"{name[:-7]}.mask"]] for name, a in groups.items() if name.endswith(".scores")])
    unit = float(2.0 ** max(0, int(np.ceil(np.log2(max(1e-30, float(np.abs(scores).max())))))))
    weights = source.weights | {"score.weight": source.weights["score.weight"] / np.float32(unit)}
    return replace(source, weights=weights), unit


def _manifest(source: Source, weights_digest: str, score_unit: float) -> dict[str, Any]:
    return {
        "schema_version": BUNDLE_VERSION,
        "policy_id": f"{source.name}-{weights_digest[:8]}",
        "kind": source.kind,
        "architecture": {"hidden": source.hidden, "activation": source.activation},
        "observation": {
            "schema_version": SCHEMA_VERSION,
            "unknown_value": UNKNOWN_VALUE,
            "features": [json.loads(json.dumps(asdict(feature))) for feature in source.features],
        },
        "action": {**ACTION, "choice": source.problem.choice, "score_unit": score_unit},
        "trained": {name: list(source.trained.get(name, [])) for name in ("num_choices", "load", "staleness_s")},
        "tested": {"num_choices": [min(PARITY_SIZES), max(PARITY_SIZES)]},
        "fallback": source.problem.fallback_heuristic(),
        "environment": {"id": source.problem.env_id, "fingerprint": source.fingerprint},
        "versions": dict(source.versions),
        "git_revision": source.git_revision,
        "training": dict(source.training),
        "evaluation": [dict(row) for row in source.evaluation],
    }


def _attributes(node: Node) -> dict[str, Any]:
    return dict(node.attributes)


def onnx_bytes(kind: str, activation: str, tensors: Mapping[str, Array]) -> bytes:
    """Return ``policy.onnx``: the graph of `fleetgym.agents.bundle_format.graph` with these weights.

    Parameters
    ----------
    kind : {"scorer_mlp", "linear_score"}
    activation : {"relu", "tanh"}
    tensors : mapping of str to ndarray
        In the shapes of `fleetgym.agents.bundle_format.weight_shapes`.
    """
    nodes = graph(kind, activation)
    constants = used_weights(nodes, tensors) | used_constants(nodes)
    num_features = tensors["features.low"].shape[0]
    kinds = onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node(n.op, n.inputs, [n.output], **_attributes(n)) for n in nodes],
        "policy",
        [
            helper.make_tensor_value_info("obs", kinds.FLOAT, ["b", "n", num_features]),
            helper.make_tensor_value_info("mask", kinds.BOOL, ["b", "n"]),
        ],
        [
            helper.make_tensor_value_info("scores", kinds.FLOAT, ["b", "n"]),
            helper.make_tensor_value_info("action", kinds.INT64, ["b"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        body, producer_name="fleetgym", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def parity_tensors(source: Source) -> dict[str, Array]:
    """Return observations, masks and what the policy makes of them, for each C of `PARITY_SIZES`.

    The scores come from torch for a trained network, so that the exported files are held against the
    thing that was trained.

    Parameters
    ----------
    source : Source

    Returns
    -------
    dict of str to ndarray
        ``n8.obs`` of shape (B, 8, F), ``n8.mask`` and ``n8.scores`` (B, 8), ``n8.action`` (B,), and so for each C.
    """
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for n in PARITY_SIZES:
        observation, mask = _vectors(rng, source.features, n)
        if source.kind == "scorer_mlp":
            scores = np.where(mask, _torch_scores(source, observation, mask), np.float32(MASKED_SCORE))
        else:
            scores, _ = evaluate(source.kind, source.activation, source.tensors(), observation, mask)
        keep = _decided(observation, scores)
        group = {"obs": observation, "mask": mask, "scores": scores, "action": scores.argmax(axis=1).astype(np.int64)}
        tensors |= {f"n{n}.{name}": np.ascontiguousarray(array[keep]) for name, array in group.items()}
    return tensors


def _decided(observation: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return which decisions to record: not those between almost equal scores, which rounding may turn round.

    Exactly equal scores of equal rows are a decision: the lowest index.
    """
    best = scores.argmax(axis=1)[:, None]
    top = np.take_along_axis(scores, best, axis=1)
    near = scores > top - 2e-6 * np.maximum(1.0, np.abs(top))
    winner = np.take_along_axis(observation, best[:, :, None], axis=1)
    same = ((observation == winner) | (np.isnan(observation) & np.isnan(winner))).all(axis=2) & (scores == top)
    return np.flatnonzero((same | ~near).all(axis=1))[:_VECTORS_PER_SIZE]


def _vectors(
    rng: np.random.Generator, features: Sequence[FeatureSpec], n: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Typical, log-uniform, extreme and unknown values; rows masked at random, one at least left."""
    b = 2 * _VECTORS_PER_SIZE
    observation = np.empty((b, n, len(features)), np.float32)
    for column, f in enumerate(features):
        typical = rng.uniform(0.0, f.scale, (b, n))
        wide = np.exp(rng.uniform(-2.0, np.log(max(f.high, 1.0)) + 1.0, (b, n))) * (1 if f.low >= 0 else -1)
        extreme = rng.choice([f.low, f.high, f.low - 1.0, f.high * 2.0 + 1.0, np.inf, -np.inf], (b, n))
        which = rng.choice(4, (b, n), p=(0.6, 0.2, 0.1, 0.1))
        values = np.select([which == 0, which == 1, which == 2], [typical, wide, extreme], np.nan)
        if f.scope in ("request", "cluster"):
            values = np.repeat(values[:, :1], n, axis=1)
        observation[:, :, column] = values
    observation[0] = 0.0  # an idle fleet: all instances equal
    observation[1] = np.nan  # nothing known
    mask = rng.random((b, n)) < 0.8
    mask[:2] = True
    mask[np.arange(b), rng.integers(0, n, b)] = True
    observation[2:][~mask[2:] & (rng.random((b - 2, n)) < 0.5)] = 0.0  # as the gym shows absent instances
    return observation, mask


def _torch_scores(source: Source, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    from fleetgym.agents.scorer import RowScorer

    net = RowScorer([f.name for f in source.features], source.hidden, source.activation)
    state = {name: torch.from_numpy(array) for name, array in source.weights.items()}
    for name in ("row.bias", "mix.bias"):
        state[name] = state[name][:, 0]
    net.load_state_dict(state, strict=False)
    with torch.no_grad():
        scores: NDArray[np.float32] = net.scores(torch.from_numpy(observation), torch.from_numpy(mask)).numpy()
    return scores

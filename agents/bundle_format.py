"""The export bundle's format: files, limits, weights and graph of each kind of policy.

Writer and reader both go by this module, so that a bundle holds nothing that is not written here. It
needs numpy alone. A policy is one of two kinds, both a score per choice and an argmax over it:

``scorer_mlp``
    ``h = act(W1 x + b1)`` per choice, ``g`` = mean of ``h`` over what may be chosen,
    ``score = w3 . act(W2 h + Wp g + b2)``, where ``x`` is the transformed observation.
``linear_score``
    ``score = w . clipped observation``: heuristics that rank choices by a weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BUNDLE_VERSION = 2
MANIFEST = "manifest.json"
ONNX = "policy.onnx"
WEIGHTS = "weights.safetensors"
PARITY = "parity.safetensors"
CONFIG = "train_config.yaml"
CARD = "README.md"
MAX_BYTES: Mapping[str, int] = {
    MANIFEST: 1 << 20,
    ONNX: 16 << 20,
    WEIGHTS: 16 << 20,
    PARITY: 32 << 20,
    CONFIG: 1 << 20,
    CARD: 1 << 20,
}
MAX_FEATURES = 256
MAX_HIDDEN = 1024
OPSET = 17
IR_VERSION = 8
MASKED_SCORE = -1e30  # finite, so that differences of score vectors stay numbers
INPUT_LIMIT = 4.0  # of a network's transformed inputs: beyond any training, where float32 scores lose digits
PARITY_SIZES = (1, 2, 3, 8, 64)
KINDS = ("scorer_mlp", "linear_score")
ACTIVATIONS: Mapping[str, str] = {"relu": "Relu", "tanh": "Tanh"}  # name: ONNX operator
SCOPES = ("choice", "request", "cluster")
UNKNOWN_VALUE = "NaN"
ACTION: Mapping[str, str | float] = {  # what every policy of this format does with its scores
    "kind": "choice_index",
    "decode": "argmax",
    "tie_break": "lowest_index",
    "masked_score": MASKED_SCORE,
    "none_available": "refused",
}
TAGS = ("local", "scraped", "static", "request")

Array = NDArray[Any]


class BundleError(ValueError):
    """A bundle is refused; the message is one line that names the file and the reason."""


def shown(value: object) -> str:
    """Return ``value`` as one short printable piece of a message: bundles may hold anything.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        ASCII, at most 80 characters.
    """
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class FeatureSpec:
    """One column of the observation as the bundle describes it.

    Attributes
    ----------
    name, unit, meaning : str
    scope : {"choice", "request", "cluster"}
    tag : {"local", "scraped", "static", "request"}
        Where a router gets the value.
    low, high : float
        Larger and smaller values are clipped, in ``unit``.
    transform : {"log1p", "linear"}
        ``log1p(x) / log1p(scale)`` or ``x / scale``; unused by ``linear_score``.
    scale, missing : float
        ``missing`` replaces a value that is not known (NaN).
    metrics : mapping of str to tuple of str
        Metric names that carry it, per serving engine, newest first; the later ones are aliases.
    """

    name: str
    unit: str
    scope: str
    tag: str
    low: float
    high: float
    transform: str
    scale: float
    missing: float
    meaning: str = ""
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Any) -> FeatureSpec:
        """Copy the fields of a mapping or of an object with the same attribute names.

        Parameters
        ----------
        row : mapping or object
            A row of a manifest, or a signal (`fleetgym.envs.signals.Signal`).
        """
        values = row if isinstance(row, Mapping) else {name: getattr(row, name) for name in cls.__annotations__}
        return cls(
            name=str(values["name"]),
            unit=str(values["unit"]),
            scope=str(values["scope"]),
            tag=str(values["tag"]),
            low=float(values["low"]),
            high=float(values["high"]),
            transform=str(values["transform"]),
            scale=float(values["scale"]),
            missing=float(values["missing"]),
            meaning=str(values["meaning"]),
            metrics={str(engine): tuple(names) for engine, names in values["metrics"].items()},
        )

    def limited(self) -> FeatureSpec:
        """Return the row with its range narrowed so that the network's input stays within `INPUT_LIMIT`."""
        if self.transform == "log1p":
            bound = float(np.expm1(INPUT_LIMIT * np.log1p(self.scale)))
        else:
            bound = INPUT_LIMIT * self.scale
        return replace(self, low=max(self.low, -bound), high=min(self.high, bound))

    def problem(self) -> str | None:
        """Return why this row cannot be used, or None."""
        limit = float(np.finfo(np.float32).max)
        numbers = (self.low, self.high, self.scale, self.missing)
        if self.scope not in SCOPES:
            return f"scope={shown(self.scope)}: allowed are {', '.join(SCOPES)}"
        if self.tag not in TAGS:
            return f"tag={shown(self.tag)}: a router cannot know it; allowed are {', '.join(TAGS)}"
        if self.transform not in ("log1p", "linear"):
            return f"transform={shown(self.transform)}: allowed are log1p, linear"
        if not all(-limit <= x <= limit for x in numbers):
            return "low, high, scale and missing must be finite float32 numbers"
        if not self.low < self.high or not self.low <= self.missing <= self.high:
            return "need low < high and missing between them"
        if self.scale <= 0 or (self.transform == "log1p" and self.low <= -1):
            return "need scale > 0, and low > -1 with log1p"
        return None


def feature_tensors(features: Sequence[FeatureSpec]) -> dict[str, Array]:
    """Return what the graph needs of the feature table: one column vector (F, 1) per property.

    Parameters
    ----------
    features : sequence of FeatureSpec
        The F columns.

    Returns
    -------
    dict of str to ndarray, each of shape (F, 1)
        ``features.log1p`` is bool, all others float32.
    """

    def column(values: Sequence[float]) -> Array:
        return np.array(values, np.float32)[:, None]

    log1p = np.array([f.transform == "log1p" for f in features])
    scale = np.array([f.scale for f in features])
    return {
        "features.missing": column([f.missing for f in features]),
        "features.low": column([f.low for f in features]),
        "features.high": column([f.high for f in features]),
        "features.log1p": log1p[:, None],
        "features.gain": (1.0 / np.where(log1p, np.log1p(scale), scale)).astype(np.float32)[:, None],
    }


def weight_shapes(kind: str, num_features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor in ``weights.safetensors``; matrices are (out, in).

    Parameters
    ----------
    kind : {"scorer_mlp", "linear_score"}
    num_features : int
        F, columns of the observation.
    hidden : int
        H, width of the layers; unused by ``linear_score``.
    """
    F, H = num_features, hidden
    shapes: dict[str, tuple[int, ...]] = {f"features.{n}": (F, 1) for n in ("missing", "low", "high", "log1p", "gain")}
    if kind == "linear_score":
        return shapes | {"score.weight": (1, F)}
    network = {"row.weight": (H, F), "row.bias": (H, 1), "mix.weight": (H, H), "pool.weight": (H, H)}
    return shapes | network | {"mix.bias": (H, 1), "score.weight": (1, H)}


class Node(NamedTuple):
    """One operator of the graph.

    Attributes
    ----------
    op : str
        Its ONNX type.
    inputs : tuple of str
        Names of tensors, in order.
    output : str
        Name of its one output.
    attributes : tuple of (str, int or tuple of int)
        Sorted by name.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


CONSTANTS: Mapping[str, Array] = {
    "one": np.ones(1, np.float32),
    "masked_score": np.array([MASKED_SCORE], np.float32),
    "axis_1": np.array([1], np.int64),
    "axis_2": np.array([2], np.int64),
}


def _node(op: str, inputs: str, output: str, **attributes: int | tuple[int, ...]) -> Node:
    return Node(op, tuple(inputs.split()), output, tuple(sorted(attributes.items())))


def graph(kind: str, activation: str) -> tuple[Node, ...]:
    """Return the operators of ``policy.onnx``, in order: the only graph that a bundle may hold.

    Choices lie along the last axis inside the graph, so that every broadcast runs over contiguous
    memory: at 512 choices this takes 60 % of the time of the row-wise order.

    Parameters
    ----------
    kind : {"scorer_mlp", "linear_score"}
    activation : {"relu", "tanh"}
        Unused by ``linear_score``.
    """
    clean = (
        _node("Transpose", "obs", "columns", perm=(0, 2, 1)),
        _node("IsNaN", "columns", "unknown"),
        _node("Where", "unknown features.missing columns", "known"),
        _node("Max", "known features.low", "raised"),
        _node("Min", "raised features.high", "clipped"),
    )
    decide = (
        _node("Squeeze", "product axis_1", "raw_scores"),
        _node("Where", "mask raw_scores masked_score", "scores"),
        _node("ArgMax", "scores", "action", axis=1, keepdims=0),  # the first of equal ones
    )
    if kind == "linear_score":
        return (*clean, _node("MatMul", "score.weight clipped", "product"), *decide)
    network = (
        _node("Add", "clipped one", "shifted"),
        _node("Log", "shifted", "logarithm"),
        _node("Where", "features.log1p logarithm clipped", "chosen"),
        _node("Mul", "chosen features.gain", "x"),
        _node("MatMul", "row.weight x", "row_product"),
        _node("Add", "row_product row.bias", "row_sum"),
        _node(ACTIVATIONS[activation], "row_sum", "h"),
        _node("Cast", "mask", "mask_number", to=1),
        _node("Unsqueeze", "mask_number axis_2", "mask_column"),
        _node("MatMul", "h mask_column", "h_sum"),
        _node("ReduceSum", "mask_column axis_1", "count", keepdims=1),
        _node("Max", "count one", "count_or_one"),
        _node("Div", "h_sum count_or_one", "g"),
        _node("MatMul", "pool.weight g", "pool_product"),
        _node("Add", "pool_product mix.bias", "fleet"),
        _node("MatMul", "mix.weight h", "mix_product"),
        _node("Add", "mix_product fleet", "mix_sum"),
        _node(ACTIVATIONS[activation], "mix_sum", "h2"),
        _node("MatMul", "score.weight h2", "product"),
    )
    return (*clean, *network, *decide)


def used_constants(nodes: Sequence[Node]) -> dict[str, Array]:
    """Return the constants that ``nodes`` read.

    Parameters
    ----------
    nodes : sequence of Node

    Returns
    -------
    dict of str to ndarray
        Of `CONSTANTS`, each of shape (1,).
    """
    read = {name for node in nodes for name in node.inputs}
    return {name: value for name, value in CONSTANTS.items() if name in read}


def used_weights(nodes: Sequence[Node], weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return the weights that ``nodes`` read; ``linear_score`` leaves transform and gain alone.

    Parameters
    ----------
    nodes : sequence of Node
    weights : mapping of str to ndarray
        In the shapes of `weight_shapes`.

    Returns
    -------
    dict of str to ndarray
        Some of ``weights``, in the same shapes.
    """
    read = {name for node in nodes for name in node.inputs}
    return {name: value for name, value in weights.items() if name in read}

"""A minimal reader of ONNX files that refuses whatever a bundle has no use for.

The few message fields that a bundle's graph needs are listed here; any other one (external data,
subgraphs, functions, sparse tensors, metadata) ends the reading with its name. Nothing is executed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.agents.bundle_format import ONNX, BundleError, Node, shown

# Field numbers of onnx.proto that may occur, per message.
_MODEL = {1: "ir_version", 2: "producer_name", 3: "producer_version", 7: "graph", 8: "opset_import"}
_OPSET = {1: "domain", 2: "version"}
_GRAPH = {1: "node", 2: "name", 5: "initializer", 11: "input", 12: "output"}
_NODE = {1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute"}
_ATTRIBUTE = {1: "name", 3: "i", 8: "ints", 20: "type"}
_TENSOR = {1: "dims", 2: "data_type", 8: "name", 9: "raw_data"}
_VALUE = {1: "name", 2: "type"}
_TYPE = {1: "tensor_type"}
_TENSOR_TYPE = {1: "elem_type", 2: "shape"}
_SHAPE = {1: "dim"}
_DIM = {1: "dim_value", 2: "dim_param"}
_FORBIDDEN: Mapping[tuple[str, int], str] = {
    ("TensorProto", 13): "external data",
    ("TensorProto", 14): "external data",
    ("AttributeProto", 6): "a subgraph",
    ("AttributeProto", 11): "subgraphs",
    ("AttributeProto", 5): "a tensor attribute",
    ("NodeProto", 7): "an operator domain",
    ("ModelProto", 25): "functions",
    ("ModelProto", 20): "training information",
    ("GraphProto", 15): "sparse initializers",
}
_MAX_FIELDS = 4096
_DTYPES: Mapping[int, type[np.generic]] = {1: np.float32, 7: np.int64, 9: np.bool_}

Value = int | memoryview


@dataclass
class OnnxFile:
    """What a file holds: operators in order, constant tensors, and the typed inputs and outputs.

    Attributes
    ----------
    ir_version : int
        Of the ONNX format.
    opsets : list of (str, int)
        Domain (empty: ONNX's own) and version of each operator set.
    nodes : list of Node
        In the order of the file.
    initializers : dict of str to ndarray
        Float32, int64 or bool, each in the shape that the file gives it, of at most four axes.
    inputs, outputs : list of (str, int, tuple)
        Name, ONNX's number of the element type, and shape; an axis of any length has a name instead.
    """

    ir_version: int = 0
    opsets: list[tuple[str, int]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    initializers: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: list[tuple[str, int, tuple[int | str, ...]]] = field(default_factory=list)
    outputs: list[tuple[str, int, tuple[int | str, ...]]] = field(default_factory=list)


def read_onnx(data: bytes) -> OnnxFile:
    """Parse ``data``.

    Parameters
    ----------
    data : bytes
        The file; nothing about it is trusted.

    Raises
    ------
    BundleError
        Not an ONNX file, or one with more in it than a bundle's graph.
    """
    return _Reader().model(memoryview(data))


def _refuse(reason: str) -> BundleError:
    return BundleError(f"{ONNX}: {reason}")


class _Reader:
    def __init__(self) -> None:
        self._fields = 0

    def model(self, data: memoryview) -> OnnxFile:
        out = OnnxFile()
        graphs = 0
        for name, value in self._walk(data, "ModelProto", _MODEL):
            if name == "ir_version":
                out.ir_version = _integer(value)
            elif name == "opset_import":
                opset = dict(self._walk(value, "OperatorSetIdProto", _OPSET))
                out.opsets.append((_text(opset.get("domain", memoryview(b""))), _integer(opset.get("version", 0))))
            elif name == "graph":
                graphs += 1
                self._graph(value, out)
        if graphs != 1:
            raise _refuse(f"holds {graphs} graphs, expected one")
        return out

    def _graph(self, data: Value, out: OnnxFile) -> None:
        for name, value in self._walk(data, "GraphProto", _GRAPH):
            if name == "node":
                out.nodes.append(self._node(value))
            elif name == "initializer":
                key, tensor = self._tensor(value)
                if key in out.initializers:
                    raise _refuse(f"tensor {shown(key)} occurs twice")
                out.initializers[key] = tensor
            elif name in ("input", "output"):
                (out.inputs if name == "input" else out.outputs).append(self._value(value))

    def _node(self, data: Value) -> Node:
        inputs: list[str] = []
        outputs: list[str] = []
        op, attributes = "", []
        for name, value in self._walk(data, "NodeProto", _NODE):
            if name == "input":
                inputs.append(_text(value))
            elif name == "output":
                outputs.append(_text(value))
            elif name == "op_type":
                op = _text(value)
            elif name == "attribute":
                attributes.append(self._attribute(value))
        if len(outputs) != 1:
            raise _refuse(f"operator {shown(op)} has {len(outputs)} outputs, expected one")
        return Node(op, tuple(inputs), outputs[0], tuple(sorted(attributes, key=lambda a: a[0])))

    def _attribute(self, data: Value) -> tuple[str, int | tuple[int, ...]]:
        key, number, numbers = "", None, []
        for name, value in self._walk(data, "AttributeProto", _ATTRIBUTE):
            if name == "name":
                key = _text(value)
            elif name == "i":
                number = _integer(value)
            elif name == "ints":
                numbers.extend(_integers(value))
        return key, tuple(numbers) if number is None else number

    def _tensor(self, data: Value) -> tuple[str, NDArray[Any]]:
        key, dims, code, raw = "", [], 0, memoryview(b"")
        for name, value in self._walk(data, "TensorProto", _TENSOR):
            if name == "name":
                key = _text(value)
            elif name == "dims":
                dims.extend(_integers(value))
            elif name == "data_type":
                code = _integer(value)
            elif name == "raw_data":
                raw = _bytes(value)
        if code not in _DTYPES:
            raise _refuse(f"tensor {shown(key)} has element type {code}, allowed are {sorted(_DTYPES)}")
        dtype = np.dtype(_DTYPES[code])
        if len(dims) > 4 or min(dims, default=0) < 0 or math.prod(dims) * dtype.itemsize != len(raw):
            raise _refuse(f"tensor {shown(key)} of shape {shown(dims)} has {len(raw)} bytes of data")
        return key, np.frombuffer(raw, dtype).reshape(dims)

    def _value(self, data: Value) -> tuple[str, int, tuple[int | str, ...]]:
        key, element, dims = "", 0, []
        for name, value in self._walk(data, "ValueInfoProto", _VALUE):
            if name == "name":
                key = _text(value)
                continue
            for _, tensor in self._walk(value, "TypeProto", _TYPE):
                for part, inner in self._walk(tensor, "TypeProto.Tensor", _TENSOR_TYPE):
                    if part == "elem_type":
                        element = _integer(inner)
                    else:
                        dims = [self._dim(dim) for _, dim in self._walk(inner, "TensorShapeProto", _SHAPE)]
        return key, element, tuple(dims)

    def _dim(self, data: Value) -> int | str:
        for name, value in self._walk(data, "Dimension", _DIM):
            return _integer(value) if name == "dim_value" else _text(value)
        return ""

    def _walk(self, data: Value, message: str, names: Mapping[int, str]) -> Iterator[tuple[str, Value]]:
        view, at = _bytes(data), 0
        while at < len(view):
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise _refuse(f"more than {_MAX_FIELDS} fields")
            key, at = _varint(view, at)
            number, wire = key >> 3, key & 7
            if number not in names:
                what = _FORBIDDEN.get((message, number), f"field {number}")
                raise _refuse(f"{message} carries {what}, which a bundle may not")
            if wire not in (0, 2):
                raise _refuse(f"{message}.{names[number]} has wire type {wire}")
            value, at = _varint(view, at)
            if wire == 0:
                yield names[number], value
                continue
            if value > len(view) - at:
                raise _refuse(f"{message}.{names[number]} is cut off")
            yield names[number], view[at : at + value]
            at += value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise _refuse("is cut off")
        byte = view[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, at
    raise _refuse("holds a number of more than 64 bits")


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _refuse("a number where bytes were expected")
    return value


def _text(value: Value) -> str:
    data = _bytes(value)
    try:
        return bytes(data[:256]).decode()
    except UnicodeDecodeError:
        raise _refuse("a name that is not UTF-8") from None


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise _refuse("bytes where a number was expected")
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(value: Value) -> list[int]:
    if isinstance(value, int):
        return [_integer(value)]
    numbers: list[int] = []
    at = 0
    while at < len(value) and len(numbers) <= 16:
        number, at = _varint(value, at)
        numbers.append(_integer(number))
    return numbers

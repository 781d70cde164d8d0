"""Reading a bundle that nobody vouches for: bounded, typed, and compared with its manifest.

Every check is made on the bytes that are used afterwards: a file is opened once, read once, hashed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetgym.agents.bundle_format import (
    IR_VERSION,
    MANIFEST,
    MAX_BYTES,
    ONNX,
    OPSET,
    Array,
    BundleError,
    graph,
    shown,
    used_constants,
    used_weights,
)
from fleetgym.agents.onnx_reader import read_onnx

_MAX_DEPTH = 16
_DTYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}


def read_folder(path: Path) -> dict[str, bytes]:
    """Read all files of a bundle, after checking what the folder lists.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to bytes
        Content by file name.

    Raises
    ------
    BundleError
        Not a folder, an unknown, missing, linked or oversized file.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name not in MAX_BYTES:
                    raise BundleError(f"{shown(entry.name)}: not a file of a bundle")
    except OSError as error:
        raise BundleError(f"{shown(str(path))}: not a readable folder ({error.strerror})") from None
    return {name: _read_file(path / name, limit) for name, limit in MAX_BYTES.items()}


def _read_file(path: Path, limit: int) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for ever
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"{path.name}: missing") from None
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read, links are not followed ({error.strerror})") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise BundleError(f"{path.name}: not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if info.st_size > limit:
            raise BundleError(f"{path.name}: {info.st_size} bytes, at most {limit} are allowed")
        return file.read(limit + 1)[:limit]


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON of bounded depth without repeated keys, NaN, infinities or giant integers.

    Parameters
    ----------
    data : bytes
        UTF-8.
    where : str
        File name, for messages.

    Raises
    ------
    BundleError
        Anything else.
    """
    depth = deepest = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            in_string = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    if deepest > _MAX_DEPTH:
        raise BundleError(f"{where}: nested {deepest} deep, at most {_MAX_DEPTH} are allowed")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_int, parse_float=_float
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not valid JSON: {shown(str(error))}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _int(text: str) -> int:
    if len(text) > 19:
        raise ValueError("an integer of more than 18 digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond float64")
    return value


def check_types(value: Any, expected: Any, where: str) -> None:
    """Compare parsed JSON with the types expected of it.

    Parameters
    ----------
    value : object
    expected : type, mapping or list
        A mapping has these entries and no other; a list holds any number of its only element; float takes integers too.
    where : str
        Begins the message.

    Raises
    ------
    BundleError
        Naming the entry that is missing, unknown or of another type.
    """
    if isinstance(expected, Mapping):
        check_types(value, dict, where)
        for name in (*expected, *value):
            if name not in value:
                raise BundleError(f"{where}.{name}: missing")
            if name not in expected:
                raise BundleError(f"{where}.{shown(name)}: unknown entry")
            check_types(value[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        check_types(value, list, where)
        for index, item in enumerate(value):
            check_types(item, expected[0], f"{where}[{index}]")
    else:
        allowed = (int, float) if expected is float else (expected,)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise BundleError(f"{where}={shown(value)}: expected {expected.__name__}")


def check_digests(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Compare size and SHA-256 of every other file with the manifest.

    Parameters
    ----------
    files : mapping of str to bytes
        As `read_folder` returns them.
    manifest : mapping
        As `fleetgym.agents.bundle_manifest.read_manifest` returns it.

    Raises
    ------
    BundleError
        A file that is not listed, listed and not there, or of another size or digest.
    """
    listed, expected = manifest["files"], set(files) - {MANIFEST}
    if set(listed) != expected:
        strange = min(set(listed) ^ expected)
        raise BundleError(f"{MANIFEST}.files: {shown(strange)} should {'not ' * (strange in listed)}be listed")
    for name in sorted(listed):
        check_types(listed[name], {"sha256": str, "size": int}, f"{MANIFEST}.files.{name}")
        if listed[name]["size"] != len(files[name]):
            raise BundleError(f"{name}: {len(files[name])} bytes, the manifest says {listed[name]['size']}")
        if hashlib.sha256(files[name]).hexdigest() != listed[name]["sha256"]:
            raise BundleError(f"{name}: its SHA-256 is not the one in the manifest")


def read_safetensors(data: bytes, where: str) -> dict[str, Array]:
    """Parse a safetensors file of finite float32, int64 and bool tensors without copying them.

    Parameters
    ----------
    data : bytes
        Of the file.
    where : str
        File name, for messages.

    Returns
    -------
    dict of str to ndarray
        In the shapes that the header gives them.

    Raises
    ------
    BundleError
        Truncated, overlapping, oversized or non-finite data, or another element type.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 1 << 17):
        raise BundleError(f"{where}: its header is cut off or larger than 128 KiB")
    header, body = parse_json(data[8 : 8 + length], where), memoryview(data)[8 + length :]
    check_types(header, dict, where)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in header.items():
        label = f"{where}: {shown(name)}"
        check_types(entry, {"dtype": str, "shape": [int], "data_offsets": [int]}, label)
        if entry["dtype"] not in _DTYPES:
            raise BundleError(f"{label} has element type {shown(entry['dtype'])}, allowed are {', '.join(_DTYPES)}")
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"]
        size = math.prod(shape) * dtype.itemsize
        if len(shape) > 4 or min(shape, default=0) < 0 or entry["data_offsets"] != [end, end + size]:
            raise BundleError(f"{label} of shape {shown(shape)} does not follow the tensor before it")
        if end + size > len(body):
            raise BundleError(f"{label} of shape {shown(shape)} is cut off")
        tensors[name] = np.frombuffer(body[end : end + size], np.uint8 if dtype == np.bool_ else dtype).reshape(shape)
        if dtype == np.bool_:
            tensors[name] = tensors[name] != 0
        end += size
    if end != len(body):
        raise BundleError(f"{where}: {len(body) - end} bytes after the last tensor")
    return tensors


def check_weights(weights: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names, shapes and types with the architecture, and refuse NaN and infinities.

    Parameters
    ----------
    weights : mapping of str to ndarray
        As read, each of any shape.
    expected : mapping of str to tuple of int
        Shapes (`fleetgym.agents.bundle_format.weight_shapes`).
    where : str
        File name, for messages.

    Raises
    ------
    BundleError
        Naming the tensor that differs.
    """
    if set(weights) != set(expected):
        raise BundleError(f"{where}: tensor {shown(min(set(weights) ^ set(expected)))} is missing or unknown")
    for name, shape in expected.items():
        tensor = weights[name]
        dtype = np.bool_ if name == "features.log1p" else np.float32
        if tensor.shape != shape or tensor.dtype != dtype:
            raise BundleError(f"{where}: {name} is {tensor.dtype}{tensor.shape}, expected {np.dtype(dtype)}{shape}")
        if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
            raise BundleError(f"{where}: {name} holds NaN or infinity")


def check_onnx(data: bytes, kind: str, activation: str, weights: Mapping[str, Array]) -> None:
    """Refuse a graph that is not operator for operator and bit for bit the one of ``weights``.

    Parameters
    ----------
    data : bytes
        ``policy.onnx``.
    kind : {"scorer_mlp", "linear_score"}
    activation : {"relu", "tanh"}
    weights : mapping of str to ndarray
        In the shapes that `check_weights` asks for.

    Raises
    ------
    BundleError
        Naming the operator, tensor, input or output that differs.
    """
    if len(data) > sum(w.nbytes for w in weights.values()) + (64 << 10):
        raise BundleError(f"{ONNX}: {len(data)} bytes, far more than its weights")
    found, nodes = read_onnx(data), graph(kind, activation)
    if (found.ir_version, found.opsets) != (IR_VERSION, [("", OPSET)]):
        raise BundleError(
            f"{ONNX}: IR version {found.ir_version} with operator sets {shown(found.opsets)},"
            f" expected {IR_VERSION} with the standard set {OPSET}"
        )
    for index, (have, want) in enumerate(zip(found.nodes, nodes, strict=False)):
        if have != want:
            raise BundleError(f"{ONNX}: operator {index} is {shown(have)}, expected {shown(want)}")
    if len(found.nodes) != len(nodes):
        raise BundleError(f"{ONNX}: {len(found.nodes)} operators, expected {len(nodes)}")
    expected = used_weights(nodes, weights) | used_constants(nodes)
    if set(found.initializers) != set(expected):
        strange = min(set(found.initializers) ^ set(expected))
        raise BundleError(f"{ONNX}: tensor {shown(strange)} is missing or unknown")
    for name, tensor in expected.items():
        have_tensor = found.initializers[name]
        same = have_tensor.shape == tensor.shape and have_tensor.dtype == tensor.dtype
        if not same or have_tensor.tobytes() != tensor.tobytes():
            raise BundleError(f"{ONNX}: tensor {name} differs from weights.safetensors")
    num_features = weights["features.low"].shape[0]
    if found.inputs != [("obs", 1, ("b", "n", num_features)), ("mask", 9, ("b", "n"))]:
        raise BundleError(f"{ONNX}: inputs {shown(found.inputs)}, expected obs[b, n, {num_features}] and mask[b, n]")
    if found.outputs != [("scores", 1, ("b", "n")), ("action", 7, ("b",))]:
        raise BundleError(f"{ONNX}: outputs {shown(found.outputs)}, expected scores[b, n] and action[b]")

"""Readers of trace files; a malformed row raises one line that names file, line and value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.errors import UserError, did_you_mean

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOONCAKE_BLOCK_TOKENS = 512
MAX_TOKENS = 2**31 - 1
_JSONL_FIELDS = (
    "arrival_s", "prompt_tokens", "output_tokens", "priority", "class", "block_ids", "prefix_block_ids", "request_id",
)  # fmt: skip


def read_azure(path: Path) -> Trace:
    """Read an `AzureLLMInferenceTrace` CSV, of 2023 (7-digit fractions) or 2024 (``+00:00`` times).

    Raises
    ------
    UserError
        Wrong header, empty file, malformed row, non-positive length or a time that goes back.
    """
    lines = _text_lines(path)
    if lines.is_empty() or lines[0] != AZURE_HEADER:
        got = None if lines.is_empty() else lines[0]
        raise UserError(f"{path}:1: header {got!r}: expected {AZURE_HEADER!r}")
    lines = lines[1:]
    if lines.is_empty():
        raise UserError(f"{path}: the trace holds no request")
    parts = lines.str.split_exact(",", 3).struct.unnest()
    ragged = parts["field_2"].is_null() | parts["field_3"].is_not_null()
    _refuse_first(ragged, lines, path, "row", "expected 3 comma-separated fields")
    clock = parts["field_0"].str.strip_suffix("+00:00")
    times = clock.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    _refuse_first(times.is_null(), parts["field_0"], path, "TIMESTAMP", "expected YYYY-MM-DD HH:MM:SS.fraction, in UTC")
    lengths = []
    for column, name in (("field_1", "ContextTokens"), ("field_2", "GeneratedTokens")):
        values = parts[column].cast(pl.Int64, strict=False)
        _refuse_first(~values.is_between(1, MAX_TOKENS).fill_null(False), parts[column], path, name, _LENGTH_RULE)
        lengths.append(values.to_numpy())
    arrival_ns = times.dt.timestamp("ns").to_numpy()
    back = pl.Series(np.diff(arrival_ns, prepend=arrival_ns[0]) < 0)
    _refuse_first(back, parts["field_0"], path, "TIMESTAMP", "goes back in time")
    return make_trace(arrival_ns - arrival_ns[0], *lengths, name=path.stem)


_LENGTH_RULE = f"must be a whole number from 1 to {MAX_TOKENS}"


def _text_lines(path: Path) -> pl.Series:
    """Return the lines of a text file, without line ends; one column, so that rows and line numbers agree."""
    try:
        frame = pl.read_csv(
            path, has_header=False, separator="\x1f", quote_char=None, infer_schema=False,
            new_columns=["line"], raise_if_empty=False,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read as text: {str(error).splitlines()[0]}") from None
    return frame["line"].fill_null("").str.strip_chars_end("\r") if frame.width else pl.Series("line", [], pl.String)


def _refuse_first(bad: pl.Series, values: pl.Series, path: Path, name: str, rule: str) -> None:
    if bad.any():
        index = int(bad.arg_max() or 0)
        raise UserError(f"{path}:{index + 2}: {name}={values[index]!r}: {rule}")


def read_mooncake(path: Path, block_size: int) -> Trace:
    """Read a Mooncake JSONL trace; its 512-token block hashes become chains of ``block_size``-token ids.

    Block j of a chain gets id ``hash * (512 / block_size) + j mod (512 / block_size)``: equal hashes, which
    mean equal 512 tokens and equal prefix, give equal ids. Only full blocks inside the prompt are kept.

    Raises
    ------
    UserError
        Malformed line, or a ``block_size`` that does not divide 512.
    """
    if block_size < 1 or MOONCAKE_BLOCK_TOKENS % block_size:
        raise UserError(f"block_size={block_size!r}: must divide {MOONCAKE_BLOCK_TOKENS}")
    split = MOONCAKE_BLOCK_TOKENS // block_size
    arrival_ns, prompts, outputs, chains = [], [], [], []
    for where, record in json_lines(path):
        arrival_ns.append(_time_ns(where, record, "timestamp", 1e6))
        prompts.append(whole_number(where, record, "input_length", 1))
        outputs.append(whole_number(where, record, "output_length", 1))
        hashes = id_list(where, record, "hash_ids")
        chains.append((hashes[:, None] * split + np.arange(split)).reshape(-1)[: prompts[-1] // block_size])
    return _assemble(path, arrival_ns, prompts, outputs, chains=chains)


def read_jsonl(path: Path) -> Trace:
    """Read the generic format: one JSON object per line.

    Fields: ``arrival_s``, ``prompt_tokens``, ``output_tokens``, and optionally ``priority`` (int, smaller is
    more important), ``class`` (name), ``block_ids`` or ``prefix_block_ids`` (chain of full-block ids) and
    ``request_id`` (ignored).

    Raises
    ------
    UserError
        Malformed line or unknown field.
    """
    arrival_ns, prompts, outputs, priority, class_id, chains = [], [], [], [], [], []
    classes: dict[str, int] = {}
    for where, record in json_lines(path):
        for name in record:
            if name not in _JSONL_FIELDS:
                raise UserError(f"{where}: field {name!r}: unknown{did_you_mean(name, _JSONL_FIELDS)}")
        arrival_ns.append(_time_ns(where, record, "arrival_s", 1e9))
        prompts.append(whole_number(where, record, "prompt_tokens", 1))
        outputs.append(whole_number(where, record, "output_tokens", 1))
        priority.append(whole_number(where, record, "priority", -MAX_TOKENS) if "priority" in record else 0)
        name = record.get("class", "default")
        if not isinstance(name, str):
            raise UserError(f"{where}: class={name!r}: must be a name")
        class_id.append(classes.setdefault(name, len(classes)))
        chain_field = "block_ids" if "block_ids" in record else "prefix_block_ids"
        chains.append(id_list(where, record, chain_field) if chain_field in record else np.zeros(0, np.int64))
    columns = {"priority": np.array(priority), "class_id": np.array(class_id), "class_names": tuple(classes)}
    return _assemble(path, arrival_ns, prompts, outputs, chains=chains, **columns)


def _assemble(path: Path, arrival_ns: list[int], prompts: list[int], outputs: list[int], **columns: Any) -> Trace:
    if not arrival_ns:
        raise UserError(f"{path}: the trace holds no request")
    times = np.array(arrival_ns, np.int64)
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        line, value = int(back[0]) + 2, times[back[0] + 1] / 1e9
        raise UserError(f"{path}:{line}: arrival {value} s: goes back in time")
    return make_trace(times - times[0], np.array(prompts), np.array(outputs), name=path.stem, **columns)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each JSON object of a JSONL file with ``file:line`` for messages."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    raise UserError(f"{where}: {line.strip()[:80]!r}: not a JSON object") from None
                if not isinstance(record, dict):
                    raise UserError(f"{where}: {line.strip()[:80]!r}: not a JSON object")
                yield where, record
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None


def _field(where: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(f"{where}: {name}: missing")
    return record[name]


def whole_number(where: str, record: dict[str, Any], name: str, low: int) -> int:
    """Return field ``name``, a whole number of at least ``low``."""
    value = _field(where, record, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_TOKENS:
        raise UserError(f"{where}: {name}={value!r}: must be a whole number from {low} to {MAX_TOKENS}")
    return int(value)


def _time_ns(where: str, record: dict[str, Any], name: str, unit_ns: float) -> int:
    value = _field(where, record, name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value * unit_ns < 2**62:
        raise UserError(f"{where}: {name}={value!r}: must be a time of at least 0")
    return round(float(value) * unit_ns)


def id_list(where: str, record: dict[str, Any], name: str) -> NDArray[np.int64]:
    """Return field ``name``, a list of content ids."""
    value = _field(where, record, name)
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**53 for item in value):
        raise UserError(f"{where}: {name}={str(value)[:60]!r}: must be a list of whole numbers of at least 0")
    return np.array(value, np.int64)


@lru_cache(maxsize=8)
def _cached(reader: Callable[..., Trace], path: Path, options: tuple[Any, ...], mtime_ns: int, size: int) -> Trace:
    return reader(path, *options)


def read_cached(reader: Callable[..., Trace], path: Path, *options: Any) -> Trace:
    """Return ``reader(path, *options)``, read once per process while the file stays as it is."""
    status = path.stat()
    return _cached(reader, path.resolve(), options, status.st_mtime_ns, status.st_size)

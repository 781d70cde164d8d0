"""Readers of trace files; a malformed row raises one line that names file, line and value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.textfile import plain_stem, text_lines
from fleetgym.envs.workloads.blocks import id_list, implied_block_size, label_chains, optional_chain, settle_blocks
from fleetgym.envs.workloads.formats import JSONL_FIELDS, MOONCAKE_FIELDS, check_fields, csv_names, refuse_foreign
from fleetgym.envs.workloads.times import Clock

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOONCAKE_BLOCK_TOKENS = 512
MAX_TOKENS = 2**31 - 1


def read_azure(path: Path) -> Trace:
    """Read an `AzureLLMInferenceTrace` CSV, of 2023 (7-digit fractions) or 2024 (``+00:00`` times).

    Parameters
    ----------
    path : Path
        Plain or gzip.

    Raises
    ------
    UserError
        Wrong header, empty file, malformed row, non-positive length or a time that goes back.
    """
    text = text_lines(path)
    lines = pl.DataFrame({"line": text}, schema={"line": pl.String}).with_row_index("number", 1)
    lines = lines.filter(pl.col("line").str.strip_chars() != "")
    _check_azure_header(path, text, lines)
    lines = lines[1:]
    if lines.is_empty():
        raise UserError(f"{path}: the trace holds no request")
    parts = lines["line"].str.split_exact(",", 3).struct.unnest().select(pl.all().str.strip_chars(' \t"'))
    refuse = partial(_refuse_first, path, lines["number"])
    ragged = parts["field_2"].is_null() | parts["field_3"].is_not_null()
    refuse(ragged, lines["line"], "row", "expected 3 comma-separated fields")
    clock = parts["field_0"].str.strip_suffix("+00:00")
    times = clock.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    refuse(times.is_null(), parts["field_0"], "TIMESTAMP", "expected YYYY-MM-DD HH:MM:SS.fraction, in UTC")
    lengths = []
    for column, name in (("field_1", "ContextTokens"), ("field_2", "GeneratedTokens")):
        values = parts[column].cast(pl.Int64, strict=False)
        refuse(~values.is_between(1, MAX_TOKENS).fill_null(False), parts[column], name, _LENGTH_RULE)
        lengths.append(values.to_numpy())
    arrival_ns = times.dt.timestamp("ns").to_numpy()
    back = pl.Series(np.diff(arrival_ns, prepend=arrival_ns[0]) < 0)
    refuse(back, parts["field_0"], "TIMESTAMP", "goes back in time")
    return make_trace(arrival_ns - arrival_ns[0], *lengths, name=plain_stem(path))


_LENGTH_RULE = f"must be a whole number from 1 to {MAX_TOKENS}"


def _check_azure_header(path: Path, text: list[str], lines: pl.DataFrame) -> None:
    """Refuse another header, one that is Azure's and more with what to do about it."""
    if lines.is_empty():
        raise UserError(f"{path}:1: header None: expected {AZURE_HEADER!r}")
    number, header = lines.row(0)
    names, wanted = csv_names(header), AZURE_HEADER.split(",")
    if names == wanted:
        return
    refuse_foreign(path, header, "azure", "\n".join(text[number - 1 :]))
    more = [name for name in names if name not in wanted]
    advice = f"; drop {', '.join(more)}"[:200] if set(wanted) < set(names) else ""
    raise UserError(f"{path}:{number}: header {header[:80]!r}: expected {AZURE_HEADER!r}{advice}")


def _refuse_first(path: Path, numbers: pl.Series, bad: pl.Series, values: pl.Series, name: str, rule: str) -> None:
    """Refuse the first bad row by its line's number."""
    if bad.any():
        index = int(bad.arg_max() or 0)
        raise UserError(f"{path}:{numbers[index]}: {name}={str(values[index])[:80]!r}: {rule}")


def read_mooncake(
    path: Path, block_size: int, time_unit: str | None = None, hash_block_size: int = MOONCAKE_BLOCK_TOKENS
) -> Trace:
    """Read a Mooncake JSONL trace; its hashes of blocks become chains of ``block_size``-token ids.

    Block j of a chain gets id ``hash * split + j mod split`` with ``split = hash_block_size / block_size``: equal
    hashes, which mean equal tokens and equal prefix, give equal ids. Only full blocks inside the prompt are kept.

    Parameters
    ----------
    path : Path
        Plain or gzip.
    block_size : int
        Tokens that an id of the trace is to name.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Of ``timestamp``; the format's own is ``ms``.
    hash_block_size : int
        Tokens that a hash of the file names.

    Raises
    ------
    UserError
        Malformed line, times in another unit, hashes of blocks of another size, or a ``block_size`` that does not
        divide ``hash_block_size``.
    """
    if block_size < 1 or hash_block_size % block_size:
        raise UserError(f"block_size={block_size!r}: must divide {hash_block_size}")
    split = hash_block_size // block_size
    clock = Clock(path, "timestamp", "ms", time_unit)
    columns = _Columns()
    for where, record in _records(path, "mooncake", MOONCAKE_FIELDS):
        hashes = id_list(where, record, "hash_ids")
        columns.add(
            where,
            clock.read_ns(where, _field(where, record, clock.name)),
            record,
            "input_length",
            "output_length",
            hashes,
        )
    _check_hashes(columns, hash_block_size)
    fine = [
        (hashes[:, None] * split + np.arange(split)).reshape(-1)[: prompt // block_size]
        for hashes, prompt in zip(label_chains(columns.chains), columns.prompts, strict=True)
    ]
    return columns.trace(path, clock, chains=fine, block_size=block_size)


def _check_hashes(columns: _Columns, hash_block_size: int) -> None:
    """Refuse hashes of blocks of another size; each list names all blocks of its prompt, or all lists the full ones.

    Lists of full blocks alone are taken only if they fit no other size.
    """
    wheres, lists, prompts, outputs = columns.lengths()
    counts = np.array([len(hashes) for hashes in lists], np.int64)
    full, most = prompts // hash_block_size, -(-prompts // hash_block_size)
    wrong = (counts > 0) & (counts != most)
    implied = implied_block_size(counts, prompts, outputs)
    if not wrong.any() or (implied == hash_block_size and (counts == full)[counts > 0].all()):
        return
    row = int(np.argmax(wrong))
    hint = f": say workload.hash_block_size={implied}" if implied not in (None, hash_block_size) else ""
    raise UserError(
        f"{wheres[row]}: hash_ids: {counts[row]} hashes for {prompts[row]} tokens: blocks of {hash_block_size} tokens "
        f"give {most[row]}{hint}"
    )


def read_jsonl(path: Path, time_unit: str | None = None, block_size: int | None = None) -> Trace:
    """Read the generic format: one JSON object per line.

    Fields: ``arrival_s``, ``prompt_tokens``, ``output_tokens``, and optionally ``priority`` (int, smaller is
    more important), ``class`` (name), ``block_ids`` or ``prefix_block_ids`` (chain of full-block ids),
    ``block_size`` (tokens that each of them names, the same in all lines) and ``request_id`` (ignored).

    Parameters
    ----------
    path : Path
        Plain or gzip.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Of ``arrival_s``, if it is not seconds.
    block_size : int, optional
        Tokens that a block id names. If neither this nor the file says it, the lengths of the lists may.

    Raises
    ------
    UserError
        Malformed line, unknown field, times in another unit, or lists that contradict the block size.
    """
    clock = Clock(path, "arrival_s", "s", time_unit)
    columns = _Columns()
    priority, class_id = [], []
    classes: dict[str, int] = {}
    for where, record in _records(path, "jsonl", JSONL_FIELDS):
        arrival_ns = clock.read_ns(where, _field(where, record, clock.name))
        columns.add(where, arrival_ns, record, "prompt_tokens", "output_tokens", optional_chain(where, record) or [])
        priority.append(whole_number(where, record, "priority", -MAX_TOKENS) if "priority" in record else 0)
        name = record.get("class", "default")
        if not isinstance(name, str):
            raise UserError(f"{where}: class={name!r}: must be a name")
        class_id.append(classes.setdefault(name, len(classes)))
        block_size = stated_block_size(where, record, block_size)
    chains, size = settle_blocks(path, *columns.lengths(), stated=block_size)
    named = {"priority": np.array(priority), "class_id": np.array(class_id), "class_names": tuple(classes)}
    stated = {"block_size": size, "block_size_stated": block_size is not None}
    return columns.trace(path, clock, chains=chains, **stated, **named)


@dataclass
class _Columns:
    """Requests as they are read, in the order of the file."""

    wheres: list[str] = field(default_factory=list)
    arrival_ns: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    chains: list[list[int]] = field(default_factory=list)

    def add(
        self, where: str, arrival_ns: int, record: dict[str, Any], prompt: str, output: str, chain: list[int]
    ) -> None:
        """Append a request whose lengths stand in fields ``prompt`` and ``output``."""
        if self.arrival_ns and arrival_ns < self.arrival_ns[-1]:
            raise UserError(f"{where}: arrival {arrival_ns / 1e9} s: goes back in time")
        self.prompts.append(whole_number(where, record, prompt, 1))
        self.outputs.append(whole_number(where, record, output, 1))
        self.wheres.append(where)
        self.arrival_ns.append(arrival_ns)
        self.chains.append(chain)

    def lengths(self) -> tuple[list[str], list[list[int]], NDArray[np.int64], NDArray[np.int64]]:
        """Places, lists of ids, prompts and outputs: what `settle_blocks` takes."""
        return self.wheres, self.chains, np.array(self.prompts, np.int64), np.array(self.outputs, np.int64)

    def trace(self, path: Path, clock: Clock, **columns: Any) -> Trace:
        """Return the trace, first arrival at 0."""
        if not self.arrival_ns:
            raise UserError(f"{path}: the trace holds no request")
        times = np.array(self.arrival_ns, np.int64)
        clock.check(times)
        lengths = np.array(self.prompts), np.array(self.outputs)
        return make_trace(times - times[0], *lengths, name=plain_stem(path), **columns)


def stated_block_size(where: str, record: dict[str, Any], known: int | None) -> int | None:
    """Return the block size that a record states, in tokens, else the one known so far.

    Parameters
    ----------
    where : str
        ``file:line`` of the record, for messages.
    record : dict
        One JSON object.
    known : int or None
        What the config or a record before it says.

    Raises
    ------
    UserError
        No positive whole number, or another than ``known``.
    """
    if "block_size" not in record:
        return known
    size = whole_number(where, record, "block_size", 1)
    if known not in (None, size):
        raise UserError(f"{where}: block_size={size}: must be {known}, as said before")
    return size


def _records(path: Path, kind: str, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each record of a trace of ``kind``; other formats and other fields are refused with a way on."""
    for number, (where, record) in enumerate(json_lines(path, kind)):
        if number == 0:
            refuse_foreign(path, json.dumps(record), kind)
        check_fields(where, record, fields)
        yield where, record


def json_lines(path: Path, kind: str = "jsonl") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each JSON object of a JSONL file with ``file:line`` for messages; blank lines are passed over.

    Parameters
    ----------
    path : Path
        Plain or gzip (see `text_lines`).
    kind : str
        The workload kind that reads it, for advice where it is of another format.

    Yields
    ------
    where : str
        ``file:line``.
    record : dict

    Raises
    ------
    UserError
        The file cannot be read, or a line is no JSON object.
    """
    lines = text_lines(path)
    first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            if first:
                refuse_foreign(path, line, kind, "\n".join(lines[number - 1 :]))
            raise UserError(f"{where}: {line.strip()[:80]!r}: not a JSON object")
        first = False
        yield where, record


def _field(where: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(f"{where}: {name}: missing")
    return record[name]


def whole_number(where: str, record: dict[str, Any], name: str, low: int) -> int:
    """Return a field that is a whole number.

    Parameters
    ----------
    where : str
        ``file:line`` of the record, for messages.
    record : dict
        One JSON object.
    name : str
        The field.
    low : int
        Smallest allowed value; the largest is `MAX_TOKENS`.

    Raises
    ------
    UserError
        It is missing or anything else.
    """
    value = _field(where, record, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_TOKENS:
        raise UserError(f"{where}: {name}={value!r}: must be a whole number from {low} to {MAX_TOKENS}")
    return int(value)


@lru_cache(maxsize=8)
def _cached(reader: Callable[..., Trace], path: Path, options: tuple[Any, ...], mtime_ns: int, size: int) -> Trace:
    return reader(path, *options)


def read_cached(reader: Callable[..., Trace], path: Path, *options: Any) -> Trace:
    """Return what a reader makes of a file, read once per process while the file's size and time stay as they are.

    Parameters
    ----------
    reader : callable
        Of this module, called as ``reader(path, *options)``.
    path : Path
        A file that exists.
    *options
        Hashable.

    Raises
    ------
    UserError
        As ``reader``.
    """
    status = path.stat()
    return _cached(reader, path.resolve(), options, status.st_mtime_ns, status.st_size)

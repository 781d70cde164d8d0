"""Read what a real server did: a folder with one record per request, its settings and its load over time.

The folder holds ``requests.jsonl`` and perhaps ``workload.jsonl``, ``meta.json`` and ``timeseries.csv``, plain or gzip
(``.gz``). Two kinds of request records are known:

* vLLM's own time stamps (``queued_ts``, ``first_token_ts``, ``last_token_ts`` on the engine's monotonic clock and
  ``arrival_time`` on the wall clock); ``workload.jsonl`` adds the chains of prompt blocks;
* plain latencies: ``arrival_s``, ``prompt_tokens``, ``output_tokens``, then ``ttft_s`` and ``e2e_s``, or
  ``first_token_s`` and ``finish_s`` on the clock of ``arrival_s``; perhaps ``block_ids`` (or ``prefix_block_ids``),
  ``block_size`` and ``priority``, as in workloads.

``docs/fidelity.md`` says how each field is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.judging import NS, since_s, tpot_s
from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.textfile import find_file, read_text, text_lines
from fleetgym.envs.workloads.blocks import optional_chain, settle_blocks
from fleetgym.envs.workloads.readers import MAX_TOKENS, json_lines, stated_block_size, whole_number
from fleetgym.envs.workloads.times import LONGEST_GAP_S, epoch_unit

CHAIN_BLOCK_TOKENS = 16
TIMESERIES_COLUMNS = ("t", "running", "waiting")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timeseries:
    """Load of the server over time, one row per tick.

    Attributes
    ----------
    t_s : ndarray of float, shape (T,)
        Seconds since the first arrival (the recorder's clock starts with its first sample).
    running, waiting : ndarray of float, shape (T,)
        Requests.
    kv_usage : ndarray of float, shape (T,)
        Used share of the KV cache in [0, 1]; NaN where it was not recorded.
    """

    t_s: Floats
    running: Floats
    waiting: Floats
    kv_usage: Floats


@dataclass(frozen=True)
class MeasuredRun:
    """A measured run, requests in arrival order, times in seconds after the first arrival.

    Attributes
    ----------
    name : str
    trace : Trace
        What arrived; all requests, also those that never finished.
    first_token_s, finish_s : ndarray of float, shape (R,)
        NaN for a request that never finished.
    meta : mapping
        ``meta.json``, empty if there is none.
    timeseries : Timeseries or None
    chains_known : bool
        Whether the records name the content of the prompts' blocks.
    """

    name: str
    trace: Trace
    first_token_s: Floats
    finish_s: Floats
    meta: Mapping[str, Any] = field(default_factory=dict)
    timeseries: Timeseries | None = None
    chains_known: bool = False

    @property
    def chain_tokens(self) -> int:
        """Tokens that one id of the prompts' blocks names."""
        return self.trace.block_size or CHAIN_BLOCK_TOKENS

    @property
    def arrival_s(self) -> Floats:
        """Arrival of each request, shape (R,)."""
        seconds: Floats = self.trace.requests["arrival_ns"] * 1e-9
        return seconds

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which requests finished, shape (R,); only these are judged."""
        return np.isfinite(self.finish_s)

    @property
    def latencies(self) -> dict[str, Floats]:
        """``ttft``, ``tpot`` and ``e2e`` of each request in seconds, shape (R,), NaN where they do not exist."""
        return latencies(self.trace, self.first_token_s, self.finish_s)


def latencies(trace: Trace, first_token_s: Floats, finish_s: Floats) -> dict[str, Floats]:
    """TTFT, TPOT and E2E in seconds, shape (R,) each, NaN where they do not exist, as the TPOT of a one-token answer.

    Parameters
    ----------
    trace : Trace
        What arrived.
    first_token_s, finish_s : ndarray of float, shape (R,)
        On the clock of the arrivals; NaN for a request that never finished.

    Returns
    -------
    dict
        By the names ``ttft``, ``tpot`` and ``e2e``.
    """
    arrival, outputs = trace.requests["arrival_ns"] * NS, trace.requests["output_tokens"]
    return {
        "ttft": since_s(arrival, first_token_s, 1.0),
        "tpot": np.where(outputs > 1, tpot_s(first_token_s, finish_s, outputs, 1.0), np.nan),
        "e2e": since_s(arrival, finish_s, 1.0),
    }


@dataclass
class _Columns:
    """Request records as they are read; times on any one clock."""

    where: list[str] = field(default_factory=list)
    arrival: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    priority: list[int] = field(default_factory=list)
    chains: list[list[int] | None] = field(default_factory=list)
    block_size: int | None = None

    def describe(self, where: str, prompt: int, output: int, record: dict[str, Any]) -> None:
        """Append what a request consists of; ``record`` holds its optional fields."""
        if "hash_ids" in record:
            raise UserError(
                f"{where}: hash_ids: rename it to block_ids, and say block_size if it is not {CHAIN_BLOCK_TOKENS}"
            )
        self.where.append(where)
        self.prompt.append(prompt)
        self.output.append(output)
        self.priority.append(whole_number(where, record, "priority", -MAX_TOKENS) if "priority" in record else 0)
        self.chains.append(optional_chain(where, record))
        self.block_size = stated_block_size(where, record, self.block_size)


def read_measured(folder: str | Path) -> MeasuredRun:
    """Read a measured run.

    Parameters
    ----------
    folder : str or Path
        Holds the files that this module's docstring names; ``~`` stands for the user's home.

    Raises
    ------
    UserError
        No such folder or file, a malformed or missing field (file and line are named), times more than a year apart, or
        no finished request.
    """
    path = Path(folder).expanduser()
    requests = find_file(path, "requests.jsonl")
    if requests is None:
        raise UserError(f"measured={str(folder)!r}: must be a folder with requests.jsonl")
    records = list(json_lines(requests))
    if not records:
        raise UserError(f"{requests}: holds no request")
    columns = _read_stamps(path, records) if "queued_ts" in records[0][1] else _read_plain(records)
    return _assemble(path, requests, columns)


def _assemble(path: Path, requests: Path, columns: _Columns) -> MeasuredRun:
    arrival = np.array(columns.arrival)
    order = np.argsort(arrival, kind="stable")
    zero = arrival[order[0]]
    gaps = np.diff(arrival[order], append=arrival[order[-1]])
    if gaps.max() > LONGEST_GAP_S:
        early, late = order[gaps.argmax()], order[gaps.argmax() + 1]
        raise UserError(
            f"{columns.where[late]}: arrives {gaps.max():.3g} s after the one before ({columns.where[early]}): must be "
            "less than a year: give all times on one clock"
        )
    prompts, outputs = np.array(columns.prompt), np.array(columns.output)
    lists = [chain or [] for chain in columns.chains]
    chains, size = settle_blocks(
        requests, columns.where, lists, prompts, outputs, stated=columns.block_size, assumed=CHAIN_BLOCK_TOKENS
    )
    trace = make_trace(
        np.rint((arrival[order] - zero) * 1e9).astype(np.int64),
        prompts[order],
        outputs[order],
        name=path.name,
        priority=np.array(columns.priority)[order],
        chains=[chains[i] for i in order],
        block_size=size,
    )
    run = MeasuredRun(
        path.name,
        trace,
        np.array(columns.first)[order] - zero,
        np.array(columns.finish)[order] - zero,
        _read_meta(find_file(path, "meta.json")),
        _read_timeseries(find_file(path, "timeseries.csv")),
        all(chain is not None for chain in columns.chains),
    )
    if not run.finished.any():
        raise UserError(f"{requests}: no request ever finished, so there is nothing to compare with")
    return run


def _read_plain(records: list[tuple[str, dict[str, Any]]]) -> _Columns:
    """Read the format of a user's own measurement."""
    columns = _Columns()
    for where, record in records:
        arrival = _arrival(where, record, "arrival_s")
        relative = "ttft_s" in record or "e2e_s" in record
        names = ("ttft_s", "e2e_s") if relative else ("first_token_s", "finish_s")
        base = arrival if relative else 0.0
        first, finish = _pair(where, record, *names, arrival - base)
        columns.arrival.append(arrival)
        columns.first.append(base + first)
        columns.finish.append(base + finish)
        prompt, output = (whole_number(where, record, name, 1) for name in ("prompt_tokens", "output_tokens"))
        columns.describe(where, prompt, output, record)
    return columns


def _read_stamps(path: Path, records: list[tuple[str, dict[str, Any]]]) -> _Columns:
    """Read vLLM's time stamps, and bring the arrivals to the engine's clock.

    The clocks differ by a constant that nobody recorded. ``queued_ts`` comes a moment after the arrival, or later if
    the engine is busy with an iteration, so the smallest difference is the best estimate of that constant.
    """
    columns = _Columns()
    workload = _read_workload(find_file(path, "workload.jsonl"))
    stamped, planned, queued = [], [], []
    for where, record in records:
        request = str(_field(where, record, "request_id"))
        known = workload.get(request, {})
        if workload and not known:
            raise UserError(f"{where}: request_id={request!r}: is not in workload.jsonl")
        prompt, output = whole_number(where, record, "input_toks", 1), whole_number(where, record, "output_toks", 1)
        if known and (known["prompt"], known["output"]) != (prompt, output):
            raise UserError(
                f"{where}: input_toks={prompt}, output_toks={output}: workload.jsonl says "
                f"{known['prompt']} and {known['output']} for {request!r}"
            )
        first, finish = _pair(where, record, "first_token_ts", "last_token_ts", -math.inf)
        stamped.append(
            math.nan if _field(where, record, "arrival_time") is None else _arrival(where, record, "arrival_time")
        )
        planned.append(float(known.get("arrival", math.nan)))
        queued.append(math.nan if math.isnan(finish) else _number(where, record, "queued_ts"))
        if math.isnan(stamped[-1]) and math.isnan(planned[-1]):
            raise UserError(f"{where}: arrival_time=null: must be a number where workload.jsonl gives no arrival_s")
        columns.first.append(first)
        columns.finish.append(finish)
        columns.describe(known.get("where", where), prompt, output, {**record, **known.get("record", {})})
    columns.arrival = _engine_arrivals(np.array(stamped), np.array(planned), np.array(queued)).tolist()
    return columns


def _engine_arrivals(stamped: Floats, planned: Floats, queued: Floats) -> Floats:
    """Arrivals on the engine's clock; a failed request without a stamp arrived when it was planned to."""
    arrival = stamped
    if np.isnan(stamped).any():
        shift = stamped - planned
        arrival = np.where(
            np.isnan(stamped), planned + (0.0 if np.isnan(shift).all() else np.nanmedian(shift)), stamped
        )
    offset = queued - arrival
    return arrival if np.isnan(offset).all() else arrival + np.nanmin(offset)


def _read_workload(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read ``workload.jsonl`` by request id; empty if there is none."""
    if path is None:
        return {}
    return {
        str(_field(where, record, "request_id")): {
            "where": where,
            "record": record,
            "arrival": _arrival(where, record, "arrival_s"),
            "prompt": whole_number(where, record, "prompt_tokens", 1),
            "output": whole_number(where, record, "output_tokens", 1),
        }
        for where, record in json_lines(path)
    }


def _read_meta(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        meta = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("engine_kwargs", {}), dict):
        raise UserError(f"{path}: must be an object, its engine_kwargs too")
    return meta


def _read_timeseries(path: Path | None) -> Timeseries | None:
    if path is None:
        return None
    header, *lines = text_lines(path) or [""]
    titles = [title.strip() for title in header.split(",")]
    for name in TIMESERIES_COLUMNS:
        if name not in titles:
            raise UserError(f"{path}:1: column {name!r} is missing")
    names = [name for name in (*TIMESERIES_COLUMNS, "kv_cache_pct") if name in titles]
    rows = [
        _cells(f"{path}:{number}", dict(zip(titles, line.split(","), strict=False)), names)
        for number, line in enumerate(lines, start=2)
        if line.strip()
    ]
    columns = dict(zip(names, np.array(rows).reshape(-1, len(names)).T, strict=True))
    usage = columns.get("kv_cache_pct", np.full(len(rows), np.nan)) / 100.0
    return Timeseries(columns["t"], columns["running"], columns["waiting"], usage)


def _cells(where: str, row: Mapping[str, str], names: list[str]) -> list[float]:
    values = []
    for name in names:
        try:
            values.append(float(row[name]))
        except (KeyError, ValueError):
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise UserError(f"{where}: {name}={row.get(name)!r}: cannot be read as numbers, must be a finite one")
    return values


def _pair(where: str, record: dict[str, Any], first: str, last: str, earliest: float) -> tuple[float, float]:
    """Read both times of a request; (NaN, NaN) if both are null, that is, it never finished."""
    if first in record and last in record and record[last] is None:
        return math.nan, math.nan
    values = _number(where, record, first), _number(where, record, last)
    if not earliest <= values[0] <= values[1]:
        raise UserError(f"{where}: {first}={values[0]}, {last}={values[1]}: must follow the arrival in this order")
    return values


def _field(where: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(f"{where}: {name}: missing (has {', '.join(record)})")
    return record[name]


def _number(where: str, record: dict[str, Any], name: str) -> float:
    value = _field(where, record, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        raise UserError(f"{where}: {name}={value!r}: must be a finite number")
    return float(value)


def _arrival(where: str, record: dict[str, Any], name: str) -> float:
    """Read a time of arrival in seconds on any clock; one that must be in another unit is refused."""
    value = _number(where, record, name)
    unit = epoch_unit(value)
    if unit not in (None, "s"):
        raise UserError(f"{where}: {name}={record[name]}: must be seconds; this looks like {unit} since 1970")
    return value

"""Read what a real server did: a folder with one record per request, its settings and its load over time.

The folder holds ``requests.jsonl`` and perhaps ``workload.jsonl``, ``meta.json`` and ``timeseries.csv``. Two kinds of
request records are known:

* vLLM's own time stamps (``queued_ts``, ``first_token_ts``, ``last_token_ts`` on the engine's monotonic clock and
  ``arrival_time`` on the wall clock); ``workload.jsonl`` adds the chains of prompt blocks;
* plain latencies: ``arrival_s``, ``prompt_tokens``, ``output_tokens``, then ``ttft_s`` and ``e2e_s``, or
  ``first_token_s`` and ``finish_s`` on the clock of ``arrival_s``; perhaps ``prefix_block_ids``.

``docs/fidelity.md`` says how each field is read.
"""

from __future__ import annotations

import csv
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
from fleetgym.envs.workloads.readers import id_list, json_lines, whole_number

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
    def arrival_s(self) -> Floats:
        """Arrival of each request, shape (R,)."""
        seconds: Floats = self.trace.requests["arrival_ns"] * 1e-9
        return seconds

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which requests finished; only these are judged."""
        return np.isfinite(self.finish_s)

    @property
    def latencies(self) -> dict[str, Floats]:
        """``ttft``, ``tpot`` and ``e2e`` of each request in seconds, NaN where they do not exist."""
        return latencies(self.trace, self.first_token_s, self.finish_s)


def latencies(trace: Trace, first_token_s: Floats, finish_s: Floats) -> dict[str, Floats]:
    """TTFT, TPOT and E2E in seconds; the TPOT of a one-token answer does not exist."""
    arrival, outputs = trace.requests["arrival_ns"] * NS, trace.requests["output_tokens"]
    return {
        "ttft": since_s(arrival, first_token_s, 1.0),
        "tpot": np.where(outputs > 1, tpot_s(first_token_s, finish_s, outputs, 1.0), np.nan),
        "e2e": since_s(arrival, finish_s, 1.0),
    }


@dataclass
class _Columns:
    """Request records as they are read; times on any one clock."""

    arrival: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    chains: list[NDArray[np.int64] | None] = field(default_factory=list)


def read_measured(folder: str | Path) -> MeasuredRun:
    """Read a measured run.

    Raises
    ------
    UserError
        No such folder or file, a malformed or missing field (file and line are named), no finished request.
    """
    path = Path(folder).expanduser()
    if not (path / "requests.jsonl").is_file():
        raise UserError(f"measured={str(folder)!r}: must be a folder with requests.jsonl")
    records = list(json_lines(path / "requests.jsonl"))
    if not records:
        raise UserError(f"{path / 'requests.jsonl'}: holds no request")
    columns = _read_stamps(path, records) if "queued_ts" in records[0][1] else _read_plain(records)
    return _assemble(path, columns)


def _assemble(path: Path, columns: _Columns) -> MeasuredRun:
    arrival = np.array(columns.arrival)
    order = np.argsort(arrival, kind="stable")
    zero = arrival[order[0]]
    chains = [columns.chains[i] for i in order]
    trace = make_trace(
        np.rint((arrival[order] - zero) * 1e9).astype(np.int64),
        np.array(columns.prompt)[order],
        np.array(columns.output)[order],
        name=path.name,
        chains=[np.zeros(0, np.int64) if chain is None else chain for chain in chains],
    )
    run = MeasuredRun(
        path.name,
        trace,
        np.array(columns.first)[order] - zero,
        np.array(columns.finish)[order] - zero,
        _read_meta(path / "meta.json"),
        _read_timeseries(path / "timeseries.csv"),
        all(chain is not None for chain in chains),
    )
    if not run.finished.any():
        raise UserError(f"{path / 'requests.jsonl'}: no request ever finished, so there is nothing to compare with")
    return run


def _read_plain(records: list[tuple[str, dict[str, Any]]]) -> _Columns:
    """Read the format of a user's own measurement."""
    columns = _Columns()
    for where, record in records:
        arrival = _number(where, record, "arrival_s")
        relative = "ttft_s" in record or "e2e_s" in record
        names = ("ttft_s", "e2e_s") if relative else ("first_token_s", "finish_s")
        base = arrival if relative else 0.0
        first, finish = _pair(where, record, *names, arrival - base)
        columns.arrival.append(arrival)
        columns.first.append(base + first)
        columns.finish.append(base + finish)
        columns.prompt.append(whole_number(where, record, "prompt_tokens", 1))
        columns.output.append(whole_number(where, record, "output_tokens", 1))
        columns.chains.append(id_list(where, record, "prefix_block_ids") if "prefix_block_ids" in record else None)
    return columns


def _read_stamps(path: Path, records: list[tuple[str, dict[str, Any]]]) -> _Columns:
    """Read vLLM's time stamps, and bring the arrivals to the engine's clock.

    The clocks differ by a constant that nobody recorded. ``queued_ts`` comes a moment after the arrival, or later if
    the engine is busy with an iteration, so the smallest difference is the best estimate of that constant.
    """
    columns = _Columns()
    workload = _read_workload(path / "workload.jsonl")
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
        stamped.append(_number_or_nan(where, record, "arrival_time"))
        planned.append(float(known.get("arrival", math.nan)))
        queued.append(math.nan if math.isnan(finish) else _number(where, record, "queued_ts"))
        if math.isnan(stamped[-1]) and math.isnan(planned[-1]):
            raise UserError(f"{where}: arrival_time=null: must be a number where workload.jsonl gives no arrival_s")
        columns.first.append(first)
        columns.finish.append(finish)
        columns.prompt.append(prompt)
        columns.output.append(output)
        columns.chains.append(known.get("chain"))
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


def _read_workload(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``workload.jsonl`` by request id; empty if there is none."""
    if not path.is_file():
        return {}
    return {
        str(_field(where, record, "request_id")): {
            "arrival": _number(where, record, "arrival_s"),
            "prompt": whole_number(where, record, "prompt_tokens", 1),
            "output": whole_number(where, record, "output_tokens", 1),
            "chain": id_list(where, record, "prefix_block_ids") if "prefix_block_ids" in record else None,
        }
        for where, record in json_lines(path)
    }


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("engine_kwargs", {}), dict):
        raise UserError(f"{path}: must be an object, its engine_kwargs too")
    return meta


def _read_timeseries(path: Path) -> Timeseries | None:
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = (*TIMESERIES_COLUMNS, *(("kv_cache_pct",) if rows and "kv_cache_pct" in rows[0] else ()))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except KeyError as error:
        raise UserError(f"{path}: column {error.args[0]!r} is missing") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as numbers: {error}") from None
    usage = columns.get("kv_cache_pct", np.full(len(rows), np.nan)) / 100.0
    return Timeseries(columns["t"], columns["running"], columns["waiting"], usage)


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
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{where}: {name}={value!r}: must be a finite number")
    return float(value)


def _number_or_nan(where: str, record: dict[str, Any], name: str) -> float:
    return math.nan if _field(where, record, name) is None else _number(where, record, name)

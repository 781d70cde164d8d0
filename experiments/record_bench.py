"""``fleetgym record-bench``: make of what ``vllm bench serve --save-detailed`` recorded a run that ``validate`` reads.

    fleetgym record-bench RESULT.json FOLDER max_num_seqs=128 num_gpu_blocks=2587

writes ``FOLDER/requests.jsonl``, one line per request, and ``FOLDER/meta.json`` with the server's settings that were
given as ``name=value`` (vLLM's names; ``num_gpu_blocks`` is in the server's log).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetgym.envs.atomic import write_text
from fleetgym.envs.errors import UserError
from fleetgym.envs.textfile import read_text
from fleetgym.envs.workloads.readers import whole_number
from fleetgym.experiments.harness.failures import guard

LISTS = ("start_times", "input_lens", "output_lens", "ttfts", "itls")
_CLOCK_S = 60.0  # the client's clock says at least this, if one request's start is 0 because it never started


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one result and return the exit code (2 after a user's mistake).

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments of the command; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="fleetgym record-bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("result", type=Path, help="JSON that vllm bench serve wrote")
    parser.add_argument("folder", type=Path, help="where to write the measured run")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings of the server, vLLM's names")
    arguments = parser.parse_args(argv)
    return guard(lambda: _convert(arguments.result, arguments.folder, arguments.settings))


def _convert(result: Path, folder: Path, settings: Sequence[str] = ()) -> None:
    """Write the measured run and say how many requests it holds.

    Raises
    ------
    UserError
        The result cannot be read, lacks per-request lists, or holds no request; a setting is not ``name=value``.
    """
    bench = _load(result)
    records = _request_records(bench, result)
    meta = {
        "model": bench.get("model_id"),
        "recorded_from": result.name,
        "engine_kwargs": dict(_setting(text) for text in settings),
    }
    write_text(folder / "requests.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    failed = sum(record["e2e_s"] is None for record in records)
    unstarted = len(bench["start_times"]) - len(records)
    left_out = f"; {unstarted} more never started and are left out" if unstarted else ""
    print(f"{folder}: {len(records)} requests, {failed} of them never finished{left_out}")


def _request_records(bench: dict[str, Any], where: Path) -> list[dict[str, Any]]:
    """One record per request, in order of arrival, times after the first of them.

    ``e2e_s`` is the TTFT and all gaps between chunks: the time of the last token. A failed request keeps null
    latencies; how long its answer would have been is unknown, so it counts as one token. One that never started has no
    arrival and is left out.
    """
    missing = [name for name in LISTS if not isinstance(bench.get(name), list)]
    if missing:
        hint = "a vLLM that records start_times" if missing == ["start_times"] else "--save-detailed"
        raise UserError(f"{where}: {', '.join(missing)}: missing; run vllm bench serve with {hint}")
    if not any(bench[name] for name in LISTS):
        raise UserError(f"{where}: holds no request")
    errors = bench.get("errors")
    lists = {name: bench[name] for name in LISTS} | ({"errors": errors} if errors else {})
    lengths = {name: len(values) if isinstance(values, list) else values for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        hint = "; itls must be one list per request" if _is_flat(bench["itls"]) else ""
        raise UserError(f"{where}: lists of different lengths: {lengths}{hint}")
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    places = [f"{where}: request {index}" for index in range(len(rows))]
    started = _started(places, rows)
    records = [_record(place, row) for place, row, known in zip(places, rows, started, strict=True) if known]
    if not any(bench["itls"]) and any(record["e2e_s"] and record["output_tokens"] > 1 for record in records):
        raise UserError(
            f"{where}: itls: no request has any, so that nothing tells when answers ended: let the client stream"
        )
    records.sort(key=lambda record: float(record["arrival_s"]))
    first = records[0]["arrival_s"]
    return [{**record, "arrival_s": record["arrival_s"] - first} for record in records]


def _started(places: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Tell which requests started: the client leaves the start of the others at 0, far from what its clock says."""
    starts = [_seconds(place, "start_times", row["start_times"]) for place, row in zip(places, rows, strict=True)]
    earliest = min((start for start in starts if start > 0.0), default=0.0)
    started = [start > 0.0 or earliest < _CLOCK_S for start in starts]
    for place, row, known in zip(places, rows, started, strict=True):
        if not known and not _failed(row):
            raise UserError(
                f"{place}: start_times=0 with output_lens={row['output_lens']!r}: a request that was answered must start "
                f"on the clock of the others, whose first is {earliest:g} s"
            )
    return started


def _failed(row: dict[str, Any]) -> bool:
    return bool(row.get("errors")) or row["output_lens"] == 0


def _record(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Check one request, whose arrival stays on the client's clock.

    A request failed if it has an error or no token. A chunk may hold several tokens or none (the first of a chat), so
    that the number of gaps says nothing of the number of tokens.
    """
    error = row.get("errors")
    if error is not None and not isinstance(error, str):
        raise UserError(f"{where}: errors={error!r}: must be a text, empty without an error")
    prompt = whole_number(where, row, "input_lens", 1)
    output = whole_number(where, row, "output_lens", 0)
    record = {
        "arrival_s": _seconds(where, "start_times", row["start_times"]),
        "prompt_tokens": prompt,
        "output_tokens": max(1, output),
        "ttft_s": None,
        "e2e_s": None,
    }
    if _failed(row):
        return record
    gaps = row["itls"]
    if not isinstance(gaps, list):
        raise UserError(
            f"{where}: itls={gaps!r}: must be the list of this request's gaps; one flat list tells no request's end"
        )
    first = _seconds(where, "ttfts", row["ttfts"])
    if first == 0.0:
        raise UserError(f"{where}: ttfts=0 with output_lens={output}: the client saw no first token: let it stream")
    return {**record, "ttft_s": first, "e2e_s": first + sum(_seconds(where, "itls", gap) for gap in gaps)}


def _is_flat(gaps: list[Any]) -> bool:
    return bool(gaps) and not any(isinstance(item, list) for item in gaps)


def _seconds(where: str, name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        hint = ", or the request failed: then output_lens is 0, or errors tells why" if value is None else ""
        raise UserError(f"{where}: {name}={value!r}: must be a number of seconds of at least 0{hint}")
    return float(value)


def _load(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        bench = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data") and text.lstrip().startswith("{"):
            raise UserError(
                f"{path}: holds several results, as --append-result writes them: keep one of them"
            ) from None
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(bench, dict):
        raise UserError(f"{path}: must hold one JSON object")
    return bench


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{text!r}: must be name=value")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    raise SystemExit(main())

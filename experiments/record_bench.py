"""Turn the result of ``vllm bench serve --save-result --save-detailed`` into a folder that ``validate`` reads.

    python -m fleetgym.experiments.record_bench RESULT.json FOLDER max_num_seqs=128 num_gpu_blocks=2587

writes ``FOLDER/requests.jsonl``, one line per request, and ``FOLDER/meta.json`` with the server's settings that were
given as ``name=value`` (vLLM's names; ``num_gpu_blocks`` is in the server's log).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetgym.envs.errors import UserError
from fleetgym.experiments.cli import guard
from fleetgym.experiments.report.files import write_text

LISTS = ("start_times", "input_lens", "output_lens", "ttfts", "itls")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one result and return the exit code (2 after a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m fleetgym.experiments.record_bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("result", type=Path, help="JSON that vllm bench serve wrote")
    parser.add_argument("folder", type=Path, help="where to write the measured run")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings of the server, vLLM's names")
    arguments = parser.parse_args(argv)
    return guard(lambda: convert(arguments.result, arguments.folder, arguments.settings))


def convert(result: Path, folder: Path, settings: Sequence[str] = ()) -> None:
    """Write the measured run and say how many requests it holds.

    Raises
    ------
    UserError
        The result cannot be read, lacks per-request lists, or holds no request; a setting is not ``name=value``.
    """
    bench = _load(result)
    records = request_records(bench, result)
    meta = {
        "model": bench.get("model_id"),
        "recorded_from": result.name,
        "engine_kwargs": dict(_setting(text) for text in settings),
    }
    write_text(folder / "requests.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    failed = sum(record["e2e_s"] is None for record in records)
    print(f"{folder}: {len(records)} requests, {failed} of them never finished")


def request_records(bench: dict[str, Any], where: Path) -> list[dict[str, Any]]:
    """One record per request, in order of arrival, times after the first of them.

    ``e2e_s`` is the TTFT and all gaps between chunks: the time of the last token. A failed request keeps null
    latencies; how long its answer would have been is unknown, so it counts as one token.
    """
    for name in LISTS:
        if not isinstance(bench.get(name), list):
            hint = "a vLLM that records start_times" if name == "start_times" else "--save-detailed"
            raise UserError(f"{where}: {name}: missing; run vllm bench serve with {hint}")
    lengths = {name: len(bench[name]) for name in LISTS}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{where}: lists of different lengths: {lengths}")
    if not bench["start_times"]:
        raise UserError(f"{where}: holds no request")
    errors = bench.get("errors") or [""] * len(bench["ttfts"])
    rows = zip(*(bench[name] for name in LISTS), errors, strict=True)
    first = min(bench["start_times"])
    records = []
    for start, prompt, output, ttft, gaps, error in sorted(rows, key=lambda row: float(row[0])):
        failed = bool(error) or output < 1
        records.append(
            {
                "arrival_s": start - first,
                "prompt_tokens": prompt,
                "output_tokens": max(1, output),
                "ttft_s": None if failed else ttft,
                "e2e_s": None if failed else ttft + sum(gaps),
            }
        )
    return records


def _load(path: Path) -> dict[str, Any]:
    try:
        bench = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    sys.exit(main())

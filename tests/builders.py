"""What tests of several folders build alike."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetgym.envs.cluster.requests import Trace


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one record a line, packed where the name ends in ``.gz``."""
    data = json_lines(records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same_trace(first: Trace, second: Trace) -> bool:
    return np.array_equal(first.requests, second.requests) and np.array_equal(first.block_ids, second.block_ids)

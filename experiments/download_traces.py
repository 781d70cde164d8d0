"""``fleetgym download-traces``: fetch the public request traces, verify them, and put them where workloads look."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.datasets import DATASETS, Dataset, find_dataset, user_data_dir

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0


def _sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(dataset: Dataset, folder: Path, *, force: bool = False, url: str | None = None) -> Path:
    """Fetch one data set into ``folder`` and return its path.

    A transfer that broke off is continued from ``<file>.part``. The file appears under its name only when
    its digest is right, in one rename.

    Parameters
    ----------
    dataset : Dataset
    folder : Path
        Created if needed.
    force : bool
        Fetch again although a verified copy is there.
    url : str, optional
        Replaces the data set's own address.

    Raises
    ------
    UserError
        No network, an error of the server, an unwritable folder, a full disk, or a file that differs.
    """
    target = folder / dataset.file_name
    if target.is_file() and not force and _sha256(target) == dataset.sha256:
        return target
    part = folder / f"{dataset.file_name}.part"
    source = url or dataset.url
    try:
        if force:
            part.unlink(missing_ok=True)
        resumed = part.exists() and part.stat().st_size > 0
        _fetch(source, part, dataset.name)
        if resumed and _sha256(part) != dataset.sha256:  # the old piece may have been of another file
            part.unlink()
            _fetch(source, part, dataset.name)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{dataset.name}: cannot download {source}: {reason}") from None
    except OSError as error:
        raise UserError(f"{dataset.name}: cannot write to {folder}: {error.strerror or error}") from None
    digest = _sha256(part)
    if digest != dataset.sha256:
        part.unlink()
        raise UserError(f"{dataset.name}: {source}: sha256 is {digest}, expected {dataset.sha256}; file discarded")
    os.replace(part, target)
    return target


def _fetch(url: str, part: Path, label: str) -> None:
    """Write ``url`` to ``part``, continuing it where the server can."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fleetgym", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send, or the piece is longer than the file
            error.close()
            return
        raise
    with response:
        if getattr(response, "status", None) != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if have else "wb") as file:
            _copy(response, file, label, have, total)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes; run again to continue")


def _copy(response: IO[bytes], file: IO[bytes], label: str, have: int, total: int | None) -> None:
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, completed=have)
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            progress.advance(task, len(chunk))


def main(argv: Sequence[str] | None = None) -> int:
    """Download traces; return 0, or 2 after one line that says what went wrong.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments of the command; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="fleetgym download-traces", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(DATASETS)}")
    parser.add_argument("--to", type=Path, help="data folder (default: $FLEETGYM_DATA, else ~/.local/share/fleetgym)")
    parser.add_argument("--force", action="store_true", help="fetch again although a verified copy is there")
    parser.add_argument("--optional", action="store_true", help="what cannot be had is a note on stdout, no error")
    parser.add_argument("--list", action="store_true", help="print what can be had, and stop")
    args = parser.parse_args(argv)
    if args.list:
        for entry in DATASETS.values():
            print(f"{entry.name:24s}{entry.requests:>7d} requests  {entry.licence:12s}{entry.url}")
        return 0
    root = args.to or user_data_dir()
    try:
        entries = [find_dataset(name) for name in args.names] or list(DATASETS.values())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        for entry in entries:
            path = download(entry, root / "traces", force=args.force)
            print(f"{entry.name}: {path} ({entry.requests} requests, sha256 verified, {entry.licence})")
    except UserError as error:
        print(f"note: {error}" if args.optional else f"error: {error}", file=None if args.optional else sys.stderr)
        return 2
    if args.to is not None and root.resolve() != user_data_dir().resolve():
        print(f"set FLEETGYM_DATA={root} so that workloads find them")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Files and folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetgym.envs.errors import UserError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside a file, with its suffix; it takes the file's name if the block succeeds.

    For writers that want a path (Parquet, PNG, zip)::

        with replacing(folder / "requests.parquet") as path:
            table.write_parquet(path)

    Parameters
    ----------
    target : Path
        Its folder is made if absent. A file of that name stays as it is if the block fails.

    Yields
    ------
    Path
        The temporary path; nothing is there yet.

    Raises
    ------
    UserError
        The folder cannot be made or written, or the disk is full.
    """
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target``, which must not exist; it takes that name if the block succeeds.

    Parameters
    ----------
    target : Path
        The folder around it is made if absent.

    Yields
    ------
    Path
        The temporary folder, empty; it is gone if the block fails.

    Raises
    ------
    UserError
        The folder around it cannot be made or written, or the disk is full.
    """
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)  # mkdtemp lets nobody else in
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all.

    Parameters
    ----------
    target : Path
        Its folder is made if absent.
    text : str

    Raises
    ------
    UserError
        As `replacing`.
    """
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Say of an error of the file system what could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"folder={str(target.parent)!r}: cannot write {target.name}: {reason}") from None

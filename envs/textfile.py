"""Text files as people hand them over: plain or gzip, perhaps with a byte-order mark, any line end, blank last ones."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from fleetgym.envs.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is no text of ours, whatever its name says.

    Attributes
    ----------
    name : str
    magic : tuple of bytes
        Beginnings that give it away, in lower case.
    advice : str
        What to do.
    """

    name: str
    magic: tuple[bytes, ...]
    advice: str


_UNPACK = "unpack it, or pack it with gzip, which is read as it is"
FILE_KINDS = (
    FileKind(
        "a git-lfs pointer, not the file itself",
        (b"version https://git-lfs",),
        "run `git lfs pull` where it was cloned, or download the file's raw address",
    ),
    FileKind("a web page", (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"), "download the file's raw address"),
    FileKind(
        "a Parquet file", (b"par1",), "write it as JSON lines, for example polars.read_parquet(...).write_ndjson(...)"
    ),
    FileKind(
        "an Arrow file", (b"arrow1",), "write it as JSON lines, for example polars.read_ipc(...).write_ndjson(...)"
    ),
    FileKind("a zip archive", (b"pk\x03\x04", b"pk\x05\x06"), _UNPACK),
    FileKind("packed with zstandard", (b"\x28\xb5\x2f\xfd",), _UNPACK),
    FileKind("packed with xz", (b"\xfd7zxz\x00",), _UNPACK),
    FileKind("packed with bzip2", (b"bzh",), _UNPACK),
    FileKind("a 7-Zip archive", (b"7z\xbc\xaf\x27\x1c",), _UNPACK),
    FileKind("UTF-16 text", (b"\xff\xfe", b"\xfe\xff"), "save it as UTF-8"),
)


def text_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file without line ends, the blank ones at its end left out.

    Item ``i`` is line ``i + 1`` of the (unpacked) file.

    Parameters
    ----------
    path : Path
        Gzip is recognised by content, whatever the name says.

    Raises
    ------
    UserError
        The file cannot be read, is broken, or is no text (see `FILE_KINDS`).
    """
    text = read_text(path)
    lines = [line.removesuffix("\r") for line in text.rstrip().split("\n")]
    return lines if lines != [""] else []


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, without a byte-order mark.

    Parameters
    ----------
    path : Path
        Gzip is recognised by content, whatever the name says.

    Raises
    ------
    UserError
        As `text_lines`.
    """
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for kind in FILE_KINDS:
        if head.startswith(kind.magic):
            raise UserError(f"{path}: cannot be read as text: it is {kind.name}: {kind.advice}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: cannot be read as text: line {line} is not UTF-8 ({error.reason})") from None


def find_file(folder: Path, name: str) -> Path | None:
    """Return a file or its gzip copy, or None if neither is there.

    Parameters
    ----------
    folder : Path
    name : str
        Without ``.gz``.
    """
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def plain_stem(path: Path) -> str:
    """Return a file's name without its ending, ``.gz`` not counted.

    Parameters
    ----------
    path : Path
        ``a.csv`` and ``a.csv.gz`` both give ``a``.
    """
    return Path(path.name.removesuffix(".gz")).stem

"""Files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetgym.envs.errors import UserError


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target``, with its suffix; it takes that name if the block succeeds.

    Raises
    ------
    UserError
        The folder cannot be made or written.
    """
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"folder={str(target.parent)!r}: cannot write {target.name}: {error.strerror}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic(target) as path:
        path.write_text(text, encoding="utf-8")

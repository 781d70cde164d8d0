"""Files that are whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetgym.envs.errors import UserError
from fleetgym.experiments.harness.run_folder import replacing


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Do as `fleetgym.experiments.harness.run_folder.replacing`, with an error for the user.

    Raises
    ------
    UserError
        The folder cannot be made or written.
    """
    try:
        with replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"folder={str(target.parent)!r}: cannot write {target.name}: {error.strerror}") from None


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic(target) as path:
        path.write_text(text, encoding="utf-8")

"""The latest checkpoint of an experiment, for the commands that come after its training."""

from __future__ import annotations

from pathlib import Path

from fleetgym.envs.atomic import write_text

LATEST = Path("outputs") / "latest"


def remember_latest(name: str, checkpoint: Path) -> None:
    """Leave a pointer to the checkpoint of the latest training run called ``name``, below the current directory.

    Parameters
    ----------
    name : str
        Of the experiment (``name=``); it becomes a file name.
    checkpoint : Path
        Absolute, so that it is found from this directory later.

    Raises
    ------
    UserError
        The pointer cannot be written.
    """
    write_text(LATEST / name, f"{checkpoint}\n")


def latest_checkpoint(name: str) -> Path | None:
    """Return the best model of the latest training run called ``name``, started from this directory; None without one.

    Parameters
    ----------
    name : str
        Of the experiment (``name=``).
    """
    pointer = LATEST / name
    if not pointer.is_file():
        return None
    path = Path(pointer.read_text(encoding="utf-8").strip())
    return path if path.is_file() else None

"""The latest checkpoint of an experiment, for the commands that come after its training."""

from __future__ import annotations

from pathlib import Path

LATEST = Path("outputs") / "latest"


def remember_latest(name: str, checkpoint: Path) -> None:
    """Leave a pointer to the checkpoint of the latest training run called ``name``, below the current directory."""
    LATEST.mkdir(parents=True, exist_ok=True)
    (LATEST / name).write_text(f"{checkpoint}\n", encoding="utf-8")


def latest_checkpoint(name: str) -> Path | None:
    """Return the best model of the latest training run called ``name``, started from this directory; None without one."""
    pointer = LATEST / name
    if not pointer.is_file():
        return None
    path = Path(pointer.read_text(encoding="utf-8").strip())
    return path if path.is_file() else None

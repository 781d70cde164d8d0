"""What is written is whole or absent, whatever ends the writing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fleetgym.envs.atomic import making_folder, replacing, write_text
from fleetgym.envs.errors import UserError


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_takes_its_name_in_a_folder_that_is_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "a" / "b" / "plot.png") as path:
        assert (path.parent, path.suffix) == (tmp_path / "a" / "b", ".png")
        path.write_text("new")
        assert not (tmp_path / "a" / "b" / "plot.png").exists()
    assert written(tmp_path / "a" / "b") == {"plot.png": "new"}


def test_text_replaces_what_was_there(tmp_path: Path) -> None:
    for text in ("old", "für immer"):
        write_text(tmp_path / "x.txt", text)
    assert (tmp_path / "x.txt").read_bytes() == "für immer".encode()


def give_up(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_writer_that_breaks_leaves_the_old_file_and_no_litter(error: BaseException, tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "old")
    with pytest.raises(type(error)), replacing(tmp_path / "x.txt") as path:
        give_up(path, error)
    assert written(tmp_path) == {"x.txt": "old"}


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_folder_appears_with_all_that_is_in_it_or_not_at_all(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), making_folder(tmp_path / "bundle") as folder:
        give_up(folder / "half", error)
    assert list(tmp_path.iterdir()) == []
    with making_folder(tmp_path / "bundle") as folder:
        (folder / "all").write_text("x")
        assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert written(tmp_path / "bundle") == {"all": "x"}
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("write", [replacing, making_folder])
def test_what_cannot_be_written_is_one_line(
    write: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder='.*/file': cannot write x: (Not a directory|File exists)"):
        write(tmp_path / "file" / "x").__enter__()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write x\.csv: No space left"), replacing(tmp_path / "x.csv") as path:
        give_up(path, OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleetgym.experiments import cli


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must end with one line and code 2, and leave nothing behind; return the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        line = capsys.readouterr().err
        assert caught.value.code == 2, line
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert not list(tmp_path.iterdir()), "something was written"
        return line.removeprefix("error: ").rstrip()

    return run

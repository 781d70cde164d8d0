"""Imports follow the arrows of docs/architecture.md, and the contracts that say so notice what breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("agents", "baselines", "envs", "experiments")
BREACHES = {  # of a contract: a file, and what is added at its end
    "experiments -> agents, baselines -> envs": (
        "envs/config.py", "from fleetgym.baselines import base"),
    "the cluster knows nothing of Gymnasium, torch or Hydra": (
        "envs/cluster/spec.py", "import gymnasium"),
    "environments and baselines know nothing of SB3, torch or Hydra": (
        "baselines/base.py", "import torch"),
    "no command imports another, and nothing below a command imports one": (
        "experiments/calibrate.py", "from fleetgym.experiments import validate"),
    "no circle anywhere, among modules or among folders": (
        "envs/workloads/base.py", "def hidden():\n    from fleetgym.envs.workloads import kinds"),
}  # fmt: skip


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def results(output: str) -> dict[str, str]:
    """KEPT or BROKEN by contract."""
    lines = (line.rpartition(" ") for line in output.splitlines())
    return {name: result for name, _, result in lines if result in ("KEPT", "BROKEN")}


def test_imports_follow_the_arrows() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert results(done.stdout) == dict.fromkeys(BREACHES, "KEPT")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / "fleetgym" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_is_noticed_by_its_contract(contract: str, copy: Path) -> None:
    name, code = BREACHES[contract]
    with (copy / "fleetgym" / name).open("a") as file:
        file.write(f"\n{code}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert results(done.stdout)[contract] == "BROKEN"


def test_a_circle_of_folders_is_noticed_too(copy: Path) -> None:
    (copy / "fleetgym" / "envs" / "cluster" / "new.py").write_text("from fleetgym.envs.workloads import formats\n")
    assert results(lint_imports(copy).stdout)["no circle anywhere, among modules or among folders"] == "BROKEN"


def test_a_command_that_no_layer_names_is_noticed(copy: Path) -> None:
    (copy / "fleetgym" / "experiments" / "new.py").touch()
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "fleetgym.experiments.new" in done.stdout

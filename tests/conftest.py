import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

DATA_VARIABLE = "FLEETGYM_DATA"
REQUIRE_VARIABLE = "FLEETGYM_REQUIRE_DATA"


@pytest.fixture(scope="session")
def data_path() -> Path:
    """Return the folder with traces/ and measured/, or skip."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{DATA_VARIABLE} names no folder with traces/ and measured/")
    return Path(folder)


@pytest.fixture(autouse=True)
def _leave_hydra_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a command leaves in the process."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("WANDB_MODE", os.environ.get("WANDB_MODE", "offline"))


def _lacks_data(report: pytest.TestReport | pytest.CollectReport) -> bool:
    return report.skipped and DATA_VARIABLE in str(report.longrepr) and os.environ.get(REQUIRE_VARIABLE) == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With FLEETGYM_REQUIRE_DATA=1, fail what would skip for lack of data."""
    report = yield
    if _lacks_data(report):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_VARIABLE}=1 forbids this skip: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for modules that skip as a whole."""
    report = yield
    if _lacks_data(report):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_VARIABLE}=1 forbids this skip: {report.longrepr}"
    return report

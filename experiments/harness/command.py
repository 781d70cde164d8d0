"""`command`, which makes a function a command: Hydra composes its config, every failure becomes an exit code."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from fleetgym.experiments.harness.config_errors import check_choices, config_line
from fleetgym.experiments.harness.failures import CommandFailed, guard

COMMANDS_FOLDER = Path(__file__).absolute().parents[1]
COMMANDS_PACKAGE = "fleetgym.experiments"

Body = Callable[[Any], float | None]


class Task:
    """The function that Hydra runs.

    It is pickled as a reference to its module, so that a worker process imports that module as the main
    process did; pickled by value, as Hydra's launchers would, it would arrive without what its imports register.

    Parameters
    ----------
    body : callable
        ``main(cfg)`` of a command: a function at the top of its module, under its own name.
    """

    def __init__(self, body: Body) -> None:
        functools.update_wrapper(self, body)
        self._body = body

    def __call__(self, cfg: Any) -> float | None:
        """Run the body; every failure leaves as `CommandFailed`, with the traceback of where it happened.

        Parameters
        ----------
        cfg : DictConfig
            As Hydra composed it.

        Returns
        -------
        float or None
            What the body returns.

        Raises
        ------
        CommandFailed
            The body raised: code 2 where the user can mend it (a `UserError`, a missing value), else code 1.
        """
        try:
            return self._body(cfg)
        except Exception as error:  # noqa: BLE001 every failure must leave as an exit code
            if (line := config_line(error)) is not None:
                _remove_empty_run_folder()
                raise CommandFailed(line, 2) from None
            raise CommandFailed(traceback.format_exc(), 1) from None

    def __reduce__(self) -> tuple[Callable[[str, str], Task], tuple[str, str]]:
        return _load_task, (_importable(self._body.__module__), self._body.__name__)


def _importable(module: str) -> str:
    """Return the name under which another process can import ``module``."""
    main: Any = sys.modules["__main__"]
    if module != "__main__":
        return module
    if main.__spec__ is not None:  # python -m fleetgym.experiments.COMMAND
        return str(main.__spec__.name)
    path = Path(main.__file__).absolute()  # python experiments/COMMAND.py
    return f"{COMMANDS_PACKAGE}.{path.stem}" if path.parent == COMMANDS_FOLDER else path.stem


def _load_task(module: str, name: str) -> Task:
    task = getattr(importlib.import_module(module), name).task
    assert isinstance(task, Task)
    return task


def _remove_empty_run_folder() -> None:
    """Remove what Hydra made for a job that was refused: empty folders below the current one."""
    if not HydraConfig.initialized():
        return
    here = Path.cwd()
    folder = Path(HydraConfig.get().runtime.output_dir)
    while folder != here:
        try:
            folder.rmdir()
        except OSError:  # it holds something
            return
        if here not in folder.parents:
            return
        folder = folder.parent


def command(config_name: str) -> Callable[[Body], Callable[..., float | None]]:
    """Make ``main(cfg)`` a command that composes its config from ``conf/CONFIG_NAME.yaml`` and the arguments.

    A `UserError` and Hydra's own config errors end the process with one line ``error: ...`` and code 2, any
    other exception with its traceback and code 1, an interrupt with code 130. Called with a config, the
    function just runs. Its return value is what a sweeper optimises.

    Parameters
    ----------
    config_name : str
        A primary config of ``fleetgym.conf``, without ``.yaml``.

    Returns
    -------
    callable
        The decorator. What it makes takes a config, or none to compose one from the command line.

    Raises
    ------
    SystemExit
        From what it makes, composing its own config: the run failed.
    """

    def decorate(body: Body) -> Callable[..., float | None]:
        task = Task(body)

        @functools.wraps(body)
        def main(cfg: Any = None) -> float | None:
            if cfg is not None:
                return body(cfg)
            run = hydra.main(version_base="1.3", config_path="pkg://fleetgym.conf", config_name=config_name)(task)
            # Otherwise Hydra prints errors in its own words and exits with 1.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            if code := guard(check_choices) or guard(run, functools.partial(config_line, config_name=config_name)):
                raise SystemExit(code)
            return None

        main.task = task  # type: ignore[attr-defined]
        return main

    return decorate

"""The console script ``fleetgym COMMAND [overrides]``, and `command`, which makes a function such a command."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fleetgym.envs.errors import UserError, did_you_mean

COMMANDS = {
    "simulate": "replay a workload through a cluster under one policy and report its metrics",
    "train": "train a policy and keep its best and last checkpoint",
    "evaluate": "evaluate one policy on held-out episodes",
    "leaderboard": "rank policies on the same arrivals: table, CSV, JSON, PNG and HTML",
    "bench": "measure speed against the floors",
    "golden": "replay recorded scheduler traces and compare every step",
    "validate": "compare the simulation with a measured run",
    "calibrate": "fit the one latency scale to a measured run",
    "export": "write a policy as a bundle that runs without torch",
    "export-verify": "recompute the parity vectors of a bundle",
    "download-traces": "download the public request traces",
}

Body = Callable[[Any], float | None]


class CommandFailed(BaseException):
    """Carries the text and the exit code of a failed job through Hydra and out of worker processes.

    Not an `Exception`, so that Hydra neither prints nor wraps it, and a sweep stops at the first failure.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.text = text
        self.code = code


class Task:
    """The function that Hydra runs.

    It is pickled as a reference to its module, so that a worker process imports that module as the main
    process did; pickled by value, as Hydra's launchers would, it would arrive without what its imports register.
    """

    def __init__(self, body: Body) -> None:
        functools.update_wrapper(self, body)
        self._body = body

    def __call__(self, cfg: Any) -> float | None:
        """Run the body; every failure leaves as `CommandFailed`, with the traceback of where it happened."""
        try:
            return self._body(cfg)
        except Exception as error:  # noqa: BLE001 every failure must leave as an exit code
            if (line := user_line(error)) is not None:
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
    return f"{__package__}.{path.stem}" if path.parent == Path(__file__).absolute().parent else path.stem


def _load_task(module: str, name: str) -> Task:
    task = getattr(importlib.import_module(module), name).task
    assert isinstance(task, Task)
    return task


def _remove_empty_run_folder() -> None:
    """Remove what Hydra made for a job that was refused: empty folders below the current one."""
    from hydra.core.hydra_config import HydraConfig

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
        A primary config of ``fleetgym.conf``.
    """

    def decorate(body: Body) -> Callable[..., float | None]:
        task = Task(body)

        @functools.wraps(body)
        def main(cfg: Any = None) -> float | None:
            if cfg is not None:
                return body(cfg)
            import hydra

            from fleetgym.experiments.harness.config import check_choices

            run = hydra.main(version_base="1.3", config_path="pkg://fleetgym.conf", config_name=config_name)(task)
            # Otherwise Hydra prints errors in its own words and exits with 1.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            if code := guard(check_choices) or guard(run, config_name):
                raise SystemExit(code)
            return None

        main.task = task  # type: ignore[attr-defined]
        return main

    return decorate


def guard(call: Callable[[], Any], config_name: str | None = None) -> int:
    """Call and return the exit code: 0, 1 (traceback printed), 2 (one line printed) or 130."""
    try:
        call()
    except CommandFailed as failure:
        print(failure.text.rstrip(), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 every failure must become an exit code
        line = user_line(error, config_name)
        print(line if line is not None else traceback.format_exc().rstrip(), file=sys.stderr)
        return 1 if line is None else 2
    return 0


def user_line(error: Exception, config_name: str | None = None) -> str | None:
    """Return ``error: ...`` for what the user can mend, else None.

    An OSError counts only where it comes from Hydra (``config_name`` is given), which then could not make the run folder.
    """
    if isinstance(error, UserError):
        return f"error: {' '.join(str(error).split())}"
    if "omegaconf" not in sys.modules:
        return None
    from fleetgym.experiments.harness.config import explain

    message = explain(error, config_name)
    return None if message is None else f"error: {message}"


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: fleetgym COMMAND [key=value ...]\n\n"
        f"{lines}\n\n"
        "fleetgym COMMAND --help shows the options of a command, --cfg job its config, -m sweeps over values."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Command and its arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"fleetgym {version('fleetgym')}")
        return 0
    if name not in COMMANDS:
        print(f"error: command {name!r}: unknown{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"fleetgym.experiments.{name.replace('-', '_')}")
    if name == "download-traces":  # plain arguments: it needs no config
        codes: list[int] = []
        return guard(lambda: codes.append(module.main(rest))) or codes[0]
    sys.argv = [f"fleetgym {name}", *rest]
    module.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

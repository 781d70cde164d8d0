"""The run folder: what was run, with what, and what came out, each file whole or absent."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fleetgym.envs.atomic import replacing
from fleetgym.envs.errors import UserError
from fleetgym.experiments.harness.config import task_overrides

RESULT_FILES = ("metrics.json", "metrics.csv")


class RunFolder:
    """A folder of one run, to be used as a context manager around the work.

    On entry it writes ``config.yaml`` (resolved), ``overrides.yaml``, ``versions.json``, ``git.json`` and a
    ``run.json`` with status ``running``, and removes an earlier run's metrics. On exit ``run.json`` gets the
    status (``finished``, ``failed`` or ``interrupted``), the start, the end and the wall time.
    Only ``run.json`` depends on when and how fast the run was.

    Parameters
    ----------
    path : Path
        The folder; made if absent.
    config : Any
        The composed config, or any plain mapping.
    overrides : sequence of str
        What the command line changed.

    Raises
    ------
    UserError
        The folder cannot be made or written; nothing is left behind.
    """

    def __init__(self, path: str | Path, config: Any, overrides: Sequence[str] = ()) -> None:
        self.path = Path(path).absolute()
        self._config = config
        self.overrides = list(overrides)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"hydra.run.dir={str(path)!r}: cannot write there: {error.strerror}") from None

    @classmethod
    def from_hydra(cls, config: Any) -> RunFolder:
        """Take the folder and the overrides of the running Hydra job.

        Parameters
        ----------
        config : DictConfig
            As Hydra composed it.

        Raises
        ------
        UserError
            The folder cannot be made or written.
        """
        hydra = HydraConfig.get()
        return cls(hydra.runtime.output_dir, config, task_overrides(hydra))

    def __enter__(self) -> Self:
        self._start = datetime.now(UTC)
        self._clock = time.perf_counter()
        config = self._config if OmegaConf.is_config(self._config) else OmegaConf.create(self._config)
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        text = OmegaConf.to_yaml(OmegaConf.create(resolved))
        for name in RESULT_FILES:
            (self.path / name).unlink(missing_ok=True)
        self.write_text("config.yaml", text)
        self.write_text("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(self.overrides)))
        self.write_json("versions.json", versions())
        self.write_json("git.json", git_state())
        self._write_status("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._write_status("finished")
        elif isinstance(error, KeyboardInterrupt):
            self._write_status("interrupted")
        else:
            self._write_status("failed", f"{type(error).__name__}: {error}")

    @contextmanager
    def atomic(self, name: str) -> Iterator[Path]:
        """Give a temporary path with the suffix of ``name``; it takes that name if the block succeeds.

        For writers that want a path (Parquet, PNG, zip)::

            with run.atomic("requests.parquet") as path:
                table.write_parquet(path)

        Parameters
        ----------
        name : str
            Of the file in this folder.

        Yields
        ------
        Path
            Does not exist yet.

        Raises
        ------
        UserError
            The file cannot be written, or the disk is full.
        """
        with replacing(self.path / name) as path:
            yield path

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all, and return its path.

        Parameters
        ----------
        name : str
            Of the file in this folder.
        text : str
            Written as UTF-8.

        Raises
        ------
        UserError
            The file cannot be written, or the disk is full.
        """
        with self.atomic(name) as path:
            path.write_text(text, encoding="utf-8")
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write strict JSON (arrays become lists, NaN and infinities become null) and return its path.

        Parameters
        ----------
        name : str
            Of the file in this folder.
        value : Any
            As `jsonable` takes it.

        Raises
        ------
        UserError
            The file cannot be written, or the disk is full.
        TypeError
            A value has no JSON form.
        """
        return self.write_text(name, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")

    def write_metrics(self, metrics: Mapping[str, Any]) -> Path:
        """Write ``metrics.json`` and, flattened to ``metric,value`` rows, ``metrics.csv``.

        Simulated figures only: the same run must write the same bytes again.

        Parameters
        ----------
        metrics : mapping
            Perhaps nested: keys of ``metrics.csv`` are joined by dots.

        Returns
        -------
        Path
            Of ``metrics.json``.

        Raises
        ------
        UserError
            A file cannot be written, or the disk is full.
        """
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(("metric", "value"))
        writer.writerows(flatten(jsonable(metrics)).items())
        self.write_text("metrics.csv", rows.getvalue())
        return self.write_json("metrics.json", metrics)

    def _write_status(self, status: str, error: str | None = None) -> None:
        running = status == "running"
        self.write_json(
            "run.json",
            {
                "status": status,
                "error": error,
                "start": self._start.isoformat(),
                "end": None if running else datetime.now(UTC).isoformat(),
                "wall_s": None if running else time.perf_counter() - self._clock,
            },
        )


def jsonable(value: Any) -> Any:
    """Return ``value`` as what strict JSON knows; NaN and infinities become None.

    Parameters
    ----------
    value : Any
        Mappings, lists, tuples, numpy arrays and scalars, paths, text, numbers, None; nested.

    Raises
    ------
    TypeError
        Anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists to dotted keys, as in ``{"ttft.mean_s": 0.15}``.

    Parameters
    ----------
    value : Any
        Nested mappings and lists; an entry of a list has its index as key.
    prefix : str
        Key of ``value`` itself.

    Returns
    -------
    dict of str to Any
        Values that are neither mapping nor list, in order.
    """
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def versions() -> dict[str, Any]:
    """Return the versions of Python, fleetgym and what it needs, the platform, and torch's thread count.

    ``torch_threads`` is None if the run has not loaded torch when the folder is opened.
    """
    packages = {"fleetgym": version("fleetgym")}
    for requirement in requires("fleetgym") or ():
        if "extra ==" in requirement:
            continue
        name = requirement.replace(";", " ").split()[0]
        for character in "<>=!~[(":
            name = name.partition(character)[0]
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": packages,
        "torch_threads": torch.get_num_threads() if torch is not None else None,
    }


def git_state() -> dict[str, Any] | None:
    """Return the revision of the checkout that this code runs from, and whether it was changed; None elsewhere."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(here.parent), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a virtual environment inside another project is no checkout
        dirty = git("status", "--porcelain", "--untracked-files=no") != ""
        return {"revision": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return None

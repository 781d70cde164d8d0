"""Where scalars over time go: a CSV file, TensorBoard, Weights & Biases, or nowhere."""

from __future__ import annotations

import csv
import netrc
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np

from fleetgym.envs.atomic import replacing
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.logger import Logger

Scalar = float | int | bool | str


class MetricLogger(ABC):
    """A sink of named scalars over steps; as a context manager it closes itself whatever happens."""

    @abstractmethod
    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Record ``metrics`` at ``step``.

        Parameters
        ----------
        metrics : mapping of str to float, int, bool or str
            By name.
        step : int
            Timesteps of training so far.
        """

    def attach(self, model: BaseAlgorithm) -> None:
        """Make an SB3 model log here.

        Parameters
        ----------
        model : BaseAlgorithm
            Everything it records from now on comes to `log`.
        """
        model.set_logger(sb3_logger(self))

    def close(self, exit_code: int = 0) -> None:  # noqa: B027 not every sink holds something
        """Flush and release everything.

        Parameters
        ----------
        exit_code : int
            Told to a tracker: the run failed unless 0.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if error is None else 1)


class NoLogger(MetricLogger):
    """Drops everything."""

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Do nothing."""


class CsvLogger(MetricLogger):
    """``progress.csv``: one row per `log`, one column per name; a new name rewrites the file with its column.

    Parameters
    ----------
    folder : Path
        Where ``progress.csv`` is written, replacing an earlier one.

    Raises
    ------
    UserError
        It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.csv"
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        self._rewrite()

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Add one row; a column that ``metrics`` does not name stays empty."""
        row = {"step": step, **metrics}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def _rewrite(self) -> None:
        with replacing(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)


class TensorboardLogger(MetricLogger):
    """TensorBoard event files in ``tensorboard/``; text is dropped.

    Parameters
    ----------
    folder : Path
        Where ``tensorboard/`` is made.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Add the numbers among ``metrics``."""
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int = 0) -> None:
        """Flush the event file."""
        self._writer.close()


class WandbLogger(MetricLogger):
    """A Weights & Biases run in ``wandb/``, offline where nobody is logged in.

    Parameters
    ----------
    folder : Path
        Where ``wandb/`` is made.
    config : mapping
        What the run was configured with.
    project : str
    group, job_type : str, optional
        Names under which Weights & Biases gathers runs.
    tags : list of str, optional
    mode : str, optional
        One of `WANDB_MODES`; None: ``WANDB_MODE``, else as `default_wandb_mode` says.

    Raises
    ------
    UserError
        Unknown mode.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str = "fleetgym",
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        mode: str | None = None,
    ) -> None:
        import wandb

        chosen: Any = mode or default_wandb_mode()
        if chosen not in WANDB_MODES:
            raise UserError(f"logger.mode={chosen!r}: unknown{did_you_mean(chosen, WANDB_MODES)}")
        self._run = wandb.init(
            dir=str(folder),
            config=dict(config),
            project=project,
            group=group,
            job_type=job_type,
            tags=list(tags or ()),
            mode=chosen,
            reinit="create_new",  # runs of one process never merge
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Send one step; Weights & Biases drops what is sent for an earlier step than the last."""
        self._run.log(dict(metrics), step=step)

    def close(self, exit_code: int = 0) -> None:
        """Finish the run."""
        self._run.finish(exit_code=exit_code)


WANDB_MODES = ("online", "offline", "disabled", "shared")


def default_wandb_mode() -> str:
    """Return ``WANDB_MODE``, else ``online`` if there is an API key, else ``offline``."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if found else "offline"


LOGGERS = ("none", "csv", "tensorboard", "wandb")


@dataclass(frozen=True)
class LoggerSpec:
    """A logger without settings of its own (``conf/logger``).

    Attributes
    ----------
    name : {"none", "csv", "tensorboard"}
    """

    name: Literal["none", "csv", "tensorboard"]


@dataclass(frozen=True)
class WandbSpec:
    """Weights & Biases (`WandbLogger`).

    Attributes
    ----------
    name : {"wandb"}
    project : str
    mode : {"online", "offline", "disabled", "shared"}, optional
        None: as `default_wandb_mode` says.
    group : str, optional
        None: the experiment's name.
    tags : tuple of str
    """

    name: Literal["wandb"]
    project: str = "fleetgym"
    mode: Literal["online", "offline", "disabled", "shared"] | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


def check_logger(settings: Mapping[str, Any]) -> None:
    """Check ``cfg.logger`` before there is a folder to log to.

    Parameters
    ----------
    settings : mapping
        ``cfg.logger`` as a plain mapping.

    Raises
    ------
    UserError
        Unknown logger or setting, or a value of the wrong type.
    """
    name = settings.get("name")
    if name not in LOGGERS:
        raise UserError(f"logger={name!r}: unknown{did_you_mean(name, LOGGERS)}")
    build(WandbSpec if name == "wandb" else LoggerSpec, settings, "logger")


def make_logger(
    settings: Mapping[str, Any],
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    job_type: str | None = None,
    group: str | None = None,
) -> MetricLogger:
    """Build the logger that ``conf/logger`` names.

    Parameters
    ----------
    settings : mapping
        ``cfg.logger`` as a plain mapping: ``name`` and that logger's own settings.
    folder : Path
        The run folder.
    config : mapping, optional
        The whole config as a plain mapping, for trackers.
    job_type : str, optional
        The command, for trackers.
    group : str, optional
        Name under which trackers gather runs, unless ``settings`` has its own.

    Raises
    ------
    UserError
        Unknown logger or setting, a value of the wrong type, or a file that cannot be written.
    """
    check_logger(settings)
    options = {key: value for key, value in settings.items() if key != "name"}
    match settings["name"]:
        case "none":
            return NoLogger()
        case "csv":
            return CsvLogger(folder)
        case "tensorboard":
            return TensorboardLogger(folder)
        case _:
            options["group"] = options.get("group") or group
            return WandbLogger(folder, config or {}, job_type=job_type, **options)


def sb3_logger(logger: MetricLogger) -> Logger:
    """Return an SB3 logger that hands every scalar on to ``logger``: ``model.set_logger(sb3_logger(logger))``.

    Parameters
    ----------
    logger : MetricLogger
        Stays open: closing it is its owner's.
    """
    from stable_baselines3.common.logger import KVWriter, Logger

    class Forward(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            scalars = {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in key_values.items()
                if isinstance(value, float | int | str | np.number | np.bool_)
            }
            logger.log(scalars, step)

        def close(self) -> None:
            """Leave closing to the owner of ``logger``."""

    return Logger(folder=None, output_formats=[Forward()])

"""A Hydra callback that checks every job of a sweep before the first runs: its options, its fleet and its traffic."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fleetgym.experiments.comparison.scenario import PartName
from fleetgym.experiments.harness.config import task_overrides
from fleetgym.experiments.harness.config_errors import config_line
from fleetgym.experiments.harness.failures import CommandFailed
from fleetgym.experiments.harness.options import OPTIONS
from fleetgym.experiments.harness.suites import problems_of, read_cases

PARTS: Mapping[str, tuple[PartName | None, ...]] = {
    "simulate": (None,),
    "train": ("train", "validate"),
    "evaluate": ("test",),
    "leaderboard": ("test",),
}  # of the scenario that a command simulates


class CheckSweep(Callback):
    """Reads what every job asks for (named in ``conf/hydra``)."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Compose each job as Hydra's own sweeper will; other sweepers choose values as they go.

        Parameters
        ----------
        config : DictConfig
            The sweep's, Hydra's own node included.
        config_name : str, optional
            The command's primary config.
        **kwargs : Any
            What else Hydra tells its callbacks; not read.

        Raises
        ------
        CommandFailed
            A job is refused; none has run, and nothing is written.
        """
        options = OPTIONS.get((config_name or "").replace("_", "-"))
        if options is None or not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            return
        try:
            loader = GlobalHydra.instance().config_loader()
            for job in _jobs(config, loader):
                cfg = loader.load_sweep_config(config, job)
                _, cases = read_cases(options, cfg, job, config.hydra.job.config_name)
                for part in PARTS.get(options.command, ()):
                    problems_of(cases, part)
        except Exception as error:  # noqa: BLE001 every failure must leave as an exit code
            # Hydra would print any other exception of a callback as a warning and go on.
            line = config_line(error, config_name)
            text, code = (traceback.format_exc(), 1) if line is None else (line, 2)
            raise CommandFailed(text, code) from None


def _jobs(config: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of each job."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*given, *task_overrides(config.hydra)])
    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]

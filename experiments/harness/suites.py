"""The scenarios that a command is asked for: one, or those of a suite, each composed as if it had been chosen alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.problem import Problem
from fleetgym.experiments.comparison.scenario import PartName
from fleetgym.experiments.comparison.suite import Suite, check_alike
from fleetgym.experiments.harness.config import plain, task_overrides
from fleetgym.experiments.harness.config_errors import explain
from fleetgym.experiments.harness.from_config import problem_of
from fleetgym.experiments.harness.options import Options, read_options
from fleetgym.experiments.harness.run_folder import RunFolder

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Case(Generic[T]):
    """One scenario of what a command is asked for.

    Attributes
    ----------
    name : str
        Of its file in ``conf/scenario``; empty where no suite names it.
    cfg : DictConfig
        Composed as if the scenario had been chosen alone.
    options : Options
        Read from ``cfg``.
    overrides : tuple of str
        That give ``cfg``.
    """

    name: str
    cfg: DictConfig
    options: T
    overrides: tuple[str, ...]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors begin with the scenario's name, where a suite names it.

        Raises
        ------
        UserError
            The one that the block raised, with the name in front.
        """
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.name}: {error}" if self.name else str(error)) from None

    def run_folder(self, within: RunFolder) -> RunFolder:
        """Return the scenario's own run folder, below the suite's.

        Parameters
        ----------
        within : RunFolder
            The suite's.

        Raises
        ------
        UserError
            The folder cannot be made or written.
        """
        return RunFolder(within.path / self.name, self.cfg, self.overrides)


def read_cases(
    cls: type[T], cfg: DictConfig, overrides: Sequence[str] | None = None, config_name: str | None = None
) -> tuple[T, list[Case[T]]]:
    """Read a command's options, and those of each scenario that it is asked for.

    Parameters
    ----------
    cls : type
        Of the command's options.
    cfg : DictConfig
        As the command got it.
    overrides : sequence of str, optional
        What the command line set; by default that of the running Hydra job.
    config_name : str, optional
        The primary config; by default the running job's.

    Returns
    -------
    options : Options
    cases : list of Case
        As many as the suite has scenarios; one without a suite.

    Raises
    ------
    UserError
        As `read_options` does; a scenario that there is not, or one chosen beside a suite.
    """
    if overrides is None:
        overrides = task_overrides(HydraConfig.get())
    options = read_options(cls, cfg, overrides)
    suite: Suite | None = getattr(options, "suite", None)
    if suite is None:
        return options, [Case("", cfg, options, tuple(overrides))]
    others = _without_choice(suite, overrides)
    known = scenario_names(GlobalHydra.instance().config_loader())
    for name in suite.scenarios:
        if name not in known:
            raise UserError(f"suite.scenarios: {name!r}: unknown{did_you_mean(name, known)}")
    return options, [
        _case(cls, name, others, config_name or str(HydraConfig.get().job.config_name)) for name in suite.scenarios
    ]


def _without_choice(suite: Suite, overrides: Sequence[str]) -> list[str]:
    """Return the overrides but for the one that chooses the suite; refuse one that chooses a scenario beside it."""
    kept = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        assert override.input_line is not None
        if override.key_or_group == "scenario":
            raise UserError(
                f"{override.input_line}: suite={suite.name} names its scenarios; choose one of the two (suite=[]: no suite)"
            )
        if override.key_or_group.partition(".")[0] != "suite":
            kept.append(override.input_line)
    return kept


def _case(cls: type[T], name: str, others: Sequence[str], config_name: str) -> Case[T]:
    overrides = (*others, f"scenario={name}")
    try:
        cfg = compose(config_name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        if (line := explain(error, config_name)) is None:
            raise
        raise UserError(f"{name}: {line}") from None
    cfg.suite = None  # which an experiment may have chosen
    return Case(name, cfg, read_options(cls, cfg, overrides), overrides)


def scenario_names(loader: ConfigLoader, group: str = "scenario") -> list[str]:
    """Return the scenarios that Hydra finds, those of its additional folders among them.

    Parameters
    ----------
    loader : ConfigLoader
        Hydra's own.
    group : str
        The group to look in, or one within it.

    Returns
    -------
    list of str
        As after ``scenario=``.
    """
    names = loader.get_group_options(group, ObjectType.CONFIG)
    deeper = loader.get_group_options(group, ObjectType.GROUP)
    return names + [f"{sub}/{name}" for sub in deeper for name in scenario_names(loader, f"{group}/{sub}")]


def problems_of(cases: Sequence[Case[T]], part: PartName | None) -> list[Problem]:
    """Build the decision problem of each case.

    Parameters
    ----------
    cases : sequence of Case
    part : {"train", "validate", "test"} or None
        Of the scenario; None where the command has no scenario.

    Raises
    ------
    UserError
        Naming the scenario, the field, the value and what is allowed.
    """
    problems = []
    for case in cases:
        with case.named():
            problems.append(problem_of(case.cfg, part))
    shared = ("features",) if part == "train" else ()  # one network learns on all of them
    check_alike({case.name: problem for case, problem in zip(cases, problems, strict=True)}, *shared)
    return problems


def run_config(cfg: DictConfig, cases: Sequence[Case[T]]) -> Any:
    """Return all that decides a run: of a suite what its scenarios share, and under ``scenarios`` what each has alone.

    Parameters
    ----------
    cfg : DictConfig
        As the command got it.
    cases : sequence of Case

    Returns
    -------
    DictConfig or dict
        ``cfg`` itself without a suite.
    """
    if not cases[0].name:
        return cfg
    first, *others = (plain(case.cfg) for case in cases)
    shared = {key: value for key, value in first.items() if all(own.get(key) == value for own in others)}
    own = {
        case.name: {key: value for key, value in values.items() if key not in shared}
        for case, values in zip(cases, [first, *others], strict=True)
    }
    return {**shared, "suite": plain(cfg.suite), "scenarios": own}

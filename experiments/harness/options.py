"""What each command reads of its config: typed, and checked before anything is written or trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.experiments.comparison.scenario import Scenario
from fleetgym.experiments.comparison.suite import Suite
from fleetgym.experiments.harness.config import plain, task_overrides

Group = Mapping[str, Any]  # of settings that a spec of its own checks
Engine = Literal["kernel", "reference"]

LARGEST_SEED = 2**31 - 1  # torch, numpy and what is added for resumed training stay below 2**32
MOST_TIMESTEPS = 10**12
MOST_EPISODES = 100_000
SCENARIO = ("name", "failure_s", "rank_by")  # what every command reads of a scenario ...
JUDGED = ("windows", "beyond_windows", "parts.test")  # ... and what those read that judge
NAME = re.compile(r"\w[\w.+-]{0,59}")  # becomes a file name


def within(name: str, value: int | None, low: int, high: int) -> None:
    """Refuse a number outside ``[low, high]``; None passes.

    Parameters
    ----------
    name : str
        Of the option, for the message.
    value : int or None
    low, high : int
        Both allowed.

    Raises
    ------
    UserError
        It lies outside.
    """
    if value is not None and not low <= value <= high:
        raise UserError(f"{name}={value}: must lie between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base: one field for each top-level key that ``command`` reads; ``only`` names the dotted subkeys, if not all."""

    command: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class Simulated(Options):
    """What every simulation reads.

    Attributes
    ----------
    env : mapping
        ``id`` of a registered environment, and its own settings.
    cluster, workload, slo : mapping
        Fleet, traffic and objectives.
    engine : {"kernel", "reference"}
        Compiled or SimPy: the same figures.
    seed : int
        Of the draws, 0 to `LARGEST_SEED`.
    """

    env: Group
    cluster: Group
    workload: Group
    slo: Group
    engine: Engine
    seed: int

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True, kw_only=True)
class OnePolicy(Simulated):
    """One policy: a heuristic, a checkpoint or a bundle.

    Attributes
    ----------
    policy : mapping
        ``name`` and parameters of a heuristic, or the name "checkpoint", "bundle" or "fallback".
    checkpoint : str or None
        Path of the zip, under the first of these names only.
    bundle : str or None
        Path of the folder, under the second only.
    """

    policy: Group
    checkpoint: str | None
    bundle: str | None


@dataclass(frozen=True, kw_only=True)
class Named(Simulated):
    """An experiment with a name, on one scenario or on those of a suite.

    Attributes
    ----------
    name : str
        1 to 60 characters of a file name (`NAME`): training leaves a pointer to its best model under it.
    suite : Suite or None
        None: ``scenario`` alone.
    """

    name: str
    suite: Suite | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"name={self.name!r}: must be 1 to 60 letters, digits, '_', '.', '+' or '-' that begin with a letter, "
                "a digit or '_': it becomes a file name"
            )


@dataclass(frozen=True, kw_only=True)
class SimulateOptions(OnePolicy):
    """Of ``fleetgym simulate``.

    Attributes
    ----------
    failure_s : float
        Latency that a request is charged which did not finish, in seconds.
    """

    command = "simulate"
    failure_s: float


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Named):
    """Of ``fleetgym train``; `fleetgym.agents.training.TrainSpec` checks how long and how often.

    Attributes
    ----------
    scenario : Scenario
        Its parts to learn on and to choose the best model by.
    agent : mapping
        Of a `fleetgym.agents.factory.AgentSpec`.
    reward : mapping
        Of a `fleetgym.envs.rewards.RewardSpec`.
    logger : mapping
        As `fleetgym.experiments.harness.loggers.make_logger` takes it.
    total_timesteps : int
        Decisions to learn from, over all environments together.
    torch_threads : int
        1 to 1024; the weights depend on it.
    eval_every_timesteps : int
        Between held-out evaluations.
    eval_episodes : int
        Of each evaluation, 1 to `MOST_EPISODES`.
    checkpoint_every_timesteps : int or None
        None: only the best and the last model are kept.
    resume : str or None
        Path of a checkpoint to go on from.
    progress_bar : bool
    """

    command = "train"
    scenario: Scenario = field(metadata={"only": (*SCENARIO, "parts.train", "parts.validate")})
    agent: Group
    reward: Group
    logger: Group
    total_timesteps: int
    torch_threads: int
    eval_every_timesteps: int
    eval_episodes: int
    checkpoint_every_timesteps: int | None
    resume: str | None
    progress_bar: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        within("torch_threads", self.torch_threads, 1, 1024)
        within("eval_episodes", self.eval_episodes, 1, MOST_EPISODES)
        for name in ("total_timesteps", "eval_every_timesteps", "checkpoint_every_timesteps"):
            within(name, getattr(self, name), 1, MOST_TIMESTEPS)
        if self.resume is not None and not Path(self.resume).is_file():
            raise UserError(f"resume={self.resume!r}: no such file")


@dataclass(frozen=True, kw_only=True)
class JudgingOptions(Named):
    """What those read that judge on the test part.

    Attributes
    ----------
    scenario : Scenario
        Its test part.
    """

    scenario: Scenario = field(metadata={"only": (*SCENARIO, *JUDGED)})


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(JudgingOptions, OnePolicy):
    """Of ``fleetgym evaluate``.

    Attributes
    ----------
    episodes : int or None
        Windows, 1 to `MOST_EPISODES`; None: as many as the scenario says.
    """

    command = "evaluate"
    episodes: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        within("episodes", self.episodes, 1, MOST_EPISODES)


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions(JudgingOptions):
    """Of ``fleetgym leaderboard``.

    Attributes
    ----------
    seeds : tuple of int or None
        Numbers of the windows; None: all that the scenario says.
    policies : tuple of str or mapping, or None
        Heuristics by name, or with parameters; None: all of the environment.
    checkpoint : tuple of str or None
        Paths of zips; ("latest",): the latest of this experiment's name.
    bundle : tuple of str or None
        Paths of folders.
    """

    command = "leaderboard"
    seeds: tuple[int, ...] | None
    policies: tuple[str | Group, ...] | None
    checkpoint: tuple[str, ...] | None
    bundle: tuple[str, ...] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policies == ():
            raise UserError(
                "policies=[]: must name at least one policy, or be null for all heuristics of the environment"
            )
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise UserError(f"seeds={list(self.seeds)}: must be a list of distinct whole numbers, or null for all")
        for seed in self.seeds or ():
            within("seeds", seed, 0, MOST_EPISODES)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """Of ``fleetgym bench``.

    Attributes
    ----------
    cluster : mapping
        The fleet to measure on.
    seed : int
        Of the draws, 0 to `LARGEST_SEED`.
    repeats : int
        Of each measurement, 1 to 1000.
    only : tuple of str or None
        Measurements by name (`fleetgym.experiments.bench.MEASUREMENTS`); None: all.
    quick : bool
        A smoke run on a fraction of the work.
    """

    command = "bench"
    cluster: Group
    seed: int
    repeats: int
    only: tuple[str, ...] | None
    quick: bool

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, LARGEST_SEED)
        within("repeats", self.repeats, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class GoldenOptions(Options):
    """Of ``fleetgym golden``.

    Attributes
    ----------
    file : str
        Path of the recorded cases.
    engine : {"kernel", "reference"}
    """

    command = "golden"
    file: str
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class Measured(Options):
    """What the commands read that replay a measured run.

    Attributes
    ----------
    measured : str
        Path of the run's folder.
    gpu, model : str
        Of a row of the catalogue.
    tp, dp, ep : int or None
        Tensor-, data- and expert-parallel degree, 1 to 1024; None: as in ``meta.json``, else 1, 1 and as in the
        catalogue.
    tier : str or None
        Of the catalogue's rows; None: the most trusted.
    kv_blocks : int or None
        Of one rank; None: recorded or estimated.
    engine : {"kernel", "reference"}
    vllm : mapping
        Settings of the server by vLLM's names; null: from ``meta.json``, else vLLM's default.
    """

    measured: str
    gpu: str
    model: str
    tp: int | None
    dp: int | None
    ep: int | None
    tier: str | None
    kv_blocks: int | None
    engine: Engine
    vllm: Group

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "ep"):
            within(name, getattr(self, name), 1, 1024)
        within("kv_blocks", self.kv_blocks, 1, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(Measured):
    """Of ``fleetgym validate``."""

    command = "validate"


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(Measured):
    """Of ``fleetgym calibrate``."""

    command = "calibrate"


@dataclass(frozen=True, kw_only=True)
class ExportedFrom:
    """The environment of an exported policy.

    Attributes
    ----------
    id : str or None
        None: as the checkpoint or the heuristic says.
    """

    id: str | None


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Of ``fleetgym export``.

    Attributes
    ----------
    env : ExportedFrom
    policy : mapping or None
        ``name`` of a heuristic with a linear score; None: ``checkpoint`` is exported.
    checkpoint : str or None
        Path of the zip.
    bundle : str or None
        Folder to write; None: ``bundle`` in the run folder.
    evaluation : str or None
        Path of a ``leaderboard.json`` whose entries the model card shows.
    """

    command = "export"
    env: ExportedFrom
    policy: Group | None = None
    checkpoint: str | None
    bundle: str | None
    evaluation: str | None


@dataclass(frozen=True, kw_only=True)
class ExportVerifyOptions(Options):
    """Of ``fleetgym export-verify``.

    Attributes
    ----------
    bundle : str
        Path of the folder.
    """

    command = "export-verify"
    bundle: str


OPTIONS: Mapping[str, type[Options]] = {
    cls.command: cls
    for cls in (
        SimulateOptions,
        TrainOptions,
        EvaluateOptions,
        LeaderboardOptions,
        BenchOptions,
        GoldenOptions,
        ValidateOptions,
        CalibrateOptions,
        ExportOptions,
        ExportVerifyOptions,
    )
}

T = TypeVar("T", bound=Options)


def read_options(cls: type[T], cfg: DictConfig, overrides: Iterable[str] | None = None) -> T:
    """Build the options of a command from its composed config.

    A file (an experiment, a scenario) is shared by commands and may hold keys of other commands. What the
    command line sets must be read by this one.

    Parameters
    ----------
    cls : type
    cfg : DictConfig
    overrides : iterable of str, optional
        What the command line set; by default that of the running Hydra job.

    Raises
    ------
    UserError
        A key that no command reads, one from the command line that this command does not read, a missing
        key, or a value of the wrong type or range.
    """
    if overrides is None:
        overrides = task_overrides(HydraConfig.get()) if HydraConfig.initialized() else ()
    given = OverridesParser.create().parse_overrides(list(overrides))
    _refuse_unread(cls, given)
    known = {key for options in OPTIONS.values() for key in _fields(options)}
    for key in map(str, cfg):
        if key not in known and key != "hydra":
            raise UserError(f"{key}: unknown key{did_you_mean(key, _fields(cls))}")
    # Not `in cfg`, which passes over a key that is still '???'.
    options = build(cls, {key: plain(cfg[key]) for key in _fields(cls) if key in cfg.keys()}, "")  # noqa: SIM118
    _refuse_void(options, given)
    return options


def _fields(cls: type[Options]) -> dict[str, tuple[str, ...]]:
    """Keys that a command reads, each with the only subkeys that it reads, if not all."""
    return {f.name: f.metadata.get("only", ()) for f in dataclasses.fields(cls)}


def _refuse_unread(cls: type[Options], overrides: Iterable[Override]) -> None:
    """Refuse what the command line sets and the command does not read."""
    for override in overrides:
        path = override.key_or_group.replace("/", ".").split(".")
        readers = readers_of(path)
        if path[0] != "experiment" and readers and cls.command not in readers:
            raise UserError(f"{override.input_line}: {cls.command} does not read this; read by {', '.join(readers)}")


def _refuse_void(options: Options, overrides: Iterable[Override]) -> None:
    """Refuse what the command line sets and another setting makes void."""
    if not isinstance(options, Simulated) or options.env.get("num_requests") is None:
        return
    for override in overrides:
        if override.key_or_group == "workload.num_requests" and override.value() is not None:
            raise UserError(
                f"{override.input_line}: void under env.num_requests={options.env['num_requests']}, which says how many "
                "requests an episode has; set that, or set it to null"
            )


def readers_of(path: list[str]) -> list[str]:
    """Return the commands that read the key ``path``.

    Parameters
    ----------
    path : list of str
        Its parts, e.g. ``["scenario", "parts", "test"]``.

    Returns
    -------
    list of str
        Empty if no command does.
    """
    return [name for name, options in OPTIONS.items() if _reads(options, path)]


def _reads(cls: type[Options], path: list[str]) -> bool:
    fields = _fields(cls)
    subkeys = fields.get(path[0], ())
    return path[0] in fields and (not subkeys or any(_overlap(path[1:], subkey.split(".")) for subkey in subkeys))


def _overlap(path: list[str], other: list[str]) -> bool:
    """Whether one of the paths leads to, or into, the other."""
    return all(a == b for a, b in zip(path, other, strict=False))

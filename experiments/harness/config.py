"""From a composed Hydra config to plain values and validated specs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fleetgym.envs.cluster.spec import SERVER_SETTINGS, ClusterSpec, Slo
from fleetgym.envs.config import build

T = TypeVar("T")

# What ``validate.yaml`` and ``calibrate.yaml`` name as ``vllm``: a key for each setting of a server, null until given.
ConfigStore.instance().store("vllm", {"vllm": dict.fromkeys(SERVER_SETTINGS)})


def plain(node: Any) -> Any:
    """Return a config node as plain dicts and lists, interpolations resolved, missing values an error.

    Parameters
    ----------
    node : Any
        A config node; any other value is returned as it is.

    Raises
    ------
    MissingMandatoryValue
        A value is ``???``.
    InterpolationKeyError
        An interpolation names a key that does not exist.
    """
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def spec(cls: type[T], node: Any, where: str) -> T:
    """Build dataclass ``cls`` from a config node; `UserError` names the faulty field.

    Parameters
    ----------
    cls : type
        A dataclass (`fleetgym.envs.config.build`).
    node : Any
        A config node or plain mapping of its fields.
    where : str
        Path of the node, for messages.

    Returns
    -------
    object
        An instance of ``cls``.

    Raises
    ------
    UserError
        Naming the faulty field, its value and what is allowed.
    """
    return build(cls, plain(node), where)


def cluster_spec(cfg: DictConfig) -> ClusterSpec:
    """Build the fleet of ``cfg.cluster``.

    Parameters
    ----------
    cfg : DictConfig
        Any with a ``cluster``.

    Raises
    ------
    UserError
        A faulty field, or hardware that the catalogue does not know.
    """
    return spec(ClusterSpec, cfg.cluster, "cluster")


def note_estimates(*clusters: ClusterSpec) -> None:
    """Print what about the hardware was composed and not measured; every command that simulates fleets does.

    Parameters
    ----------
    *clusters : ClusterSpec
        What they have in common is printed once.
    """
    for line in dict.fromkeys(line for cluster in clusters for line in cluster.estimates):
        print(f"note: {line}")


def slo_spec(cfg: DictConfig) -> Slo:
    """Build the objectives of ``cfg.slo``.

    Parameters
    ----------
    cfg : DictConfig
        Any with a ``slo``.

    Raises
    ------
    UserError
        A faulty field.
    """
    return spec(Slo, cfg.slo, "slo")


def compose_config(config_name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """Compose primary config ``config_name`` as the command line would, from Python.

    Parameters
    ----------
    config_name : str
        One of ``fleetgym.conf``, without ``.yaml``.
    overrides : iterable of str
        In Hydra's syntax, e.g. ``"policy=random"``.

    Returns
    -------
    DictConfig
        Interpolations unresolved.

    Raises
    ------
    HydraException
        The config or an override cannot be composed (`fleetgym.experiments.harness.config_errors.explain`).
    """
    GlobalHydra.instance().clear()
    with initialize_config_module("fleetgym.conf", version_base="1.3"):
        return compose(config_name, overrides=list(overrides))


def task_overrides(hydra: Any) -> list[str]:
    """Return a job's overrides as they were written: an interpolation among them is the job's to resolve.

    Parameters
    ----------
    hydra : DictConfig
        Hydra's own node: ``HydraConfig.get()``, or ``cfg.hydra``.
    """
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]

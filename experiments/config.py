"""From a composed Hydra config to validated specs, and Hydra's config errors in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.config import build
from fleetgym.envs.errors import did_you_mean

T = TypeVar("T")


def plain(node: Any) -> Any:
    """Return a config node as plain dicts and lists, interpolations resolved, missing values an error."""
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def spec(cls: type[T], node: Any, where: str) -> T:
    """Build dataclass ``cls`` from a config node; `UserError` names the faulty field."""
    return build(cls, plain(node), where)


def cluster_spec(cfg: DictConfig) -> ClusterSpec:
    """Build the fleet of ``cfg.cluster``."""
    return spec(ClusterSpec, cfg.cluster, "cluster")


def note_estimates(cluster: ClusterSpec) -> None:
    """Print what about the hardware was composed and not measured; every command that simulates a fleet does."""
    for line in cluster.estimates:
        print(f"note: {line}")


def slo_spec(cfg: DictConfig) -> Slo:
    """Build the objectives of ``cfg.slo``."""
    return spec(Slo, cfg.slo, "slo")


def compose_config(config_name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """Compose primary config ``config_name`` as the command line would, from Python."""
    GlobalHydra.instance().clear()
    with initialize_config_module("fleetgym.conf", version_base="1.3"):
        return compose(config_name, overrides=list(overrides))


def explain(error: Exception, config_name: str | None = None) -> str | None:
    """Return what a config error means in one line, or None for any other error.

    Parameters
    ----------
    error : Exception
    config_name : str, optional
        The command's primary config, given if the error came from Hydra and not from the command's own code.
    """
    if isinstance(error, MissingMandatoryValue | InterpolationKeyError | InterpolationResolutionError):
        key = getattr(error, "full_key", None)
        if isinstance(error, MissingMandatoryValue):
            return f"{key}: missing; give {key}=..."
        return _one_line(error)
    if config_name is None:
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group or 'config'}={name}: unknown{did_you_mean(name, error.options or ())}"
    if isinstance(error, ConfigCompositionException) and (
        found := re.search("Could not override '([^']+)'", str(error))
    ):
        return _unknown_key(found[1].partition("@")[0], error, config_name)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {_one_line(error)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"hydra.run.dir: cannot make the run folder {error.filename!r}: {error.strerror}"
    return None


def _unknown_key(key: str, error: Exception, config_name: str) -> str:
    """Say which key is unknown and which ones are near, judged by the config without that override."""
    if not isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError | None):
        return f"{key}: {_one_line(error.__cause__)}"
    try:
        cfg = compose_config(config_name, _group_choices(key))
    except (HydraException, OmegaConfBaseException):
        return _one_line(error)
    known: Any = cfg
    path: list[str] = []
    for part in key.replace("/", ".").split("."):
        if not isinstance(known, DictConfig) or part not in known:
            break
        path.append(part)
        known = known[part]
    if not isinstance(known, DictConfig):
        return f"{key}: {'.'.join(path)} has no keys" if path else _one_line(error)
    wrong = key.replace("/", ".").split(".")[len(path) :]
    return f"{key}: unknown key{did_you_mean(wrong[0] if wrong else key, map(str, known))}"


def _group_choices(key: str) -> list[str]:
    """Return this process's overrides that choose a group's option, but for ``key``: they decide which keys exist."""
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    groups = (o for o in parsed if "." not in o.key_or_group and o.key_or_group != key and not o.is_sweep_override())
    return [o.input_line for o in groups if o.input_line is not None and isinstance(o.value(), str)]


def _one_line(error: BaseException | None) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("See ", "object_type=")))

"""What is wrong with a config or an override, in one line of our own words."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import resources
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.experiments.harness.config import compose_config
from fleetgym.experiments.harness.failures import user_line
from fleetgym.experiments.harness.options import readers_of


def check_choices() -> None:
    """Refuse an override that gives a group anything but names of its options, on which Hydra itself breaks.

    Raises
    ------
    UserError
        Naming the override and the options.
    """
    try:
        overrides = _overrides()
    except HydraException:
        return  # Hydra says it better
    for override in overrides:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: has no key")
        group = override.key_or_group.partition("@")[0]
        options = _options(group)
        if (options or group.startswith("hydra/")) and not all(map(_is_choice, _values(override))):
            allowed = f" (allowed: {', '.join(options)})" if options else ""
            raise UserError(f"{override.input_line}: must name an option of {group}{allowed}")


def _values(override: Override) -> list[Any]:
    """Return the values that an override gives, none where Hydra finds them itself."""
    if override.is_delete() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]


def _is_choice(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str | QuotedString) for name in names)


def _options(group: str) -> list[str]:
    """Return the options of a group of ``conf``; none if there is no such group."""
    folder = resources.files("fleetgym.conf").joinpath(*group.split("/"))
    if not group or not folder.is_dir():
        return []
    names = [file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")]
    deeper = [
        f"{sub.name}/{name}" for sub in folder.iterdir() if sub.is_dir() for name in _options(f"{group}/{sub.name}")
    ]
    return sorted(names + deeper)


def config_line(error: Exception, config_name: str | None = None) -> str | None:
    """Return ``error: ...`` for what the user can mend, mistakes in a config among it, else None.

    An OSError counts only where it comes from Hydra (``config_name`` is given), which then could not make the run
    folder.

    Parameters
    ----------
    error : Exception
    config_name : str, optional
        The command's primary config, given if the error came from Hydra and not from the command's own code.

    Returns
    -------
    str or None
    """
    if (line := user_line(error)) is not None:
        return line
    message = explain(error, config_name)
    return None if message is None else f"error: {message}"


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
        return f"{key}: " + (
            f"missing; give {key}=..." if isinstance(error, MissingMandatoryValue) else _one_line(error)
        )
    if config_name is None:
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group or 'config'}={name}: unknown{did_you_mean(name, error.options or _options(group))}"
    if isinstance(error, ConfigCompositionException):
        return _not_composable(error, config_name)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {_one_line(error)}{_quoting(error.override)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"hydra.run.dir: cannot make the run folder {error.filename!r}: {error.strerror}"
    return None


def _not_composable(error: ConfigCompositionException, config_name: str) -> str:
    """Say what a file or an override asks of a config that does not have it, or has it already."""
    text = _one_line(error)
    if found := re.match("In '([^']+)': Could not override '([^']+)'", text):
        return f"{found[1].replace('/', '=', 1)}: is for commands with {found[2]}; {config_name} has none"
    if found := re.match("Multiple values for ([^.]+)\\.", text):
        return f"+{found[1]}: chosen already; write it without +, as in {found[1]}=NAME"
    if found := re.match("Ambiguous value for argument '([^=]+)=(.+?)' 1\\.", text):
        key, value = found.groups()
        text = shlex.quote(f'{key}="{value}"')
        return f"{key}={value}: {text} is one text, {key}=[{value}] a list, and with -m it is a sweep"
    if found := re.match("Error merging override (.+)", text):
        return f"{found[1]}: {_one_line(error.__cause__ or error)}"
    if found := re.search("Could not override '([^']+)'", text):
        return _unknown_key(found[1].partition("@")[0], error, config_name)
    return text


def _quoting(override: str) -> str:
    """Say how a value is written whose characters mean something to Hydra, as '=' in a path does."""
    key, equals, value = override.partition("=")
    quoted = f"{key}{equals}" + '"' + value.replace('"', r"\"") + '"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return ""
    return f"; as a text it is written {shlex.quote(quoted)}"


def _unknown_key(key: str, error: Exception, config_name: str) -> str:
    """Say which key is unknown and which ones are near, judged by the config without that override."""
    command = config_name.replace("_", "-")
    if (readers := readers_of(key.replace("/", ".").split("."))) and command not in readers:
        return f"{key}: {command} does not read this; read by {', '.join(readers)}"
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
    if key.startswith("hydra."):  # `cfg` leaves these out
        return f"{key}: unknown key"
    wrong = key.replace("/", ".").split(".")[len(path) :]
    return f"{key}: unknown key{did_you_mean(wrong[0] if wrong else key, map(str, known))}"


def _group_choices(key: str) -> list[str]:
    """Return this process's overrides that choose a group's option, but for ``key``: they decide which keys exist."""
    groups = (
        o for o in _overrides() if "." not in o.key_or_group and o.key_or_group != key and not o.is_sweep_override()
    )
    return [o.input_line for o in groups if o.input_line is not None and isinstance(o.value(), str)]


def _overrides() -> list[Override]:
    """Parse the overrides of this process."""
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    return OverridesParser.create().parse_overrides(words)


def _one_line(error: BaseException | None) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("See ", "full_key:", "object_type=")))

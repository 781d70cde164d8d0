"""Named parts of a problem, and which of them are the default: the command line's own YAML files, read as plain data.

``conf/GROUP/NAME.yaml`` is what the command line means by ``GROUP=NAME``, and the choices of
``conf/experiment_base.yaml`` are its defaults. Environments made in Python take both from here, so that one name means
one thing and nothing is written twice.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml  # type: ignore[import-untyped]

from fleetgym.envs.errors import UserError, did_you_mean

GROUPS = ("cluster", "workload", "env", "reward", "slo")
_CONF = resources.files("fleetgym.conf")
_PRIMARY = "experiment_base.yaml"


def names(group: str) -> list[str]:
    """Names of a group's presets, sorted.

    Parameters
    ----------
    group : str
        A folder of ``conf``, as `GROUPS` are; what lies in a folder of it is called ``FOLDER/NAME``.
    """
    found = []
    for entry in _CONF.joinpath(group).iterdir():
        if entry.is_dir():
            found += [f"{entry.name}/{name}" for name in names(f"{group}/{entry.name}")]
        elif entry.name.endswith(".yaml"):
            found.append(entry.name.removesuffix(".yaml"))
    return sorted(found)


def preset(group: str, name: str) -> dict[str, Any]:
    """Return a preset's fields, a copy.

    Parameters
    ----------
    group : str
        A folder of ``conf``, as `GROUPS` are.
    name : str
        One of `names`.

    Raises
    ------
    UserError
        No such preset, then the message names the near ones; or one that leaves a field to the user.
    """
    if name not in names(group):
        raise UserError(f"{group}={name!r}: unknown{did_you_mean(name, names(group))}")
    fields = copy.deepcopy(_read(f"{group}/{name}.yaml"))
    for field, value in fields.items():
        if value == "???":
            raise UserError(
                f"{group}={name!r}: {field} has no default; give the fields as a mapping, {field} among them"
            )
    return fields


def default_preset(group: str) -> dict[str, Any]:
    """Return the fields of the preset that the command line chooses where nothing is said, a copy.

    Parameters
    ----------
    group : str
        One of the groups that ``conf/experiment_base.yaml`` chooses from.

    Raises
    ------
    UserError
        The preset leaves a field to the user.
    """
    choices: dict[str, str] = {}
    for entry in _read(_PRIMARY)["defaults"]:
        choices |= entry if isinstance(entry, Mapping) else {}
    return preset(group, choices[group])


@functools.cache
def _read(path: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(_CONF.joinpath(path).read_text(encoding="utf-8"))
    return fields

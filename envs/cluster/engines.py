"""Both engines by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from fleetgym.envs.cluster.engine import Engine
from fleetgym.envs.cluster.kernel import KernelEngine
from fleetgym.envs.cluster.reference import ReferenceEngine
from fleetgym.envs.errors import UserError, did_you_mean

EngineName = Literal["kernel", "reference"]
ENGINES: Mapping[str, type[Engine]] = {"kernel": KernelEngine, "reference": ReferenceEngine}


def default_engine() -> str:
    """Name of the engine where none is asked for: ``kernel``, or what ``FLEETGYM_ENGINE`` says."""
    return os.environ.get("FLEETGYM_ENGINE", "kernel")


def make_engine(name: str, *args: Any, **kwargs: Any) -> Engine:
    """Build an engine.

    Parameters
    ----------
    name : {"kernel", "reference"}
        Compiled, or SimPy; the same figures.
    *args, **kwargs
        As for `Engine`.

    Raises
    ------
    UserError
        Unknown name, or as `Engine`.
    """
    if name not in ENGINES:
        raise UserError(f"engine={name!r}: unknown{did_you_mean(name, ENGINES)}")
    return ENGINES[name](*args, **kwargs)

"""A suite: scenarios that are trained on, evaluated and ranked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem


@dataclass(frozen=True)
class Suite:
    """One file of ``conf/suite``.

    Attributes
    ----------
    name : str
    scenarios : tuple of str
        Files of ``conf/scenario``, each once, such as ``routing/azure``.
    """

    name: str
    scenarios: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("name='': must not be empty")
        if not self.scenarios:
            raise UserError("scenarios=[]: must name at least one scenario")
        for name in self.scenarios:
            if self.scenarios.count(name) > 1:
                raise UserError(f"scenarios: {name!r} is named twice")


def check_alike(problems: Mapping[str, Problem], *settings: str) -> None:
    """Refuse scenarios that no one policy can decide.

    Parameters
    ----------
    problems : mapping of str to Problem
        By scenario.
    *settings : str
        What must be the same beside the environment, such as ``features``.

    Raises
    ------
    UserError
        Naming two scenarios that differ.
    """
    (first, one), *others = problems.items()
    for name, other in others:
        for setting in ("env_id", "choice", *settings):
            a, b = getattr(one, setting), getattr(other, setting)
            if a != b:
                known = "env.id" if setting == "env_id" else setting
                raise UserError(
                    f"suite.scenarios: {first} and {name} differ in {known} ({_difference(a, b)}); "
                    "a suite is of one environment"
                )


def _difference(a: object, b: object) -> str:
    """Show two values, of two tuples only what one of them lacks."""
    if isinstance(a, tuple) and isinstance(b, tuple) and set(a) != set(b):
        return f"not in both: {', '.join(map(str, sorted(set(a) ^ set(b))))}"
    return f"{a!r} and {b!r}"

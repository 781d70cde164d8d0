"""An exported bundle as a policy of the gym: the same decisions, the gym's error messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgym.agents.bundle import Bundle, BundleError, load
from fleetgym.agents.bundle_format import FeatureSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import SCHEMA_VERSION
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import bare_id
from fleetgym.envs.signals import find_signal


class BundlePolicy:
    """A policy from a bundle folder (`fleetgym.agents.bundle`).

    Parameters
    ----------
    path : path
        The bundle's folder.
    problem : Problem, optional
        What it is to decide; None: checked against no environment, only against the table of signals.

    Raises
    ------
    UserError
        The bundle is refused, exported from another environment, or wants a feature that this one does not have or
        means otherwise.
    """

    kind = "bundle"

    def __init__(self, path: str | Path, problem: Problem | None = None) -> None:
        try:
            self.bundle = load(path)
        except BundleError as error:
            raise UserError(f"bundle={str(path)!r}: {error}") from None
        self.name = self.bundle.name
        self.features = self.bundle.features
        where = f"bundle={str(path)!r}"
        _check_schema(where, self.bundle.manifest["observation"]["schema_version"], self.bundle.feature_specs)
        if problem is not None:
            _check_problem(where, self.bundle, problem)

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode per seed.

        Parameters
        ----------
        seeds : sequence of int, length B
        num_choices : int
            C; any number will do.
        """
        self.bundle.reset(seeds, num_choices)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose in each environment (`fleetgym.envs.policy.Policy.act`).

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, C)
            What may be chosen.

        Returns
        -------
        ndarray of int64, shape (B,)
            Of equal ones the lowest index.

        Raises
        ------
        BundleError
            As `fleetgym.agents.bundle.Bundle.act`.
        """
        return self.bundle.act(observation, mask)


def _check_schema(where: str, version: int, specs: Sequence[FeatureSpec]) -> None:
    """Refuse columns that mean something else here."""
    if version != SCHEMA_VERSION:
        raise UserError(f"{where}: made for version {version} of the observation schema, this is {SCHEMA_VERSION}")
    for spec in specs:
        try:
            signal = find_signal(spec.name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if signal.tag == "privileged":
            raise UserError(f"{where}: feature {spec.name!r} is privileged: no router can know it")
        for name in ("unit", "scope"):
            if getattr(spec, name) != getattr(signal, name):
                raise UserError(
                    f"{where}: feature {spec.name!r}: {name}={getattr(spec, name)!r}, here it is {getattr(signal, name)!r}"
                )


def _check_problem(where: str, bundle: Bundle, problem: Problem) -> None:
    """Refuse what was made for another environment; a bundle that names none goes by its choices and columns."""
    env_id, choice = bare_id(bundle.manifest["environment"]["id"]), bundle.manifest["action"]["choice"]
    if env_id not in ("", problem.env_id):
        raise UserError(f"{where}: exported from {env_id!r}, not from {problem.env_id!r}")
    if choice != problem.choice:
        raise UserError(f"{where}: its choices are {choice}s, those of {problem.env_id} {problem.choice}s")
    for name in bundle.features:
        if name not in problem.offers:
            raise UserError(f"{where}: needs feature {name!r}, which {problem.env_id} does not offer")

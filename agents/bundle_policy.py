"""An exported bundle as a policy of the gym: the same decisions, the gym's error messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgym.agents.bundle import BundleError, load
from fleetgym.agents.bundle_format import FeatureSpec
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
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
        _check(f"bundle={str(path)!r}", self.bundle.manifest["environment"]["id"], self.bundle.feature_specs, problem)

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode per seed.

        Parameters
        ----------
        seeds : sequence of int, length B
        num_choices : int
            N; any number will do.
        """
        self.bundle.reset(seeds, num_choices)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose an instance per environment (`fleetgym.envs.policy.Policy.act`).

        Parameters
        ----------
        observation : ndarray of float32, shape (B, N, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, N)
            Instances that may be chosen.

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


def _check(where: str, env_id: str, specs: Sequence[FeatureSpec], problem: Problem | None) -> None:
    """Refuse what was made for another environment (a bundle that names none goes by its columns) or schema."""
    if problem is not None and env_id not in ("", problem.env_id):
        raise UserError(f"{where}: exported from {env_id!r}, not from {problem.env_id!r}")
    for spec in specs:
        signal = find_signal(spec.name)
        if problem is not None and spec.name not in problem.offers:
            raise UserError(f"{where}: needs feature {spec.name!r}, which {problem.env_id} does not offer")
        if signal.tag == "privileged":
            raise UserError(f"{where}: feature {spec.name!r} is privileged: no router can know it")
        if spec.unit != signal.unit:
            raise UserError(f"{where}: feature {spec.name!r} is in {spec.unit}, here it is in {signal.unit}")

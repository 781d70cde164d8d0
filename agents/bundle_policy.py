"""An exported bundle as a policy of the gym: the same decisions, the gym's error messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgym.agents.bundle import BundleError, load
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import select


class BundlePolicy:
    """A policy from a bundle folder (`fleetgym.agents.bundle`).

    Raises
    ------
    UserError
        The bundle is refused, or wants a feature that this observation schema does not have.
    """

    kind = "bundle"

    def __init__(self, path: str | Path) -> None:
        try:
            self.bundle = load(path)
        except BundleError as error:
            raise UserError(f"bundle={str(path)!r}: {error}") from None
        self.name = self.bundle.name
        self.features = tuple(feature.name for feature in select(self.bundle.features))

    def reset(self, seeds: Sequence[int], num_instances: int) -> None:
        """Begin one episode per seed."""
        self.bundle.reset(seeds, num_instances)

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose an instance per environment (`fleetgym.baselines.base.Policy.act`)."""
        return self.bundle.act(observation, mask)

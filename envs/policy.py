"""The one protocol of all policies, heuristic or learned.

A policy decides for B environments at once: ``act(observation [B, C, F], mask [B, C]) -> action [B]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """What is needed of any policy.

    Attributes
    ----------
    name : str
    kind : str
        ``heuristic``, ``learned``, ``bundle`` or ``oracle``.
    features : tuple of str
        Columns of the observation that ``act`` expects, in order.
    """

    name: str
    kind: str
    features: tuple[str, ...]

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode in each of several environments.

        Parameters
        ----------
        seeds : sequence of int, length B
            Of the policy's own randomness, one per environment.
        num_choices : int
            C.

        Raises
        ------
        UserError
            The policy cannot decide between so many choices.
        """

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Decide in each environment.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, C)
            What may be chosen, at least one per row.

        Returns
        -------
        ndarray of int64, shape (B,)
            Index of the choice.
        """

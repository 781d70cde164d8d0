"""Seeds as Gymnasium hands them over: Python or numpy integers, one for all or one per environment."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError

Seeds = SupportsIndex | Sequence[SupportsIndex | None] | NDArray[Any] | None


def as_seed(seed: SupportsIndex | None) -> int | None:
    """Return a seed as a Python int.

    Parameters
    ----------
    seed : int or None
        Of Python or numpy; None stands for "no new seed" and stays None.

    Raises
    ------
    UserError
        Not an integer (a bool is none), or negative.
    """
    if seed is None:
        return None
    try:
        number = -1 if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"seed={seed!r}: must be an integer of at least 0, or None")
    return number


def env_seeds(seed: Seeds, num_envs: int) -> list[int | None]:
    """Return the seed of each environment.

    Parameters
    ----------
    seed : int, None, or sequence or ndarray of them, shape (num_envs,)
        One integer ``s`` stands for ``s, s + 1, ...``; None for "no new seed".
    num_envs : int
        B.

    Raises
    ------
    UserError
        An entry is no seed, or there are not as many as environments.
    """
    if isinstance(seed, np.ndarray) and seed.ndim:
        seed = list(seed)  # keeps what is no integer as it is, for the message
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != num_envs:
            raise UserError(f"seed: {len(seed)} seeds for num_envs={num_envs}: need one per environment")
        return [as_seed(own) for own in seed]
    first = as_seed(seed)
    return [None if first is None else first + index for index in range(num_envs)]

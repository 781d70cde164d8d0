"""What heuristics share; which there are, `fleetgym.baselines.registry` knows.

The protocol of all policies is `fleetgym.envs.policy.Policy`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.features import public
from fleetgym.envs.signals import SIGNAL_NAMES


class Columns:
    """Named access to the columns of an observation: ``columns["kv_usage"]`` has shape (B, C).

    Parameters
    ----------
    features : sequence of str
        Names of the columns.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self._index = {name: i for i, name in enumerate(features)}
        self._observation: NDArray[np.float32] = np.zeros((0, 0, 0), np.float32)

    def bind(self, observation: NDArray[np.float32]) -> Columns:
        """Point the columns at an observation.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)

        Returns
        -------
        Columns
            Itself.
        """
        self._observation = observation
        return self

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        try:
            return self._observation[..., self._index[name]]
        except KeyError:
            raise UserError(f"column {name!r}: is none of its features{did_you_mean(name, self._index)}") from None


_CHUNK = 256


class Heuristic:
    """Base of all heuristics; a subclass defines `act` or, if it ranks choices, derives from `ScorePolicy`.

    Randomness comes from one generator per environment, seeded at `reset`, so that a decision does not
    depend on how many environments are decided together.

    Attributes
    ----------
    name : str
    kind : {"heuristic", "oracle"}
        An oracle reads what no real decider can know: a bound, not a competitor.
    features : tuple of str
        Columns that it reads. A class that names none gets all that a real decider could know: of its environment where
        `fleetgym.baselines.registry.make_heuristic` builds it, else of the fleet.
    env_ids : tuple of str
        Environments that it is registered for; none: any that offers its columns.
    """

    name: str = ""
    kind: str = "heuristic"
    features: tuple[str, ...] = public(SIGNAL_NAMES)
    env_ids: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Take no parameters; a subclass may."""

    @functools.cached_property
    def columns(self) -> Columns:
        """The columns of `features`, to be bound to an observation."""
        return Columns(self.features)

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode in each environment.

        Parameters
        ----------
        seeds : sequence of int, length B
            Of the generators of `noise`.
        num_choices : int
            C.
        """
        self._generators = [np.random.default_rng([int(seed), 0x7E5]) for seed in seeds]
        self._num_choices = num_choices
        self._next = _CHUNK
        self._noise: NDArray[np.float64] = np.zeros((_CHUNK, len(seeds), num_choices))

    def noise(self) -> NDArray[np.float64]:
        """Draw fresh uniform numbers in [0, 1), one independent stream per environment.

        Returns
        -------
        ndarray of float64, shape (B, C)
        """
        if self._next == _CHUNK:
            shape = (_CHUNK, self._num_choices)
            self._noise = np.stack([g.random(shape) for g in self._generators], axis=1)
            self._next = 0
        self._next += 1
        return cast("NDArray[np.float64]", self._noise[self._next - 1])

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose in each environment (see `fleetgym.envs.policy.Policy.act`).

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            The columns of `features`.
        mask : ndarray of bool, shape (B, C)
            What may be chosen, at least one per row.

        Returns
        -------
        ndarray of int64, shape (B,)
        """
        raise NotImplementedError


class ScorePolicy(Heuristic):
    """A heuristic that scores every choice and takes the highest; ties are broken at random.

    A deterministic argmax over equal rows would send every request of an idle fleet to its first instance.
    """

    def score(self, s: Columns) -> NDArray[Any]:
        """Return the score of each choice; the highest wins.

        Parameters
        ----------
        s : Columns
            ``s["kv_usage"]`` has shape (B, C).

        Returns
        -------
        ndarray, shape (B, C)
        """
        raise NotImplementedError

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the highest score among those allowed."""
        return best(self.score(self.columns.bind(observation)), mask, self.noise())


class LinearScore(ScorePolicy):
    """A heuristic whose score is a weighted sum of columns, and which can therefore be exported.

    The weights are all that it says, so that what decides here and what is exported cannot differ.

    Attributes
    ----------
    weights : mapping of str to float
        By column, in the order in which they are summed.

    Raises
    ------
    TypeError
        A subclass has a score of its own.
    """

    weights: ClassVar[Mapping[str, float]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the columns from the weights."""
        super().__init_subclass__(**kwargs)
        if {"score", "act"} & set(vars(cls)):
            raise TypeError(f"{cls.__name__}: its weights are its score; derive from ScorePolicy for another one")
        cls.features = tuple(cls.weights)

    def score(self, s: Columns) -> NDArray[Any]:
        """Score by the weighted sum."""
        first, *others = (weight * s[name] for name, weight in self.weights.items())
        return sum(others, start=first)


def best(score: NDArray[Any], mask: NDArray[np.bool_], noise: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the highest allowed score per row.

    Parameters
    ----------
    score : ndarray, shape (B, C)
    mask : ndarray of bool, shape (B, C)
    noise : ndarray of float64, shape (B, C)
        In [0, 1); of equal scores the one with the most of it wins.

    Returns
    -------
    ndarray of int64, shape (B,)
    """
    masked = np.where(mask, score, -np.inf)
    top = masked.max(axis=1, keepdims=True)
    return np.where((masked == top) & mask, noise, -1.0).argmax(axis=1)

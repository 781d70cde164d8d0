"""What heuristics share, and the table of them; the protocol of all policies is `fleetgym.envs.policy.Policy`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.config import checked_arguments
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.features import public
from fleetgym.envs.signals import SIGNAL_NAMES


class Columns:
    """Named access to the columns of an observation: ``columns["kv_usage"]`` has shape (B, N)."""

    def __init__(self, features: Sequence[str]) -> None:
        self._index = {name: i for i, name in enumerate(features)}
        self._observation: NDArray[np.float32] = np.zeros((0, 0, 0), np.float32)

    def bind(self, observation: NDArray[np.float32]) -> Columns:
        """Point the columns at ``observation``."""
        self._observation = observation
        return self

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._observation[..., self._index[name]]


_CHUNK = 256


class Heuristic:
    """Base of all heuristics; a subclass defines `act` or, if it ranks instances, derives from `ScorePolicy`.

    Randomness comes from one generator per environment, seeded at `reset`, so that a decision does not
    depend on how many environments are decided together.
    """

    name: str = ""
    kind: str = "heuristic"
    features: tuple[str, ...] = public(SIGNAL_NAMES)

    def __init__(self) -> None:
        self.columns = Columns(self.features)

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode in each of ``len(seeds)`` environments of ``num_choices`` instances."""
        self._generators = [np.random.default_rng([int(seed), 0x7E5]) for seed in seeds]
        self._num_choices = num_choices
        self._next = _CHUNK
        self._noise: NDArray[np.float64] = np.zeros((_CHUNK, len(seeds), num_choices))

    def noise(self) -> NDArray[np.float64]:
        """Fresh uniform numbers in [0, 1), shape (B, N), one independent stream per environment."""
        if self._next == _CHUNK:
            shape = (_CHUNK, self._num_choices)
            self._noise = np.stack([g.random(shape) for g in self._generators], axis=1)
            self._next = 0
        self._next += 1
        return cast("NDArray[np.float64]", self._noise[self._next - 1])

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose an instance per environment (see `fleetgym.envs.policy.Policy.act`)."""
        raise NotImplementedError


class ScorePolicy(Heuristic):
    """A heuristic that scores every instance and takes the highest; ties are broken at random.

    A deterministic argmax over equal rows would send every request of an idle fleet to instance 0.
    """

    def score(self, s: Columns) -> NDArray[Any]:
        """Return the score of each instance, shape (B, N); the highest wins."""
        raise NotImplementedError

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the instance with the highest score among those allowed."""
        return best(self.score(self.columns.bind(observation)), mask, self.noise())


def best(score: NDArray[Any], mask: NDArray[np.bool_], noise: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the highest allowed score per row; ``noise`` in [0, 1) breaks ties."""
    masked = np.where(mask, score, -np.inf)
    top = masked.max(axis=1, keepdims=True)
    return np.where((masked == top) & mask, noise, -1.0).argmax(axis=1)


P = TypeVar("P", bound=type[Heuristic])
REGISTRY: dict[str, type[Heuristic]] = {}


def register(name: str) -> Callable[[P], P]:
    """Class decorator: make a heuristic known under ``name``."""

    def add(cls: P) -> P:
        if name in REGISTRY and REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"policy {name!r} is registered twice")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


def make_heuristic(name: str, **parameters: Any) -> Heuristic:
    """Build a heuristic by registered name, or a class of your own by ``"module:Class"``.

    Raises
    ------
    UserError
        Unknown name or parameter.
    """
    cls: Any = REGISTRY.get(name)
    if cls is None and ":" in name:
        cls = _import(name)
    if cls is None:
        raise UserError(f"policy={name!r}: unknown{did_you_mean(name, REGISTRY)}; or your own as module:Class")
    return cast(Heuristic, cls(**checked_arguments(cls.__init__, parameters, f"policy={name!r}: ")))


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"policy={path!r}: cannot import it: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Heuristic)):
        raise UserError(f"policy={path!r}: must be a subclass of fleetgym.baselines.Heuristic")
    if not cls.name:
        cls.name = attribute
    return cls

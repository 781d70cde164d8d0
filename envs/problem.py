"""What every decision problem on the simulated fleet is, and B episodes of one.

An environment is a subclass of `Problem`: which choices there are, which signals describe them, what a decision does.
All else is here or above: episodes, rewards, the one `gymnasium.Env`, the one ``VectorEnv``, agents, boards, export.

Most environments decide what the engine itself asks, with the engine's own rows as observation. One whose rows are its
own derives from `DerivedBatch` and fills them in.
"""

from __future__ import annotations

import functools
import math
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.arguments import (
    OPTIONAL,
    SETTINGS,
    built,
    checked_failure_s,
    checked_num_requests,
    checked_pair,
    default_failure_s,
    preset_fields,
)
from fleetgym.envs.cluster.engines import default_engine, make_engine
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.config import convert
from fleetgym.envs.errors import UnknownArgumentError, UserError, UserNote, did_you_mean
from fleetgym.envs.features import observation_space, select
from fleetgym.envs.rewards import RewardSpec
from fleetgym.envs.saturation import saturation_rps
from fleetgym.envs.signals import SIGNAL_NAMES, find_signal
from fleetgym.envs.workloads import Workload, make_workload
from fleetgym.envs.workloads.blocks import fit_chains, unused_chains


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One decision problem, resolved and validated; a subclass is an environment.

    A subclass may add fields: they are arguments of the environment and keys of ``env`` on the command line.

    Attributes
    ----------
    cluster : ClusterSpec
    workload : Workload
    num_requests : int or None
        Requests of an episode; None: as many as the workload holds.
    load : tuple of float or None
        Offered load as a fraction of the measured saturation rate of the available instances, drawn
        log-uniformly from the pair per episode; None: arrivals as the workload has them.
    available : tuple of int or None
        How many instances exist in an episode, drawn uniformly from the pair; None: all of them.
    features : tuple of str
        Columns of the observation.
    reward : RewardSpec
    slo : Slo
    failure_s : float
        Latency in seconds that every failed request is charged, in rewards and figures.
    engine : {"kernel", "reference"}

    env_id : str
        Under which it is registered.
    choice : str
        What a row of the observation is, one word.
    offers : tuple of str
        Signals that can be columns.
    defaults : str
        Preset of ``conf/env`` with its defaults; empty: the one that the command line chooses where nothing is said.
    yardstick : str
        A heuristic that looks at nothing: no failure may cost less than the slowest answer that it gives.
    fallback : str
        The heuristic that a live decider falls back to; it comes with every exported policy. Empty: the yardstick.
    prior : mapping of str to float
        A sensible score to begin learning with, as a weighted sum of transformed columns
        (`fleetgym.envs.features.scaled`).
    """

    env_id: ClassVar[str] = ""
    choice: ClassVar[str] = "choice"
    offers: ClassVar[tuple[str, ...]] = SIGNAL_NAMES
    defaults: ClassVar[str] = ""
    yardstick: ClassVar[str] = "random"
    fallback: ClassVar[str] = ""
    prior: ClassVar[Mapping[str, float]] = {}

    cluster: ClusterSpec
    workload: Workload
    num_requests: int | None
    load: tuple[float, float] | None
    available: tuple[int, int] | None
    features: tuple[str, ...]
    reward: RewardSpec
    slo: Slo
    failure_s: float
    engine: str

    @classmethod
    def fallback_heuristic(cls) -> str:
        """Return the heuristic that a live decider falls back to."""
        return cls.fallback or cls.yardstick

    @property
    def num_choices(self) -> int:
        """C, rows of the observation."""
        raise NotImplementedError

    @property
    def num_choices_range(self) -> tuple[int, int]:
        """Least and most choices that may exist in an episode; the rows of the others are masked."""
        return self.num_choices if self.available is None else 1, self.num_choices

    @property
    def observation_space(self) -> spaces.Box:
        """Space of one observation, ``Box(C, F)`` float32."""
        return observation_space(self.features, self.num_choices)

    def make_batch(self, batch: int, *, keep_traces: bool = False, all_signals: bool = True) -> Batch:
        """Return B episodes of this problem, none of them begun.

        Parameters
        ----------
        batch : int
            B.
        keep_traces, all_signals : bool
            As for `Batch`.

        Raises
        ------
        UserError
            As `Batch`.
        """
        return Batch(self, batch, keep_traces=keep_traces, all_signals=all_signals)

    @classmethod
    def resolve(cls, **arguments: Any) -> Self:
        """Validate the arguments of the environment; names and mappings are built into their dataclasses.

        A name is a preset of `fleetgym.envs.presets`; what is not given is the command line's default.

        Parameters
        ----------
        **arguments
            The fields of this class, and ``oracle`` (bool): allow privileged features. ``load`` and ``available`` may
            be one number instead of a pair; ``features`` None stands for all that are offered and not privileged.

        Returns
        -------
        Problem
            Of this class, every field set.

        Raises
        ------
        UserError
            A value that is missing or impossible, or an environment without a choice or a feature; the message names
            the field, the value and what is allowed.
        UnknownArgumentError
            A keyword that this environment does not take.
        """
        own = {f.name for f in fields(cls)} - _COMMON
        allowed = _COMMON | own | set(OPTIONAL)
        for name in arguments:
            if name not in allowed:
                # Python's own words: trainers look for them
                raise UnknownArgumentError(
                    f"{cls.env_id or cls.__name__}: unexpected keyword argument {name!r}{did_you_mean(name, allowed)}"
                )
        given = {
            name: v for name, v in preset_fields("env", cls.defaults or None).items() if name in allowed
        } | arguments
        common = cls._common(given)
        hints = typing.get_type_hints(cls)
        for f in fields(cls):
            if f.name in own - set(given) and _required(f):
                raise UserError(f"{f.name}: missing; {cls.env_id or cls.__name__} has no default for it")
        problem = cls(**common, **{name: convert(hints[name], given[name], name) for name in own & set(given)})
        if problem.num_choices < 1:
            raise UserError(f"{cls.env_id or cls.__name__}: num_choices={problem.num_choices}: must be at least 1")
        return problem

    @classmethod
    def _common(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        cluster = built(ClusterSpec, "cluster", given.get("cluster"))
        slo, reward = built(Slo, "slo", given.get("slo")), built(RewardSpec, "reward", given.get("reward"))
        workload = preset_fields("workload", given.get("workload"))
        if not isinstance(workload, Workload | Mapping):
            raise UserError(f"workload={workload!r}: expected a name, a mapping of fields or a Workload")
        workload = make_workload(workload) if isinstance(workload, Mapping) else workload
        load = given["load"]
        if load is not None and (workload.rate_rps or workload.rate_scale or workload.rate_scale_range):
            raise UserError(
                f"{workload.rate_setting}: load={load!r} sets the rate of arrivals; one of the two must be null"
            )
        if not cls.offers:
            raise UserError(f"{cls.env_id or cls.__name__}: offers no feature")
        oracle = given.get("oracle", False)
        if not isinstance(oracle, bool):
            raise UserError(f"oracle={oracle!r}: must be True or False")
        return {
            "cluster": cluster,
            "workload": workload,
            "num_requests": checked_num_requests(given["num_requests"]),
            "load": checked_pair("load", load, 0.01, 10.0, float),
            "available": checked_pair("available", given["available"], 1, cluster.num_instances, int),
            "features": select(given["features"], cls.offers, oracle=oracle),
            "reward": reward,
            "slo": slo,
            "failure_s": checked_failure_s(given["failure_s"] if "failure_s" in given else default_failure_s()),
            "engine": given.get("engine") or default_engine(),
        }

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a config says under ``env``, its ``id`` aside: every setting is there and of its type.

        Parameters
        ----------
        settings : mapping of str to object
            Of `fleetgym.envs.arguments.SETTINGS` and the fields that this environment adds.

        Returns
        -------
        dict
            Arguments of `resolve`.

        Raises
        ------
        UserError
            Unknown, missing or of the wrong type.
        """
        own = {f.name: f for f in fields(cls) if f.name not in _COMMON}
        hints = typing.get_type_hints(cls)
        known = {**SETTINGS, **OPTIONAL, **{name: hints[name] for name in own}}
        optional = {*OPTIONAL, *(name for name, f in own.items() if not _required(f))}
        for name in settings:
            if name not in known:
                raise UserError(f"env.{name}: unknown field{did_you_mean(name, known)}")
        for name in known:
            if name not in settings and name not in optional:
                raise UserError(f"env.{name}: missing; this field has no default")
        return {name: convert(known[name], value, f"env.{name}") for name, value in settings.items()}


_COMMON = frozenset(f.name for f in fields(Problem))


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


class Batch:
    """B independent episodes of one problem over one engine.

    Episode ``i`` draws from its own generator ``rngs[i]``, so nothing depends on B. The arrays belong to the batch and
    are overwritten by ``start`` and ``step``: copy what must last.

    Parameters
    ----------
    problem : Problem
    batch : int
        B.
    keep_traces : bool
        Keep the episodes' requests in ``traces``.
    all_signals : bool
        Let ``obs`` hold all that the problem offers, as rendering and policies with features of their own need, and not
        only the observation's columns.

    Raises
    ------
    UserError
        The blocks of the workload's chains do not fit those of the instances, no saturation rate can be measured for
        ``load``, the workload's file cannot be read, or there is no engine of that name.

    Warns
    -----
    UserNote
        The workload names shared blocks, and no instance caches them.

    Attributes
    ----------
    engine : Engine
    rngs : list of Generator, length B
    traces : list of Trace, length B
        The requests of each running episode, if they are to be kept; None before the first.
    columns : tuple of str
        Names of the last axis of ``obs``.
    obs : ndarray of float32, shape (B, C, len(columns))
    mask : ndarray of bool, shape (B, C)
        What may be chosen at the pending decision, never nothing.
    """

    derived: ClassVar[bool] = False  # whether the rows are not the engine's own

    def __init__(self, problem: Problem, batch: int, *, keep_traces: bool = False, all_signals: bool = True) -> None:
        self.problem = problem
        blocks = problem.workload.chain_blocks
        self._fit = fit_chains(blocks, problem.cluster)
        if note := unused_chains(blocks, problem.cluster):
            warnings.warn(note, UserNote, stacklevel=2)
        # With the observation's own columns only, a copy of it is one block of memory.
        offered = problem.offers if self.derived else SIGNAL_NAMES
        self.columns = offered if all_signals else problem.features
        observed = SIGNAL_NAMES if self.derived else self.columns
        high = [find_signal(name).high for name in observed]
        self.engine = make_engine(problem.engine, problem.cluster, batch, columns=observed, high=high, slo=problem.slo)
        self.obs: NDArray[np.float32] = self.engine.obs
        self.mask: NDArray[np.bool_] = self.engine.mask
        self.rngs: list[np.random.Generator] = [np.random.default_rng() for _ in range(batch)]
        self.traces: list[Trace | None] = [None] * batch
        self._keep_traces = keep_traces
        self._weights = [(term, w) for term, w in enumerate(problem.reward.weights(problem.failure_s).tolist()) if w]
        self._features = self.places(problem.features)
        self._saturation_rps = np.zeros(0)
        if problem.load is not None:
            self._saturation_rps = np.array([saturation_rps(s, problem.workload) for s in problem.cluster.expanded])

    def __len__(self) -> int:
        return len(self.rngs)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which episodes have had their last decision, shape (B,)."""
        return self.engine.done

    def places(self, features: Sequence[str]) -> Any:
        """Return where columns are in ``obs``: neighbours (or none) as a slice, which copies nothing, else a list.

        Parameters
        ----------
        features : sequence of str
            Each one of ``columns``.

        Returns
        -------
        slice or list of int
            Index of the last axis of ``obs``, in the order of ``features``.
        """
        index = [self.columns.index(name) for name in features]
        first = index[0] if index else 0
        end = first + len(index)
        return slice(first, end) if index == list(range(first, end)) else index

    def observations(self) -> NDArray[np.float32]:
        """Return the observations at the pending decisions, shape (B, C, F), a copy."""
        return self.obs[:, :, self._features].copy()

    def observation(self, index: int) -> NDArray[np.float32]:
        """Return one observation, shape (C, F), a copy.

        Parameters
        ----------
        index : int
            Which environment.
        """
        return self.obs[index][:, self._features].copy()

    def reader(self, index: int) -> Callable[[], NDArray[np.float32]]:
        """Return a function that does what `observation` does, faster.

        Parameters
        ----------
        index : int
            Which environment.

        Returns
        -------
        callable
            Without arguments; each call gives a copy of the current observation, shape (C, F).
        """
        rows, columns = self.obs[index], self._features
        if isinstance(columns, slice):
            return rows[:, columns].copy
        return functools.partial(rows.take, np.array(columns), axis=1)

    def start(self, index: int, num_requests: int | None = None, *, window: int | None = None) -> None:
        """Begin a new episode and bring it to its first decision.

        Parameters
        ----------
        index : int
            Which environment.
        num_requests : int, optional
            Instead of the problem's own number.
        window : int, optional
            Of a recording, its ``window``-th disjoint window, from 0 on; by default as the workload chooses.

        Raises
        ------
        UserError
            The workload has not as many requests or windows, or so low a rate that the times leave int64 nanoseconds.
        """
        rng = self.rngs[index]
        problem = self.problem
        available = self._draw_available(rng)
        trace = self._fit(problem.workload.episode(rng, num_requests or problem.num_requests, window=window))
        if problem.load is not None:
            low, high = problem.load
            load = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
            rate_rps = load * float(self._saturation_rps[available].sum())
            stretch(trace, problem.workload.mean_rate_rps / rate_rps)
        if self._keep_traces:
            self.traces[index] = trace
        self.engine.reset(index, trace, available)

    def _draw_available(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        n = self.problem.cluster.num_instances
        mask = np.ones(n, np.bool_)
        if self.problem.available is not None:
            low, high = self.problem.available
            count = int(rng.integers(low, high + 1))
            mask[:] = False
            mask[rng.permutation(n)[:count]] = True
        return mask

    def advance(self, actions: NDArray[np.int64]) -> None:
        """Carry a decision out in each environment and advance each to its next one.

        Parameters
        ----------
        actions : ndarray of int64, shape (B,)
            What is chosen; environments that have ended ignore theirs.

        Raises
        ------
        UserError
            A choice that does not exist; nothing has moved then.
        LivelockError
            An instance stopped making progress.
        """
        self.engine.step(actions)

    def step(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Do as `advance` does and return the rewards, shape (B,), a new array.

        Parameters
        ----------
        actions : ndarray of int64, shape (B,)

        Raises
        ------
        UserError
            As `advance`.
        """
        self.advance(actions)
        # Term by term, not by a matrix product: the same sum, to the last bit, as `reward` and for every B.
        (term, weight), *others = self._weights
        rewards: NDArray[np.float64] = self.engine.terms[:, term] * weight
        for term, weight in others:
            rewards += self.engine.terms[:, term] * weight
        return rewards

    def reward(self, terms: Sequence[float]) -> float:
        """Return the reward of one environment's terms.

        Parameters
        ----------
        terms : sequence of float, length len(TERMS)
            In the order and units of `fleetgym.envs.signals.TERMS`.
        """
        total = 0.0
        for term, weight in self._weights:
            total += terms[term] * weight
        return total

    def finish(self, index: int) -> dict[str, float]:
        """Run a finished episode's cluster dry and return its latency metrics (``info["episode_metrics"]``).

        Parameters
        ----------
        index : int
            Which environment; its last request is dispatched.

        Returns
        -------
        dict of str to float
            ``mean_ttft_s``, ``mean_tpot_s`` and ``mean_e2e_s`` over the requests that have one, NaN if none has;
            ``mean_e2e_charged_s`` and ``slo_attainment`` over all that arrived; the counts ``rejected`` and
            ``preemptions``.

        Raises
        ------
        UserError
            The episode has requests that are not dispatched, or has not begun.
        LivelockError
            A request can never be admitted.
        """
        self.engine.drain(index)
        totals = self.engine.episode_totals(index)
        arrived = int(self.engine.pending[index] + 1)
        charge_s = self.problem.failure_s * (arrived - totals.finished)
        return {
            "mean_ttft_s": totals.ttft_s / totals.with_ttft if totals.with_ttft else math.nan,
            "mean_tpot_s": totals.tpot_s / totals.with_tpot if totals.with_tpot else math.nan,
            "mean_e2e_s": totals.e2e_s / totals.finished if totals.finished else math.nan,
            "mean_e2e_charged_s": (totals.e2e_s + charge_s) / arrived,
            "slo_attainment": totals.slo_met / arrived,
            "rejected": totals.rejected,
            "preemptions": totals.preemptions,
        }


class DerivedBatch(Batch):
    """A batch whose choices are not the engine's: a subclass translates them and fills in the rows.

    ``engine.obs`` has all signals of `fleetgym.envs.signals`, one row per instance; ``engine.mask`` the instances that
    can take the pending request. Arguments, errors and attributes are those of `Batch`.
    """

    derived = True

    def __init__(self, problem: Problem, batch: int, *, keep_traces: bool = False, all_signals: bool = True) -> None:
        super().__init__(problem, batch, keep_traces=keep_traces, all_signals=all_signals)
        self.obs = np.zeros((batch, problem.num_choices, len(self.columns)), np.float32)
        self.mask = np.zeros((batch, problem.num_choices), np.bool_)
        self._high = np.array([find_signal(name).high for name in self.columns], np.float32)

    def observe(self, index: int) -> None:
        """Fill in ``obs[index]`` and ``mask[index]`` for the pending decision of one environment.

        Values above the columns' ``high`` are clipped afterwards.

        Parameters
        ----------
        index : int
            Which environment.
        """
        raise NotImplementedError

    def instances(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the instance that each pending request goes to, shape (B,).

        Parameters
        ----------
        actions : ndarray of int64, shape (B,)
            What is chosen; those of running environments are allowed by ``mask``, the others mean nothing.
        """
        raise NotImplementedError

    def start(self, index: int, num_requests: int | None = None, *, window: int | None = None) -> None:
        """Begin a new episode (see `Batch.start`)."""
        super().start(index, num_requests, window=window)
        self._look(index)

    def advance(self, actions: NDArray[np.int64]) -> None:
        """Carry the decisions out (see `Batch.advance`)."""
        for index in np.flatnonzero(~self.done).tolist():
            if not (0 <= actions[index] < self.problem.num_choices and self.mask[index, actions[index]]):
                allowed = np.flatnonzero(self.mask[index]).tolist()
                raise UserError(
                    f"action={actions[index]} of cluster {index}: no {self.problem.choice} that may be chosen "
                    f"(allowed: {allowed})"
                )
        running = np.flatnonzero(~self.done).tolist()
        self.engine.step(self.instances(actions))
        for index in running:
            self._look(index)

    def _look(self, index: int) -> None:
        self.observe(index)
        np.minimum(self.obs[index], self._high, out=self.obs[index])


def stretch(trace: Trace, factor: float) -> None:
    """Multiply the arrival times of a fresh episode, in whole nanoseconds.

    Parameters
    ----------
    trace : Trace
        Its times are overwritten.
    factor : float
        Below 1: faster.
    """
    times = trace.requests["arrival_ns"]
    times[:] = np.rint(times * factor)

"""B routing problems over one engine: what the single and the vector environment share."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import SIGNAL_NAMES, default_engine, make_engine
from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.spec import ClusterSpec, Slo
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError, UserNote
from fleetgym.envs.features import FEATURE_BY_NAME, observation_space, select
from fleetgym.envs.presets import default_preset, preset
from fleetgym.envs.rewards import RewardSpec
from fleetgym.envs.routing.load import saturation_rps
from fleetgym.envs.workloads import Workload, make_workload
from fleetgym.envs.workloads.blocks import fit_chains, unused_chains

T = TypeVar("T")
_ENV = default_preset("env")
_FAILURE_S: float = default_preset("scenario")["scenario"]["failure_s"]


@dataclass(frozen=True)
class RoutingConfig:
    """One routing problem, resolved and validated.

    Attributes
    ----------
    cluster : ClusterSpec
    workload : Workload
    num_requests : int or None
        Decisions of an episode; None: as many as the workload holds.
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
    """

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


def _pair(name: str, value: Any, low: float, high: float, kind: type[float | int]) -> Any:
    """Turn a number or a [low, high] list into a checked pair of ``kind``."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else (value, value)
    wanted = Integral if kind is int else Real
    numbers = all(isinstance(v, wanted) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not numbers or not low <= pair[0] <= pair[1] <= high:
        what = "whole number" if kind is int else "number"
        raise UserError(f"{name}={value!r}: must be a {what} or [low, high] within [{low:g}, {high:g}]")
    return kind(pair[0]), kind(pair[1])


def _fields(group: str, value: Any) -> Any:
    """Turn None into the fields of the default preset and a name into those of its preset; leave all else."""
    if value is None:
        return default_preset(group)
    return preset(group, value) if isinstance(value, str) else value


def _built(cls: type[T], group: str, value: Any) -> T:
    fields = _fields(group, value)
    return fields if isinstance(fields, cls) else build(cls, fields, group)


def resolve(
    *,
    cluster: ClusterSpec | Mapping[str, Any] | str | None = None,
    workload: Workload | Mapping[str, Any] | str | None = None,
    num_requests: int | None = _ENV["num_requests"],
    load: float | Sequence[float] | None = _ENV["load"],
    available: int | Sequence[int] | None = _ENV["available"],
    features: Sequence[str] | None = _ENV["features"],
    oracle: bool = False,
    reward: RewardSpec | Mapping[str, Any] | str | None = None,
    slo: Slo | Mapping[str, Any] | str | None = None,
    failure_s: float = _FAILURE_S,
    engine: str | None = None,
) -> RoutingConfig:
    """Validate the arguments of an environment; names and mappings are built into their dataclasses.

    A name is a preset of `fleetgym.envs.presets`; what is not given is the command line's default.

    Raises
    ------
    UserError
        Naming the field, the value and what is allowed.
    """
    spec = _built(ClusterSpec, "cluster", cluster)
    source = _fields("workload", workload)
    if not isinstance(source, Workload | Mapping):
        raise UserError(f"workload={workload!r}: expected a name, a mapping of fields or a Workload")
    whole = isinstance(num_requests, (int, np.integer)) and not isinstance(num_requests, bool)
    if num_requests is not None and not (whole and num_requests >= 2):
        raise UserError(f"num_requests={num_requests!r}: must be a whole number of at least 2, or None for all")
    if isinstance(failure_s, bool) or not isinstance(failure_s, Real) or not 0.0 < failure_s < math.inf:
        raise UserError(f"failure_s={failure_s!r}: must be a positive number of seconds")
    source = make_workload(source) if isinstance(source, Mapping) else source
    if load is not None and (source.rate_rps or source.rate_scale or source.rate_scale_range):
        raise UserError(f"{source.rate_setting}: load={load!r} sets the rate of arrivals; one of the two must be null")
    return RoutingConfig(
        cluster=spec,
        workload=source,
        num_requests=num_requests,
        load=_pair("load", load, 0.01, 10.0, float),
        available=_pair("available", available, 1, spec.num_instances, int),
        features=tuple(f.name for f in select(features, oracle=oracle)),
        reward=_built(RewardSpec, "reward", reward),
        slo=_built(Slo, "slo", slo),
        failure_s=float(failure_s),
        engine=engine or default_engine(),
    )


class RoutingBatch:
    """B independent episodes of one `RoutingConfig`.

    Episode ``i`` draws from its own generator ``rngs[i]``, so nothing depends on B.

    Attributes
    ----------
    engine : Engine
    rngs : list of Generator, length B
    traces : list of Trace, length B
        The requests of each running episode, if they are to be kept; None before the first.

    Parameters
    ----------
    config : RoutingConfig
    batch : int
        B.
    keep_traces : bool
        Keep the episodes' requests in ``traces``.
    all_signals : bool
        Let ``engine.obs`` hold every signal, as rendering and policies with features of their own need, and not
        only the observation's columns.
    """

    def __init__(
        self, config: RoutingConfig, batch: int, *, keep_traces: bool = False, all_signals: bool = True
    ) -> None:
        self.config = config
        blocks = config.workload.chain_blocks
        self._fit = fit_chains(blocks, config.cluster)
        if note := unused_chains(blocks, config.cluster):
            warnings.warn(note, UserNote, stacklevel=2)
        # With the observation's own columns only, a copy of it is one block of memory.
        signals = SIGNAL_NAMES if all_signals else config.features
        high = [FEATURE_BY_NAME[name].high for name in signals]
        self.engine = make_engine(config.engine, config.cluster, batch, columns=signals, high=high, slo=config.slo)
        self.rngs: list[np.random.Generator] = [np.random.default_rng() for _ in range(batch)]
        self.traces: list[Trace | None] = [None] * batch
        self._keep_traces = keep_traces
        self._weights = [(term, w) for term, w in enumerate(config.reward.weights(config.failure_s).tolist()) if w]
        columns = [signals.index(name) for name in config.features]
        contiguous = columns == list(range(columns[0], columns[0] + len(columns)))
        self._columns: Any = slice(columns[0], columns[-1] + 1) if contiguous else columns
        self._saturation_rps = np.zeros(0)
        if config.load is not None:
            self._saturation_rps = np.array([saturation_rps(s, config.workload) for s in config.cluster.expanded])

    @property
    def observation_space(self) -> spaces.Box:
        """Space of one observation, ``Box(N, F)``."""
        return observation_space(select(self.config.features, oracle=True), self.config.cluster.num_instances)

    def observations(self) -> NDArray[np.float32]:
        """Return the observations at the pending decisions, shape (B, N, F), a copy."""
        return self.engine.obs[:, :, self._columns].copy()

    def observation(self, index: int) -> NDArray[np.float32]:
        """Return one observation, shape (N, F), a copy."""
        return self.engine.obs[index][:, self._columns].copy()

    def reader(self, index: int) -> Callable[[], NDArray[np.float32]]:
        """Return a function that does what `observation` does, faster."""
        rows, columns = self.engine.obs[index], self._columns
        if isinstance(columns, slice):
            return rows[:, columns].copy
        return functools.partial(rows.take, np.array(columns), axis=1)

    def start(self, index: int, num_requests: int | None = None, *, window: int | None = None) -> None:
        """Begin a new episode in environment ``index``, of a recording the ``window``-th disjoint window."""
        rng = self.rngs[index]
        config = self.config
        available = self._draw_available(rng)
        trace = self._fit(config.workload.episode(rng, num_requests or config.num_requests, window=window))
        if config.load is not None:
            low, high = config.load
            load = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
            rate_rps = load * float(self._saturation_rps[available].sum())
            stretch(trace, config.workload.mean_rate_rps / rate_rps)
        if self._keep_traces:
            self.traces[index] = trace
        self.engine.reset(index, trace, available)

    def _draw_available(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        n = self.config.cluster.num_instances
        mask = np.ones(n, np.bool_)
        if self.config.available is not None:
            low, high = self.config.available
            count = int(rng.integers(low, high + 1))
            mask[:] = False
            mask[rng.permutation(n)[:count]] = True
        return mask

    def step(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Dispatch all pending requests; return the rewards, shape (B,), a new array."""
        self.engine.step(actions)
        # Term by term, not by a matrix product: the same sum, to the last bit, as `reward` and for every B.
        (term, weight), *others = self._weights
        rewards: NDArray[np.float64] = self.engine.terms[:, term] * weight
        for term, weight in others:
            rewards += self.engine.terms[:, term] * weight
        return rewards

    def reward(self, terms: Sequence[float]) -> float:
        """Return the reward of one environment's terms, given in the order of ``TERM_NAMES``."""
        total = 0.0
        for term, weight in self._weights:
            total += terms[term] * weight
        return total

    def terms(self, index: int) -> NDArray[np.float64]:
        """Return the unweighted reward terms of the last step of one environment, shape (len(TERM_NAMES),), a copy."""
        return self.engine.terms[index].copy()

    def finish(self, index: int) -> dict[str, float]:
        """Run a finished episode's cluster dry and return its latency metrics."""
        self.engine.drain(index)
        ttft_s, first_tokens, tpot_s, spans, e2e_s, finished, met, rejected, preemptions = self.engine.episode_totals(
            index
        ).tolist()
        arrived = int(self.engine.pending[index] + 1)
        charge_s = self.config.failure_s * (arrived - finished)
        return {
            "mean_ttft_s": ttft_s / first_tokens if first_tokens else math.nan,
            "mean_tpot_s": tpot_s / spans if spans else math.nan,
            "mean_e2e_s": e2e_s / finished if finished else math.nan,
            "mean_e2e_charged_s": (e2e_s + charge_s) / arrived,
            "slo_attainment": met / arrived,
            "rejected": rejected,
            "preemptions": preemptions,
        }


def stretch(trace: Trace, factor: float) -> None:
    """Multiply the arrival times of a fresh episode by ``factor`` (below 1: faster), in whole nanoseconds."""
    times = trace.requests["arrival_ns"]
    times[:] = np.rint(times * factor)

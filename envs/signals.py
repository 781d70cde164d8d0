"""The ground floor: everything that can be observed and everything that can be rewarded, one table each.

Engines report the signals and the terms under these names, the observation schema takes columns from them, rewards
weigh the terms, the documentation prints both. This module imports none of those.

A signal says with its ``tag`` what a real router or scheduler could know of it:

===============  ==========================================================================
``local``        kept by the decider itself, exact and immediate
``scraped``      read from the instance's metrics endpoint
``static``       known from the deployment
``request``      in the request that waits for the decision
``privileged``   known to the simulator only; refused by every policy not registered as oracle
===============  ==========================================================================
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fleetgym.envs.errors import UserError, did_you_mean

Scope = Literal["choice", "request", "cluster"]
Tag = Literal["local", "scraped", "static", "request", "privileged"]
Transform = Literal["log1p", "linear"]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One number that can be observed at a decision.

    Attributes
    ----------
    name, unit, meaning : str
    scope : {"choice", "request", "cluster"}
        What it belongs to: to one row of the observation, or to the request or the cluster, repeated in each row.
    tag : {"local", "scraped", "static", "request", "privileged"}
        Where a real decider gets it (module docstring).
    low, high : float
        Bounds in physical units; what lies beyond is clipped.
    transform : {"log1p", "linear"}
        How networks see it: ``log1p(x) / log1p(scale)`` or ``x / scale``.
    scale : float
        A typical large value, mapped to 1.
    missing : float
        What replaces a value that could not be read (NaN).
    metrics : mapping of str to tuple of str
        Metric names that carry it, per serving engine, newest first.
    """

    name: str
    unit: str
    meaning: str
    scope: Scope = "choice"
    tag: Tag
    low: float = 0.0
    high: float
    transform: Transform = "log1p"
    scale: float
    missing: float = 0.0
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One number that the engines measure between two decisions, for rewards to weigh.

    Attributes
    ----------
    name, unit, meaning : str
    """

    name: str
    unit: str
    meaning: str


def _places(kind: str, names: tuple[str, ...]) -> Any:
    """Place of each name as an attribute, which compiled code reads as a constant."""
    return namedtuple(kind, names)(*range(len(names)))


# A gauge that could not be read stands for a moderately busy instance: as 0 it would look idle and draw every request.
SIGNALS: tuple[Signal, ...] = (
    Signal(
        name="in_flight_requests",
        unit="requests",
        meaning="dispatched to the instance and not finished",
        tag="local",
        high=1e5,
        scale=256.0,
    ),
    Signal(
        name="in_flight_prompt_tokens",
        unit="tokens",
        meaning="prompt tokens of the in-flight requests",
        tag="local",
        high=1e8,
        scale=3e5,
    ),
    Signal(
        name="awaiting_first_token_requests",
        unit="requests",
        meaning="in-flight requests without a first token",
        tag="local",
        high=1e5,
        scale=64.0,
    ),
    Signal(
        name="awaiting_first_token_prompt_tokens",
        unit="tokens",
        meaning="prompt tokens of those",
        tag="local",
        high=1e8,
        scale=1e5,
    ),
    Signal(
        name="streamed_tokens",
        unit="tokens",
        meaning="output tokens already returned to in-flight requests",
        tag="local",
        high=1e8,
        scale=5e4,
    ),
    Signal(
        name="since_dispatch_s",
        unit="s",
        meaning="time since the last dispatch to the instance, or since the first arrival",
        tag="local",
        high=3600.0,
        scale=60.0,
    ),
    Signal(
        name="ttft_ewma_s",
        unit="s",
        meaning="exponentially weighted mean TTFT (weight 0.1), 0 before the first",
        tag="local",
        high=3600.0,
        scale=10.0,
    ),
    Signal(
        name="running_requests",
        unit="requests",
        meaning="requests in the instance's running list",
        tag="scraped",
        high=1e4,
        scale=256.0,
        missing=32.0,
        metrics={"vllm": ("vllm:num_requests_running",), "sglang": ("sglang:num_running_reqs",)},
    ),
    Signal(
        name="waiting_requests",
        unit="requests",
        meaning="requests in the instance's waiting queue",
        tag="scraped",
        high=1e5,
        scale=256.0,
        missing=4.0,
        metrics={"vllm": ("vllm:num_requests_waiting",), "sglang": ("sglang:num_queue_reqs",)},
    ),
    Signal(
        name="kv_usage",
        unit="fraction",
        meaning="used KV blocks over usable ones",
        tag="scraped",
        high=1.0,
        transform="linear",
        scale=1.0,
        missing=0.5,
        metrics={"vllm": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), "sglang": ("sglang:token_usage",)},
    ),
    Signal(
        name="kv_capacity_tokens",
        unit="tokens",
        meaning="tokens that the KV cache holds",
        tag="static",
        high=1e8,
        scale=1e6,
        metrics={"vllm": ("vllm:cache_config_info",), "sglang": ("sglang:max_total_num_tokens",)},
    ),
    Signal(
        name="prefill_tokens_per_s",
        unit="tokens/s",
        meaning="speed of a full prefill iteration of this hardware",
        tag="static",
        high=1e7,
        scale=5e4,
    ),
    Signal(
        name="decode_tokens_per_s",
        unit="tokens/s",
        meaning="speed of a decode batch of 32 on this hardware",
        tag="static",
        high=1e7,
        scale=5e3,
    ),
    Signal(
        name="prompt_tokens",
        unit="tokens",
        meaning="prompt length of the arriving request",
        scope="request",
        tag="request",
        high=1e7,
        scale=1e4,
    ),
    Signal(
        name="priority",
        unit="level",
        meaning="priority of the arriving request, smaller is more important",
        scope="request",
        tag="request",
        low=-1e3,
        high=1e3,
        transform="linear",
        scale=10.0,
    ),
    Signal(
        name="output_tokens",
        unit="tokens",
        meaning="true output length of the arriving request",
        scope="request",
        tag="privileged",
        high=1e7,
        scale=1e3,
    ),
    Signal(
        name="remaining_tokens",
        unit="tokens",
        meaning="true tokens left: prompts without first token plus outputs not yet returned",
        tag="privileged",
        high=1e8,
        scale=1e5,
    ),
)
SIGNAL_NAMES: tuple[str, ...] = tuple(signal.name for signal in SIGNALS)
SIGNAL_AT = _places("SignalAt", SIGNAL_NAMES)  # place in SIGNALS: SIGNAL_AT.kv_usage
SIGNAL_INDEX: Mapping[str, int] = SIGNAL_AT._asdict()

TERMS: tuple[Term, ...] = (
    Term("unfinished_request_s", "request-seconds", "time integral of unfinished requests over the interval"),
    Term("awaiting_first_token_request_s", "request-seconds", "the same over requests without a first token"),
    Term("finished", "requests", "requests finished in the interval"),
    Term("slo_met", "requests", "of these, within their SLO"),
    Term("rejected", "requests", "1 if the dispatched request was rejected"),
    Term("preempted", "preemptions", "preemptions in the interval"),
    Term("recomputed_tokens", "tokens", "tokens lost by them and not hit again"),
)
TERM_NAMES: tuple[str, ...] = tuple(term.name for term in TERMS)
TERM_AT = _places("TermAt", TERM_NAMES)  # place in TERMS: TERM_AT.finished

_known: dict[str, Signal] = {signal.name: signal for signal in SIGNALS}


def declare(signals: Iterable[Signal]) -> tuple[str, ...]:
    """Make signals of an environment of one's own known: those that no engine reports but the environment derives.

    A name means one thing everywhere, so that a checkpoint's list of names is enough to know its columns.

    Parameters
    ----------
    signals : iterable of Signal
        Declaring an equal one again changes nothing.

    Returns
    -------
    tuple of str
        Their names.

    Raises
    ------
    UserError
        A name is taken by a signal that is another one.
    """
    added = {}
    for signal in signals:
        if _known.get(signal.name, signal) != signal:
            raise UserError(f"signal {signal.name!r}: is declared already, with other properties; choose another name")
        added[signal.name] = signal
    _known.update(added)
    return tuple(added)


def find_signal(name: str) -> Signal:
    """Look a signal up.

    Parameters
    ----------
    name : str
        Of `SIGNALS`, or of one that `declare` made known.

    Raises
    ------
    UserError
        Nobody declared it; the near names are listed.
    """
    if name not in _known:
        raise UserError(f"features: {name!r} is unknown{did_you_mean(name, _known)}")
    return _known[name]

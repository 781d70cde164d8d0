"""The observation schema: one table, read by environments, baselines, agents and export.

An observation holds one row per instance and one column per feature, in raw physical units; request
features repeat in every row, so that a network shared over rows handles any number of instances. The
source tag says what a real router could know:

===============  ==========================================================================
``local``        kept by the router itself, exact and immediate
``scraped``      read from the instance's metrics endpoint
``static``       known from the deployment
``request``      in the arriving request
``privileged``   known to the simulator only; refused by every policy not registered as oracle
===============  ==========================================================================
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import SIGNALS
from fleetgym.envs.errors import UserError, did_you_mean

SCHEMA_VERSION = 1

Scope = Literal["instance", "request"]
Tag = Literal["local", "scraped", "static", "request", "privileged"]


@dataclass(frozen=True)
class Feature:
    """One column of the observation.

    Attributes
    ----------
    name, unit, meaning : str
    scope : {"instance", "request"}
    tag : str
        Where a real router gets it (module docstring).
    low, high : float
        Declared bounds in physical units; larger values are clipped.
    transform : {"log1p", "linear"}
        How networks see it: ``log1p(x) / log1p(scale)`` or ``x / scale``.
    scale : float
        A typical large value, mapped to 1.
    missing : float
        What replaces a value that a router could not read (NaN).
    metrics : mapping of str to tuple of str
        Metric names that carry it, per serving engine, newest first.
    """

    name: str
    unit: str
    meaning: str
    scope: Scope
    tag: Tag
    high: float
    transform: Literal["log1p", "linear"]
    scale: float
    low: float = 0.0
    missing: float = 0.0
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_RUNNING = {"vllm": ("vllm:num_requests_running",), "sglang": ("sglang:num_running_reqs",)}
_WAITING = {"vllm": ("vllm:num_requests_waiting",), "sglang": ("sglang:num_queue_reqs",)}
_KV_USAGE = {
    "vllm": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "sglang": ("sglang:token_usage",),
}
_CAPACITY = {"vllm": ("vllm:cache_config_info",), "sglang": ("sglang:max_total_num_tokens",)}

# A gauge that could not be read is taken for a moderately busy instance: as 0 it would look idle and draw every request.
_MISSING = {"running_requests": 32.0, "waiting_requests": 4.0, "kv_usage": 0.5}

# name: (scope, tag, high, transform, scale, metrics)
_ROWS: dict[str, tuple[Scope, Tag, float, Literal["log1p", "linear"], float, Mapping[str, tuple[str, ...]]]] = {
    "in_flight_requests": ("instance", "local", 1e5, "log1p", 256.0, {}),
    "in_flight_prompt_tokens": ("instance", "local", 1e8, "log1p", 3e5, {}),
    "awaiting_first_token_requests": ("instance", "local", 1e5, "log1p", 64.0, {}),
    "awaiting_first_token_prompt_tokens": ("instance", "local", 1e8, "log1p", 1e5, {}),
    "streamed_tokens": ("instance", "local", 1e8, "log1p", 5e4, {}),
    "since_dispatch_s": ("instance", "local", 3600.0, "log1p", 60.0, {}),
    "ttft_ewma_s": ("instance", "local", 3600.0, "log1p", 10.0, {}),
    "running_requests": ("instance", "scraped", 1e4, "log1p", 256.0, _RUNNING),
    "waiting_requests": ("instance", "scraped", 1e5, "log1p", 256.0, _WAITING),
    "kv_usage": ("instance", "scraped", 1.0, "linear", 1.0, _KV_USAGE),
    "kv_capacity_tokens": ("instance", "static", 1e8, "log1p", 1e6, _CAPACITY),
    "prefill_tokens_per_s": ("instance", "static", 1e7, "log1p", 5e4, {}),
    "decode_tokens_per_s": ("instance", "static", 1e7, "log1p", 5e3, {}),
    "prompt_tokens": ("request", "request", 1e7, "log1p", 1e4, {}),
    "priority": ("request", "request", 1e3, "linear", 10.0, {}),
    "output_tokens": ("request", "privileged", 1e7, "log1p", 1e3, {}),
    "remaining_tokens": ("instance", "privileged", 1e8, "log1p", 1e5, {}),
}


def _feature(name: str, unit: str, meaning: str) -> Feature:
    scope, tag, high, transform, scale, metrics = _ROWS[name]
    low = -high if name == "priority" else 0.0
    return Feature(name, unit, meaning, scope, tag, high, transform, scale, low, _MISSING.get(name, 0.0), metrics)


FEATURES: tuple[Feature, ...] = tuple(_feature(*signal) for signal in SIGNALS)
FEATURE_BY_NAME: Mapping[str, Feature] = {feature.name: feature for feature in FEATURES}
DEFAULT_FEATURES: tuple[str, ...] = tuple(f.name for f in FEATURES if f.tag != "privileged")
ORACLE_FEATURES: tuple[str, ...] = tuple(f.name for f in FEATURES)


def select(names: Sequence[str] | None = None, *, oracle: bool = False) -> tuple[Feature, ...]:
    """Look features up by name, in the order given; by default all that a real router can know.

    Raises
    ------
    UserError
        Unknown or repeated name, or a privileged one without ``oracle=True``.
    """
    if names is None:
        return tuple(FEATURE_BY_NAME[name] for name in (ORACLE_FEATURES if oracle else DEFAULT_FEATURES))
    for name in names:
        if name not in FEATURE_BY_NAME:
            raise UserError(f"features: {name!r} is unknown{did_you_mean(name, FEATURE_BY_NAME)}")
        if FEATURE_BY_NAME[name].tag == "privileged" and not oracle:
            raise UserError(f"features: {name!r} is privileged: only a policy registered as oracle may read it")
    if len(set(names)) != len(names) or not names:
        raise UserError(f"features={list(names)}: need at least one, each once")
    return tuple(FEATURE_BY_NAME[name] for name in names)


def observation_space(features: Sequence[Feature], num_instances: int) -> spaces.Box:
    """Return ``Box(N, F)`` float32 within the declared bounds, in physical units."""
    low = np.array([f.low for f in features], np.float32)
    high = np.array([f.high for f in features], np.float32)
    shape = (num_instances, len(features))
    return spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape, np.float32)


def scaled(features: Sequence[Feature], observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what networks see: missing values replaced, clipped, transformed to about [0, 1].

    Parameters
    ----------
    features : sequence of Feature, length F
    observation : ndarray of float32, shape (..., F)
    """
    out = np.empty_like(observation)
    for column, f in enumerate(features):
        x = observation[..., column]
        x = np.clip(np.where(np.isnan(x), np.float32(f.missing), x), f.low, f.high)
        out[..., column] = np.log1p(x) / np.log1p(f.scale) if f.transform == "log1p" else x / f.scale
    return out


def schema_table(features: Sequence[Feature] = FEATURES) -> str:
    """Return the schema as a Markdown table, as printed in the docs."""
    lines = [
        "| # | feature | unit | scope | source | range | network input | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, f in enumerate(features):
        network = f"log1p(x) / log1p({f.scale:g})" if f.transform == "log1p" else f"x / {f.scale:g}"
        lines.append(
            f"| {index} | `{f.name}` | {f.unit} | {f.scope} | {f.tag} | [{f.low:g}, {f.high:g}] | {network} | {f.meaning} |"
        )
    return "\n".join(lines)


@functools.cache
def schema_digest(features: tuple[str, ...]) -> str:
    """Return a digest of everything that gives the columns their meaning; export compares it."""
    rows = [asdict(FEATURE_BY_NAME[name]) for name in features]
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, rows], sort_keys=True, default=list).encode()).hexdigest()[:16]

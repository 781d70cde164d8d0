"""Which scheduler settings and how many KV blocks a measured server had: recorded, reconstructed or estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.spec import SERVER_SETTINGS, EngineArgs
from fleetgym.envs.workloads.blocks import regroup
from fleetgym.envs.workloads.measured_run import MeasuredRun

TOTAL_NAMES = ("num_gpu_blocks",)
RANK_NAMES = ("num_gpu_blocks_override", "kv_blocks", "num_kv_blocks", "kv_cache_blocks", "num_kv_cache_blocks")
TOKEN_NAMES = ("kv_cache_size_tokens", "kv_cache_tokens", "kv_capacity_tokens")
CATALOGUE_RULE = "what fits beside the weights at 0.9 memory utilisation"
AGREEMENT = 0.03  # more than the estimates from the run were ever off where the number was known
BOUND_SHARE = 0.95  # fewer running requests than this share of max_num_seqs, others waiting: the cache is full
FULL_SHARE = 0.85
MIN_TICKS, MIN_TICK_SHARE = 5, 0.1
MIN_USAGE = 0.2  # below, rounding and sharing make usage a poor witness of capacity


class KvBlocks(NamedTuple):
    """KV blocks of one rank and where the number comes from.

    Attributes
    ----------
    blocks : int
        The null block included.
    source : {"given", "meta", "kv_usage", "saturation", "catalogue"}
        The last three are estimates: requests against the recorded usage, the most that the running requests held while
        the cache was full, or what the catalogue of GPUs and models says.
    text : str
        The same for a report.
    """

    blocks: int
    source: str
    text: str

    @property
    def estimated(self) -> bool:
        """Whether nobody recorded the number."""
        return self.source not in ("given", "meta")


def recorded_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Scheduler settings in ``meta.json`` as fields of `EngineArgs`.

    Parameters
    ----------
    meta : mapping
        The parsed file. A setting stands under its field's name, or vLLM's where that differs, in ``engine_kwargs`` or
        ``kv_cache``.

    Returns
    -------
    dict
        Null and absent ones are left out. Values are as recorded, of whatever type.
    """
    merged = {**_dict(meta, "kv_cache"), **_dict(meta, "engine_kwargs")}
    found = {name: merged[name] for name in SERVER_SETTINGS if merged.get(name) is not None}
    if merged.get("scheduler_reserve_full_isl") is not None:
        found["reserve_full_prompt"] = bool(merged["scheduler_reserve_full_isl"])
    if merged.get("enforce_eager"):
        found["cuda_graph_padding"] = False
    return found


def find_kv_blocks(
    run: MeasuredRun, args: EngineArgs, dp: int, *, given: int | None, max_num_seqs: int | None, catalogue_tokens: int
) -> KvBlocks:
    """Decide on the KV blocks of one rank: given, recorded, reconstructed from the run, or the catalogue's estimate.

    Parameters
    ----------
    run : MeasuredRun
    args : EngineArgs
        Settings of the server.
    dp : int
        Data-parallel ranks.
    given : int or None
        The user's own number.
    max_num_seqs : int or None
        The server's; None if unknown: a wrong one would be taken for a full cache.
    catalogue_tokens : int
        The catalogue's estimate of one rank's KV capacity.

    Returns
    -------
    KvBlocks
    """
    if given is not None:
        return KvBlocks(given, "given", "given as kv_blocks")
    recorded = _recorded(run.meta, args, dp)
    if recorded is not None:
        return recorded
    estimate = _from_usage(run, args, dp)
    if estimate is None and dp == 1 and max_num_seqs is not None:  # ranks fill up one by one; their sums do not show it
        estimate = _from_saturation(run, args, max_num_seqs)
    blocks = catalogue_tokens // args.block_size
    if estimate is None:
        return KvBlocks(blocks, "catalogue", f"ESTIMATED from the catalogue: {CATALOGUE_RULE}")
    if abs(estimate.blocks / max(1, blocks) - 1.0) <= AGREEMENT:
        agreeing = f"{estimate.blocks} by {estimate.source}"
        text = f"ESTIMATED from the catalogue ({CATALOGUE_RULE}), and the run agrees: {agreeing}"
        return KvBlocks(blocks, "catalogue", text)
    return estimate._replace(text=f"{estimate.text}; the catalogue says {blocks}")


def _recorded(meta: Mapping[str, Any], args: EngineArgs, dp: int) -> KvBlocks | None:
    """Look for a number of blocks, or of tokens that they hold."""
    for name in (*TOTAL_NAMES, *RANK_NAMES, *TOKEN_NAMES):
        value = _search(meta, name)
        if value is not None:
            # vLLM's front end sums the ranks' blocks of a data-parallel group.
            blocks = value // dp if name in TOTAL_NAMES else value
            blocks = value // args.block_size if name in TOKEN_NAMES else blocks
            return KvBlocks(blocks, "meta", f"recorded in meta.json ({name}={value})")
    return None


def held_blocks(run: MeasuredRun, times_s: NDArray[np.float64], block_size: int) -> NDArray[np.int64]:
    """KV blocks that the requests in execution held at each time, shape (T,); a shared prompt block counts once.

    A request is taken to hold its prompt, and its answer growing evenly, from its first token to its finish: what is
    still in prefill or was preempted is not seen, so that the figure is a little low, or high, respectively.

    Parameters
    ----------
    run : MeasuredRun
    times_s : ndarray of float, shape (T,)
        Seconds after the first arrival.
    block_size : int
        Tokens of one KV block.
    """
    nameable = block_size % run.chain_tokens == 0
    trace = regroup(run.trace, run.chain_tokens, block_size) if nameable else run.trace
    rows, ids = trace.requests, trace.block_ids
    counts = rows["block_count"] * nameable
    held = np.zeros(len(times_s), np.int64)
    span = np.maximum(run.finish_s - run.first_token_s, 1e-9)
    for tick, now in enumerate(times_s):
        alive = np.flatnonzero((run.first_token_s <= now) & (now < run.finish_s))
        done = np.floor((now - run.first_token_s[alive]) / span[alive] * rows["output_tokens"][alive])
        blocks = -(-(rows["prompt_tokens"][alive] + done.astype(np.int64)) // block_size)
        shared: set[int] = set()
        named = 0
        for start, count in zip(rows["block_start"][alive], counts[alive], strict=True):
            chain = ids[start : start + count]
            named += len(chain)
            shared.update(chain.tolist())
        held[tick] = blocks.sum() - named + len(shared)
    return held


def _from_usage(run: MeasuredRun, args: EngineArgs, dp: int) -> KvBlocks | None:
    """Blocks = held / recorded usage, the median over the ticks with a telling usage."""
    series = run.timeseries
    if series is None:
        return None
    telling = np.flatnonzero((series.kv_usage >= MIN_USAGE) & (series.kv_usage <= 1.0))
    if len(telling) < MIN_TICKS:
        return None
    held = held_blocks(run, series.t_s[telling], args.block_size)
    blocks = round(float(np.median(held / series.kv_usage[telling])) / dp) + 1
    return KvBlocks(blocks, "kv_usage", "ESTIMATED: blocks held by the requests over the recorded kv_cache_pct")


def _from_saturation(run: MeasuredRun, args: EngineArgs, max_num_seqs: int) -> KvBlocks | None:
    """Blocks = what the requests held while the cache, not ``max_num_seqs``, kept others waiting.

    The head of the queue did not fit, so what was left free lay between nothing and its need: half a prompt on
    average. Ticks far below the maximum are left out: there the token budget kept others waiting.
    """
    series = run.timeseries
    if series is None:
        return None
    times = series.t_s
    alive = ((run.first_token_s <= times[:, None]) & (times[:, None] < run.finish_s)).sum(axis=1)
    # A preempted request is alive but holds nothing.
    held = held_blocks(run, times, args.block_size) * np.minimum(1.0, series.running / np.maximum(alive, 1))
    bound = (series.waiting > 0) & (series.running < BOUND_SHARE * max_num_seqs)
    full = bound & (held >= FULL_SHARE * held.max())
    if full.sum() < max(MIN_TICKS, MIN_TICK_SHARE * len(times)):
        return None
    half_prompt = float(np.mean(run.trace.requests["prompt_tokens"])) / (2 * args.block_size)
    blocks = round(float(np.median(held[full])) + half_prompt) + 1
    return KvBlocks(blocks, "saturation", "ESTIMATED: blocks held by the requests while the cache kept others waiting")


def _dict(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = meta.get(name)
    return value if isinstance(value, dict) else {}


def _search(meta: Mapping[str, Any], name: str) -> int | None:
    """Find a positive whole number called ``name`` at any depth."""
    value = meta.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return value
    nested = (_search(child, name) for child in meta.values() if isinstance(child, dict))
    return next((found for found in nested if found is not None), None)

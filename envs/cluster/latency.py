"""Iteration latency: the formula, and the catalogue of hardware that it was fitted to.

One row of ``catalogue.csv`` is one (tier, GPU, model, tensor-, data- and expert-parallel degree). For one iteration let

====  =======================================================================================
n     decode sequences (one token each)
P     prefill tokens (sum of chunk sizes); T = n + P
K     sum over the n decodes of the context length, the token being computed included
A     sum over prefill chunks of c * (past + (c + 1) / 2), the causal query-key pairs
====  =======================================================================================

Its duration in seconds is then (every coefficient but ``moe_q`` multiplied by the row's scale)::

    P = 0:   t = w0 + w1 * pad(n) + kd * K                                           [+ moe]
    P > 0:   t = max(w0 + w1 * pad(T), c0 + c1 * T) + km * K + a * A + sm * n + om   [+ moe]
    moe    = moe_we * (1 - (1 - moe_q) ** Tm) + moe_g * Tm,   Tm = pad(T), summed over the ranks of a group

``pad(x)`` is the smallest CUDA-graph capture size that holds x. An iteration of a data-parallel group lasts as long as
its slowest rank without the expert term, plus the expert term for the tokens of all ranks.

Rows do not mix: a fit splits the cost per token between the dense and the expert terms as it likes, so that the terms
of one row mean nothing in another. Where a combination was not measured, `find_row` composes an estimate from one row
and says so.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, replace
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError, did_you_mean

CUDA_GRAPH_MAX = 512
CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, CUDA_GRAPH_MAX + 1, 16))
TIER_ORDER = ("A+", "A", "C", "C-", "D", "B")
ESTIMATE_TIER = "E"  # below all others, whatever the row that an estimate is composed from


@dataclass(frozen=True)
class LatencyModel:
    """Coefficients of one catalogue row, scale already applied, in seconds per unit.

    The field names begin as those of the formula in the module docstring.

    Attributes
    ----------
    w0_s, w1_s_per_tok : float
        Reading the weights: of an iteration, and of each (padded) token of it.
    c0_s, c1_s_per_tok : float
        Computing the linear layers, which binds in iterations with much prefill: likewise.
    kd_s_per_ctxtok, km_s_per_ctxtok : float
        Attention of decodes, per token of their contexts, in iterations without and with prefill.
    a_s_per_pair : float
        Attention of prefill, per causal query-key pair.
    sm_s_per_seq, om_s : float
        What a mixed iteration costs besides: per decode, and in all.
    moe_we_s : float
        Reading all experts once.
    moe_q : float
        Share of the experts that one token needs, ``top_k / experts``.
    moe_g_s_per_tok : float
        Computing the experts of a token.
    """

    w0_s: float
    w1_s_per_tok: float = 0.0
    c0_s: float = 0.0
    c1_s_per_tok: float = 0.0
    kd_s_per_ctxtok: float = 0.0
    km_s_per_ctxtok: float = 0.0
    a_s_per_pair: float = 0.0
    sm_s_per_seq: float = 0.0
    om_s: float = 0.0
    moe_we_s: float = 0.0
    moe_q: float = 0.0
    moe_g_s_per_tok: float = 0.0


class LatencyTables(NamedTuple):
    """What an engine needs to time an iteration; both engines read the very same numbers.

    Everything that depends only on a token count is tabulated once, so that no engine evaluates
    ``pow`` or ``max`` on its own and the two agree bit for bit.

    Attributes
    ----------
    decode_s, mixed_s : ndarray, shape (max_tokens + 1,)
        Linear-layer seconds of a pure-decode / mixed iteration of T tokens.
    moe_s : ndarray, shape (data_parallel_size * max_tokens + 1,)
        Expert seconds of an iteration whose ranks hold T (padded) tokens together; already part of
        ``decode_s`` and ``mixed_s`` when there is one rank, and all zero then.
    kd, km, a, sm, om : float
        Attention and per-sequence coefficients of the formula.
    """

    decode_s: NDArray[np.float64]
    mixed_s: NDArray[np.float64]
    moe_s: NDArray[np.float64]
    kd: float
    km: float
    a: float
    sm: float
    om: float


def pad_tokens(tokens: int, max_num_seqs: int, enabled: bool = True) -> int:
    """Smallest CUDA-graph capture size that holds an iteration's tokens; their number itself beyond the largest.

    The sizes are those that vLLM captures by default: `CAPTURE_SIZES` up to twice ``max_num_seqs``.

    Parameters
    ----------
    tokens : int
        Of one rank.
    max_num_seqs : int
        The scheduler's.
    enabled : bool
        False: no padding, as with vLLM's ``enforce_eager``.
    """
    largest = min(CUDA_GRAPH_MAX, 2 * max_num_seqs)
    if not enabled or tokens > largest:
        return tokens
    return next((size for size in CAPTURE_SIZES if size >= tokens and size <= largest), tokens)


@functools.lru_cache(maxsize=256)
def latency_tables(
    model: LatencyModel,
    max_tokens: int,
    max_num_seqs: int,
    cuda_graph_padding: bool = True,
    data_parallel_size: int = 1,
) -> LatencyTables:
    """Tabulate the formula by token count.

    Parameters
    ----------
    model : LatencyModel
    max_tokens : int
        Most tokens of an iteration of one rank.
    max_num_seqs, cuda_graph_padding : int, bool
        As for `pad_tokens`.
    data_parallel_size : int
        Ranks of the group, which move in lock step.

    Returns
    -------
    LatencyTables
        Shared between equal calls: not to be written to.
    """

    def moe(tokens: int) -> float:
        saturating: float = 1.0 - (1.0 - model.moe_q) ** tokens
        return model.moe_we_s * saturating + model.moe_g_s_per_tok * tokens

    decode = np.zeros(max_tokens + 1)
    mixed = np.zeros(max_tokens + 1)
    for tokens in range(max_tokens + 1):
        padded = pad_tokens(tokens, max_num_seqs, cuda_graph_padding)
        memory = model.w0_s + model.w1_s_per_tok * padded
        expert = moe(padded) if data_parallel_size == 1 else 0.0
        decode[tokens] = memory + expert
        mixed[tokens] = max(memory, model.c0_s + model.c1_s_per_tok * tokens) + expert
    ranks = data_parallel_size * (max_tokens + 1)
    moe_s = np.zeros(ranks) if data_parallel_size == 1 else np.array([moe(t) for t in range(ranks)])
    return LatencyTables(
        decode, mixed, moe_s,
        model.kd_s_per_ctxtok, model.km_s_per_ctxtok, model.a_s_per_pair, model.sm_s_per_seq, model.om_s,
    )  # fmt: skip


def iteration_seconds(tables: LatencyTables, n: int, prefill_tokens: int, context: int, pairs_x2: int) -> float:
    """Seconds of one iteration on one rank, without the expert term of a data-parallel group.

    Parameters
    ----------
    tables : LatencyTables
        Of the rank.
    n : int
        Decode sequences.
    prefill_tokens : int
        P of the formula.
    context : int
        K of the formula.
    pairs_x2 : int
        2 A of the formula, an exact integer: sum of ``c * (2 * past + c + 1)``.
    """
    if prefill_tokens == 0:
        return float(tables.decode_s[n] + tables.kd * context)
    return float(
        tables.mixed_s[n + prefill_tokens]
        + tables.km * context
        + tables.a * (0.5 * pairs_x2)
        + tables.sm * n
        + tables.om
    )


def to_ns(seconds: float) -> int:
    """Round to whole nanoseconds, once per iteration, which lasts at least 1 ns.

    Parameters
    ----------
    seconds : float
        At least 0.
    """
    return max(1, int(seconds * 1e9 + 0.5))


@dataclass(frozen=True)
class CatalogueRow:
    """One fitted (tier, GPU, model, tensor-, data- and expert-parallel degree), or an estimate composed from one.

    Attributes
    ----------
    tier : str
        One of ``TIER_ORDER``; ``ESTIMATE_TIER`` for what was not measured.
    gpu, model : str
    tp, dp, ep : int
        GPUs of one rank; ranks; GPUs that a layer's experts are spread over whole (1: each expert is split over all).
    scale : float
        The recommended scale, already part of ``latency``.
    latency : LatencyModel
        Of one rank; the expert terms are for the tokens of all ranks.
    kv_bytes_per_token : float
    kv_capacity_tokens : int
        Estimate of what one rank's KV cache holds.
    provenance : str
        Where the figures come from.
    estimate : str
        What was composed from which row; empty for what was measured.
    """

    tier: str
    gpu: str
    model: str
    tp: int
    dp: int
    ep: int
    scale: float
    latency: LatencyModel
    kv_bytes_per_token: float
    kv_capacity_tokens: int
    provenance: str
    estimate: str = ""

    @property
    def key(self) -> str:
        """``gpu/model/tpN/dpN/epN`` as printed in messages."""
        return f"{self.gpu}/{self.model}/{self.degrees}"

    @property
    def degrees(self) -> str:
        """``tpN/dpN/epN``."""
        return f"tp{self.tp}/dp{self.dp}/ep{self.ep}"

    @property
    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.latency.moe_we_s > 0.0 or self.latency.moe_g_s_per_tok > 0.0


@functools.cache
def catalogue() -> tuple[CatalogueRow, ...]:
    """All rows of ``catalogue.csv``, in file order, coefficients multiplied by the recommended scale."""
    return tuple(map(_row, _read_csv("catalogue.csv")))


def _read_csv(name: str) -> list[dict[str, str]]:
    with resources.files(__package__).joinpath(name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row(record: dict[str, str]) -> CatalogueRow:
    scale = float(record["recommended_scale"])
    names = LatencyModel.__dataclass_fields__
    values = {name: float(record[name]) * (1.0 if name == "moe_q" else scale) for name in names}
    return CatalogueRow(
        tier=record["tier"],
        gpu=record["gpu"],
        model=record["model"],
        tp=int(record["tp"]),
        dp=int(record["dp"]),
        ep=int(record["ep"]),
        scale=scale,
        latency=LatencyModel(**values),
        kv_bytes_per_token=float(record["kv_bytes_per_token"]),
        kv_capacity_tokens=int(float(record["kv_capacity_tokens_est"])),
        provenance=record["provenance"],
    )


@functools.cache
def find_row(
    gpu: str, model: str, tp: int, *, dp: int = 1, ep: int | None = None, tier: str | None = None
) -> CatalogueRow:
    """Look a row up, or compose an estimate where nobody measured the group.

    Parameters
    ----------
    gpu, model : str
        As in the catalogue: ``RTX4090``, ``Llama-3.1-8B``.
    tp, dp : int
        GPUs of one rank; ranks of the group.
    ep : int, optional
        GPUs that a layer's experts are spread over whole: ``tp * dp`` with vLLM's ``enable_expert_parallel``, else 1.
        None: as the group was measured.
    tier : str, optional
        None: the most trusted one (A+, A, C, C-, D, B).

    Returns
    -------
    CatalogueRow
        With ``estimate`` empty if it was measured; otherwise of tier E.

    Raises
    ------
    UserError
        Neither; the message lists what exists.
    """
    rows = [row for row in _rows_of(gpu, model, tier) if row.tp == tp]
    spread = (1, tp * dp) if any(row.has_experts for row in rows) else (1,)
    if rows and ep is not None and ep not in spread:
        allowed = " or ".join(str(degree) for degree in dict.fromkeys(spread))
        raise UserError(f"ep={ep}: must be {allowed} for model={model!r} with tp={tp}, dp={dp}")
    # Rather a group of the same size with its experts laid out otherwise than a smaller one.
    bases = [row for row in rows if dp % row.dp == 0]
    if not bases:
        known = ", ".join(dict.fromkeys(row.degrees for row in _rows_of(gpu, model, tier)))
        raise UserError(f"tp={tp!r}: no catalogue row for gpu={gpu!r}, model={model!r} (allowed: {known})")
    best = min(bases, key=lambda row: (-row.dp, ep not in (None, row.ep), TIER_ORDER.index(row.tier)))
    return best if best.dp == dp and ep in (None, best.ep) else _estimate(best, dp, ep)


def _rows_of(gpu: str, model: str, tier: str | None) -> list[CatalogueRow]:
    """All rows of a model on a GPU, whatever their degrees; never empty."""
    rows = [row for row in catalogue() if tier is None or row.tier == tier]
    if not rows:
        raise UserError(f"tier={tier!r}: unknown{did_you_mean(tier, {row.tier for row in catalogue()})}")
    gpus = {row.gpu for row in rows}
    if gpu not in gpus:
        raise UserError(f"gpu={gpu!r}: not in the catalogue{did_you_mean(gpu, gpus)}")
    models = {row.model for row in rows if row.gpu == gpu}
    if model not in models:
        raise UserError(f"model={model!r}: no catalogue row on gpu={gpu!r}{did_you_mean(model, models)}")
    return [row for row in rows if (row.gpu, row.model) == (gpu, model)]


def _estimate(base: CatalogueRow, dp: int, ep: int | None) -> CatalogueRow:
    """Compose what nobody measured from one row, whose terms stay together.

    Spread over ``dp / base.dp`` times as many GPUs, the experts cost each that much less. The KV capacity stays that of
    the row: experts that are elsewhere leave more, but how much of the weights they are the row does not tell.
    """
    share = dp // base.dp
    whole = base.has_experts and base.ep == base.tp * base.dp
    spread = base.tp * dp if whole else 1
    missing = ([f"dp={dp}"] if share > 1 else []) + ([f"ep={ep}"] if ep not in (None, spread) else [])
    part = "" if share == 1 else f", with 1/{share} of its expert terms" if base.has_experts else ", as if alone"
    latency = replace(
        base.latency,
        moe_we_s=base.latency.moe_we_s / share,
        moe_g_s_per_tok=base.latency.moe_g_s_per_tok / share,
    )
    return replace(
        base,
        tier=ESTIMATE_TIER,
        dp=dp,
        ep=spread if ep is None else ep,
        latency=latency,
        estimate=f"{' and '.join(missing)} not measured: each rank as in {base.key} (tier {base.tier}){part}",
    )


class BatchDefaults(NamedTuple):
    """What ``vllm serve`` takes where nothing is said.

    Attributes
    ----------
    max_num_batched_tokens : int
        Tokens of one iteration.
    max_num_seqs : int
        Requests in the running list.
    """

    max_num_batched_tokens: int
    max_num_seqs: int


def batch_defaults(gpu: str) -> BatchDefaults:
    """Return what ``vllm serve`` takes on a GPU where nothing is said.

    The rule is vLLM's own (``EngineArgs.get_batch_defaults``, API server): 1,024 sequences and 8,192 tokens from 70 GiB
    of memory, 16,384 from 160 GiB (since v0.28); 256 and 2,048 with less, and on every A100, where larger iterations
    cost throughput (vLLM's pull request 17885). The memory is that of ``gpus.csv``.

    Parameters
    ----------
    gpu : str
        As in the catalogue, ``RTX4090``.

    Raises
    ------
    UserError
        The GPU's memory is not known.
    """
    known = {record["gpu"]: record for record in _gpus()}
    if gpu not in known:
        raise UserError(
            f"gpu={gpu!r}: its memory is not known, and with it vLLM's defaults; give max_num_batched_tokens and "
            f"max_num_seqs{did_you_mean(gpu, known)}"
        )
    memory_gib, budget = float(known[gpu]["memory_gib"]), known[gpu]["max_num_batched_tokens"]
    if memory_gib < 70.0 or "a100" in gpu.lower():
        return BatchDefaults(int(budget or 2048), 256)
    return BatchDefaults(8192 if memory_gib < 160.0 else 16384, 1024)


@functools.cache
def _gpus() -> list[dict[str, str]]:
    return _read_csv("gpus.csv")

"""Iteration latency: the formula, and the catalogue of hardware that it was fitted to.

One row of ``catalogue.csv`` is one (tier, GPU, model, tensor-parallel degree). For one iteration let

====  =======================================================================================
n     decode sequences (one token each)
P     prefill tokens (sum of chunk sizes); T = n + P
K     sum over the n decodes of the context length, the token being computed included
A     sum over prefill chunks of c * (past + (c + 1) / 2), the causal query-key pairs
====  =======================================================================================

Its duration in seconds is then (every coefficient but ``moe_q`` multiplied by the row's scale)::

    P = 0:   t = w0 + w1 * pad(n) + kd * K                                           [+ moe]
    P > 0:   t = max(w0 + w1 * pad(T), c0 + c1 * T) + km * K + a * A + sm * n + om   [+ moe]
    moe    = moe_we * (1 - (1 - moe_q) ** Tm) + moe_g * Tm,   Tm = pad(T)

``pad(x)`` is the smallest CUDA-graph capture size that holds x.
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


@dataclass(frozen=True)
class LatencyModel:
    """Coefficients of one catalogue row, scale already applied, in seconds per unit.

    The field names are those of the formula in the module docstring; ``moe_q`` is ``top_k / experts``.
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
    """Smallest CUDA-graph capture size that holds ``tokens``; ``tokens`` itself beyond the largest."""
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
    """Tabulate ``model`` for iterations of up to ``max_tokens`` tokens per rank; shared, not to be written to."""

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
    """Round to int64 nanoseconds, once per iteration; an iteration lasts at least 1 ns."""
    return max(1, int(seconds * 1e9 + 0.5))


@dataclass(frozen=True)
class CatalogueRow:
    """One fitted (tier, GPU, model, tensor-parallel degree)."""

    tier: str
    gpu: str
    model: str
    tp: int
    ep: int
    scale: float
    latency: LatencyModel
    kv_bytes_per_token: float
    kv_capacity_tokens: int
    provenance: str

    @property
    def key(self) -> str:
        """``gpu/model/tpN`` as printed in messages."""
        return f"{self.gpu}/{self.model}/tp{self.tp}"


@functools.cache
def catalogue() -> tuple[CatalogueRow, ...]:
    """All rows of ``catalogue.csv``, in file order, coefficients multiplied by the recommended scale."""
    path = resources.files(__package__).joinpath("catalogue.csv")
    with path.open(encoding="utf-8") as file:
        return tuple(_row(record) for record in csv.DictReader(file))


def _row(record: dict[str, str]) -> CatalogueRow:
    scale = float(record["recommended_scale"])
    names = LatencyModel.__dataclass_fields__
    values = {name: float(record[name]) * (1.0 if name == "moe_q" else scale) for name in names}
    return CatalogueRow(
        tier=record["tier"],
        gpu=record["gpu"],
        model=record["model"],
        tp=int(record["tp"]),
        ep=int(record["ep"]),
        scale=scale,
        latency=LatencyModel(**values),
        kv_bytes_per_token=float(record["kv_bytes_per_token"]),
        kv_capacity_tokens=int(float(record["kv_capacity_tokens_est"])),
        provenance=record["provenance"],
    )


def find_row(gpu: str, model: str, tp: int, tier: str | None = None) -> CatalogueRow:
    """Look a row up; without a tier the most trusted one wins (A+, A, C, C-, D, B).

    Raises
    ------
    UserError
        No such row; the message lists the nearest ones.
    """
    rows = [row for row in catalogue() if tier is None or row.tier == tier]
    found = [row for row in rows if (row.gpu, row.model, row.tp) == (gpu, model, tp)]
    if found:
        return min(found, key=lambda row: TIER_ORDER.index(row.tier))
    if tier is not None and not rows:
        raise UserError(f"tier={tier!r}: unknown{did_you_mean(tier, {row.tier for row in catalogue()})}")
    gpus = {row.gpu for row in rows}
    if gpu not in gpus:
        raise UserError(f"gpu={gpu!r}: not in the catalogue{did_you_mean(gpu, gpus)}")
    models = {row.model for row in rows if row.gpu == gpu}
    if model not in models:
        raise UserError(f"model={model!r}: no catalogue row on gpu={gpu!r}{did_you_mean(model, models)}")
    degrees = sorted({row.tp for row in rows if (row.gpu, row.model) == (gpu, model)})
    raise UserError(f"tp={tp!r}: no catalogue row for gpu={gpu!r}, model={model!r} (allowed: {degrees})")


def group_latency(row: CatalogueRow, dp: int) -> LatencyModel:
    """Coefficients of one rank of a data-parallel group.

    vLLM spreads a layer's experts over all ``tp * dp`` GPUs of a group, so the expert terms are those of the row with
    that expert-parallel degree. Where none was measured, each rank reads and computes ``1 / dp`` of the experts.
    """
    if dp == 1 or row.latency.moe_we_s == 0.0:
        return row.latency
    spread = _spread_row(row, dp)
    experts, share = (row.latency, dp) if spread is None else (spread.latency, 1)
    return replace(row.latency, moe_we_s=experts.moe_we_s / share, moe_g_s_per_tok=experts.moe_g_s_per_tok / share)


def group_kv_capacity_tokens(row: CatalogueRow, dp: int) -> int:
    """KV capacity of one rank of a data-parallel group: experts that are elsewhere leave their memory to the cache.

    Taken from the row with that expert-parallel degree, per GPU; the dense layers, which each rank holds whole, are
    then counted as spread too (a few percent too many tokens).
    """
    spread = None if dp == 1 or row.latency.moe_we_s == 0.0 else _spread_row(row, dp)
    return row.kv_capacity_tokens if spread is None else spread.kv_capacity_tokens * row.tp // spread.tp


def _spread_row(row: CatalogueRow, dp: int) -> CatalogueRow | None:
    """Find the same model on the same GPU with its experts spread over ``tp * dp`` GPUs."""
    wanted = (row.tier, row.gpu, row.model, row.tp * dp)
    return next((other for other in catalogue() if (other.tier, other.gpu, other.model, other.ep) == wanted), None)

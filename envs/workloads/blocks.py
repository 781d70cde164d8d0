"""Chains of content ids: what the ids of a file mean, how many tokens each names, and what an engine may take of them.

A chain is right for an engine only if its ids name blocks of the engine's own size, and if equal ids mean equal tokens
*and* an equal prefix. Neither follows from the name of a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.requests import Trace
from fleetgym.envs.cluster.spec import ClusterSpec
from fleetgym.envs.errors import UserError

BLOCK_SIZES = tuple(2**power for power in range(14))  # what an unstated size is looked for among
CHAIN_FIELDS = ("block_ids", "prefix_block_ids")
_LARGEST_KEPT = 2**53  # ids below stay as they are, which leaves room to split each into smaller blocks

Ints = NDArray[np.int64]


class ChainBlocks(NamedTuple):
    """Tokens that one id of a workload's chains names.

    Attributes
    ----------
    size : int or None
        None: not stated, and the lengths of the lists fit no size or several.
    stated : bool
        By the file, its format or the config, and not merely implied by the lengths of the lists.
    """

    size: int | None
    stated: bool = True


# --- reading ---------------------------------------------------------------------------------------------------------


def id_list(where: str, record: dict[str, Any], name: str) -> list[int]:
    """Return a field that is a list of content ids of up to 64 bits, signed or not.

    Parameters
    ----------
    where : str
        ``file:line`` of the record, for messages.
    record : dict
        One JSON object.
    name : str
        The field.

    Raises
    ------
    UserError
        It is missing or anything else.
    """
    if name not in record:
        raise UserError(f"{where}: {name}: missing")
    value = record[name]
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UserError(f"{where}: {name}={str(value)[:60]!r}: must be a list of whole numbers")
    if value and (min(value) < -(2**63) or max(value) >= 2**64):
        raise UserError(f"{where}: {name}={str(value)[:60]!r}: must be whole numbers of at most 64 bits")
    return value


def optional_chain(where: str, record: dict[str, Any]) -> list[int] | None:
    """Return ``block_ids`` or ``prefix_block_ids``, which mean the same, or None.

    Parameters
    ----------
    where : str
        ``file:line`` of the record, for messages.
    record : dict
        One JSON object.

    Raises
    ------
    UserError
        Both are there, or one is malformed.
    """
    names = [name for name in CHAIN_FIELDS if name in record]
    if len(names) > 1:
        raise UserError(f"{where}: {names[0]} and {names[1]}: mean the same, so give one of them")
    return id_list(where, record, names[0]) if names else None


def label_chains(lists: Sequence[Sequence[int]]) -> list[Ints]:
    """Return the chains as int64 ids of at least 0 that are equal exactly where content *and* prefix are.

    Ids that serve as they are stay. Ids beyond 53 bits, or below 0, get new ones, without merging any: runs of
    consecutive ids stay consecutive, and otherwise ids are numbered as they come. Where one id stands behind
    different prefixes, it names the content of its block alone; then ids are numbered by prefix and content.

    Parameters
    ----------
    lists : sequence of list of int, length R
        Ids of each request as the file has them, perhaps none.

    Returns
    -------
    list of ndarray of int64, length R
        Each of the shape (K,) of its list.
    """
    counts = np.array([len(ids) for ids in lists], np.int64)
    flat = _small([item for ids in lists for item in ids])
    ends = np.cumsum(counts)
    if not _unique_prefixes(flat, ends - counts, counts):
        flat = _by_prefix(flat, counts)
    return np.split(flat, ends[:-1]) if len(counts) else []


def _small(ids: list[int]) -> Ints:
    if not ids or (min(ids) >= 0 and max(ids) < _LARGEST_KEPT):
        return np.array(ids, np.int64)
    names = dict.fromkeys(ids)  # in order of first appearance
    labels: dict[int, int] = {}
    for first in names:
        if first in labels:
            continue
        while first - 1 in names:
            first -= 1
        while first in names:
            labels[first] = len(labels)
            first += 1
    return np.fromiter(map(labels.__getitem__, ids), np.int64, len(ids))


def _unique_prefixes(flat: Ints, starts: Ints, counts: Ints) -> bool:
    """Tell whether each id always follows the same one, or always begins a chain."""
    if not len(flat):
        return True
    before = np.concatenate([[-1], flat[:-1]])
    before[starts[counts > 0]] = -1
    order = np.argsort(flat, kind="stable")
    same = flat[order][1:] == flat[order][:-1]
    return bool((before[order][1:] == before[order][:-1])[same].all())


def _by_prefix(flat: Ints, counts: Ints) -> Ints:
    labels: dict[tuple[int, int], int] = {}
    out: list[int] = []
    rest = iter(flat.tolist())
    for count in counts.tolist():
        label = -1
        for _ in range(count):
            label = labels.setdefault((label, next(rest)), len(labels))
            out.append(label)
    return np.array(out, np.int64)


# --- block size ------------------------------------------------------------------------------------------------------


def implied_block_size(counts: Ints, prompts: Ints, outputs: Ints) -> int | None:
    """Return the one power of two that explains how many ids every request has, if there is exactly one.

    A list of hashes has ``ceil(prompt / size)`` ids, the last perhaps of a partial block; a chain of full blocks at
    least ``floor(prompt / size)`` and at most ``floor((prompt + output) / size)``. Requests without ids tell nothing.

    Parameters
    ----------
    counts, prompts, outputs : ndarray of int, shape (R,)
        Ids, prompt tokens and output tokens of each request.

    Returns
    -------
    int or None
        Tokens of a block, one of `BLOCK_SIZES`; None: several explain them, or none does.
    """
    known = counts > 0
    n, prompt, total = counts[known], prompts[known], prompts[known] + outputs[known]
    if not len(n):
        return None
    sizes = [
        size
        for size in BLOCK_SIZES
        if (n == -(-prompt // size)).all() or ((prompt // size <= n) & (n <= total // size)).all()
    ]
    return sizes[0] if len(sizes) == 1 else None


def _full_blocks(wheres: Sequence[str], counts: Ints, prompts: Ints, outputs: Ints, size: int, said: str) -> Ints:
    """Return how many ids of each chain name full blocks of ``size`` tokens, shape (R,).

    A file whose lists have ``ceil(prompt / size)`` ids ends each in a partial block, which is left out. ``said`` tells
    in a refusal where the size comes from.

    Raises
    ------
    UserError
        A list that no block size explains beside the others, with its place.
    """
    whole = (prompts + outputs) // size
    partial = counts > whole
    if not partial.any():
        return counts
    most = -(-prompts // size)
    if (counts[partial] != most[partial]).any():
        most = np.maximum(whole, most)
    if (counts > most).any():
        row = int(np.argmax(counts > most))
        raise UserError(
            f"{wheres[row]}: {counts[row]} block ids for {prompts[row]} + {outputs[row]} tokens: with {said} there "
            f"must be at most {most[row]}"
        )
    return np.minimum(counts, prompts // size)


def settle_blocks(
    source: object,
    wheres: Sequence[str],
    lists: Sequence[Sequence[int]],
    prompts: Ints,
    outputs: Ints,
    stated: int | None,
    assumed: int | None = None,
) -> tuple[list[Ints], int | None]:
    """Return the chains of full blocks, and the tokens of one: the stated, assumed or implied number, or else None.

    Parameters
    ----------
    source : object
        File, for messages.
    wheres : sequence of str, length R
        Place of each request.
    lists : sequence of list of int, length R
        Ids of each request as the file has them, perhaps none.
    prompts, outputs : ndarray of int, shape (R,)
        Tokens.
    stated : int or None
        Tokens of a block, by the file or the config.
    assumed : int, optional
        What holds where nothing is stated.

    Returns
    -------
    chains : list of ndarray of int64, length R
        As `label_chains` gives them, each of shape (K,).
    size : int or None
        Tokens of a block.

    Raises
    ------
    UserError
        Lists whose lengths contradict the stated or assumed size.
    """
    counts = np.array([len(ids) for ids in lists], np.int64)
    implied = implied_block_size(counts, prompts, outputs)
    size = next((known for known in (stated, assumed) if known is not None), implied)
    said = f"block_size={size}"
    if stated is None and assumed is not None:
        value = "" if implied in (None, assumed) else f"={implied}"
        said = f"{assumed} tokens per block (assumed where nothing is said: add block_size{value} to each record)"
    if size is not None:
        full = _full_blocks(wheres, counts, prompts, outputs, size, said)
        # A chain may be shorter than its prompt; many of different lengths that all fit another size are no accident.
        if implied not in (None, size) and len(np.unique(counts[counts > 0])) > 1:
            raise UserError(f"{source}: {said}: the prompts' lengths and numbers of ids say {implied} tokens per block")
        lists = [ids[:count] for ids, count in zip(lists, full.tolist(), strict=True)]
    return label_chains(lists), size


def regroup(trace: Trace, size: int, block_size: int) -> Trace:
    """Name blocks of ``block_size`` tokens by the last id of ``size`` tokens in each, which stands for all before it.

    Parameters
    ----------
    trace : Trace
    size : int
        Tokens that one id of ``trace`` names; must divide ``block_size``.
    block_size : int
        Tokens that an id is to name.

    Returns
    -------
    Trace
        The same one if the sizes are equal or it has no chains.
    """
    coarse = block_size // size
    if coarse == 1 or not len(trace.block_ids):
        return trace
    rows = trace.requests.copy()
    counts = rows["block_count"].astype(np.int64) // coarse
    ends = np.cumsum(counts)
    place = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    ids = trace.block_ids[np.repeat(rows["block_start"], counts) + (place + 1) * coarse - 1]
    if len(ids) and (ids % coarse == ids[0] % coarse).all():
        ids = ids // coarse  # consecutive again, and still different where they were
    rows["block_start"], rows["block_count"] = ends - counts, counts
    return replace(trace, requests=rows, block_ids=ids, origin=None)  # the chains are others than where it was cut from


# --- against the engines ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChainFit:
    """Traces of one workload, made right for one cluster; built by `fit_chains`.

    Attributes
    ----------
    size, block_size : int
        Tokens that an id names in the workload, and in the cluster's caching engines.
    caching, declared : bool
        Whether an instance caches prefixes, and whether the workload says that it names blocks.
    """

    size: int = 1
    block_size: int = 1
    caching: bool = False
    declared: bool = False

    def __call__(self, trace: Trace) -> Trace:
        """Return the trace as the engines are to see it.

        Parameters
        ----------
        trace : Trace
            An episode of the workload.

        Raises
        ------
        UserError
            It has chains, an instance caches them, and the workload does not say how many tokens an id names.
        """
        if not self.caching or not len(trace.block_ids):
            return trace
        if not self.declared:
            raise UserError(
                f"{trace.name}: block_ids: the workload names shared blocks, so its chain_blocks must say how many "
                "tokens each holds"
            )
        return regroup(trace, self.size, self.block_size)


def fit_chains(blocks: ChainBlocks | None, cluster: ClusterSpec) -> ChainFit:
    """Check a workload's block size against that of every instance with prefix caching.

    A stated size that divides the engines' is regrouped, exactly. An implied one is taken only if it is equal.

    Parameters
    ----------
    blocks : ChainBlocks or None
        `Workload.chain_blocks`.
    cluster : ClusterSpec
        Instances without prefix caching may have blocks of any size.

    Returns
    -------
    ChainFit
        A function of an episode's trace.

    Raises
    ------
    UserError
        The sizes differ, among the instances too, or the workload's is not known.
    """
    engines = {
        spec.engine.block_size: f"cluster.instances[{index}].engine.block_size={spec.engine.block_size}"
        for index, spec in enumerate(cluster.instances)
        if spec.engine.enable_prefix_caching
    }
    if blocks is None or not engines:
        return ChainFit(caching=bool(engines), declared=blocks is not None)
    if len(engines) > 1:
        raise UserError(f"{' and '.join(engines.values())}: must be equal where a trace names shared blocks")
    (block_size, where), *_ = engines.items()
    if blocks.size is None:
        raise UserError(
            f"{where}: how many tokens each block id of the trace names is neither stated nor clear from the lengths "
            "of its lists: say workload.block_size=..., or set enable_prefix_caching=false"
        )
    if blocks.size != block_size and (not blocks.stated or block_size % blocks.size):
        source, way = "", ""
        if not blocks.stated:
            source = ", by the lengths of its lists"
            way = (
                f"say workload.block_size={blocks.size} to have them regrouped, or "
                if block_size % blocks.size == 0
                else ""
            )
            way = way or "say workload.block_size=... if they do not, or "
        raise UserError(
            f"{where}: the block ids of the trace name blocks of {blocks.size} tokens{source}: {way}"
            f"set engine.block_size={blocks.size}, or enable_prefix_caching=false"
        )
    return ChainFit(blocks.size, block_size, caching=True, declared=True)


def unused_chains(blocks: ChainBlocks | None, cluster: ClusterSpec) -> str | None:
    """Return a note if a workload names shared blocks and no instance caches them, else None.

    Parameters
    ----------
    blocks : ChainBlocks or None
        `Workload.chain_blocks`.
    cluster : ClusterSpec
    """
    if blocks is None or any(spec.engine.enable_prefix_caching for spec in cluster.instances):
        return None
    return (
        "the workload names shared prompt blocks, but no instance caches them: "
        "cluster.instances[...].engine.enable_prefix_caching=true would"
    )

"""What is common to the chains of a trace: runs of blocks that always follow each other.

A trace names a prompt block by block, and most blocks have only one possible neighbour: the next one of the same
prompt. A *segment* is a longest run of block ids of which each is followed by the next, and preceded by the one before,
wherever it occurs. Written in segments a chain of hundreds of ids is a few entries long, whatever the ids are (they
need not be consecutive). Nothing is lost: two blocks are the same exactly if they are the same block of the same
segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LINK_DTYPE = np.dtype([("segment", np.int32), ("end", np.int32)], align=True)
Value = TypeVar("Value", bound=np.generic)
LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Segments:
    """The chains of R requests, written in segments.

    A chain ends with the last segment that occurs elsewhere too: what nobody shares need not be named.

    Attributes
    ----------
    number : int
        Segments are numbered from 0 to ``number - 1``.
    links : ndarray of LINK_DTYPE, shape (sum of count,)
        Segments of all chains, one chain after the other, each with the block of its chain at which it ends, exclusive.
    start : ndarray of int64, shape (R,)
        First entry of each chain in ``links``.
    count : ndarray of int64, shape (R,)
        Entries of each chain.
    """

    number: int
    links: NDArray[np.void]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    def take(self, requests: NDArray[np.int64]) -> Segments:
        """Return the chains of some requests, their segments numbered anew.

        Parameters
        ----------
        requests : ndarray of int64, shape (M,)
            Which of the R requests, in the order of the result; repeated ones share their chain.
        """
        links, start, count = _gather(self.links, self.start[requests], self.count[requests])
        seen = np.zeros(self.number, np.bool_)
        seen[links["segment"]] = True
        links["segment"] = (np.cumsum(seen) - 1)[links["segment"]]
        return Segments(int(seen.sum()), links, start, count)


def find_segments(block_ids: NDArray[np.int64], start: NDArray[np.int64], count: NDArray[np.int64]) -> Segments:
    """Find the segments of chains.

    Parameters
    ----------
    block_ids : ndarray of int64, shape (B,)
        Ids of all chains, each at least 0; equal ids mean equal content and an equal prefix.
    start, count : ndarray of int, shape (R,)
        First entry of each chain in ``block_ids``, and its length.

    Returns
    -------
    Segments
        Of the R chains.
    """
    ids, start, count = _gather(block_ids, start.astype(np.int64), count.astype(np.int64))
    if not len(ids):
        return Segments(0, np.zeros(0, LINK_DTYPE), start, count)
    atoms, lengths, owner = _split_into_atoms(ids, start[count > 0])
    owner = np.flatnonzero(count > 0)[owner]
    first = np.ones(len(atoms), np.bool_)  # of its segment
    first[1:] = (owner[1:] != owner[:-1]) | ~_always_follows(atoms, owner)
    heads = np.flatnonzero(first)
    links = np.zeros(len(heads), LINK_DTYPE)
    owner = owner[heads]
    begin = (np.cumsum(lengths) - lengths)[heads]
    names, links["segment"] = np.unique(atoms[heads], return_inverse=True)
    links["end"] = np.append(begin[1:], len(ids)) - start[owner]
    # A segment that occurs once can only be the last of its chain: two such would be one.
    unique = np.bincount(links["segment"], minlength=len(names)) == 1
    last = np.append(owner[1:] != owner[:-1], True)
    kept = ~(last & unique[links["segment"]])
    size = np.bincount(owner[kept], minlength=len(count))
    whole = Segments(len(names), links[kept], np.cumsum(size) - size, size)
    return whole.take(np.arange(len(count)))


def _gather(
    values: NDArray[Value], start: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[Value], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pieces of ``values`` one behind the other, a copy, and where they start and how long they are now."""
    ends = np.cumsum(count)
    place = ends - count
    index = np.arange(count.sum()) + np.repeat(start - place, count)
    return values[index], place, count


def _split_into_atoms(
    ids: NDArray[np.int64], start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut chains into intervals of consecutive ids that occur only as a whole.

    Returns
    -------
    atoms, lengths, owner : ndarray of int64, shape (A,)
        Number of each interval, its ids, and its chain.
    """
    begin = _begins(ids, start)
    if len(begin) > len(ids) // 8:
        ids = _number_by_appearance(ids)
        begin = _begins(ids, start)
    end = np.append(begin[1:], len(ids))
    low, high = ids[begin], ids[end - 1]
    cuts = np.sort(np.concatenate([low, high[high < LARGEST] + 1]))
    cuts = cuts[np.append(True, cuts[1:] != cuts[:-1])]
    first, last = np.searchsorted(cuts, low), np.searchsorted(cuts, high, side="right")
    atoms, _, pieces = _gather(np.arange(len(cuts)), first, last - first)
    run = np.repeat(np.arange(len(begin)), pieces)
    lengths = np.minimum(np.append(cuts[1:], LARGEST)[atoms] - 1, high[run]) - cuts[atoms] + 1
    return atoms, lengths, (np.searchsorted(start, begin, side="right") - 1)[run]


def _begins(ids: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of consecutive ids begin; none goes beyond the end of a chain."""
    new = np.ones(len(ids), np.bool_)
    new[1:] = ids[1:] - 1 != ids[:-1]
    new[start] = True
    return np.flatnonzero(new)


def _number_by_appearance(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rename ids to 0, 1, 2... as they first appear, so that those that are new together are consecutive."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


def _always_follows(atoms: NDArray[np.int64], owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each entry always follows the one before it, and that one always precedes it, shape (A - 1,)."""
    none = -1
    inside = owner[1:] == owner[:-1]
    after = np.append(np.where(inside, atoms[1:], none), none)
    before = np.append(none, np.where(inside, atoms[:-1], none))
    alone = [_constant(atoms, neighbour) for neighbour in (after, before)]
    result: NDArray[np.bool_] = alone[0][atoms[:-1]] & alone[1][atoms[1:]]
    return result


def _constant(keys: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each key always comes with the same value, by key."""
    size = int(keys.max(initial=-1)) + 1
    any_value = np.zeros(size, np.int64)
    any_value[keys] = values
    constant = np.ones(size, np.bool_)
    constant[keys[values != any_value[keys]]] = False
    return constant

"""KV blocks with prefix caching: content, references, the free list, block tables. See `fleetgym.envs.cluster.block_pool`.

Without prefix caching it does not matter which block a request holds, and ``used`` alone is counted.
"""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.state import Array, Unit

UNREGISTERED = -(2**63)


@jit
def blocks_for(tokens: int, block_size: int) -> Any:
    """Blocks that hold ``tokens``."""
    return (tokens + block_size - 1) // block_size


@jit
def bucket_of(content: int, buckets: Array) -> Any:
    """Hash bucket of a content id."""
    return (content ^ (content >> 20) ^ (content >> 40)) & (len(buckets) - 1)


@jit
def clear_pool(blocks: Array, buckets: Array, usable: int) -> None:
    """Free all blocks, in the order 1, 2, 3..."""
    buckets[:] = 0
    for block in range(usable + 1):
        row = blocks[block]
        row["content"] = UNREGISTERED
        row["references"] = 0
        row["free_previous"] = block - 1 if block > 0 else usable
        row["free_next"] = block + 1 if block < usable else 0
        row["bucket_next"] = 0


@jit
def content_of(u: Unit, r: int, place: int) -> Any:
    """Content id of a request's full block number ``place``; past its chain a negative one that is its own."""
    row = u.chain[r]
    if place < row["id_count"]:
        return u.ids[row["ids"] + place]
    return -1 - (row["table"] + place)


@jit
def unlink_free(blocks: Array, block: int) -> None:
    """Take a block out of the free list."""
    before, after = blocks[block]["free_previous"], blocks[block]["free_next"]
    blocks[before]["free_next"] = after
    blocks[after]["free_previous"] = before


@jit
def link_first(blocks: Array, block: int) -> None:
    """Put a block at the head of the free list."""
    after = blocks[0]["free_next"]
    blocks[block]["free_previous"] = 0
    blocks[block]["free_next"] = after
    blocks[0]["free_next"] = block
    blocks[after]["free_previous"] = block


@jit
def find(u: Unit, content: int) -> Any:
    """The block registered first that holds ``content``, or 0."""
    block = u.buckets[bucket_of(content, u.buckets)]
    while block > 0 and u.blocks[block]["content"] != content:
        block = u.blocks[block]["bucket_next"]
    return block


@jit
def append(blocks: Array, last: int, block: int) -> None:
    """Put a block at the end of the bucket that ``last`` is in."""
    while blocks[last]["bucket_next"] > 0:
        last = blocks[last]["bucket_next"]
    blocks[last]["bucket_next"] = block


@jit
def register(u: Unit, block: int, content: int) -> None:
    """Make a full block hittable."""
    bucket = bucket_of(content, u.buckets)
    u.blocks[block]["content"] = content
    u.blocks[block]["bucket_next"] = 0
    last = u.buckets[bucket]
    if last == 0:
        u.buckets[bucket] = block
    else:
        append(u.blocks, last, block)


@jit
def forget(u: Unit, block: int) -> None:
    """Make a block unhittable, if it was hittable."""
    content = u.blocks[block]["content"]
    if content == UNREGISTERED:
        return
    bucket = bucket_of(content, u.buckets)
    after = u.blocks[block]["bucket_next"]
    u.blocks[block]["content"] = UNREGISTERED
    other = u.buckets[bucket]
    if other == block:
        u.buckets[bucket] = after
        return
    while u.blocks[other]["bucket_next"] != block:
        other = u.blocks[other]["bucket_next"]
    u.blocks[other]["bucket_next"] = after


@jit
def register_up_to(u: Unit, r: int, tokens: int) -> None:
    """Register the blocks that a request's first ``tokens`` tokens fill."""
    row = u.chain[r]
    full = tokens // u.spec["block_size"]
    if full <= row["registered"]:
        return
    for place in range(row["registered"], full):
        register(u, u.table[row["table"] + place], content_of(u, r, place))
    row["registered"] = full


@jit
def grow(u: Unit, r: int, held: int, end: int, returned: int) -> None:
    """Draw blocks beyond the ``held`` ones up to token ``end``; register what is filled with returned tokens."""
    blocks, row, size = u.blocks, u.chain[r], u.spec["block_size"]
    needed, full = blocks_for(end, size), min(end, returned) // size
    if needed > held:
        register_up_to(u, r, min(held, full) * size)
        table = row["table"]
        named = max(held, min(full, row["id_count"]))
        block = draw(u, blocks[0]["free_next"], table, u.ids[row["ids"] :], held, named)
        for place in range(named, needed):
            after = blocks[block]["free_next"]
            forget(u, block)
            blocks[block]["references"] = 1
            u.table[table + place] = block
            block = after
        blocks[0]["free_next"] = block
        blocks[block]["free_previous"] = 0
        u.inst["used"] += needed - held
        row["registered"] = max(row["registered"], named)
    register_up_to(u, r, full * size)


@jit
def draw(u: Unit, block: int, table: int, ids: Array, first: int, end: int) -> Any:
    """Take free blocks, from ``block`` on, for the places ``first`` to ``end`` of a chain; register them at once.

    Return the free block after them. Almost all blocks come this way, so it is `forget` and `register` in one.
    """
    blocks, buckets = u.blocks, u.buckets
    for place in range(first, end):
        row = blocks[block]
        after = row["free_next"]
        forget(u, block)
        content = ids[place]
        bucket = bucket_of(content, buckets)
        row["references"] = 1
        row["content"] = content
        row["bucket_next"] = 0
        u.table[table + place] = block
        last = buckets[bucket]
        if last == 0:
            buckets[bucket] = block
        else:
            append(blocks, last, block)
        block = after
    return block


@jit
def lookup(u: Unit, r: int, known: int) -> tuple[int, int]:
    """Blocks that a waiting request could start with, left in its block table: how many, how many of them free."""
    table = u.chain[r]["table"]
    hits = free = 0
    for place in range((known - 1) // u.spec["block_size"]):
        block = find(u, content_of(u, r, place))
        if block == 0:
            break
        u.table[table + place] = block
        hits += 1
        free += u.blocks[block]["references"] == 0
    return hits, free


@jit
def share(u: Unit, r: int, hits: int) -> None:
    """Take the blocks found by `lookup`."""
    row = u.chain[r]
    for place in range(row["table"], row["table"] + hits):
        block = u.table[place]
        if u.blocks[block]["references"] == 0:
            unlink_free(u.blocks, block)
            u.inst["used"] += 1
        u.blocks[block]["references"] += 1
    row["registered"] = hits


@jit
def release(u: Unit, r: int, held: int) -> None:
    """Give up a request's blocks, last one first: registered ones to the tail of the free list, others to its head."""
    blocks, row = u.blocks, u.chain[r]
    freed = 0
    tail = blocks[0]["free_previous"]
    first = row["table"]
    for place in range(first + held - 1, first - 1, -1):
        block = u.table[place]
        entry = blocks[block]
        references = entry["references"] - 1
        entry["references"] = references
        if references > 0:
            continue
        freed += 1
        if entry["content"] == UNREGISTERED:
            blocks[tail]["free_next"] = 0
            blocks[0]["free_previous"] = tail
            link_first(blocks, block)
            tail = blocks[0]["free_previous"]
        else:
            entry["free_previous"] = tail
            blocks[tail]["free_next"] = block
            tail = block
    blocks[tail]["free_next"] = 0
    blocks[0]["free_previous"] = tail
    u.inst["used"] -= freed
    row["registered"] = 0

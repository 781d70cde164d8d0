"""KV blocks with prefix caching: what they hold, who references them, which is evicted next.

The rules are those of `fleetgym.envs.cluster.block_pool`. Which physical block is which cannot be seen from outside, so
blocks have no numbers here. A block without registered content is only counted: it is free (*blank*), or one request
holds it behind its registered blocks. Registered blocks are held as *extents*: neighbours in one segment
(`fleetgym.envs.cluster.segments`) that the same requests reference.

* The free list begins with the blank blocks, for they are put at its head, and goes on with the extents that nobody
  references. A release puts the end of a sequence first, so an extent is evicted from its end.
* Drawing a block is counting it. Which extents lose one by it matters only to a lookup and to a release, so that they
  evict what was drawn before them.
* A request that takes a part of an extent splits it. The new extent is the front part, so that whoever knows the
  old one by its end still does.
* A request knows the extent of its last registered block; ``before`` leads to the others. Where two requests hold an
  extent but different copies of the blocks before it, the later one notes its own way in its row of ``table``.
* The extents of a segment are listed by age. They may overlap (copies: nothing is de-duplicated), and then each common
  block was registered in this order, so that the first extent found is the one to be hit.

Without prefix caching it does not matter which block a request holds, and ``used_blocks`` alone is counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetgym.envs.cluster.kernel.jit import jit, large
from fleetgym.envs.cluster.kernel.state import Array, Unit

ENDLESS = 2**31 - 1


@jit
def blocks_for(tokens: int, block_size: int) -> Any:
    """Blocks that hold ``tokens``; counts are below 2**31, and dividing them without a sign is twice as fast."""
    return np.int64(np.uint32(tokens + block_size - 1) // np.uint32(block_size))


@jit
def more_blocks(past: int, end: int, block_size: int) -> Any:
    """Blocks that a sequence of ``past`` tokens lacks to grow to ``end`` tokens."""
    return blocks_for(end, block_size) - blocks_for(past, block_size)


@jit
def clear(extents: Array, copies: Array) -> None:
    """Make all blocks blank.

    Row 0 of ``extents`` is no extent but holds the ring of the free ones (``free_next``, ``free_previous``) and how
    many blocks they have (``count``), how many rows were ever used (``first``) and the unused ones of these
    (``before``).
    """
    copies[:] = 0
    anchor = extents[0]
    anchor["count"] = anchor["first"] = anchor["before"] = 0
    anchor["free_previous"] = anchor["free_next"] = 0


@jit
def lookup(u: Unit, r: int, known: int) -> tuple[int, int]:
    """Blocks that a waiting request could start with: how many, how many of them free."""
    evict(u)
    return count_hits(u.extents, u.copies, u.links, u.chain[r], (known - 1) // u.spec["block_size"])


@jit
def share(u: Unit, r: int, hits: int) -> None:
    """Take the blocks found by `lookup`."""
    u.inst["used_blocks"] += take_hits(u.extents, u.copies, u.links, u.table, u.chain[r], hits)


@jit
def grow(u: Unit, r: int, blocks: int, end: int, returned: int) -> None:
    """Draw so many blocks, which hold up to token ``end``; register what is filled with returned tokens."""
    u.inst["used_blocks"] += blocks
    register_up_to(u, r, min(end, returned))


@jit
def register_up_to(u: Unit, r: int, tokens: int) -> None:
    """Register the blocks that a request's first ``tokens`` tokens fill."""
    row, size = u.chain[r], u.spec["block_size"]
    if (row["registered_blocks"] + 1) * size <= tokens:
        evict(u)
        register_blocks(u.extents, u.copies, u.links, row, tokens // size)


@jit
def release(u: Unit, r: int, held: int) -> None:
    """Give up a request's blocks, last one first: registered ones to the tail of the free list, others to its head."""
    evict(u)
    row = u.chain[r]
    u.inst["used_blocks"] -= held - row["registered_blocks"]
    u.inst["used_blocks"] -= drop_references(u.extents, u.table, row)


@jit
def evict(u: Unit) -> None:
    """Forget what the blocks held that were drawn since the last time."""
    left = u.extents[0]["count"] - (u.spec["usable_blocks"] - u.inst["used_blocks"])
    if left > 0:
        evict_blocks(u.extents, u.copies, left)


# Below here no function is handed the whole unit: that costs more than most of them do.


@jit
def link_at(row: Any, links: Array, link: int) -> tuple[int, int]:
    """Segment number ``link`` of a request, and the place in its sequence where this ends; the last one is its own."""
    if link < row["link_count"]:
        entry = links[row["links"] + link]
        return int(entry["segment"]), int(entry["end"])
    return int(row["own"]), ENDLESS


@jit
def find(extents: Array, copies: Array, segment: int, block: int) -> tuple[int, int]:
    """The extent with the oldest copy of a segment's block, or 0, and up to which block it has the oldest copies."""
    end = ENDLESS
    x = int(copies[segment])
    while x > 0:
        row = extents[x]
        first, beyond = int(row["first"]), int(row["first"] + row["count"])
        if first > block:
            end = min(end, first)
        elif block < beyond:
            return x, min(end, beyond)
        x = int(row["younger"])
    return 0, block


@jit
def count_hits(extents: Array, copies: Array, links: Array, row: Any, limit: int) -> tuple[int, int]:
    """Up to ``limit`` leading blocks of a request that are registered, and how many of them are free."""
    hits = free = link = begin = 0
    while hits < limit:
        segment, end = link_at(row, links, link)
        x, stop = find(extents, copies, segment, hits - begin)
        if x == 0:
            break
        stop = min(begin + stop, limit)
        if extents[x]["references"] == 0:
            free += stop - hits
        hits = stop
        if hits == end:
            link += 1
            begin = end
    return hits, free


@jit
def take_hits(extents: Array, copies: Array, links: Array, table: Array, row: Any, hits: int) -> Any:
    """Reference a request's leading ``hits`` blocks; return how many of them were free."""
    place = link = begin = last = free = 0
    row["mixed"] = 0
    while place < hits:
        segment, end = link_at(row, links, link)
        x, stop = find(extents, copies, segment, place - begin)
        stop = min(begin + stop, hits)
        if extents[x]["first"] < place - begin:
            split(extents, copies, x, place - begin)
        if extents[x]["first"] + extents[x]["count"] > stop - begin:
            x = split(extents, copies, x, stop - begin)
        if extents[x]["references"] == 0:
            free += stop - place
        reference(extents, table, row, x, place, last)
        last = x
        place = stop
        if place == end:
            link += 1
            begin = end
    row["registered_blocks"] = hits
    row["last"], row["link"], row["begin"] = last, link, begin
    return free


@jit
def reference(extents: Array, table: Array, row: Any, x: int, place: int, last: int) -> None:
    """Let a request hold extent ``x`` for its blocks from ``place`` on, behind the extent ``last``."""
    extent = extents[x]
    if extent["references"] == 0:
        take_from_free(extents, x)
        extents[0]["count"] -= extent["count"]
        extent["before"] = last
    elif extent["before"] != last and place > 0:
        if not row["mixed"]:
            table[row["table"] : row["table"] + row["table_count"]] = 0
            row["mixed"] = 1
        table[row["table"] + place] = last
    extent["references"] += 1


@jit
def drop_references(extents: Array, table: Array, row: Any) -> Any:
    """Let a request give up its registered blocks, last one first; return how many of them are free now."""
    place, x, freed = int(row["registered_blocks"]), int(row["last"]), 0
    while place > 0:
        extent = extents[x]
        place -= extent["count"]
        before = extent["before"]
        if row["mixed"] and table[row["table"] + place] > 0:
            before = table[row["table"] + place]
        extent["references"] -= 1
        if extent["references"] == 0:
            freed += extent["count"]
            put_free(extents, x, extents[0]["free_previous"])
        x = before
    extents[0]["count"] += freed
    row["registered_blocks"] = row["last"] = row["link"] = row["begin"] = row["mixed"] = 0
    return freed


@large
def register_blocks(extents: Array, copies: Array, links: Array, row: Any, full: int) -> None:
    """Make a request's blocks hittable up to number ``full``, exclusive."""
    while row["registered_blocks"] < full:
        segment, end = link_at(row, links, row["link"])
        begin = int(row["begin"])
        stop = min(full, end)
        register(extents, copies, row, segment, row["registered_blocks"] - begin, stop - begin)
        row["registered_blocks"] = stop
        if stop == end:
            row["link"] += 1
            row["begin"] = end


@jit
def register(extents: Array, copies: Array, row: Any, segment: int, first: int, end: int) -> None:
    """Make a request's next blocks hittable as ``first`` to ``end``, exclusive, of a segment."""
    last = int(row["last"])
    if row["registered_blocks"] > 0 and extents[last]["segment"] == segment and can_grow(extents, last, first, end):
        extents[last]["count"] += end - first
        return
    x = new_extent(extents)
    extent = extents[x]
    extent["segment"], extent["first"], extent["count"] = segment, first, end - first
    extent["references"] = 1
    extent["before"] = last
    add_youngest(extents, copies, x)
    row["last"] = x


@jit
def can_grow(extents: Array, x: int, first: int, end: int) -> bool:
    """Whether blocks can be added to an extent: nobody else holds it, and no younger one has an older copy of them."""
    extent = extents[x]
    if extent["references"] > 1 or extent["first"] + extent["count"] != first:
        return False
    other = extent["younger"]
    while other > 0:
        if extents[other]["first"] < end and extents[other]["first"] + extents[other]["count"] > first:
            return False
        other = extents[other]["younger"]
    return True


@large
def evict_blocks(extents: Array, copies: Array, left: int) -> None:
    """Forget ``left`` free blocks: those of the extent released first, from its end."""
    anchor = extents[0]
    anchor["count"] -= left
    while left > 0:
        x = int(anchor["free_next"])
        extent = extents[x]
        taken = min(left, int(extent["count"]))
        left -= taken
        extent["count"] -= taken
        if extent["count"] == 0:
            take_from_free(extents, x)
            remove_copy(extents, copies, x)
            extent["before"] = anchor["before"]
            anchor["before"] = x


@jit
def new_extent(extents: Array) -> Any:
    """A row that is not in use; as each extent holds a block, there are as many as blocks."""
    anchor = extents[0]
    x = int(anchor["before"])
    if x > 0:
        anchor["before"] = extents[x]["before"]
        return x
    anchor["first"] += 1
    return int(anchor["first"])


@jit
def split(extents: Array, copies: Array, x: int, at: int) -> Any:
    """Split an extent before block ``at`` of its segment; return the extent of the front part."""
    y = new_extent(extents)
    back, front = extents[x], extents[y]
    front["segment"], front["first"], front["references"] = back["segment"], back["first"], back["references"]
    front["count"] = at - back["first"]
    front["before"] = back["before"]
    back["before"] = y
    back["first"] = at
    back["count"] -= front["count"]
    older = back["older"]
    if copies[front["segment"]] == x:
        copies[front["segment"]] = y
    else:
        extents[older]["younger"] = y
    front["older"], front["younger"], back["older"] = older, x, y
    if older == x:  # the only one was its own youngest, and still is
        front["older"] = x
    if front["references"] == 0:
        put_free(extents, y, x)
    return y


@jit
def put_free(extents: Array, x: int, previous: int) -> None:
    """Put an extent behind ``previous`` in the ring of free ones."""
    following = extents[previous]["free_next"]
    extents[x]["free_previous"] = previous
    extents[x]["free_next"] = following
    extents[previous]["free_next"] = x
    extents[following]["free_previous"] = x


@jit
def take_from_free(extents: Array, x: int) -> None:
    """Take an extent out of the ring of free ones."""
    previous, following = extents[x]["free_previous"], extents[x]["free_next"]
    extents[previous]["free_next"] = following
    extents[following]["free_previous"] = previous


@jit
def add_youngest(extents: Array, copies: Array, x: int) -> None:
    """List an extent as the youngest of its segment."""
    segment = extents[x]["segment"]
    oldest = copies[segment]
    extents[x]["younger"] = 0
    if oldest == 0:
        copies[segment] = x
        extents[x]["older"] = x
        return
    youngest = extents[oldest]["older"]
    extents[youngest]["younger"] = x
    extents[x]["older"] = youngest
    extents[oldest]["older"] = x


@jit
def remove_copy(extents: Array, copies: Array, x: int) -> None:
    """Take an extent out of its segment's list."""
    segment = extents[x]["segment"]
    oldest, older, younger = copies[segment], extents[x]["older"], extents[x]["younger"]
    if x == oldest:
        copies[segment] = younger
    else:
        extents[older]["younger"] = younger
    if younger > 0:
        extents[younger]["older"] = older
    elif x != oldest:
        extents[oldest]["older"] = older

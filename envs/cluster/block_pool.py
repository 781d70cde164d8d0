"""KV blocks of one cache: who holds them, what they contain, which is reused next.

Follows vLLM's ``BlockPool``: a block that nobody references is free, yet keeps its content until it is drawn
again, so that a later request with the same prefix can take it back (a *hit*).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

ContentId = int | tuple[int, int]
"""What a full block holds: a chain id of the trace, or (request, block) where the content is private."""


class BlockPool:
    """Free list, reference counts and content registry of the physical blocks.

    Parameters
    ----------
    num_gpu_blocks : int
        Physical blocks, one of which (number 0) is the null block and never handed out.

    Attributes
    ----------
    usable_blocks : int
        Blocks that requests can hold together.
    """

    def __init__(self, num_gpu_blocks: int) -> None:
        self.usable_blocks = num_gpu_blocks - 1
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_gpu_blocks))
        self._references: Counter[int] = Counter()
        self._content: dict[int, ContentId] = {}
        # Several blocks may hold the same content; a dict keeps them in order of registration.
        self._copies: dict[ContentId, dict[int, None]] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that no request references, cached ones included."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that some request references."""
        return self.usable_blocks - len(self._free)

    def lookup(self, contents: Iterable[ContentId]) -> list[int]:
        """Blocks that hold the longest prefix found in the cache, of equal ones the first registered; changes nothing.

        Parameters
        ----------
        contents : iterable of int or (int, int)
            Contents of a sequence's full blocks, in order.

        Returns
        -------
        list of int
            Block numbers, as many as are hit.
        """
        hits = []
        for content in contents:
            if content not in self._copies:
                break
            hits.append(next(iter(self._copies[content])))  # the copy registered first
        return hits

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of some blocks are free: taking these costs as much as drawing a new one.

        Parameters
        ----------
        blocks : iterable of int
            Block numbers.
        """
        return sum(block in self._free for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each block; free ones leave the free list.

        Parameters
        ----------
        blocks : iterable of int
            Block numbers, as `lookup` gives them.
        """
        for block in blocks:
            self._references[block] += 1
            self._free.pop(block, None)

    def draw(self, count: int) -> list[int]:
        """Take blocks from the head of the free list, with one reference each; what they held is forgotten.

        Parameters
        ----------
        count : int
            At most ``free_blocks``.

        Returns
        -------
        list of int
            Block numbers.
        """
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            self._forget(block)
        return blocks

    def register(self, block: int, content: ContentId) -> None:
        """Make a full block hittable.

        Parameters
        ----------
        block : int
            Number of a block that some request references.
        content : int or (int, int)
            What it holds; other blocks may hold the same.
        """
        self._content[block] = content
        self._copies.setdefault(content, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence, last block first.

        Cached blocks queue at the tail, so the least recently released sequence is evicted first, and of each
        its end before its beginning. Blocks without registered content are reused at once.

        Parameters
        ----------
        blocks : sequence of int
            Block numbers, in sequence order.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._content:
                    self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        content = self._content.pop(block, None)
        if content is not None:
            copies = self._copies[content]
            del copies[block]
            if not copies:
                del self._copies[content]

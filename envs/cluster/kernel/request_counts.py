"""Tokens and KV blocks of one request, and the journal."""

from __future__ import annotations

from typing import Any

from fleetgym.envs.cluster.kernel.blocks import blocks_for, grow, release
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.state import DECODE, PREFILL, Unit

ADMITTED, PREEMPTED = 0, 1  # kinds of journal entries


@jit
def tokens_with_placeholders(u: Unit, r: int) -> Any:
    """Tokens of the prompt and the answer so far, of a request that is not in lock step."""
    return int(u.req[r]["prompt_tokens"]) + int(u.req[r]["sampled_tokens"])


@jit
def computed_tokens(u: Unit, r: int) -> Any:
    """Tokens of a running request with KV entries, those of iterations in flight included."""
    row = u.req[r]
    if row["state"] == PREFILL:
        return int(row["computed_tokens"])
    sampled = row["sampled_tokens"] + u.inst["clock"] if row["state"] == DECODE else row["sampled_tokens"]
    return int(row["prompt_tokens"]) + int(sampled) - 1


@jit
def count_blocks(u: Unit, now: int) -> None:
    """Integrate the used blocks up to ``now``."""
    u.inst["kv_block_ns"] += u.inst["used_blocks"] * (now - u.inst["counted_ns"])
    u.inst["counted_ns"] = now


@jit
def take_blocks(u: Unit, r: int, blocks: int, end: int, returned: int) -> None:
    """Let a request grow to ``end`` tokens, of which ``returned`` are known; it lacks so many blocks for that."""
    if u.spec["enable_prefix_caching"]:
        grow(u, r, blocks, end, returned)
    else:
        u.inst["used_blocks"] += blocks


@jit
def give_blocks(u: Unit, r: int, computed: int) -> None:
    """Free the blocks of a request's ``computed`` tokens."""
    held = blocks_for(computed, u.spec["block_size"])
    if u.spec["enable_prefix_caching"]:
        release(u, r, held)
    else:
        u.inst["used_blocks"] -= held


@jit
def log(u: Unit, kind: int, r: int, tokens: int) -> None:
    """Add an entry to the journal, if one is kept."""
    if len(u.journal) > 1:
        end = u.journal[0]
        u.journal[end + 1] = kind
        u.journal[end + 2] = r
        u.journal[end + 3] = tokens
        u.journal[0] = end + 3

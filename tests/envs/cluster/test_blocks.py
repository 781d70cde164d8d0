"""The compiled blocks against the readable pool, operation by operation, where copies are everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgym.envs.cluster.block_pool import BlockPool
from fleetgym.envs.cluster.kernel import KernelEngine, blocks
from fleetgym.envs.cluster.kernel.entry_points import counted, open_state
from fleetgym.envs.cluster.kernel.state import unit
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec

REQUESTS, LONGEST = 6, 8


@counted
def look(handle: Any, r: int, known: int) -> tuple[int, int]:
    return blocks.lookup(unit(open_state(handle), 0, 0), r, known)


@counted
def share(handle: Any, r: int, hits: int) -> None:
    blocks.share(unit(open_state(handle), 0, 0), r, hits)


@counted
def grow(handle: Any, r: int, count: int, end: int, returned: int) -> None:
    blocks.grow(unit(open_state(handle), 0, 0), r, count, end, returned)


@counted
def release(handle: Any, r: int, held: int) -> None:
    blocks.release(unit(open_state(handle), 0, 0), r, held)


def agree(what: str, compiled: object, readable: object) -> None:
    if compiled != readable:
        pytest.fail(f"{what} differ at this step: {compiled} and {readable}")


@dataclass
class Held:
    """What one request holds in the readable pool."""

    blocks: list[int] = field(default_factory=list)
    registered: int = 0
    known: int = 0
    running: bool = False


class Pair:
    """Both pools, with blocks of one token, driven alike."""

    def __init__(self, num_gpu_blocks: int, chains: list[list[int]]) -> None:
        engine = EngineArgs(2048, 256, num_gpu_blocks=num_gpu_blocks, block_size=1, enable_prefix_caching=True)
        spec = InstanceSpec("any", "any", engine=engine, latency=LatencyModel(w0_s=1.0))
        count = len(chains)
        self.engine = KernelEngine(ClusterSpec((spec,)))
        arrays = [np.array(chain, np.int64) for chain in chains]
        lengths = np.full(count, LONGEST), np.ones(count, np.int64)
        self.engine.reset(0, make_trace(np.zeros(count, np.int64), *lengths, chains=arrays))
        self.chains, self.pool = chains, BlockPool(num_gpu_blocks)
        self.held = [Held() for _ in chains]

    def content(self, request: int, place: int) -> int | tuple[int, int]:
        chain = self.chains[request]
        return chain[place] if place < len(chain) else (request, place)

    def admit(self, request: int, known: int) -> None:
        held = self.held[request]
        found = self.pool.lookup(self.content(request, place) for place in range(known - 1))
        expected = len(found), self.pool.count_free(found)
        agree("hits", tuple(look(self.engine.handle, request, known)), expected)
        if known - expected[0] + expected[1] > self.pool.free_blocks:
            return
        self.pool.share(found)
        share(self.engine.handle, request, len(found))
        held.blocks, held.registered, held.known, held.running = found, len(found), known, True

    def grow(self, request: int, count: int, lag: int) -> None:
        """Draw ``count`` blocks; register all but ``lag`` of those held."""
        held = self.held[request]
        before = len(held.blocks)
        count = min(count, self.pool.free_blocks, LONGEST - before)
        held.blocks += self.pool.draw(count)
        end = before + count
        full = max(held.registered, end - lag)
        for place in range(held.registered, full):
            self.pool.register(held.blocks[place], self.content(request, place))
        held.registered = full
        grow(self.engine.handle, request, count, end, end - lag)

    def release(self, request: int) -> None:
        held = self.held[request]
        self.pool.release(held.blocks)
        release(self.engine.handle, request, len(held.blocks))
        self.held[request] = Held()

    def compare(self) -> None:
        """Blocks in use and, for each chain, how much of it could be hit now, how much of that free."""
        agree("used blocks", int(self.engine.state.inst["used_blocks"][0, 0]), self.pool.used_blocks)
        for request in range(len(self.chains)):
            found = self.pool.lookup(self.content(request, place) for place in range(LONGEST))
            expected = len(found), self.pool.count_free(found)
            agree("hits", tuple(look(self.engine.handle, request, LONGEST + 1)), expected)


chains = st.lists(st.lists(st.integers(0, 3), max_size=LONGEST), min_size=REQUESTS, max_size=REQUESTS)
prefixes = st.lists(st.integers(0, LONGEST), min_size=REQUESTS, max_size=REQUESTS).map(
    lambda lengths: [list(range(length)) for length in lengths]
)
steps = st.lists(
    st.tuples(st.integers(0, REQUESTS - 1), st.integers(0, 9), st.integers(1, LONGEST), st.integers(0, 2)),
    min_size=20,
    max_size=60,
)


SCRIPTS = (st.integers(2, 40), st.one_of(chains, prefixes), steps)  # arguments of `drive`


def drive(num_gpu_blocks: int, contents: list[list[int]], script: list[tuple[int, int, int, int]]) -> None:
    pair = Pair(num_gpu_blocks, contents)
    for request, kind, amount, lag in script:
        if not pair.held[request].running:
            pair.admit(request, amount)
        elif kind < 7:
            pair.grow(request, amount if kind < 3 else 1, lag)
        else:
            pair.release(request)
        if amount % 2:  # a comparison looks, so that draws and evictions do not pile up: not always
            pair.compare()
    pair.compare()


@settings(deadline=None, max_examples=300)
@given(*SCRIPTS)
def test_any_sequence_of_operations_leaves_both_pools_alike(num_gpu_blocks, contents, script):
    drive(num_gpu_blocks, contents, script)


@pytest.mark.slow
@settings(deadline=None, max_examples=5000)
@given(*SCRIPTS)
def test_thousands_of_sequences_leave_both_pools_alike(num_gpu_blocks, contents, script):
    drive(num_gpu_blocks, contents, script)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.segments import Segments
from fleetgym.envs.errors import UserError

ids = st.lists(st.integers(0, 8), max_size=12)
LARGE = 2**63 - 1


def trace_of(chains: list[list[int]]) -> Trace:
    count = len(chains)
    arrays = [np.array(chain, np.int64) for chain in chains]
    return make_trace(np.arange(count), np.full(count, 100), np.ones(count, np.int64), chains=arrays)


def names(segments: Segments, request: int, length: int) -> list[object]:
    """What each block of a chain is: its segment and place in it, or what nobody else has."""
    start = int(segments.start[request])
    out: list[object] = []
    for segment, end in segments.links[start : start + int(segments.count[request])].tolist():
        out += [(segment, offset) for offset in range(end - len(out))]
    return out + [("own", request, place) for place in range(len(out), length)]


@st.composite
def trees(draw: st.DrawFn) -> list[list[int]]:
    """Chains that leave earlier ones anywhere and go on with new ids, consecutive, scattered or the largest there are."""
    scale, base = draw(st.sampled_from([(1, 0), (7919, 3), (-1, LARGE)]))
    chains: list[list[int]] = [[]]
    used = 0
    for _ in range(draw(st.integers(1, 8))):
        trunk = draw(st.sampled_from(chains))
        kept, new = trunk[: draw(st.integers(0, len(trunk)))], draw(st.integers(0, 5))
        chains.append(kept + [used + k for k in range(new)])
        used += new
    return [[base + scale * number for number in chain] for chain in chains]


@settings(deadline=None)
@given(st.one_of(trees(), st.lists(ids, min_size=1, max_size=6)))
def test_blocks_have_equal_names_exactly_where_they_have_equal_ids(chains):
    segments = trace_of(chains).segments
    named: dict[int, object] = {}
    for request, chain in enumerate(chains):
        for block, name in zip(chain, names(segments, request, len(chain)), strict=True):
            assert named.setdefault(block, name) == name
    assert len(set(named.values())) == len(named)


@settings(deadline=None)
@given(trees(), st.data())
def test_a_part_of_a_trace_has_the_same_blocks(chains, data):
    whole = trace_of(chains)
    places = data.draw(st.lists(st.integers(0, len(chains) - 1), min_size=1, max_size=6))
    rows = whole.requests[places]
    rows["arrival_ns"] = np.arange(len(places))
    part = Trace(rows, whole.block_ids, origin=(whole, np.array(places)))
    found: dict[object, object] = {}
    for request, place in enumerate(places):
        length = len(chains[place])
        old, new = names(whole.segments, place, length), names(part.segments, request, length)
        shared = int(whole.segments.count[place])
        for a, b in zip(old, new, strict=True):
            if a[0] != "own":  # type: ignore[index]
                assert found.setdefault(a, b) == b
        assert int(part.segments.count[request]) == shared
    assert len(set(found.values())) == len(found)
    assert part.segments.number == len({name[0] for name in found.values()})  # type: ignore[index]


def test_a_long_chain_is_a_few_segments_whatever_its_ids_are():
    names_of_blocks = np.random.default_rng(0).permutation(3000)
    chains = [np.arange(1000), np.r_[np.arange(400), np.arange(1000, 1600)], np.r_[np.arange(400), 2000]]
    for renamed in (chains, [names_of_blocks[chain] for chain in chains]):
        segments = trace_of([chain.tolist() for chain in renamed]).segments
        assert segments.number == 1
        assert segments.links["end"].tolist() == [400] * 3  # and what nobody shares is not named


def test_a_trace_without_chains_has_no_segments():
    segments = trace_of([[], []]).segments
    assert (segments.number, len(segments.links), segments.count.tolist()) == (0, 0, [0, 0])


def test_a_negative_id_is_refused():
    with pytest.raises(UserError, match="block_ids: -5: must not be negative"):
        _ = trace_of([[1, -5]]).segments

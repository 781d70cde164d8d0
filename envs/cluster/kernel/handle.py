"""A cheap way into compiled code.

Handing 24 arrays to a compiled function costs 2-3 microseconds per call, more than the work of a step. One array
of their addresses and shapes costs a tenth of a microsecond; the compiled side makes arrays of it again.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fleetgym.envs.cluster.kernel import cluster
from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.spec_row import SPEC
from fleetgym.envs.cluster.kernel.state import CHAIN, CLUSTER, EXTENT, INSTANCE, REQUEST, Array, State
from fleetgym.envs.cluster.segments import LINK_DTYPE

carray: Any = numba.carray  # type: ignore[attr-defined]
NO_JIT = bool(getattr(numba.config, "DISABLE_JIT", False))

FLOAT, INT, INT32, UINT32, BOOL, FLOAT32 = (
    np.dtype(name) for name in ("f8", "i8", "i4", "u4", "?", "f4")
)  # fmt: skip


def make_handle(state: State) -> Any:
    """Describe ``state`` for the functions below; it must outlive the handle."""
    if NO_JIT:
        return state
    handle = np.ones((len(state), 4), np.int64)
    for entry, array in zip(handle, state, strict=True):
        assert array.flags.c_contiguous
        entry[0] = array.ctypes.data
        entry[1 : 1 + array.ndim] = array.shape
    return handle


counted = functools.partial(jit, _nrt=True)  # functions that make arrays need reference counts


def _generate_pointer(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], cgutils.voidptr_t)


def _type_pointer(_context: Any, address: Any) -> Any:
    """Make a pointer of an address."""
    return types.voidptr(types.int64), _generate_pointer


_pointer: Any = intrinsic(_type_pointer)


@counted
def _one(h: Array, k: int, dtype: Any) -> Array:
    return carray(_pointer(h[k, 0]), (h[k, 1],), dtype)


@counted
def _two(h: Array, k: int, dtype: Any) -> Array:
    return carray(_pointer(h[k, 0]), (h[k, 1], h[k, 2]), dtype)


@counted
def _three(h: Array, k: int, dtype: Any) -> Array:
    return carray(_pointer(h[k, 0]), (h[k, 1], h[k, 2], h[k, 3]), dtype)


@counted
def _open(h: Array) -> State:
    return State(
        req=_two(h, 0, REQUEST),
        inst=_two(h, 1, INSTANCE),
        env=_one(h, 2, CLUSTER),
        classes=_three(h, 3, INT32),
        heap=_three(h, 4, INT),
        gaps=_two(h, 5, UINT32),
        spec=_one(h, 6, SPEC),
        tables=_three(h, 7, FLOAT),
        obs=_three(h, 8, FLOAT32),
        mask=_two(h, 9, BOOL),
        terms=_two(h, 10, FLOAT),
        now_ns=_one(h, 11, INT),
        pending=_one(h, 12, INT),
        done=_one(h, 13, BOOL),
        columns=_one(h, 14, INT),
        high=_one(h, 15, FLOAT),
        slo=_one(h, 16, FLOAT),
        values=_one(h, 17, FLOAT),
        journal=_two(h, 18, INT),
        extents=_three(h, 19, EXTENT),
        copies=_three(h, 20, INT32),
        members=_three(h, 21, INT32),
        chain=_two(h, 22, CHAIN),
        table=_two(h, 23, INT32),
        links=_two(h, 24, LINK_DTYPE),
    )


open_state = (lambda state: state) if NO_JIT else _open  # the State behind a handle


@counted
def step(handle: Any, actions: Array) -> Any:
    """`cluster.step` on a handle."""
    return cluster.step(open_state(handle), actions)


@counted
def run(handle: Any, actions: Array) -> Any:
    """`cluster.run` on a handle."""
    return cluster.run(open_state(handle), actions)


@counted
def drain(handle: Any, b: int) -> Any:
    """`cluster.drain` on a handle."""
    return cluster.drain(open_state(handle), b)


@counted
def begin(handle: Any, b: int) -> None:
    """`cluster.begin` on a handle."""
    cluster.begin(open_state(handle), b)

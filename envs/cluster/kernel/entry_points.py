"""A cheap way into compiled code.

Handing two dozen arrays to a compiled function costs 2-3 microseconds per call, more than the work of a step. One array
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
from fleetgym.envs.cluster.kernel.jit import jit, jit_text
from fleetgym.envs.cluster.kernel.state import LAYOUTS, Array, State

carray: Any = numba.carray  # type: ignore[attr-defined]
NO_JIT = bool(getattr(numba.config, "DISABLE_JIT", False))


def make_handle(state: State) -> Any:
    """Describe a state for the functions below.

    Parameters
    ----------
    state : State
        Contiguous arrays, which must outlive the handle.

    Returns
    -------
    ndarray of int64, shape (len(state), 4)
        Address of each array, and its shape filled up with zeros; the state itself where nothing is compiled.
    """
    if NO_JIT:
        return state
    handle = np.zeros((len(state), 4), np.int64)
    for entry, array, layout in zip(handle, state, LAYOUTS.values(), strict=True):
        assert array.flags.c_contiguous
        assert (array.dtype, array.ndim) == (layout.dtype, len(layout.axes))
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


def _array(row: int, name: str) -> str:
    """Text that makes an array of a row of the handle."""
    shape = "".join(f"h[{row}, {1 + axis}], " for axis in range(len(LAYOUTS[name].axes)))
    return f"carray(pointer(h[{row}, 0]), ({shape}), {name})"


_ARRAYS = ", ".join(_array(row, name) for row, name in enumerate(State._fields))
_DTYPES = {name: np.dtype(layout.dtype) for name, layout in LAYOUTS.items()}
_open = jit_text(
    f"def open(h):\n    return State({_ARRAYS})",
    {"State": State, "carray": carray, "pointer": _pointer, **_DTYPES},
    _nrt=True,
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

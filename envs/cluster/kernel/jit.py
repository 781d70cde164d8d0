"""The compiler decorator of the kernel, and a disk cache that cannot serve stale code.

Numba notices an edit in the file of a cached function, not in the files of the functions that it calls. So the
cache folder's name is a hash over all sources that end up in compiled code and over the compiler's versions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = (*sorted(Path(__file__).parent.glob("*.py")), *sorted(Path(__file__).parent.parent.glob("*.py")))


@functools.cache
def cache_folder() -> str:
    """Folder for compiled code: ``$NUMBA_CACHE_DIR`` or the user's cache folder, then one folder per version."""
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    for source in SOURCES:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or default)
    return str(root / "fleetgym" / digest.hexdigest()[:16])


def jit(function: Function, **options: object) -> Function:
    """Compile ``function`` on its first call, without the GIL and without fast-math (results must be exact).

    The kernel allocates nothing, so it needs no reference counts (they cost a third of the time). Small functions
    are pasted into their callers, as handing a bundle of arrays over costs more than most of them do.

    Parameters
    ----------
    options
        For `numba.njit`, instead of these.
    """
    options = {"_nrt": False, "forceinline": True, **options}
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = cache_folder()
    try:
        compiled: Function = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


large = functools.partial(jit, forceinline=False)  # not pasted into callers

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

HERE = Path(__file__).parent
SOURCES = (
    *sorted(HERE.glob("*.py")),
    *(path for name in ("engine.py", "segments.py") for path in HERE.parent.glob(name)),
)


@functools.cache
def cache_folder() -> str | None:
    """Folder for compiled code, one per version of it; None where none can be written (then nothing is kept).

    It lies in ``$NUMBA_CACHE_DIR`` or the user's cache folder.
    """
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    for source in SOURCES:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    try:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(os.environ.get("NUMBA_CACHE_DIR") or default) / "fleetgym" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def jit(function: Function, **options: object) -> Function:
    """Compile ``function`` on its first call, without the GIL and without fast-math (results must be exact).

    The kernel allocates nothing, so it needs no reference counts (they cost a third of the time). Small functions
    are pasted into their callers, as handing a bundle of arrays over costs more than most of them do.

    Parameters
    ----------
    options
        For `numba.njit`, instead of these.
    """
    folder = cache_folder()
    options = {"_nrt": False, "forceinline": True, "cache": folder is not None, **options}
    config: Any = numba.config
    decorate: Any = numba.njit
    before = config.CACHE_DIR
    config.CACHE_DIR = folder or before  # read while decorating
    try:
        compiled: Function = decorate(nogil=True, error_model="numpy", **options)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


large = functools.partial(jit, forceinline=False)  # not pasted into callers

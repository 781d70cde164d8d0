"""The compiler decorator of the kernel, and a disk cache that cannot serve stale code.

Numba notices an edit in the file of a cached function, not in the files of the functions that it calls. So the
cache folder's name is a hash over all modules whose code ends up in compiled code, as they are loaded (which need not
be what their files say: byte-code caches, import hooks), and over the compiler's versions.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

HERE = Path(__file__).parent
# Modules outside that compiled code takes constants, record layouts and functions from; a copy of this package that stands
# alone has none of them.
OUTSIDE = (
    *(f"cluster.{name}" for name in ("engine", "judging", "latency", "requests", "segments", "spec")),
    "signals",
)
MODULES = (
    *(f"{__package__}.{path.stem}" for path in sorted(HERE.glob("[!_]*.py"))),
    *(
        f"{__package__.rsplit('.', 2)[0]}.{name}"
        for name in OUTSIDE
        if (HERE.parents[1] / f"{name.replace('.', '/')}.py").is_file()
    ),
)


def fingerprint(code: CodeType) -> str:
    """Everything of a code object that decides what it computes: the same in each process, without line numbers.

    Parameters
    ----------
    code : code object
        Those of the functions in it are taken along.
    """
    constants = [
        fingerprint(value) if isinstance(value, CodeType) else repr(value)
        for constant in code.co_consts
        for value in (sorted(constant, key=repr) if isinstance(constant, frozenset) else [constant])
    ]
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return repr((code.co_code, code.co_flags, code.co_argcount, names, constants))


def loaded_code(module: str) -> CodeType:
    """The code that importing a module runs, be it from its file, from a byte-code cache or through an import hook.

    Parameters
    ----------
    module : str
        Its full name.
    """
    spec = importlib.util.find_spec(module)
    loader: Any = spec and spec.loader
    return loader.get_code(module)


@functools.cache
def cache_folder() -> str | None:
    """Folder for compiled code, one per version of it; None where none can be written (then nothing is kept).

    It lies in ``$NUMBA_CACHE_DIR`` or the user's cache folder.
    """
    config: Any = numba.config
    if config.DISABLE_JIT:
        return None
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    for module in MODULES:
        digest.update(f"{module} {fingerprint(loaded_code(module))}".encode())
    try:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(os.environ.get("NUMBA_CACHE_DIR") or default) / "fleetgym" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def jit(function: Function, **options: object) -> Function:
    """Compile a function on its first call, without the GIL and without fast-math (results must be exact).

    The kernel allocates nothing, so it needs no reference counts (they cost a third of the time). Small functions
    are pasted into their callers, as handing a bundle of arrays over costs more than most of them do.

    Parameters
    ----------
    function : callable
        In the subset of Python that Numba compiles.
    **options
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


def jit_text(source: str, names: dict[str, Any], **options: object) -> Any:
    """Compile a function given as text.

    For what compiled code cannot loop over, fields of different types. It is kept with the functions that call it.

    Parameters
    ----------
    source : str
        Its definition, with ``def`` at the very beginning.
    names : dict
        Its globals; the function is added to them.
    **options
        As for `jit`.
    """
    exec(source, names)  # noqa: S102
    return jit(names[source.partition("(")[0].removeprefix("def ")], cache=False, **options)

"""Run the differential tests on a kernel with a few lines changed: ``mutant.py FILE OLD NEW [OLD NEW ...]``.

Exit code 0 if unnoticed. The kernel runs uncompiled: that needs no compilation per mutant, and what is not compiled
cannot lie in a cache for somebody else to find.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

os.environ["NUMBA_DISABLE_JIT"] = "1"  # whatever it was: read when numba is imported, below

FILE, *EDITS = sys.argv[1:]

from mutations import edit


def load(self: SourceFileLoader, fullname: str) -> CodeType | None:
    """Compile a module, the mutated one with its edits; past the byte-code cache, which must not learn of them."""
    if not self.path.endswith(f"kernel/{FILE}"):
        return original(self, fullname)
    source = self.get_data(self.path).decode()
    for old, new in zip(EDITS[::2], EDITS[1::2], strict=True):
        source = edit(source, old, new)
    return compile(source, self.path, "exec")


original = SourceFileLoader.get_code
SourceFileLoader.get_code = load  # type: ignore[method-assign, assignment]

import differential
import numba
import test_blocks
from hypothesis import HealthCheck, Phase, given, settings

assert numba.config.DISABLE_JIT, "a mutated kernel must not be compiled"

everything = settings(
    deadline=None,
    max_examples=300,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


LONGEST_S = 30  # of one case; with a sound kernel it takes a second


def too_long(*_: object) -> None:
    raise AssertionError("a case does not end")


signal.signal(signal.SIGALRM, too_long)


def within_time(check: Callable[..., None], *arguments: Any) -> None:
    """Check one case; a mutant may loop for ever, which is a difference too."""
    signal.alarm(LONGEST_S)
    check(*arguments)
    signal.alarm(0)


@everything
@given(differential.cases())
def run(case: differential.Case) -> None:
    within_time(differential.check, case)


@everything
@given(*test_blocks.SCRIPTS)
def run_blocks(num_gpu_blocks: int, contents: list[list[int]], script: list[tuple[int, int, int, int]]) -> None:
    within_time(test_blocks.drive, num_gpu_blocks, contents, script)


for seed in range(50):
    within_time(differential.check, differential.crowded(seed))
run_blocks()
run()

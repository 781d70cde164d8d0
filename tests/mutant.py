"""Run the differential tests on a kernel with one line changed: ``mutant.py FILE OLD NEW``; exit code 0 if unnoticed.

Uncompiled (``NUMBA_DISABLE_JIT=1``), as that needs no compilation per mutant.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from types import CodeType

from hypothesis import HealthCheck, given, settings

FILE, OLD, NEW = sys.argv[1:]


class Mutating(SourceFileLoader):
    """Compiles a changed source."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        if source.count(OLD) != 1:
            raise SystemExit(f"{FILE}: {OLD!r} occurs {source.count(OLD)} times")
        return compile(source.replace(OLD, NEW), self.path, "exec")


def load(self: SourceFileLoader, fullname: str) -> CodeType | None:
    if self.path.endswith(f"kernel/{FILE}"):
        return Mutating(fullname, self.path).get_code(fullname)
    return original(self, fullname)


original = SourceFileLoader.get_code
SourceFileLoader.get_code = load  # type: ignore[method-assign, assignment]

import differential
import test_blocks


@settings(deadline=None, max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(differential.cases())
def run(case: differential.Case) -> None:
    differential.check(case)


@settings(deadline=None, max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(*test_blocks.SCRIPTS)
def run_blocks(num_gpu_blocks: int, contents: list[list[int]], script: list[tuple[int, int, int, int]]) -> None:
    test_blocks.drive(num_gpu_blocks, contents, script)


run_blocks()
run()

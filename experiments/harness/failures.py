"""How a command fails: one line and code 2 for what the user can mend, a traceback and code 1 for all else."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from fleetgym.envs.errors import UserError


class CommandFailed(BaseException):
    """Carries the text and the exit code of a failed job through Hydra and out of worker processes.

    Not an `Exception`, so that Hydra neither prints nor wraps it, and a sweep stops at the first failure.

    Parameters
    ----------
    text : str
        What to print on stderr: one line ``error: ...``, or a traceback.
    code : int
        Exit code: 2 for what the user can mend, else 1.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.text = text
        self.code = code


def user_line(error: Exception) -> str | None:
    """Return ``error: ...`` for what the user can mend, else None.

    Parameters
    ----------
    error : Exception
        A `UserError` is the user's to mend.

    Returns
    -------
    str or None
        One line, line breaks replaced.
    """
    return f"error: {' '.join(str(error).split())}" if isinstance(error, UserError) else None


def guard(call: Callable[[], Any], line_of: Callable[[Exception], str | None] = user_line) -> int:
    """Call, print a failure and return the exit code.

    Parameters
    ----------
    call : callable
        Without arguments; what it returns is dropped.
    line_of : callable
        Tells of an exception the line to print, or None where it is no mistake of the user.

    Returns
    -------
    int
        0, 1 (traceback printed), 2 (one line printed) or 130 (interrupted).
    """
    try:
        call()
    except CommandFailed as failure:
        print(failure.text.rstrip(), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 every failure must become an exit code
        line = line_of(error)
        print(line if line is not None else traceback.format_exc().rstrip(), file=sys.stderr)
        return 1 if line is None else 2
    return 0

"""Errors that a user can mend: one clear line each, exit code 2 from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user asked for is impossible; the message names field, value and what is allowed."""


class UnknownArgumentError(UserError, TypeError):
    """A keyword that an environment does not take; a `TypeError` too, on which trainers that try their own rely."""


class UserNote(UserWarning):
    """Something that is possible but perhaps not meant; the commands print it once as ``note: ...``."""


class LivelockError(RuntimeError):
    """An instance stopped making progress; the message names the instance and the request."""


def did_you_mean(value: object, allowed: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean ...? allowed: ..."`` for an unknown name.

    Parameters
    ----------
    value : object
        What the user wrote.
    allowed : Iterable[str]
        The known names.
    limit : int
        How many near matches to show.

    Returns
    -------
    str
        To be put behind ``name=value: unknown``; without a near match it lists what is allowed only.
    """
    names = sorted(allowed)
    part = str(value).lower()
    near = [name for name in names if part and part in name.lower()]
    near += [name for name in difflib.get_close_matches(str(value), names, n=limit, cutoff=0.4) if name not in near]
    near = near[:limit]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return f"{hint} (allowed: {', '.join(names)})"

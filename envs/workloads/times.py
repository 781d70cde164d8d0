"""Units of recorded times: what a field is by its format, what it must be by its values, and what the user says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError, UserNote

TimeUnit = Literal["s", "ms", "us", "ns"]
UNIT_NS: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

_EPOCH_S = (1e9, 4.2e9)  # 2001 to 2103
_LATEST_NS = 2**62
# Different arrival times per second: more are no recorded traffic, but times in another unit. Requests that arrive at
# one and the same time do not count, since traces bundle arrivals into steps.
_MAX_RATE = 1000
_MAX_FRACTIONAL_RATE = 100  # milliseconds are recorded whole, so that fractions of them are a sign of seconds
_SLOW_GAP_S, _SLOW_REQUESTS = 60.0, 5  # one request per minute on average is strange once there are a few
_LONG_GAP_S, LONGEST_GAP_S = 86_400.0, 365 * 86_400.0  # between two requests: strange, and impossible


def epoch_unit(value: float) -> str | None:
    """Return the unit in which a number is a time since 1970, of this century, or None.

    Parameters
    ----------
    value : float
        A recorded time, of unknown unit.

    Returns
    -------
    {"s", "ms", "us", "ns"} or None
    """
    low, high = _EPOCH_S
    return next((unit for unit, ns in UNIT_NS.items() if low <= value * (ns * 1e-9) < high), None)


class Clock:
    """Reads the times of one field, and refuses those that must be in another unit.

    Parameters
    ----------
    path : Path
        The file, for messages.
    name : str
        The field.
    usual : {"s", "ms", "us", "ns"}
        Its unit by the format's definition.
    stated : {"s", "ms", "us", "ns"} or None
        Its unit by the user, who is believed.
    """

    def __init__(self, path: Path, name: str, usual: str, stated: str | None) -> None:
        self.name = name
        self._path, self._stated, self._unit = path, stated, stated or usual
        self._first = self._whole = True

    def read_ns(self, where: str, value: Any) -> int:
        """Return a time in nanoseconds, on the file's own clock.

        Parameters
        ----------
        where : str
            ``file:line`` of the record, for messages.
        value : object
            What the field holds, in the clock's unit.

        Raises
        ------
        UserError
            It is no time, later than 2**62 ns, or the file's first and a time since 1970 in another unit.
        """
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e30:
            raise UserError(f"{where}: {self.name}={value!r}: must be a time of at least 0, a number of {self._unit}")
        # The whole part by itself: a double of seconds since 1970 times 10^9 is off by 128 ns and more.
        whole = int(value)
        time_ns = whole * UNIT_NS[self._unit] + round((value - whole) * UNIT_NS[self._unit])
        since_1970 = epoch_unit(value)
        doubtful = self._first and not self._stated and since_1970 not in (None, self._unit)
        if doubtful or time_ns >= _LATEST_NS:
            hint = "" if self._stated else f", or say workload.time_unit={'|'.join(UNIT_NS)}"
            if since_1970:
                hint = f": this looks like {UNIT_NAMES[since_1970]} since 1970: say workload.time_unit={since_1970}"
            rule = f"must be {UNIT_NAMES[self._unit]}, less than 146 years"
            raise UserError(f"{where}: {self.name}={value!r}: {rule}{hint}")
        self._first = False
        self._whole = self._whole and value == whole
        return time_ns

    def check(self, times_ns: NDArray[np.int64]) -> None:
        """Refuse an impossible rate or gap, and note a strange one, unless the user stated the unit.

        Parameters
        ----------
        times_ns : ndarray of int, shape (R,)
            All times that were read, in order.

        Raises
        ------
        UserError
            More than 1,000 different times a second (100 where fractions of a finer unit than seconds stand), or two
            that are more than a year apart.

        Warns
        -----
        UserNote
            They would be less strange in another unit.
        """
        span_ns = int(times_ns[-1] - times_ns[0])
        if self._stated or span_ns == 0:
            return
        gaps_ns = np.diff(times_ns)
        distinct, longest = int(np.count_nonzero(gaps_ns)), int(np.argmax(gaps_ns))
        longest_s = int(gaps_ns[longest]) * 1e-9
        sub_second = self._unit != "s"
        crowded = distinct * 10**9 > _MAX_FRACTIONAL_RATE * span_ns
        if distinct * 10**9 > _MAX_RATE * span_ns or (sub_second and crowded and not self._whole):
            finer = ", workload.time_unit=s if they are seconds" if sub_second else ""
            raise UserError(
                f"{self._path}: {self.name}: {distinct + 1} different times within {span_ns * 1e-9:.3g} s, read as "
                f"{UNIT_NAMES[self._unit]}, are no recorded traffic: say workload.time_unit={self._unit} if they are "
                f"meant so{finer}"
            )
        if longest_s > LONGEST_GAP_S:
            raise UserError(
                f"{self._path}: {self.name}: request {longest + 2} comes {longest_s:.3g} s after the one before, read "
                f"as {UNIT_NAMES[self._unit]}: must be less than a year: give all times on one clock, or say "
                f"workload.time_unit={'|'.join(UNIT_NS)}"
            )
        gap_s = span_ns * 1e-9 / len(gaps_ns)
        if sub_second and (crowded or not self._whole):
            fractions = "" if self._whole else "fractions, and "
            self._note(f"{fractions}one per {span_ns * 1e-6 / distinct:.3g} ms", "s")
        elif gap_s > _SLOW_GAP_S and len(times_ns) >= _SLOW_REQUESTS:
            self._note(f"one request per {gap_s:.3g} s", "us" if sub_second else "ms")
        elif longest_s > _LONG_GAP_S:
            self._note(f"a gap of {longest_s:.3g} s before request {longest + 2}", "us" if sub_second else "ms")

    def _note(self, what: str, other: str) -> None:
        warnings.warn(
            f"{self._path}: {self.name}, read as {UNIT_NAMES[self._unit]}, gives {what}: say workload.time_unit={other} "
            f"if they are {UNIT_NAMES[other]}, or workload.time_unit={self._unit}",
            UserNote,
            stacklevel=3,
        )

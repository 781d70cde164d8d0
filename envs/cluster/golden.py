"""Replay of recorded scheduler traces: whether a scheduler decides, step by step, what vLLM decided.

A golden file is gzip JSONL, one case per line: settings, requests, and one record per ``schedule()`` call of vLLM
0.32. Any scheduler behind the small `GoldenScheduler` protocol can be driven through a case::

    report = replay_file("golden.jsonl.gz")
    print(report.matched, report.total, report.by_tag, report.failures)
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fleetgym.envs.cluster.scheduler import Request, Scheduler, StepPlan
from fleetgym.envs.cluster.spec import SETTINGS, EngineArgs
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.textfile import text_lines

REQUIRED_KEYS = {
    "seed", "tags", "config", "requests", "trace", "steps", "end", "preemptions", "final_free_blocks",
}  # fmt: skip

# Where the file names a setting otherwise than `EngineArgs`; ``depth`` counts the iterations in flight.
FIELD_OF = {
    "policy": "scheduling_policy",
    "prefix_caching": "enable_prefix_caching",
    "reserve_full_isl": "reserve_full_prompt",
    "depth": "async_scheduling",
}
DEPTHS = {1: False, 2: True}
REQUIRED_SETTINGS = {
    "max_num_batched_tokens", "max_num_seqs", "max_model_len", "block_size", "num_gpu_blocks", "watermark", *FIELD_OF,
}  # fmt: skip

Case = Mapping[str, Any]
Pairs = list[list[int]]


class UnsupportedCaseError(Exception):
    """A scheduler cannot run a case; the message says why. The case counts as skipped."""


class Step(NamedTuple):
    """One ``schedule()`` call in plain numbers: pairs of [request, tokens] in the scheduler's order.

    Attributes
    ----------
    scheduled : list of [int, int]
        Running requests, then admitted ones, with the tokens that each gets.
    hits : list of [int, int]
        Admissions that begin with a prefix hit, and its tokens.
    preempted : list of [int, int]
        With the tokens that were computed and are lost.
    """

    scheduled: Pairs
    hits: Pairs
    preempted: Pairs


class Counts(NamedTuple):
    """State of a scheduler between calls.

    Attributes
    ----------
    running, waiting : int
        Requests.
    free_blocks : int
        KV blocks; cached ones that nobody refers to are free.
    """

    running: int
    waiting: int
    free_blocks: int


class GoldenScheduler(Protocol):
    """What a scheduler must offer to be replayed; requests are named by their index in the case."""

    def add(self, request: int) -> None:
        """Let a request arrive.

        Parameters
        ----------
        request : int
            Its index in the case.
        """

    def schedule(self) -> Step:
        """Compose an iteration and put it in flight."""

    def update(self) -> list[int]:
        """Return the oldest iteration in flight; give the requests that finish."""

    def counts(self) -> Counts:
        """Count running and waiting requests and free blocks."""


class Record(NamedTuple):
    """One ``schedule()`` call; the field names are those of the file.

    Attributes
    ----------
    k : int
        Number of the call.
    s, h, p : list of [int, int]
        As `Step`: scheduled, hits, preempted.
    r, w, b : int
        As `Counts`, right after the call: running, waiting, free blocks.
    f : list of int
        Requests that the update before the next call finishes.
    """

    k: int
    s: Pairs
    h: Pairs
    p: Pairs
    r: int
    w: int
    b: int
    f: list[int]


@dataclass
class ScheduleReplay:
    """All that a replay of one case can be compared by.

    Attributes
    ----------
    records : list of Record
    end : {"done", "stuck"}
        ``stuck``: nothing runs, nothing arrives any more, and the head of the queue can never be admitted.
    unfinished : list of int
        Requests that did not finish.
    preemptions : list of int, length R
        Of each request.
    final_free_blocks : int
    """

    records: list[Record] = field(default_factory=list)
    end: str = ""
    unfinished: list[int] = field(default_factory=list)
    preemptions: list[int] = field(default_factory=list)
    final_free_blocks: int = 0

    def note(self, record: Record) -> None:
        """Append a ``schedule()`` call and count its preemptions.

        Parameters
        ----------
        record : Record
            Without the requests that the update after it finishes.
        """
        self.records.append(record)
        for request, _ in record.p:
            self.preemptions[request] += 1

    def finish(self, requests: list[int]) -> None:
        """Note which requests an update finished.

        Parameters
        ----------
        requests : list of int
            Their indices; they are added to the latest record.
        """
        for request in requests:
            self.records[-1].f.append(request)
            self.unfinished.remove(request)


class Difference(NamedTuple):
    """First disagreement of a replay.

    Attributes
    ----------
    seed, tags : int, tuple of str
        Of the case.
    step : int
        Number of the ``schedule()`` call; -1 for a field of the whole case.
    field : str
        Of `Record`, or of the case.
    expected, got : object
        What was recorded, and what the replay has instead.
    """

    seed: int
    tags: tuple[str, ...]
    step: int
    field: str
    expected: object
    got: object


@dataclass
class GoldenReport:
    """Outcome of a file.

    Attributes
    ----------
    matched, total, skipped : int
        ``total`` does not count skipped cases.
    by_tag : dict of str to [matched, total]
        A case without tags counts under ``plain``, one with several under each.
    failures : list of Difference
    skips : list of (seed, reason)
    """

    matched: int = 0
    total: int = 0
    skipped: int = 0
    by_tag: dict[str, list[int]] = field(default_factory=dict)
    failures: list[Difference] = field(default_factory=list)
    skips: list[tuple[int, str]] = field(default_factory=list)


class ReferenceReplay:
    """The reference `Scheduler` behind the `GoldenScheduler` protocol.

    Parameters
    ----------
    case : mapping
        A line of a golden file.

    Raises
    ------
    UnsupportedCaseError, KeyError, UserError
        As `case_args` and `case_request`.
    """

    def __init__(self, case: Case) -> None:
        config = case["config"]
        self._requests = [case_request(case, index) for index in range(len(case["requests"]))]
        self._scheduler = Scheduler(case_args(case), config["num_gpu_blocks"], config["max_model_len"])
        self._flight: deque[StepPlan] = deque()

    def add(self, request: int) -> None:
        """Let a request arrive.

        Parameters
        ----------
        request : int
            Its index in the case.
        """
        self._scheduler.add(self._requests[request])

    def schedule(self) -> Step:
        """Compose an iteration and put it in flight."""
        plan = self._scheduler.schedule()
        self._flight.append(plan)
        return Step(_pairs(plan.scheduled), _pairs(plan.hits), _pairs(plan.preempted))

    def update(self) -> list[int]:
        """Return the oldest iteration in flight; give the requests that finish."""
        returned = self._scheduler.update(self._flight.popleft())
        return [request.index for request in returned if request.returned_tokens == request.output_tokens]

    def counts(self) -> Counts:
        """Count running and waiting requests and free blocks."""
        scheduler = self._scheduler
        return Counts(len(scheduler.running), len(scheduler.waiting), scheduler.pool.free_blocks)


def case_args(case: Case) -> EngineArgs:
    """Scheduler settings of a case.

    Parameters
    ----------
    case : mapping
        A line of a golden file; only ``config`` is read. A setting that `EngineArgs` has is taken by its name, or by
        the one that `FIELD_OF` gives it; what it does not have must be off (0, false or null).

    Raises
    ------
    UnsupportedCaseError
        The case uses a mechanism that is not modelled.
    KeyError
        A setting that every recorded case states is missing.
    UserError
        A value that no scheduler takes.
    """
    config = case["config"]
    for name in sorted(REQUIRED_SETTINGS - set(config)):
        raise KeyError(name)
    values = {}
    for name, value in config.items():
        field_name = FIELD_OF.get(name, name)
        if field_name in SETTINGS:
            values[field_name] = _in_flight(value) if name == "depth" else value
        elif value:
            raise UnsupportedCaseError(f"{name} is not modelled")
    return build(EngineArgs, values, "config")


def _in_flight(depth: object) -> bool:
    if depth not in DEPTHS:
        raise UnsupportedCaseError(f"depth={depth!r} is not modelled: 1 or 2 iterations are in flight")
    return DEPTHS[depth]


def case_request(case: Case, index: int) -> Request:
    """One request of a case; its chain of content ids is unrolled from ``[first, count]`` ranges.

    Parameters
    ----------
    case : mapping
        A line of a golden file; only ``requests`` is read.
    index : int
        Its place in ``requests``.

    Returns
    -------
    Request
        Without priority and time 0 where the case states none.

    Raises
    ------
    KeyError
        ``prompt`` or ``output`` is missing.
    """
    row = case["requests"][index]
    chain = [first + offset for first, count in row.get("chain", ()) for offset in range(count)]
    return Request(index, row["prompt"], row["output"], row.get("prio", 0), row.get("t", 0), chain)


def replay(case: Case, make_scheduler: Callable[[Case], GoldenScheduler] = ReferenceReplay) -> ScheduleReplay:
    """Drive a scheduler through a case, in the order of calls in which the file was recorded.

    Parameters
    ----------
    case : mapping
        A line of a golden file, with `REQUIRED_KEYS`.
    make_scheduler : callable
        Puts a fresh scheduler with the case's settings and requests behind the protocol.

    Returns
    -------
    ScheduleReplay
        Cut off once it is longer than the case.

    Raises
    ------
    UnsupportedCaseError
        The scheduler does not model what the case uses.
    """
    scheduler = make_scheduler(case)
    depth, arrivals = case["config"]["depth"], [row["step"] for row in case["requests"]]
    pending = deque(sorted(range(len(arrivals)), key=lambda index: (arrivals[index], index)))
    out = ScheduleReplay(unfinished=list(range(len(arrivals))), preemptions=[0] * len(arrivals))
    flight: deque[bool] = deque()  # whether each output in flight is empty
    k = 0
    while True:
        while pending and arrivals[pending[0]] <= k:
            scheduler.add(pending.popleft())
        counts = scheduler.counts()
        blocked = False
        if counts.running or counts.waiting:
            step = scheduler.schedule()
            out.note(Record(k, *step, *scheduler.counts(), []))
            k += 1
            flight.append(not step.scheduled)
            blocked = all(flight) and not step.preempted
            while blocked and flight:  # only an arrival can change anything: forget the empty outputs
                flight.popleft()
                scheduler.update()
            if not blocked and len(flight) < depth:
                continue
        if flight:
            flight.popleft()
            out.finish(scheduler.update())
        elif pending:
            k = max(k, arrivals[pending[0]])
        else:
            out.end = "stuck" if blocked else "done"
        if out.end or len(out.records) > case["steps"]:  # a wrong scheduler might never come to an end
            out.final_free_blocks = scheduler.counts().free_blocks
            return out


def expected_records(case: Case) -> Iterator[Record]:
    """Unroll the merged records of a case.

    Parameters
    ----------
    case : mapping
        A line of a golden file; only ``trace`` is read.

    Yields
    ------
    Record
        One per ``schedule()`` call.
    """
    for record in case["trace"]:
        repeats = record.get("n", 1)
        free = [value for value, count in record["b"] for _ in range(count)] if repeats > 1 else [record["b"]]
        for offset in range(repeats):
            first, last = offset == 0, offset == repeats - 1
            yield Record(
                record["k"] + offset,
                record["s"],
                record.get("h", []) if first else [],
                record.get("p", []) if first else [],
                record["r"],
                record["w"],
                free[offset],
                record.get("f", []) if last else [],
            )


def compare(case: Case, got: ScheduleReplay) -> Difference | None:
    """Give the first field in which a replay differs from the recorded case.

    Parameters
    ----------
    case : mapping
        A line of a golden file.
    got : ScheduleReplay
        What `replay` made of it.

    Returns
    -------
    Difference or None
        None: they are equal.
    """

    def difference(step: int, name: str, expected: object, value: object) -> Difference:
        return Difference(case["seed"], tuple(case["tags"]), step, name, expected, value)

    expected = list(expected_records(case))
    for wanted, record in zip(expected, got.records, strict=False):
        for name, left, right in zip(Record._fields, wanted, record, strict=True):
            if left != right:
                return difference(wanted.k, name, left, right)
    whole = {
        "steps": (case["steps"], len(got.records)),
        "records": (len(expected), len(got.records)),
        "end": (case["end"], got.end),
        "unfinished": (case.get("unfinished", []), got.unfinished),
        "preemptions": (case["preemptions"], got.preemptions),
        "final_free_blocks": (case["final_free_blocks"], got.final_free_blocks),
    }
    return next((difference(-1, name, left, right) for name, (left, right) in whole.items() if left != right), None)


def load_cases(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read a golden file case by case.

    Parameters
    ----------
    path : str or Path
        JSONL, gzip or plain.

    Yields
    ------
    dict
        With all of `REQUIRED_KEYS`.

    Raises
    ------
    UserError
        The file cannot be read or a line is not a case; names file and line.
    """
    for number, line in enumerate(text_lines(Path(path)), start=1):
        try:
            case = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not a golden case, not JSON ({error})") from None
        if not isinstance(case, dict):
            raise UserError(f"{path}, line {number}: not a golden case, not an object")
        missing = REQUIRED_KEYS - set(case)
        if missing:
            raise UserError(f"{path}, line {number}: not a golden case, lacks {', '.join(sorted(missing))}")
        yield case


def replay_file(path: str | Path, make_scheduler: Callable[[Case], GoldenScheduler] = ReferenceReplay) -> GoldenReport:
    """Replay and compare every case of a file.

    Parameters
    ----------
    path : str or Path
        JSONL, gzip or plain.
    make_scheduler : callable
        As for `replay`.

    Returns
    -------
    GoldenReport
        With the cases that the scheduler does not model among the skipped ones.

    Raises
    ------
    UserError
        The file cannot be read, or a line is not a case.
    KeyError
        A case lacks a setting, or a length of a request.
    """
    report = GoldenReport()
    for case in load_cases(path):
        try:
            difference = compare(case, replay(case, make_scheduler))
        except UnsupportedCaseError as reason:
            report.skipped += 1
            report.skips.append((case["seed"], str(reason)))
            continue
        matched = difference is None
        report.matched += matched
        report.total += 1
        if difference is not None:
            report.failures.append(difference)
        for tag in case["tags"] or ["plain"]:
            tally = report.by_tag.setdefault(tag, [0, 0])
            tally[0] += matched
            tally[1] += 1
    return report


def _pairs(items: list[tuple[Request, int]]) -> Pairs:
    return [[request.index, tokens] for request, tokens in items]

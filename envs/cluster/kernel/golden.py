"""The compiled scheduler behind the `GoldenScheduler` protocol, for replays of recorded schedules.

It runs the very functions that the engine runs, one ``schedule()`` or ``update()`` at a time; admissions by hit and
preemptions come from the engine's journal, the tokens of a step from the requests' counts before and after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fleetgym.envs.cluster.golden import Case, Counts, Step, case_args, case_request
from fleetgym.envs.cluster.kernel import schedule, update
from fleetgym.envs.cluster.kernel.engine import KernelEngine
from fleetgym.envs.cluster.kernel.entry_points import counted, open_state
from fleetgym.envs.cluster.kernel.lists import enqueue
from fleetgym.envs.cluster.kernel.request_counts import ADMITTED, PREEMPTED, computed_tokens
from fleetgym.envs.cluster.kernel.state import FINISH, WAITING, Array, State, unit
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, InstanceSpec


class KernelReplay:
    """One case on one compiled instance whose iterations last a second, behind the protocol of `GoldenScheduler`.

    Parameters
    ----------
    case : mapping
        A line of a golden file.

    Raises
    ------
    UnsupportedCaseError, KeyError, UserError
        As `fleetgym.envs.cluster.golden.case_args` and `case_request`.
    """

    def __init__(self, case: Case) -> None:
        requests = [case_request(case, index) for index in range(len(case["requests"]))]
        trace = make_trace(
            np.zeros(len(requests), np.int64),
            np.array([request.prompt_tokens for request in requests]),
            np.array([request.output_tokens for request in requests]),
            priority=np.array([request.priority for request in requests]),
            chains=[np.array(request.chain, np.int64) for request in requests],
        )
        model = LatencyModel(w0_s=1.0)
        # The model length only rejects requests at arrival, which is left out here.
        args = replace(case_args(case), max_model_len=None)
        instance = InstanceSpec("constant", "constant", engine=args, latency=model)
        self._engine = KernelEngine(ClusterSpec((instance,)), journal=16 * (len(requests) + 1))
        self._engine.reset(0, trace)
        self._state: State = self._engine.state
        self._state.req["arrival_ns"][0] = [request.arrival_ns for request in requests]  # only compared here
        self._usable = instance.num_gpu_blocks - 1
        self._count = len(requests)

    def add(self, request: int) -> None:
        """Let a request arrive.

        Parameters
        ----------
        request : int
            Its index in the case.
        """
        add(self._engine.handle, request)

    def schedule(self) -> Step:
        """Compose an iteration and put it in flight."""
        before = self._computed()
        self._state.journal[0, 0] = 0
        compose(self._engine.handle)
        length = int(self._state.journal[0, 0])
        journal = self._state.journal[0, 1 : 1 + length].reshape(-1, 3).tolist()
        hits = [[request, tokens] for kind, request, tokens in journal if kind == ADMITTED and tokens]
        preempted = [[request, tokens] for kind, request, tokens in journal if kind == PREEMPTED]
        before.update(dict(hits))
        computed = self._computed()
        gained = {request: tokens - before.get(request, 0) for request, tokens in computed.items()}
        return Step([[request, tokens] for request, tokens in gained.items() if tokens], hits, preempted)

    def update(self) -> list[int]:
        """Return the oldest iteration in flight; give the requests that finish."""
        out = np.zeros(self._count, np.int64)
        return out[: give_back(self._engine.handle, out)].tolist()

    def counts(self) -> Counts:
        """Running and waiting requests and free blocks."""
        row = self._state.inst[0, 0]
        return Counts(int(row["running"]), int(row["waiting"]), self._usable - int(row["used_blocks"]))

    def _computed(self) -> dict[int, int]:
        """Computed tokens of each running request, in list order."""
        out = np.zeros((self._count, 2), np.int64)
        return dict(out[: list_running(self._engine.handle, out)].tolist())


@counted
def add(handle: Any, r: int) -> None:
    """Queue request ``r``."""
    u = unit(open_state(handle), 0, 0)
    u.req[r]["state"] = WAITING
    enqueue(u, r, False)


@counted
def compose(handle: Any) -> None:
    """Call schedule() once."""
    u = unit(open_state(handle), 0, 0)
    schedule.schedule(u, u.inst["counted_ns"])
    u.inst["flight"] += 1


@counted
def give_back(handle: Any, out: Array) -> Any:
    """Call update() once; list the requests that it finishes."""
    u = unit(open_state(handle), 0, 0)
    count = 0
    slot = u.inst["front"]
    r = u.inst["head"][slot]
    while r >= 0:
        link = u.req[r]["link"][slot]
        if link & FINISH:
            out[count] = r
            count += 1
        r = (link >> 2) - 1
    update.update(u)
    return count


@counted
def list_running(handle: Any, out: Array) -> Any:
    """List running requests and their computed tokens."""
    u = unit(open_state(handle), 0, 0)
    count = 0
    r = u.inst["run_head"]
    while r >= 0:
        out[count, 0] = r
        out[count, 1] = computed_tokens(u, r)
        count += 1
        r = u.req[r]["next"]
    return count

"""One simulated vLLM endpoint: a SimPy process that turns scheduler decisions into time.

`Instance` drives one scheduler; `DataParallelGroup` drives several in lock step behind one endpoint. What happens
to requests is written to the arrays and totals of the cluster, its `Outcomes`.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simpy

from fleetgym.envs.cluster.engine import EWMA_WEIGHT
from fleetgym.envs.cluster.judging import NS, since_s
from fleetgym.envs.cluster.latency import LatencyTables, iteration_seconds, pad_tokens, to_ns
from fleetgym.envs.cluster.outcomes import InFlight, Outcomes
from fleetgym.envs.cluster.requests import INSTANCE_STATS_DTYPE, REJECTED
from fleetgym.envs.cluster.scheduler import Request, Scheduler, StepPlan
from fleetgym.envs.cluster.spec import InstanceSpec
from fleetgym.envs.errors import LivelockError

BALANCER_PERIOD_NS = 100_000_000


class Hardware(NamedTuple):
    """What is computed once per `InstanceSpec`, all ranks together.

    Attributes
    ----------
    tables : LatencyTables
        Of one rank.
    kv_capacity_tokens : int
    prefill_tokens_per_s, decode_tokens_per_s : float
        As the signals of the same name.
    """

    tables: LatencyTables
    kv_capacity_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@functools.cache
def hardware(spec: InstanceSpec) -> Hardware:
    """Tables and speeds of an instance; a group's ranks count together.

    Parameters
    ----------
    spec : InstanceSpec
        Its ``count`` is of no matter.
    """
    capacity = spec.dp * spec.kv_capacity_tokens
    return Hardware(spec.tables(), capacity, spec.prefill_tokens_per_s, spec.decode_tokens_per_s)


@dataclass(eq=False)
class Iteration:
    """One iteration in flight. An empty one takes no time.

    Attributes
    ----------
    plans : list of StepPlan
        Of each rank.
    duration_ns, end_ns : int
        How long it executes, and when it ends.
    tokens : int
        Of all ranks.
    """

    plans: list[StepPlan]
    duration_ns: int = 0
    end_ns: int = 0
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(plan.tokens for plan in self.plans)


class Instance:
    """One endpoint with one scheduler.

    Parameters
    ----------
    env : simpy.Environment
        Its clock counts int nanoseconds.
    index : int
        Position in the cluster.
    spec : InstanceSpec
    outcomes : Outcomes
    first_arrival_ns : int
        When the idle time before the first dispatch starts to count.
    """

    def __init__(
        self, env: simpy.Environment, index: int, spec: InstanceSpec, outcomes: Outcomes, first_arrival_ns: int
    ) -> None:
        self.env = env
        self.index = index
        self.spec = spec
        self.hardware = hardware(spec)
        self.outcomes = outcomes
        self.ranks = [Scheduler(spec.engine, spec.num_gpu_blocks, spec.max_model_len) for _ in range(spec.dp)]
        self.depth = 2 if spec.engine.async_scheduling else 1
        self.max_model_len = spec.max_model_len
        self.in_flight = InFlight()
        self.last_dispatch_ns = first_arrival_ns
        self.ttft_ewma_s: float | None = None
        self.stats = np.zeros((), INSTANCE_STATS_DTYPE)
        self._flight: deque[Iteration] = deque()
        self._busy_until_ns = 0
        self._counted_ns = 0  # kv_block_ns is integrated up to here
        self._stalled_iterations = 0
        self._wake: simpy.Event | None = None
        env.process(self._run())

    @property
    def now(self) -> int:
        """Simulated time in ns."""
        return int(self.env.now)

    @property
    def signals(self) -> dict[str, float]:
        """Values of the signals that belong to an instance."""
        return {
            "in_flight_requests": self.in_flight.requests,
            "in_flight_prompt_tokens": self.in_flight.prompt_tokens,
            "awaiting_first_token_requests": self.in_flight.awaiting_requests,
            "awaiting_first_token_prompt_tokens": self.in_flight.awaiting_prompt_tokens,
            "streamed_tokens": self.in_flight.streamed_tokens,
            "since_dispatch_s": (self.now - self.last_dispatch_ns) * NS,
            "ttft_ewma_s": self.ttft_ewma_s or 0.0,
            "running_requests": sum(len(rank.running) for rank in self.ranks),
            "waiting_requests": sum(len(rank.waiting) for rank in self.ranks),
            "kv_usage": self._used_blocks() / sum(rank.pool.usable_blocks for rank in self.ranks),
            "kv_capacity_tokens": self.hardware.kv_capacity_tokens,
            "prefill_tokens_per_s": self.hardware.prefill_tokens_per_s,
            "decode_tokens_per_s": self.hardware.decode_tokens_per_s,
            "remaining_tokens": self.in_flight.remaining_tokens,
        }

    def receive(self, request: Request) -> None:
        """Take a dispatched request, or reject it if it can never run to its end.

        Parameters
        ----------
        request : Request
            Prompt and output together are to fit ``max_model_len``.
        """
        self.last_dispatch_ns = self.now
        self._stalled_iterations = 0
        self.stats["dispatched"] += 1
        self.outcomes.results["instance"][request.index] = self.index
        if request.prompt_tokens + request.output_tokens > self.max_model_len:
            self.outcomes.results["status"][request.index] = REJECTED
            self.outcomes.rejected += 1
            self.stats["rejected"] += 1
            return
        self.outcomes.advance(self.now)
        self.outcomes.unfinished += 1
        self.outcomes.awaiting += 1
        self.in_flight.add(request)
        self._choose_rank().add(request)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Compose, execute and return iterations, ``depth`` of them in flight, for ever."""
        while True:
            if any(rank.has_work for rank in self.ranks):
                iteration = self._schedule()
                self._flight.append(iteration)
                if self._is_blocked(iteration):
                    self._flight.clear()
                    yield from self._sleep()
                    continue
                if len(self._flight) < self.depth:
                    continue
            elif not self._flight:
                yield from self._sleep()
                continue
            oldest = self._flight.popleft()
            if oldest.end_ns > self.now:
                yield self.env.timeout(oldest.end_ns - self.now)
            self._update(oldest)

    def _sleep(self) -> Generator[simpy.Event, Any, None]:
        self._stalled_iterations = 0
        self._wake = self.env.event()
        yield self._wake

    def _is_blocked(self, iteration: Iteration) -> bool:
        """Whether nothing can change before the next arrival."""
        preempted = any(plan.preempted for plan in iteration.plans)
        return not preempted and all(other.tokens == 0 for other in self._flight)

    def _schedule(self) -> Iteration:
        """Compose an iteration; it executes after the one before it."""
        self._count_blocks()
        now = self.now
        iteration = Iteration([rank.schedule() for rank in self.ranks], end_ns=now)
        if iteration.tokens:
            iteration.duration_ns = to_ns(self._seconds(iteration.plans))
            iteration.end_ns = max(now, self._busy_until_ns) + iteration.duration_ns
            self._busy_until_ns = iteration.end_ns
        for plan in iteration.plans:
            self._note(plan)
        self.stats["peak_kv_blocks"] = max(int(self.stats["peak_kv_blocks"]), self._used_blocks())
        self._check_progress()
        return iteration

    def _seconds(self, plans: list[StepPlan]) -> float:
        return _rank_seconds(self.hardware.tables, plans[0])

    def _note(self, plan: StepPlan) -> None:
        """Write a plan's admissions and preemptions down."""
        results = self.outcomes.results
        for request, tokens in plan.hits:
            if results["scheduled_ns"][request.index] < 0:
                results["cached_tokens"][request.index] = tokens
        for request in plan.admitted:
            if results["scheduled_ns"][request.index] < 0:
                results["scheduled_ns"][request.index] = self.now
        for request, tokens in plan.recomputed:
            results["recomputed_tokens"][request.index] += tokens
            self.stats["recomputed_tokens"] += tokens
            self.outcomes.recomputed_tokens += tokens
        for request, _ in plan.preempted:
            results["preemptions"][request.index] += 1
            self.stats["preemptions"] += 1
            self.outcomes.preempted += 1

    def _update(self, iteration: Iteration) -> None:
        """Return an iteration's tokens; its work is counted now that it is done."""
        self._count_blocks()
        if iteration.tokens:
            self.stats["busy_ns"] += iteration.duration_ns
            self.stats["iterations"] += 1
        for rank, plan in zip(self.ranks, iteration.plans, strict=True):
            self.stats["prefill_tokens"] += plan.prefill_tokens
            self.stats["decode_tokens"] += plan.decodes
            for request in rank.update(plan):
                self._give_token(request)

    def _give_token(self, request: Request) -> None:
        now = self.now
        self._stalled_iterations = 0
        self.outcomes.token(request, now)
        self.in_flight.token(request)
        if request.returned_tokens == request.output_tokens:
            self.stats["finished"] += 1
        if request.returned_tokens == 1:
            ttft_s = since_s(request.arrival_ns, now)
            ewma = ttft_s if self.ttft_ewma_s is None else self.ttft_ewma_s
            self.ttft_ewma_s = ewma + EWMA_WEIGHT * (ttft_s - ewma)

    def _choose_rank(self) -> Scheduler:
        return self.ranks[0]

    def _used_blocks(self) -> int:
        return sum(rank.pool.used_blocks for rank in self.ranks)

    def _count_blocks(self) -> None:
        """Integrate the used blocks up to now; they change in ``schedule`` and ``update`` only."""
        now = self.now
        self.stats["kv_block_ns"] += self._used_blocks() * (now - self._counted_ns)
        self._counted_ns = now

    def _check_progress(self) -> None:
        """Raise if more iterations than any request can need passed without a token or an arrival.

        `InstanceSpec.stall_limit_iterations` says why that many are enough.
        """
        self._stalled_iterations += 1
        if self._stalled_iterations > self.spec.stall_limit_iterations:
            rank = next(rank for rank in self.ranks if rank.has_work)
            request = (rank.running + rank.waiting)[0]
            raise LivelockError(
                f"instance {self.index}: no progress at {self.now * NS:.3f} s; request {request.index} "
                f"({request.prompt_tokens} + {request.output_tokens} tokens) is computed again and again"
            )

    def check_drained(self) -> None:
        """Check, once nothing will happen any more, that no request is left.

        Raises
        ------
        LivelockError
            One is left: it can never be admitted.
        """
        for rank in self.ranks:
            if rank.has_work:
                request = (rank.waiting + rank.running)[0]
                raise LivelockError(
                    f"instance {self.index}: blocked at {self.now * NS:.3f} s; request {request.index} "
                    f"({request.prompt_tokens} + {request.output_tokens} tokens) can never be admitted"
                )


class DataParallelGroup(Instance):
    """``dp`` schedulers behind one endpoint that execute every iteration together.

    An iteration lasts as long as its slowest rank, plus the experts' time for the tokens of all ranks. An arriving
    request goes to the rank with the least ``4 * waiting + running``, as vLLM's balancer has it: from counts
    published every 100 ms, plus what the balancer has itself dispatched since.
    """

    def __init__(
        self, env: simpy.Environment, index: int, spec: InstanceSpec, outcomes: Outcomes, first_arrival_ns: int
    ) -> None:
        super().__init__(env, index, spec, outcomes, first_arrival_ns)
        self._published_tick = 0
        self._published_loads = [0] * spec.dp

    def _seconds(self, plans: list[StepPlan]) -> float:
        tables, engine = self.hardware.tables, self.spec.engine
        idle = StepPlan(decodes=1, context=1)  # a rank without work takes part with a dummy token
        active = [plan if plan.tokens else idle for plan in plans]
        padded = sum(pad_tokens(plan.tokens, self.spec.max_num_seqs, engine.cuda_graph_padding) for plan in active)
        slowest = max(_rank_seconds(tables, plan) for plan in active)
        return slowest + float(tables.moe_s[min(padded, len(tables.moe_s) - 1)])

    def _update(self, iteration: Iteration) -> None:
        self._publish(self.now - 1)  # counts published at this very instant come after the iteration's end
        super()._update(iteration)

    def _choose_rank(self) -> Scheduler:
        self._publish(self.now)
        best = min(range(len(self.ranks)), key=self._published_loads.__getitem__)
        self._published_loads[best] += 4
        return self.ranks[best]

    def _publish(self, now: int) -> None:
        """Refresh the balancer's loads if a multiple of its period has passed; called before any change."""
        tick = now // BALANCER_PERIOD_NS
        if tick > self._published_tick:
            self._published_tick = tick
            self._published_loads = [4 * len(rank.waiting) + len(rank.running) for rank in self.ranks]


def make_instance(
    env: simpy.Environment, index: int, spec: InstanceSpec, outcomes: Outcomes, first_arrival_ns: int
) -> Instance:
    """Build the endpoint that a spec describes.

    Parameters
    ----------
    env, index, spec, outcomes, first_arrival_ns
        As for `Instance`.

    Returns
    -------
    Instance
        A `DataParallelGroup` where there are several ranks.
    """
    kind = DataParallelGroup if spec.dp > 1 else Instance
    return kind(env, index, spec, outcomes, first_arrival_ns)


def _rank_seconds(tables: LatencyTables, plan: StepPlan) -> float:
    return iteration_seconds(tables, plan.decodes, plan.prefill_tokens, plan.context, plan.pairs_x2)

"""The scheduler of one vLLM instance (V1, version 0.32), written to be read.

``schedule()`` composes one iteration and ``update()`` takes its tokens in. With one iteration in flight the calls
alternate; with asynchronous scheduling ``schedule()`` runs one iteration ahead of ``update()``. The scheduler itself
does not know which: a request that samples a token gets a *placeholder* until the token is returned, and everything
that the second iteration in flight changes follows from placeholders.

It decides on tokens and blocks only and knows no clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleetgym.envs.cluster.block_pool import BlockPool, ContentId
from fleetgym.envs.cluster.spec import EngineArgs


@dataclass(eq=False)
class Request:
    """One request and how far the scheduler has brought it.

    Attributes
    ----------
    index : int
        Position in the trace; the last tie-break of the priority queue.
    prompt_tokens, output_tokens : int
        Its lengths; the answer ends after so many.
    priority : int
        Smaller is more important.
    arrival_ns : int
        At the router.
    chain : sequence of int
        Content ids of its leading full blocks; later blocks are private.
    returned_tokens : int
        Output tokens returned by ``update``.
    output_placeholders : int
        Tokens sampled by an iteration in flight.
    computed_tokens : int
        Tokens with KV entries, those of iterations in flight included.
    prefill_end : int
        Tokens known at the latest admission: up to here it is prefill, afterwards decode.
    lost_tokens : int
        Computed tokens lost by the latest preemption, until it is resumed.
    running : bool
        Whether it is in the running list.
    blocks : list of int
        Physical blocks, in sequence order.
    registered_blocks : int
        Leading blocks whose content is registered.
    """

    index: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    arrival_ns: int = 0
    chain: Sequence[int] = ()
    returned_tokens: int = 0
    output_placeholders: int = 0
    computed_tokens: int = 0
    prefill_end: int = 0
    lost_tokens: int = 0
    running: bool = False
    blocks: list[int] = field(default_factory=list)
    registered_blocks: int = 0

    @property
    def known_tokens(self) -> int:
        """Tokens whose value is known: the prompt and the returned output."""
        return self.prompt_tokens + self.returned_tokens

    @property
    def queue_key(self) -> tuple[int, int, int]:
        """Key of the priority queue, smaller first."""
        return (self.priority, self.arrival_ns, self.index)

    def content(self, block: int) -> ContentId:
        """Content id of a full block of the sequence.

        Parameters
        ----------
        block : int
            Its number in the sequence, from 0.

        Returns
        -------
        int or (int, int)
            As the trace names it, else one that no other request has.
        """
        return self.chain[block] if block < len(self.chain) else (self.index, block)


@dataclass(eq=False)
class StepPlan:
    """What one ``schedule()`` call decided.

    Attributes
    ----------
    scheduled : list of (Request, tokens)
        Running requests in list order, then admitted ones in queue order.
    admitted : list of Request
    hits : list of (Request, tokens)
        Admissions that start with a prefix hit.
    recomputed : list of (Request, tokens)
        Resumed requests with the tokens that they had computed before and did not hit.
    preempted : list of (Request, tokens)
        Victims in order, with the computed tokens that they lose.
    samples : list of Request
        Requests that get a token from this iteration.
    decodes, prefill_tokens, context, pairs_x2 : int
        n, P, K and 2 A of the latency formula (see `fleetgym.envs.cluster.latency`).
    """

    scheduled: list[tuple[Request, int]] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    hits: list[tuple[Request, int]] = field(default_factory=list)
    recomputed: list[tuple[Request, int]] = field(default_factory=list)
    preempted: list[tuple[Request, int]] = field(default_factory=list)
    samples: list[Request] = field(default_factory=list)
    decodes: int = 0
    prefill_tokens: int = 0
    context: int = 0
    pairs_x2: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the iteration; 0 means that nothing executes."""
        return self.decodes + self.prefill_tokens


class Scheduler:
    """Running list, waiting queue and KV blocks of one engine (one data-parallel rank).

    Parameters
    ----------
    args : EngineArgs
        Resolved, as those of an `InstanceSpec` are.
    num_gpu_blocks : int
        KV blocks, the null block included.
    max_model_len : int
        Longest prompt + output in tokens.

    Raises
    ------
    ValueError
        Settings that still depend on the GPU.
    """

    def __init__(self, args: EngineArgs, num_gpu_blocks: int, max_model_len: int) -> None:
        if args.max_num_batched_tokens is None or args.max_num_seqs is None:
            raise ValueError(f"{args}: only an InstanceSpec knows the GPU's defaults; take its engine")
        self.args = args
        self.max_num_scheduled_tokens = args.max_num_scheduled_tokens or args.max_num_batched_tokens
        self.max_num_seqs = args.max_num_seqs
        self.max_model_len = max_model_len
        self.watermark_blocks = int(args.watermark * num_gpu_blocks)
        self.pool = BlockPool(num_gpu_blocks)
        self.running: list[Request] = []
        self.waiting: list[Request] = []

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request that has just arrived, or a victim of the priority policy.

        Parameters
        ----------
        request : Request
            Not in either list.
        """
        if self.args.scheduling_policy == "priority":
            bisect.insort(self.waiting, request, key=lambda other: other.queue_key)
        else:
            self.waiting.append(request)

    def schedule(self) -> StepPlan:
        """Compose the next iteration: running requests first, then, if nobody was preempted, waiting ones.

        Returns
        -------
        StepPlan
            Its tokens count as computed from now on. It may be empty.
        """
        plan = StepPlan()
        largest = self._largest_share()
        budget = self._schedule_running(plan, largest)
        if not plan.preempted:
            self._admit_waiting(plan, largest, budget)
        self._advance(plan)
        return plan

    def update(self, plan: StepPlan) -> list[Request]:
        """Return the tokens of an executed iteration.

        Parameters
        ----------
        plan : StepPlan
            The oldest one in flight.

        Returns
        -------
        list of Request
            Those that got a token, in scheduling order. One with ``returned_tokens == output_tokens`` is finished and
            has given its blocks back.
        """
        for request in plan.samples:
            request.returned_tokens += 1
            if request.running:  # else it was preempted meanwhile: the token is kept and recomputed on resume
                request.output_placeholders -= 1
                self._register(request, request.computed_tokens - request.output_placeholders)
            if request.returned_tokens == request.output_tokens:
                self._finish(request)
        return plan.samples

    def _largest_share(self) -> int:
        """Tokens that one request gets in this iteration at most; a lone request is not held back."""
        threshold = self.args.long_prefill_token_threshold
        if threshold > 0 and len(self.running) + len(self.waiting) > 1:
            return threshold
        return self.max_num_scheduled_tokens

    def _schedule_running(self, plan: StepPlan, largest: int) -> int:
        """Give each running request its tokens, in order of admission; return the budget left."""
        budget = self.max_num_scheduled_tokens
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            tokens = min(self._wanted(request), largest, budget)
            while tokens > 0 and not self._grow(request, tokens):
                victim = self._choose_victim()
                # A victim ahead moves up everybody behind it, even one that had no tokens (its last is in flight).
                position -= self.running.index(victim) < position
                budget += self._unschedule(victim, plan)
                self._preempt(victim, plan)
                if victim is request:
                    return budget  # requests behind it get nothing in this iteration
            if tokens > 0:
                plan.scheduled.append((request, tokens))
                budget -= tokens
            position += 1
        return budget

    def _wanted(self, request: Request) -> int:
        """Tokens that a running request could compute now."""
        in_flight = request.output_placeholders
        if in_flight > 0 and request.computed_tokens + 2 - in_flight >= request.prompt_tokens + request.output_tokens:
            return 0  # the token in flight is its last
        wanted = request.known_tokens + in_flight - request.computed_tokens
        return min(wanted, self.max_model_len - 1 - request.computed_tokens)

    def _grow(self, request: Request, tokens: int) -> bool:
        """Take the blocks for ``tokens`` more tokens, or nothing if too few are free."""
        end = request.computed_tokens + tokens
        needed = self._blocks_for(end) - len(request.blocks)
        if needed > self.pool.free_blocks:
            return False
        request.blocks += self.pool.draw(needed)
        # Hittable from now on although it is only computed by this iteration, as in vLLM.
        self._register(request, end)
        return True

    def _choose_victim(self) -> Request:
        """Pick the request to preempt: the latest admitted, or the least important (the first of equals)."""
        if self.args.scheduling_policy == "priority":
            return max(self.running, key=lambda request: (request.priority, request.arrival_ns))
        return self.running[-1]

    def _unschedule(self, victim: Request, plan: StepPlan) -> int:
        """Take a victim out of the iteration; return the tokens that it had been given."""
        for place, (request, tokens) in enumerate(plan.scheduled):
            if request is victim:
                del plan.scheduled[place]
                return tokens
        return 0

    def _preempt(self, victim: Request, plan: StepPlan) -> None:
        """Give up a running request's blocks; all that it computed has to be computed again."""
        self.running.remove(victim)
        self.pool.release(victim.blocks)
        plan.preempted.append((victim, victim.computed_tokens))
        victim.lost_tokens = victim.computed_tokens
        victim.computed_tokens = victim.output_placeholders = victim.registered_blocks = 0
        victim.blocks = []
        victim.running = False
        if self.args.scheduling_policy == "priority":
            self.add(victim)
        else:
            self.waiting.insert(0, victim)

    def _admit_waiting(self, plan: StepPlan, largest: int, budget: int) -> None:
        """Admit from the head of the queue while budget, sequences and blocks last."""
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            hits = self._lookup(request)
            hit_tokens = len(hits) * self.args.block_size
            tokens = min(request.known_tokens - hit_tokens, largest, budget)
            if not self._fits(request, hits, hit_tokens + tokens):
                return  # nobody behind the head is tried
            self.waiting.pop(0)
            self.running.append(request)
            self._start(request, hits, plan)
            self._grow(request, tokens)
            plan.scheduled.append((request, tokens))
            budget -= tokens

    def _lookup(self, request: Request) -> list[int]:
        """Find the cached blocks that a request could start with; at least one token is always left to compute."""
        if not self.args.enable_prefix_caching:
            return []
        limit = (request.known_tokens - 1) // self.args.block_size
        return self.pool.lookup(request.content(block) for block in range(limit))

    def _fits(self, request: Request, hits: list[int], end: int) -> bool:
        """Check an admission up to token ``end``; with ``reserve_full_prompt`` up to all known tokens."""
        needed = self._blocks_for(request.known_tokens if self.args.reserve_full_prompt else end)
        watermark = self.watermark_blocks if self.running else 0
        return needed - len(hits) + self.pool.count_free(hits) + watermark <= self.pool.free_blocks

    def _start(self, request: Request, hits: list[int], plan: StepPlan) -> None:
        """Begin an admission, first or resumed, with the blocks it hit."""
        hit_tokens = len(hits) * self.args.block_size
        self.pool.share(hits)
        request.blocks = hits
        request.registered_blocks = len(hits)
        request.computed_tokens = hit_tokens
        request.prefill_end = request.known_tokens
        request.running = True
        plan.admitted.append(request)
        if hits:
            plan.hits.append((request, hit_tokens))
        if request.lost_tokens:
            # Another request may have cached more than this one had computed.
            plan.recomputed.append((request, max(0, request.lost_tokens - hit_tokens)))
            request.lost_tokens = 0

    def _advance(self, plan: StepPlan) -> None:
        """Count the iteration's tokens as computed and classify them for the latency formula."""
        for request, tokens in plan.scheduled:
            past = request.computed_tokens
            if past < request.prefill_end:
                plan.prefill_tokens += tokens
                plan.pairs_x2 += tokens * (2 * past + tokens + 1)
            else:
                plan.decodes += 1
                plan.context += past + 1
            request.computed_tokens += tokens
            if request.computed_tokens == request.known_tokens + request.output_placeholders:
                request.output_placeholders += 1
                plan.samples.append(request)

    def _register(self, request: Request, end: int) -> None:
        """Make the blocks filled by the first ``end`` tokens hittable, as far as these are known."""
        if not self.args.enable_prefix_caching:
            return
        full = min(end, request.known_tokens) // self.args.block_size
        for block in range(request.registered_blocks, full):
            self.pool.register(request.blocks[block], request.content(block))
        request.registered_blocks = max(request.registered_blocks, full)

    def _finish(self, request: Request) -> None:
        (self.running if request.running else self.waiting).remove(request)
        self.pool.release(request.blocks)
        request.blocks = []
        request.running = False

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.args.block_size)

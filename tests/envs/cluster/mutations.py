"""Wrong schedulers: what vLLM might be believed to do, each as a small edit of the reference scheduler.

A rule that both engines have wrong shows in no comparison of the two. So every rule has its mistake here, and two
witnesses must notice it: the recorded schedules, which come from vLLM, and the generated cases, which are to reach
whatever the rule is about.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType, ModuleType

import pytest

from fleetgym.envs.cluster import block_pool, scheduler

Edits = Iterable[tuple[str, str]]

ADMIT = "self.running.append(request)"
FITS = "if not self._fits(request, hits, hit_tokens + tokens):"
FULL = "request.known_tokens if self.args.reserve_full_prompt else end"
GROWN = "self._blocks_for(end) - len(request.blocks)"
MOVED = "position -= self.running.index(victim) < position"
LEAST_IMPORTANT = "(request.priority, request.arrival_ns)"
RELEASED = """            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._content:"""
VICTIM = f"return max(self.running, key=lambda request: {LEAST_IMPORTANT})"
SHARE = "min(self._wanted(request), largest, budget)"
FIRST_SHARE = "min(request.known_tokens - hit_tokens, largest, budget)"
OTHERS = "threshold > 0 and len(self.running) + len(self.waiting) > 1:"
GIVEN = "                budget -= tokens\n            position += 1"
FIRST_GIVEN = "plan.scheduled.append((request, tokens))\n            budget -= tokens\n"
BUDGET = "budget = self.max_num_scheduled_tokens"
ADMISSIONS = "self._admit_waiting(plan, largest, budget)"
UNUSED = "self.args.max_num_batched_tokens - self.max_num_scheduled_tokens"
WATERMARK = "self.watermark_blocks if self.running else 0"

MISTAKES: dict[str, Edits] = {
    "exact equals are queued last in, first out": [
        ("(self.priority, self.arrival_ns, self.index)", "(self.priority, -self.arrival_ns, -self.index)")
    ],
    "an admitted request goes to the front of the running list": [(ADMIT, "self.running.insert(0, request)")],
    "the running list is sorted by priority": [
        (
            ADMIT,
            'bisect.insort(self.running, request, key=lambda r: r.queue_key if self.args.scheduling_policy[0] == "p" else (0,))',
        )
    ],
    "blocks of finished requests come back one schedule() later": [
        ("self.running: list[Request] = []", "self.running, self.late = [], []"),
        ("        plan = StepPlan()\n", "        plan = StepPlan()\n        late, self.late = self.late, []\n"),
        ("self._advance(plan)\n", "self._advance(plan)\n        for blocks in late:\n            self.pool.release(blocks)\n"),
        ("self.pool.release(request.blocks)", "self.late.append(request.blocks)"),
    ],
    "requests that finish together are released last first": [
        ("for request in plan.samples:", "for request in reversed(plan.samples):")
    ],
    "a step that preempted admits": [("if not plan.preempted:", "if True:")],
    "fcfs preempts the oldest": [("return self.running[-1]", "return self.running[0]")],
    "fcfs queues a victim at the end": [("self.waiting.insert(0, victim)", "self.waiting.append(victim)")],
    "priority queues a victim at the front": [("self.add(victim)", "self.waiting.insert(0, victim)")],
    "priority preempts the last of exact equals": [(VICTIM, VICTIM.replace("self.running", "reversed(self.running)"))],
    "priority compares the index of exact equals": [(VICTIM, VICTIM.replace(LEAST_IMPORTANT, "request.queue_key"))],
    "priority preempts without regard to arrival": [(VICTIM, VICTIM.replace(LEAST_IMPORTANT, "request.priority"))],
    "priority preempts the latest admitted": [(VICTIM, "return self.running[-1]")],
    "a victim's tokens of the step are not given back": [
        ("budget += self._unschedule(victim, plan)", "self._unschedule(victim, plan)")
    ],
    "a victim keeps its tokens of the step": [("del plan.scheduled[place]", "pass")],
    "a victim ahead without tokens does not move the position": [
        (MOVED, "given_back = self._unschedule(victim, plan)"),
        ("budget += self._unschedule(victim, plan)", "budget, position = budget + given_back, position - (given_back > 0)"),
    ],
    "a victim ahead never moves the position": [(MOVED, "pass")],
    "requests behind one that preempted itself are served": [
        ("return budget  # requests behind it", "tokens, position = 0, position - 1  # requests behind it")
    ],
    "admission looks at the chunk only": [(FULL, "end")],
    "admission always looks at all known tokens": [(FULL, "request.known_tokens")],
    "admission looks at the prompt only": [
        (FULL, "max(end, request.prompt_tokens) if self.args.reserve_full_prompt else end")
    ],
    "all known tokens get their blocks at admission": [
        (GROWN, f"max(0, {GROWN})"),
        (
            "self._grow(request, tokens)\n            plan",
            """self._grow(request, tokens)
            more = self._blocks_for(request.known_tokens) - len(request.blocks)
            request.blocks += self.pool.draw(min(more, self.pool.free_blocks))
            plan""",
        ),
    ],
    "no null block": [("num_gpu_blocks - 1", "num_gpu_blocks"), ("range(1, num_gpu_blocks)", "range(num_gpu_blocks)")],
    "one look-ahead slot": [(GROWN, GROWN.replace("end", "end + 1"))],
    "a hit may cover the whole prompt": [("(request.known_tokens - 1) // self", "request.known_tokens // self")],
    "a hit is limited to the prompt": [("(request.known_tokens - 1) // self", "(request.prompt_tokens - 1) // self")],
    "a resumed request hits nothing": [
        ("            return []", "            return []\n        if request.lost_tokens:\n            return []")
    ],
    "cached free blocks cost an admission nothing": [("+ self.pool.count_free(hits) ", "")],
    "no watermark": [(WATERMARK, "0")],
    "the watermark holds when nothing runs": [(WATERMARK, "self.watermark_blocks")],
    "the watermark holds for running requests": [
        (
            "not self._grow(request, tokens):",
            """(
                0 < self._blocks_for(request.computed_tokens + tokens) - len(request.blocks)
                > self.pool.free_blocks - self.watermark_blocks or not self._grow(request, tokens)
            ):""",
        )
    ],
    "blocks are freed first to last": [("in reversed(blocks):", "in blocks:")],
    "unregistered blocks are reused last": [("move_to_end(block, last=False)", "move_to_end(block)")],
    "of two copies the newest is hit": [
        ("next(iter(self._copies[content]))", "next(reversed(self._copies[content]))")
    ],
    "blocks are registered when their tokens return": [
        ("        self._register(request, end)\n", ""),
        (
            "        for request in plan.samples:\n",
            """        for request, _ in plan.scheduled:
            if request.running:
                self._register(request, request.computed_tokens - request.output_placeholders)
        for request in plan.samples:
""",
        ),
    ],
    "tokens in flight count as known when blocks are registered": [("min(end, request.known_tokens) //", "end //")],
    "no block is registered when its token returns": [
        ("self._register(request, request.computed_tokens - request.output_placeholders)", "pass")
    ],
    "two in flight: a step after the last token": [("if in_flight > 0 and", "if False and")],
    "two in flight: the token of a victim is dropped": [
        ("            request.returned_tokens += 1", "            if not request.running:\n                continue\n            request.returned_tokens += 1")
    ],
    "two in flight: a victim cannot finish while it waits": [
        ("if request.returned_tokens == request.output_tokens:", "if request.running and request.returned_tokens >= request.output_tokens:")
    ],
    "a resumed request recomputes its prompt only": [
        ("tokens = min(request.known_tokens - hit", "tokens = min(max(1, request.prompt_tokens - hit_tokens), request.known_tokens - hit")
    ],
    "a resumed request needs one whole chunk": [(FITS, f"if request.lost_tokens and tokens < request.known_tokens - hit_tokens:\n                return\n            {FITS}")],
    "a prompt needs one whole chunk": [(FITS, f"if tokens < request.known_tokens - hit_tokens:\n                return\n            {FITS}")],
    "max_num_seqs counts those with tokens": [("len(self.running) < self.max", "len(plan.scheduled) < self.max")],
    "decodes cost nothing of the budget": [
        (GIVEN, GIVEN.replace("tokens\n", "tokens if request.computed_tokens < request.prefill_end else 0\n"))
    ],
    "no threshold": [(OTHERS, "False:")],
    "the threshold holds for a lone request": [(OTHERS, "threshold > 0:")],
    "the threshold holds while others wait": [(OTHERS, "threshold > 0 and self.waiting:")],
    "the threshold holds while others run": [(OTHERS, "threshold > 0 and len(self.running) > 1:")],
    "the threshold holds for running requests only": [(FIRST_SHARE, "min(request.known_tokens - hit_tokens, budget)")],
    "the threshold holds for admissions only": [(SHARE, "min(self._wanted(request), budget)")],
    "the threshold does not hold for a resumed request": [
        (FIRST_SHARE, FIRST_SHARE.replace("largest", "budget if request.lost_tokens else largest"))
    ],
    "the threshold counts the tokens hit": [
        (FIRST_SHARE, FIRST_SHARE.replace("largest", "max(1, largest - hit_tokens)"))
    ],
    "the threshold is one for all admissions of a step": [
        (FIRST_GIVEN, f"{FIRST_GIVEN}            largest = max(1, largest - tokens)\n")
    ],
    "the threshold is rounded to blocks": [
        ("            return threshold\n", "            return max(1, threshold - threshold % self.args.block_size)\n")
    ],
    "a running request that is cut uses up what it wanted": [
        (GIVEN, GIVEN.replace("tokens\n", "min(self._wanted(request), budget)\n"))
    ],
    "an admission that is cut uses up what it wanted": [
        (FIRST_GIVEN, FIRST_GIVEN.replace("-= tokens", "-= min(request.known_tokens - hit_tokens, budget)"))
    ],
    "nobody is served behind a running request that is cut": [
        (GIVEN, GIVEN.replace("tokens\n", "tokens\n                if tokens < self._wanted(request):\n                    return 0\n"))
    ],
    "nobody is admitted behind an admission that is cut": [
        (FIRST_GIVEN, f"{FIRST_GIVEN}            if tokens < request.known_tokens - hit_tokens:\n                return\n")
    ],
    "a running request gets no less than the threshold": [
        (SHARE, f"0 if budget < min(self._wanted(request), largest) else {SHARE}")
    ],
    "the budget is all the room of an iteration": [
        ("args.max_num_scheduled_tokens or args.max_num_batched_tokens", "args.max_num_batched_tokens")
    ],
    "admissions may use all the room of an iteration": [(ADMISSIONS, ADMISSIONS.replace("budget", f"budget + {UNUSED}"))],
    "running requests may use all the room of an iteration": [
        (BUDGET, "budget = self.args.max_num_batched_tokens"),
        (ADMISSIONS, ADMISSIONS.replace("budget", f"budget - ({UNUSED})")),
    ],
}  # fmt: skip

UNRECORDED = {  # every recorded case schedules what an iteration has room for
    "the budget is all the room of an iteration",
    "admissions may use all the room of an iteration",
    "running requests may use all the room of an iteration",
}


def edit(source: str, old: str, new: str) -> str:
    """Replace what must occur exactly once."""
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times")
    return source.replace(old, new)


def make_mistake(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the reference scheduler and its block pool make a mistake, as long as the patch lasts."""
    modules = (scheduler, block_pool)
    sources = [inspect.getsource(module) for module in modules]
    for old, new in MISTAKES[name]:
        place = next((place for place, source in enumerate(sources) if old in source), 0)
        sources[place] = edit(sources[place], old, new)
    for module, source in zip(modules, sources, strict=True):
        wrong = ModuleType(module.__name__)
        exec(compile(source, f"<{name}>", "exec"), vars(wrong))  # noqa: S102
        for owner in (scheduler.Request, scheduler.Scheduler, block_pool.BlockPool):
            if owner.__module__ == module.__name__:
                for key, value in vars(vars(wrong)[owner.__name__]).items():
                    if isinstance(value, FunctionType | property):
                        monkeypatch.setattr(owner, key, value)

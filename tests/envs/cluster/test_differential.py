from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import differential
import numpy as np
import pytest
from differential import MS, Case
from hypothesis import HealthCheck, Phase, given, settings
from mutations import MISTAKES
from places import DOCS

from fleetgym.envs.cluster import spec
from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import FINISHED, Trace, make_trace
from fleetgym.envs.errors import LivelockError

SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def test_every_setting_is_varied():
    seen: dict[str, set[Any]] = {name: set() for name in spec.SETTINGS}

    @settings(SETTINGS, max_examples=100, database=None, derandomize=True, phases=[Phase.generate])
    @given(differential.cases())
    def collect(case: Case) -> None:
        for instance in case.cluster.instances:
            for name, values in seen.items():
                values.add(getattr(instance.engine, name))

    collect()
    assert [name for name, values in seen.items() if len(values) < 2] == []


@settings(SETTINGS, max_examples=100)
@given(differential.cases())
def test_both_engines_agree_at_every_decision(case: Case):
    differential.check(case)


@pytest.mark.slow
@settings(SETTINGS, max_examples=5000)
@given(differential.cases())
def test_both_engines_agree_at_every_decision_of_thousands_of_cases(case: Case):
    differential.check(case)


@settings(SETTINGS, max_examples=50)
@given(differential.cases())
def test_a_run_without_looking_ends_as_step_by_step(case: Case):
    whole, steps = (make_engine("kernel", case.cluster, 1, slo=case.slo) for _ in range(2))
    for engine in (whole, steps):
        engine.reset(0, case.trace, case.available)
    whole.run(case.actions.reshape(1, -1))
    terms = np.zeros_like(steps.terms)
    for action in case.actions:
        steps.step(np.array([action]))
        terms += steps.terms
    np.testing.assert_allclose(whole.terms, terms, rtol=1e-12)
    for engine in (whole, steps):
        engine.terms[:] = 0.0
        engine.drain(0)
    differential.same(whole, steps)


def test_both_engines_agree_where_the_rare_rules_meet():
    for seed in range(200):
        differential.check(differential.crowded(seed))


@pytest.mark.slow
def test_both_engines_agree_where_the_rare_rules_meet_in_a_thousand_cases():
    for seed in range(200, 1000):
        differential.check(differential.crowded(seed))


def side_by_side(**args: Any) -> list[Any]:
    """Both engines with two requests that fill the cache each and are prefilled side by side, 4 tokens at a time."""
    settings: dict[str, Any] = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "num_gpu_blocks": 9,
        "block_size": 4,
        "long_prefill_token_threshold": 4,
        "scheduling_policy": "priority",
        "reserve_full_prompt": False,
    }
    engine = spec.EngineArgs(**{**settings, **args})
    one = spec.InstanceSpec("any", "any", engine=engine, latency=LatencyModel(w0_s=0.01))
    return [make_engine(name, spec.ClusterSpec((one,)), 1) for name in ("kernel", "reference")]


def two_behind_another(gap_ns: int) -> Trace:
    """A short request, for a lone one is not held back, and two that come while it runs."""
    return make_trace(np.array([0, MS, MS + gap_ns]), np.array([1, 31, 31]), np.array([2, 1, 1]))


def test_exact_equals_that_preempt_each_other_for_ever_are_an_error_at_the_same_time_in_both_engines():
    messages = []
    for engine in side_by_side():
        engine.reset(0, two_behind_another(0))
        engine.run(np.zeros((1, 3), np.int64))
        with pytest.raises(LivelockError, match=r"request \d \(31 \+ 1 tokens\) is computed again and again") as caught:
            engine.drain(0)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("gap_ns", [0, 1])
def test_of_two_that_do_not_fit_together_the_one_that_goes_before_the_other_ends(gap_ns: int):
    policy = "priority" if gap_ns else "fcfs"
    preemptions = []
    for engine in side_by_side(scheduling_policy=policy):
        engine.reset(0, two_behind_another(gap_ns))
        engine.run(np.zeros((1, 3), np.int64))
        engine.drain(0)
        assert engine.results(0)["status"].tolist() == [FINISHED] * 3
        preemptions.append(engine.results(0)["preemptions"].tolist())
    assert preemptions[0] == preemptions[1]
    first, second = preemptions[0][1:]
    assert first == 0 < second


@pytest.mark.parametrize("dp", [1, 2])
def test_a_stall_is_counted_from_the_last_arrival(dp: int):
    args = spec.EngineArgs(max_num_batched_tokens=4, max_num_seqs=2, num_gpu_blocks=9, block_size=4)
    one = spec.InstanceSpec("any", "any", dp=dp, engine=args, latency=LatencyModel(w0_s=0.01))
    limit = one.stall_limit_iterations
    assert limit == 3 * (8 + 1) + 4
    for name in ("kernel", "reference"):
        engine = make_engine(name, spec.ClusterSpec((one,)), 1)
        engine.reset(0, make_trace(np.arange(100) * 100, np.full(100, 31), np.ones(100, np.int64)))
        engine.run(np.zeros((1, 100), np.int64))  # many more waiting than the limit has iterations
        engine.drain(0)
        assert (engine.results(0)["status"] == FINISHED).all()


MUTANTS = {
    "nothing (control)": ("lists.py", "return a < b", "return a < b"),
    "one block too many is thought usable": (
        "schedule.py",
        'needed > spec["usable_blocks"] - inst["used_blocks"]:\n        budget',
        'needed > spec["usable_blocks"] + 1 - inst["used_blocks"]:\n        budget',
    ),
    "a block is drawn one token early": ("blocks.py", "(tokens + block_size - 1)", "(tokens + block_size)"),
    "exact equals are queued last in, first out": ("lists.py", "return a < b", "return a > b"),
    "the last of equals is preempted": (
        "schedule_running.py",
        'row["arrival_ns"] > least["arrival_ns"]',
        'row["arrival_ns"] >= least["arrival_ns"]',
    ),
    "an iteration that ends at an arrival comes after it": ("advance.py", "if end > until:", "if end >= until:"),
    "the balancer sees the end of the iteration at its tick": (
        "group.py",
        "publish(st, b, i, end - 1)",
        "publish(st, b, i, end)",
    ),
    "a rank without work is not waited for": ("group.py", "n = context = 1", "continue"),
    "a victim ahead without tokens does not move the position": (
        "schedule_running.py",
        "    preempted = False\n",
        "    preempted, skip = False, 0\n",
        "budget += preempt(u, slot, victim)",
        """idle = req[victim]["state"] == LAST
            ahead, x = True, victim
            while x >= 0:
                ahead, x = ahead and x != r, req[x]["previous"]
            skip += ahead and idle
            budget += preempt(u, slot, victim)""",
        """ else req[r]["next"]
    if not at_once:""",
        """ else req[r]["next"]
        while skip > 0 and r >= 0:
            r, skip = req[r]["next"], skip - 1
    if not at_once:""",
    ),
    "the front of an extent is evicted first": (
        "blocks.py",
        'extent["count"] -= taken',
        'extent["count"] -= taken\n        extent["first"] += taken',
    ),
    "the youngest copy of a block is hit": (
        "blocks.py",
        "    x = int(copies[segment])",
        '    x = int(extents[copies[segment]]["older"])',
    ),
    "an extent is split one block late": (
        "blocks.py",
        "x = split(extents, copies, x, stop - begin)",
        "x = split(extents, copies, x, stop - begin + 1)",
    ),
    "an extent grows although another request holds it": ("blocks.py", 'extent["references"] > 1 or ', ""),
    "an extent grows over a younger one with older copies": (
        "blocks.py",
        "            return False\n        other",
        "            pass\n        other",
    ),
    "a release comes before the evictions owed": (
        "blocks.py",
        "    evict(u)\n    row = u.chain[r]\n    u.inst",
        "    row = u.chain[r]\n    u.inst",
    ),
    "decodes within a chain register late": (
        "lockstep.py",
        'if u.chain[r]["link"] < u.chain[r]["link_count"]:',
        "if False:",
    ),
    "what a decode still has to register is lost by a preemption": ("lockstep.py", "- 1 - bulk)", "- 1000)"),
    "a lone request is held back by the long-prefill threshold": (
        "schedule.py",
        'if threshold > 0 and u.inst["running"] + u.inst["waiting"] > 1:',
        "if threshold > 0:",
    ),
    "running requests are not held back by it": ("schedule_running.py", "past, largest, budget)", "past, budget)"),
    "admissions are not held back by it": ("schedule.py", "past, largest, budget)", "past, budget)"),
    "decodes lock step again beside several partial prefills": (
        "schedule_running.py",
        'if complete and not u.spec["exact_path"]:',
        "if complete:",
    ),
    "decodes lock step again although one was passed over": ("schedule_running.py", "complete = False", "pass"),
    "a decode that is passed over stays in step": (
        "schedule_running.py",
        "            pass_over(u, r)\n            ",
        "            ",
    ),
    "a victim stays in step": ("schedule_running.py", '    if row["state"] == LOOSE:\n        pass_over(u, r)\n', ""),
    "a decode is in step before its next token is in flight": (
        "update.py",
        'return bool(u.inst["flight"] == 0 or u.req[r]["link"][slot ^ 1] & TOKEN)',
        "return True",
    ),
    "blocks filled in step are not registered": (
        "update.py",
        '!= LOOSE or u.spec["enable_prefix_caching"]:',
        "!= LOOSE:",
    ),
    "what a victim was given counts": (
        "schedule_running.py",
        'at_once = u.spec["scheduling_policy"] != PRIORITY',
        "at_once = True",
    ),
    "every gap is that of two iterations on end": ("update.py", 'if last == inst["returned_ns"]:', "if last >= 0:"),
    "a token returned on its own is no progress": ("update.py", "if returned > 0:", 'if inst["bulk"][slot] > 0:'),
    "a step served one by one has the room of an iteration": (
        "schedule_running.py",
        'budget, size = u.spec["max_num_scheduled_tokens"]',
        'budget, size = u.spec["max_num_batched_tokens"]',
    ),
    "a victim is taken to have lost nothing": (
        "schedule_running.py",
        'row["computed_tokens"] = computed',
        'row["computed_tokens"] = 0',
    ),
}


def test_the_page_lists_the_mutants():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.+) \| (?:yes|no) \|$", page, re.MULTILINE) == [*list(MUTANTS)[1:], next(iter(MUTANTS))]
    assert f"lists {len(MISTAKES)} mistakes" in page


def run_mutant(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("mutant.py")), *arguments]
    return subprocess.run(command, check=False, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutated_kernel_is_noticed(name: str):
    done = run_mutant(*MUTANTS[name])
    noticed = any(word in done.stderr for word in ("differ at", "does not end", "LivelockError", "IndexError"))
    assert noticed == (name != "nothing (control)"), done.stderr[-1500:]
    assert (done.returncode != 0) == noticed


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_mutant_leaves_nothing_behind_whatever_the_environment_says(variable: str, tmp_path: Path):
    environment = {"NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": "", variable: str(tmp_path)}
    done = run_mutant("blocks.py", "(tokens + block_size - 1)", "(tokens + block_size)", **environment)
    assert "differ at" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mutant_whose_line_is_not_there_is_refused():
    done = run_mutant("blocks.py", "no such line", "")
    assert "ValueError: 'no such line' occurs 0 times" in done.stderr

from __future__ import annotations

import ast
import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import DATA

from fleetgym.envs.cluster.engine import GAP_BINS, gap_bin
from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.golden import replay_file
from fleetgym.envs.cluster.kernel import KernelEngine, jit, update
from fleetgym.envs.cluster.kernel.golden import KernelReplay
from fleetgym.envs.cluster.kernel.long_traces import Stream, round_robin, stream
from fleetgym.envs.cluster.kernel.state import GROWING, LAYOUTS, unit
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.requests import REJECTED, Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.errors import LivelockError, UserError

GOLDEN = {"golden_public.jsonl.gz": 150, "golden_idle_victim.jsonl.gz": 8, "golden_long_prefill.jsonl.gz": 24}


def cluster(count: int = 3, dp: int = 1, **args: object) -> ClusterSpec:
    given = {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "num_gpu_blocks": 60, "block_size": 16, **args}
    engine = EngineArgs(**given)  # type: ignore[arg-type]
    model = LatencyModel(w0_s=0.01, w1_s_per_tok=1e-5, c1_s_per_tok=1e-4, kd_s_per_ctxtok=1e-7, a_s_per_pair=1e-9)
    return ClusterSpec((InstanceSpec("any", "any", count=count, dp=dp, engine=engine, latency=model),))


def trace(seed: int = 0, count: int = 60, gap_ms: float = 20.0) -> Trace:
    rng = np.random.default_rng(seed)
    chains = [np.arange(rng.integers(8)) for _ in range(count)]
    return make_trace(
        (np.cumsum(rng.exponential(gap_ms, count)) * 1e6).astype(np.int64),
        rng.integers(1, 250, count),
        rng.integers(1, 80, count),
        priority=rng.integers(0, 3, count),
        chains=chains,
    )


def play(engine: KernelEngine, actions: np.ndarray) -> list[np.ndarray]:
    """Step through all actions (B, K) and drain; everything seen on the way."""
    seen = []
    for k in range(actions.shape[1]):
        engine.step(actions[:, k])
        seen += [engine.obs.copy(), engine.mask.copy(), engine.terms.copy()]
    for index in range(engine.batch):
        engine.drain(index)
        seen += [engine.results(index), engine.instance_stats(index), engine.gap_histogram(index)]
    return seen


def equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all((a == b).all() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_recorded_schedule_matches_in_every_step(name):
    report = replay_file(DATA / name, KernelReplay)
    assert report.failures == []
    assert (report.matched, report.total, report.skipped) == (GOLDEN[name], GOLDEN[name], 0)


@pytest.mark.parametrize("dp", [1, 3])
@pytest.mark.parametrize("caching", [False, True])
def test_a_restored_snapshot_goes_on_bit_for_bit(caching, dp):
    spec = cluster(dp=dp, enable_prefix_caching=caching, scheduling_policy="priority")
    actions = np.random.default_rng(1).integers(0, 3, (1, 60))
    engine = KernelEngine(spec)
    engine.reset(0, trace())
    engine.run(actions[:, :30])
    state = engine.snapshot(0)
    before = engine.obs.copy()
    expected = play(engine, actions[:, 30:])
    engine.restore(0, state)
    assert (engine.obs == before).all()
    assert equal(play(engine, actions[:, 30:]), expected)
    other = KernelEngine(spec, 2)  # another engine, another place in the batch, less room
    other.restore(1, state)
    other.reset(0, trace(1, 30))
    both = np.concatenate([actions[:, :30], actions[:, 30:]])
    seen = play(other, both)
    assert equal(seen[-3:], expected[-3:])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_a_copied_engine_lives_on_its_own(duplicate):
    engine = KernelEngine(cluster())
    engine.reset(0, trace())
    other = duplicate(engine)
    before = other.snapshot(0)
    expected = play(engine, np.zeros((1, 60), np.int64))
    after = other.snapshot(0)
    assert all((before[name] == after[name]).all() for name in before)
    assert equal(play(other, np.zeros((1, 60), np.int64)), expected)


@pytest.mark.parametrize("dp", [1, 3])
@pytest.mark.parametrize("caching", [False, True])
def test_each_array_is_what_its_row_of_the_table_says(caching, dp):
    engine = KernelEngine(cluster(2, dp=dp, enable_prefix_caching=caching), 4, columns=("kv_usage",))
    for index in range(4):
        engine.reset(index, trace(index))
    lengths = {"B": 4, "N": 2, "U": 2 if dp == 1 else 8, "S": 1, "F": 1, "requests": 60, "block_size": 16}
    for name, layout in LAYOUTS.items():
        array = getattr(engine.state, name)
        assert array.dtype == layout.dtype
        for axis, length in zip(layout.axes, array.shape, strict=True):
            assert lengths.setdefault(axis, length) == length
            assert length > 1 or axis in ("S", "F", "journal_entries") or axis.startswith(("cached", "group"))
    cached, group = ({length > 1 for axis, length in lengths.items() if word in axis} for word in ("cached", "group"))
    assert (cached, group) == ({caching}, {dp > 1})


@pytest.mark.parametrize("dp", [1, 3])
def test_a_unit_holds_the_instance_s_part_of_each_array(dp):
    engine = KernelEngine([cluster(2, dp=dp), cluster(2, dp=dp, block_size=32)], 2, journal=9)
    state, kinds = engine.state, (0, 1)
    for b, kind in enumerate(kinds):
        engine.reset(b, trace())
        for i in range(state.inst.shape[1]):
            parts = getattr(unit, "py_func", unit)(state, b, i)._asdict()
            for name, part in parts.items():
                whole, axes = getattr(state, name), LAYOUTS[name].axes
                expected = {"B": whole[b, i] if axes[1:2] == ("U",) else whole[b], "S": whole[kind % len(whole)]}
                assert np.array_equal(part, expected.get(axes[0], whole))
                assert part.size == 1 or np.shares_memory(part, whole)


@pytest.mark.parametrize("caching", [False, True])
def test_an_engine_that_grows_keeps_what_it_holds(caching):
    engine = KernelEngine(cluster(enable_prefix_caching=caching), 2)
    for index in range(2):
        engine.reset(index, trace(index, count=30))
    engine.run(np.zeros((2, 20), np.int64))
    before, room = engine.snapshot(0), {name: array.shape for name, array in engine.state._asdict().items()}
    engine.reset(1, trace(1, count=90))
    after = engine.snapshot(0)
    grown = {LAYOUTS[name].axes[-1] for name, array in engine.state._asdict().items() if array.shape != room[name]}
    assert grown == (set(GROWING) if caching else {"requests"})
    for name, array in before.items():
        kept = after[name][..., : array.shape[-1]] if array.ndim > 1 else after[name]
        assert (kept == array).all()
    for name in ("req", "inst", *(("chain", "copies", "links") if caching else ())):
        assert before[name].tobytes().strip(b"\0")  # there was something to keep


def test_a_snapshot_is_not_touched_by_what_follows():
    engine = KernelEngine(cluster())
    engine.reset(0, trace())
    state = engine.snapshot(0)
    copies = {name: row.copy() for name, row in state.items()}
    engine.run(np.zeros((1, 60), np.int64))
    assert all((state[name] == row).all() for name, row in copies.items())


def test_results_do_not_depend_on_the_batch():
    spec = cluster(scheduling_policy="priority")
    actions = np.random.default_rng(1).integers(0, 3, (4, 60))
    together = KernelEngine(spec, 4)
    for index in range(4):
        together.reset(index, trace(index, 40 + 5 * index))
    rows = play(together, actions)[-12:]
    for index in range(4):
        alone = KernelEngine(spec)
        alone.reset(0, trace(index, 40 + 5 * index))
        assert equal(play(alone, actions[[index]])[-3:], rows[3 * index : 3 * index + 3])


def test_clusters_of_one_batch_may_have_groups_of_different_size():
    specs = [cluster(dp=dp) for dp in (1, 3, 2)]
    actions = np.random.default_rng(1).integers(0, 3, (3, 60))
    batch, seen = KernelEngine(specs, 3), []
    for index in range(3):
        batch.reset(index, trace(index))
    batch.run(actions)
    for index, spec in enumerate(specs):
        batch.drain(index)
        alone = KernelEngine(spec)
        alone.reset(0, trace(index))
        alone.run(actions[index : index + 1])
        alone.drain(0)
        assert equal([batch.results(index), batch.obs[index]], [alone.results(0), alone.obs[0]])
        seen.append(int(batch.instance_stats(index)["preemptions"].sum()))
    assert seen[0] > seen[1]  # three ranks have three caches


def test_no_progress_of_a_group_names_the_request_of_its_rank():
    engine = KernelEngine(cluster(1, dp=2, num_gpu_blocks=1000))
    engine.reset(0, make_trace(np.array([0]), np.array([9000]), np.array([2])))
    engine.state.spec["stall_limit_iterations"] = 1
    with pytest.raises(LivelockError, match=r"instance 0: no progress .* request 0 \(9000 \+ 2 tokens\)"):
        engine.step(np.array([0]))


def test_a_second_episode_starts_from_nothing():
    actions = np.random.default_rng(1).integers(0, 3, (1, 60))
    engine = KernelEngine(cluster(enable_prefix_caching=True))
    runs = []
    for _ in range(2):
        engine.reset(0, trace())
        runs.append(play(engine, actions))
    assert equal(*runs)


def test_a_request_that_can_never_fit_is_rejected():
    engine = KernelEngine(cluster(num_gpu_blocks=4))
    engine.reset(0, make_trace(np.arange(2), np.array([48, 40]), np.array([1, 8])))
    engine.run(np.zeros((1, 2), np.int64))
    engine.drain(0)
    assert engine.results(0)["status"].tolist() == [REJECTED, 1]


@pytest.mark.parametrize("action", [-1, 3, 1])
def test_an_impossible_action_changes_nothing_and_names_what_is_possible(action):
    engine = KernelEngine(cluster(), 2)
    for index in range(2):
        engine.reset(index, trace(), np.array([True, False, True]))
    before = engine.snapshot(0)
    with pytest.raises(UserError, match=rf"action={action} of cluster 1: .*\[0, 2\]"):
        engine.step(np.array([0, action]))
    with pytest.raises(UserError, match=rf"action={action} of cluster 1"):
        engine.run(np.array([[0, 0], [0, action]]))
    after = engine.snapshot(0)
    assert all((before[name] == after[name]).all() for name in before)


def test_wrong_calls_are_refused():
    engine = KernelEngine(cluster())
    with pytest.raises(UserError, match="call reset first"):
        engine.results(0)
    with pytest.raises(UserError, match="call reset first"):
        engine.step(np.zeros(1, np.int64))
    with pytest.raises(UserError, match="at least one"):
        engine.reset(0, trace(), np.zeros(3, bool))
    engine.reset(0, trace())
    with pytest.raises(UserError, match="60 requests that are not dispatched"):
        engine.drain(0)
    with pytest.raises(UserError, match=r"shape \(2,\)"):
        engine.step(np.array([0, 0]))
    with pytest.raises(UserError, match="must not be negative"):
        KernelEngine(cluster(enable_prefix_caching=True)).reset(
            0, make_trace(np.zeros(1, np.int64), np.array([20]), np.array([1]), chains=[np.array([-5])])
        )


def test_no_progress_is_an_error_that_names_instance_and_request():
    engine = KernelEngine(cluster(2))
    engine.reset(0, trace())
    engine.state.spec["stall_limit_iterations"] = 1
    with pytest.raises(LivelockError, match=r"instance 0: no progress at .* request \d+ "):
        engine.run(np.zeros((1, 60), np.int64))


def test_the_bins_of_gaps_are_those_of_the_contract():
    gaps = [*range(1, 300), *(2**k + d for k in range(8, 62) for d in (-1, 0, 1))]
    assert [update.gap_bin(gap) for gap in gaps] == [gap_bin(gap) for gap in gaps]
    assert update.gap_bin(2**62) < GAP_BINS


def memory(batch: int, **args: object) -> float:
    """Bytes per environment of 8 instances and 1,000 requests, at the end of an episode."""
    engine = KernelEngine(cluster(8, **args), batch)
    for index in range(batch):
        engine.reset(index, trace(count=1000))
    engine.run(np.arange(batch * 1000).reshape(batch, -1) % 8)
    return sum(array.nbytes for array in engine.state) / batch


def test_memory_of_one_environment_stays_below_120_kib():
    assert memory(64) < 120 * 1024


def test_kv_blocks_cost_memory_only_where_their_content_matters():
    assert memory(4, num_gpu_blocks=29000) == memory(4, num_gpu_blocks=60)
    cached = [memory(1, num_gpu_blocks=blocks, enable_prefix_caching=True) for blocks in (60, 29000)]
    assert 0 < cached[1] - cached[0] < 64 * 8 * (29000 - 60)


def test_a_thousand_sequences_per_instance_cost_no_more_than_their_entries_in_the_heap():
    few, many = (KernelEngine(cluster(8, max_num_seqs=count)).state for count in (256, 1024))
    grown = {name for name in few._fields if getattr(few, name).nbytes != getattr(many, name).nbytes}
    assert grown == {"heap"}
    assert many.heap.nbytes - few.heap.nbytes == 8 * (1024 - 256) * 8


def test_make_engine_knows_the_kernel():
    assert isinstance(make_engine("kernel", cluster()), KernelEngine)


def halves(whole: Trace, *cuts: int) -> list[Trace]:
    return [Trace(rows) for rows in np.split(whole.requests, cuts)]


@pytest.mark.parametrize("args", [{}, {"scheduling_policy": "priority", "async_scheduling": False}, {"dp": 2}])
def test_a_streamed_trace_ends_as_a_whole_one(args):
    whole, spec = trace(count=400, gap_ms=8.0), cluster(num_gpu_blocks=30, **args)
    engine = KernelEngine(spec)
    engine.reset(0, whole)
    engine.run(np.arange(400).reshape(1, -1) % 3)
    engine.drain(0)
    assert engine.results(0)["preemptions"].sum() > 0
    completed = list(stream(spec, halves(whole, 1, 2, 90, 91, 300), round_robin(3)))
    order = np.argsort(np.concatenate([part.position for part in completed]))
    assert (np.concatenate([part.results for part in completed])[order] == engine.results(0)).all()
    rows = np.concatenate([part.requests for part in completed])[order]
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "priority"):
        assert (rows[name] == whole.requests[name]).all()


def test_a_stream_counts_its_instances_from_the_beginning():
    whole, spec = trace(count=100), cluster()
    engine, run = KernelEngine(spec), Stream(spec)
    engine.reset(0, whole)
    engine.run(np.arange(100).reshape(1, -1) % 3)
    engine.drain(0)
    for part in halves(whole, 50):
        run.feed(part, np.arange(50) % 3)
    run.drain()
    assert run.engine.instance_stats(0)["finished"].sum() == 100
    assert run.engine.gap_histogram(0).sum() == engine.gap_histogram(0).sum()


def test_a_stream_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="without prefix caching"):
        Stream(cluster(enable_prefix_caching=True))
    run = Stream(cluster())
    run.feed(trace(), np.zeros(60, np.int64))
    with pytest.raises(UserError, match="before the end of the part before it"):
        run.feed(trace(), np.zeros(60, np.int64))


CALLER = "from copied.kernel.jit import jit\nfrom copied.kernel.b import g\n\n\n@jit\ndef f(x):\n    return g(x) + 1\n"
CALLEE = "from copied.kernel.jit import jit\n\n\n@jit\ndef g(x):\n    return x * {}\n"


def copied_package(tmp_path):
    """A package of two files that caches as the kernel does; the function calls it with a factor in one of them."""
    package = tmp_path / "copied" / "kernel"
    package.mkdir(parents=True)
    shutil.copy(Path(jit.__file__), package / "jit.py")
    (package / "a.py").write_text(CALLER)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_DISABLE_JIT", None)

    def call(factor: int, before: str = "") -> str:
        (package / "b.py").write_text(CALLEE.format(factor))
        code = before + "from copied.kernel.a import f; print(f(10), sum(f.stats.cache_hits.values()))"
        return subprocess.run(
            [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True
        ).stdout

    return call


def test_an_edit_in_any_kernel_file_never_meets_stale_code(tmp_path):
    call = copied_package(tmp_path)
    assert [call(2), call(2), call(3)] == ["21 0\n", "21 1\n", "31 0\n"]


HOST = {"engine", "golden", "long_traces"}  # modules of the kernel that use what they import outside compiled code


def test_whatever_compiled_code_takes_from_elsewhere_is_part_of_the_cache_s_name():
    files = [path for path in Path(jit.__file__).parent.glob("[!_]*.py") if path.stem not in HOST]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and "fleetgym" in str(node.module)]
    packages = {name.rpartition(".")[0] for name in jit.MODULES}
    taken = {
        f"{node.module}.{name.name}" if node.module in packages else node.module
        for node in imports
        for name in node.names
    }
    assert taken <= set(jit.MODULES)
    assert {f"fleetgym.envs.{name}" for name in jit.OUTSIDE} <= taken, "nothing is left out silently, or named in vain"


HOOK = """
from importlib.machinery import SourceFileLoader
original = SourceFileLoader.get_code
def get_code(self, name):
    source = self.get_data(self.path).decode().replace("x * 2", "x * 3")
    return compile(source, self.path, "exec") if self.path.endswith("b.py") else original(self, name)
SourceFileLoader.get_code = get_code
"""


def test_code_that_an_import_hook_changed_never_meets_the_code_of_its_file(tmp_path):
    call = copied_package(tmp_path)
    assert [call(2, HOOK), call(2), call(2, HOOK)] == ["31 0\n", "21 0\n", "31 1\n"]


def test_the_kernel_runs_uncompiled_for_coverage():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import differential\n"
        "from hypothesis import HealthCheck, given, settings\n"
        "@settings(deadline=None, max_examples=10, database=None, suppress_health_check=list(HealthCheck))\n"
        "@given(differential.cases())\n"
        "def run(case): differential.check(case)\n"
        "run()"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

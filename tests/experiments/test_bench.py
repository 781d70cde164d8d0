import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.errors import UserError
from fleetgym.experiments import bench as command
from fleetgym.experiments.benchmarks import measure, simulator, streaming
from fleetgym.experiments.benchmarks.measure import Bench, Figure, NotMeasuredError
from fleetgym.experiments.benchmarks.page import draw, page, print_results

A100 = InstanceSpec("A100-80GB", "Meta-Llama-3-8B", count=8)
H100 = InstanceSpec("H100-80GB", "Llama-3.1-8B", count=4)
QUICK = Bench(ClusterSpec((A100,)), repeats=1, quick=True)
# The keys that issue trackers, dashboards and the documentation may rely on.
FLOORS = {
    "kernel": {"kernel_over_reference": 200.0},
    "exact": {"exact_over_plain": 0.1},
    "requests": {f"requests_per_s.load_{load}": 1e6 for load in (30, 50, 70)},
    "single": {"single_steps_per_s": 250e3},
    "vector": {f"vector_steps_per_s.n8_b{batch}": 0.7e6 for batch in (64, 256)},
    "ppo": {"ppo_over_idle.mlp": 0.85},
    "memory": {"memory_per_environment_kib": 120.0},
    "export": {"exported_decision_us.n8": 25.0, "exported_decision_us.n512": 100.0},
    "stream": {"stream_s": 30.0, "stream_peak_mib": 1024.0},
    "growth": {"growth_exponent.n8_n64": 1.0, "growth_exponent.n64_n512": 1.0},
}


def figure(values: list[float], floor: float | None = None, better: str = "higher", key: str = "a") -> Figure:
    return Figure(key, "speed of a", "steps/s", better, values, [2.0, 1.0, 4.0], floor, "as seen")  # type: ignore[arg-type]


def test_the_median_is_held_against_the_floor_not_the_best() -> None:
    assert figure([90.0, 120.0, 95.0], 100.0).holds is False
    assert figure([90.0, 120.0, 100.0], 100.0).holds is True
    assert figure([90.0, 120.0, 101.0], 100.0, "lower").holds is False
    assert figure([90.0, 120.0, 100.0], 100.0, "lower").holds is True
    assert figure([1.0, 2.0, 3.0]).holds is None


def test_a_record_holds_minimum_and_median_of_the_cpu_time() -> None:
    record = figure([90.0, 120.0, 95.0], 100.0).record()
    assert record["cpu_s"] == {"min": 1.0, "median": 2.0}
    assert (record["figure"], record["best"], record["floor"], record["repeats"]) == (95.0, 120.0, 100.0, 3)
    assert figure([3.0, 2.0], better="lower").best == 2.0


def test_a_looped_call_is_divided_by_how_often_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    calls = []

    def call() -> None:
        calls.append(None)
        clock[0] += 0.25

    assert measure.looped(call, 2.0) == pytest.approx(0.25)
    assert clock[0] >= 2.0


def test_a_fleet_of_another_size_keeps_the_mix() -> None:
    fleet = Bench(ClusterSpec((A100, H100))).fleet(30)
    assert fleet.num_instances == 30
    assert [group.gpu for group in fleet.instances] == ["A100-80GB", "H100-80GB"]
    assert [group.count for group in fleet.instances] == [22, 8]


def test_round_robin_gives_every_cluster_every_instance() -> None:
    actions = simulator.round_robin(4, (8, 16))
    assert all(sorted(column) == sorted([*range(4)] * 2) for column in actions.T.tolist())


def test_streamed_parts_follow_one_another() -> None:
    times = np.concatenate([part.requests["arrival_ns"] for part in streaming.parts(QUICK.cluster, 250, 100, 0)])
    assert len(times) == 250
    assert (np.diff(times) >= 0).all()


def test_repeats_must_be_positive() -> None:
    with pytest.raises(UserError, match="repeats=0"):
        Bench(QUICK.cluster, repeats=0)


def test_an_unknown_measurement_names_the_near_ones() -> None:
    with pytest.raises(UserError, match="only='vectr': unknown; did you mean vector"):
        command.measure(QUICK, ["vectr"], progress=False)


def test_what_cannot_be_measured_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(bench: Bench) -> Iterator[Figure]:
        yield figure([1.0], 2.0, key="before")
        raise NotMeasuredError("no such trace")

    monkeypatch.setattr(command, "MEASUREMENTS", {"absent": absent})
    metrics = command.measure(QUICK, progress=False)
    assert list(metrics["floors"]) == ["before"]
    assert metrics["not_measured"] == {"absent": "no such trace"}
    assert "`absent`: no such trace" in page(metrics)


def test_a_missed_floor_is_said_on_the_page_and_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(bench: Bench) -> Iterator[Figure]:
        yield figure([60.0], 100.0, key="missed")
        yield figure([100.0], 100.0, key="kept")

    monkeypatch.setattr(command, "MEASUREMENTS", {"two": two})
    metrics = command.measure(QUICK, progress=False)
    text = page(metrics)
    assert "1 of 2 hold." in text
    assert "**Missed:** speed of a: 60.0 steps/s, floor >= 100, 40 % below." in text
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    print_results(metrics, console)
    assert "NO: 40 % below" in console.export_text()


def test_engines_that_disagree_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ClusterSpec((InstanceSpec("H100-80GB", "Llama-3.1-8B", count=8),))
    real = simulator.make_engine
    monkeypatch.setattr(
        simulator, "make_engine", lambda name, spec, batch: real(name, other if name == "reference" else spec, batch)
    )
    with pytest.raises(RuntimeError, match="disagree"):
        list(simulator.kernel_over_reference(QUICK))


@pytest.mark.parametrize("name", ["kernel", "exact", "requests", "single", "growth", "export"])
def test_each_measurement_yields_its_floors_under_stable_keys(name: str) -> None:
    figures = {f.key: f for f in command.MEASUREMENTS[name](QUICK)}
    assert {key: f.floor for key, f in figures.items() if f.floor is not None} == FLOORS[name]
    assert all(math.isfinite(f.median) for f in figures.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vector", "ppo", "memory", "stream"])
def test_slower_measurements_too(name: str) -> None:
    test_each_measurement_yields_its_floors_under_stable_keys(name)


@pytest.mark.slow
def test_a_filled_cache_starts_faster_than_an_empty_one() -> None:
    cold, warm = simulator.compile_time(QUICK)
    assert warm.median < 0.5 * cold.median


def test_prefix_caching_is_measured_on_the_trace(data_path: Path) -> None:
    cluster = ClusterSpec((InstanceSpec("A100-80GB", "Meta-Llama-3-8B", count=2, engine=EngineArgs()),))
    results = list(simulator.prefix_caching(Bench(cluster, repeats=1, quick=True)))
    assert [r.key for r in results] == ["requests_per_s.prefix_caching", "requests_per_s.prefix_caching_16"]
    assert all(r.floor == 0.5e6 for r in results)
    assert all(r.median > 0 for r in results)


def test_results_are_written_as_json_page_and_picture(tmp_path: Path) -> None:
    metrics = command.measure(QUICK, ["single"], progress=False)
    assert json.loads(json.dumps(metrics)) == metrics
    draw(metrics, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "`single_steps_per_s`" in page(metrics)

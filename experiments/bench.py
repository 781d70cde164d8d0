"""``fleetgym bench``: measure speed and memory against the floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.experiments.benchmarks import environments, simulator, streaming
from fleetgym.experiments.benchmarks.measure import Bench, Figure, NotMeasuredError
from fleetgym.experiments.benchmarks.page import draw, load_average, machine, page, print_results
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import cluster_spec, note_estimates
from fleetgym.experiments.harness.options import BenchOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder

MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Figure]]] = {
    "kernel": simulator.kernel_over_reference,
    "exact": simulator.exact_over_plain,
    "requests": simulator.requests_per_second,
    "single": environments.single_steps,
    "vector": environments.vector_steps,
    "ppo": environments.ppo_over_idle,
    "memory": simulator.memory_per_environment,
    "export": environments.exported_policy,
    "growth": simulator.growth,
    "stream": streaming.streaming,
    "prefix": simulator.prefix_caching,
    "compile": simulator.compile_time,
}


def measure(bench: Bench, only: Sequence[str] | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Take the measurements named in ``only`` (default: all).

    Parameters
    ----------
    bench : Bench
    only : sequence of str, optional
        Names of `MEASUREMENTS`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        ``machine``, ``fleet``, ``repeats``, ``quick``, then by stable key: ``floors`` and ``figures``
        (`Figure.record`), and ``not_measured`` with the reason.

    Raises
    ------
    UserError
        A name in ``only`` that no measurement has.
    """
    _check_names(only)
    metrics: dict[str, Any] = {
        "machine": machine(),
        "fleet": bench.cluster.label,
        "repeats": bench.repeats,
        "quick": bench.quick,
        "floors": {},
        "figures": {},
        "not_measured": {},
    }
    chosen = [name for name in MEASUREMENTS if only is None or name in only]
    with Progress(disable=not progress) as bar:
        task = bar.add_task("", total=len(chosen))
        for name in chosen:
            bar.update(task, description=name)
            try:
                for figure in MEASUREMENTS[name](bench):
                    bar.update(task, description=f"{name}: {figure.title}")
                    metrics["figures" if figure.floor is None else "floors"][figure.key] = figure.record()
            except NotMeasuredError as reason:
                metrics["not_measured"][name] = str(reason)
            bar.advance(task)
    metrics["machine"]["load_average_at_end"] = load_average()
    return metrics


def _check_names(only: Sequence[str] | None) -> None:
    if only is not None and not only:
        raise UserError(f"only=[]: must name a measurement (allowed: {', '.join(MEASUREMENTS)}), or be null for all")
    for name in only or ():
        if name not in MEASUREMENTS:
            raise UserError(f"only={name!r}: unknown{did_you_mean(name, MEASUREMENTS)}")


@command("bench")
def main(cfg: DictConfig) -> None:
    """Measure, print the table, and leave metrics.json, bench.png and performance.md.

    Unlike those of other commands, these metrics are measurements: they differ from run to run.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/bench.yaml``.

    Raises
    ------
    UserError
        An option out of range, an unknown measurement, or a run folder that cannot be written.
    """
    options = read_options(BenchOptions, cfg)
    _check_names(options.only)
    bench = Bench(cluster_spec(cfg), seed=options.seed, repeats=options.repeats, quick=options.quick)
    note_estimates(bench.cluster)
    with RunFolder.from_hydra(cfg) as run:
        metrics = measure(bench, options.only)
        run.write_metrics(metrics)
        run.write_text("performance.md", page(metrics))
        draw(metrics, run.path / "bench.png")
        print_results(metrics, Console())
        print(f"run folder: {run.path}")


if __name__ == "__main__":
    main()

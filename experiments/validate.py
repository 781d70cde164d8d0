"""``fleetgym validate``: replay a measured run and print how far the simulation is off."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from fleetgym.experiments.fidelity.measured_replay import MeasuredReplay, replay_from
from fleetgym.experiments.fidelity.page import write_validation
from fleetgym.experiments.fidelity.tables import print_errors, print_facts
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.options import ValidateOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder


@command("validate")
def main(cfg: DictConfig) -> float | None:
    """Compare with a measured run; return the absolute error of the mean E2E latency in percent.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/validate.yaml``.

    Returns
    -------
    float or None
        None where there is no E2E to compare.

    Raises
    ------
    UserError
        A faulty option or measured run (`replay_from`), or a run folder that cannot be written.
    """
    read_options(ValidateOptions, cfg)
    replay = replay_from(cfg)
    simulation = replay.simulate(load_at_s=_load_times(replay))
    errors = replay.errors(simulation)
    with RunFolder.from_hydra(cfg) as run:
        metrics: dict[str, Any] = {**errors, **replay.facts()}
        metrics |= {
            "simulated_preemptions": simulation.preemptions,
            "simulated_cached_tokens": simulation.cached_tokens,
        }
        run.write_metrics(metrics)
        write_validation(run.path, replay, simulation, errors)
        print_errors(errors, Console(), f"{replay.run.name}: simulated against measured")
        print_facts(replay)
        print(f"page: {run.path / 'validation.html'}")
    error = errors["e2e"]["mean"]["error_pct"]
    return None if error is None else abs(error)


def _load_times(replay: MeasuredReplay) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the ticks of ``timeseries.csv``, else one per second of the measured run."""
    series = replay.run.timeseries
    if series is not None and len(series.t_s):
        return series.t_s
    return np.arange(0.0, np.nanmax(replay.run.finish_s) + 1.0)


if __name__ == "__main__":
    main()

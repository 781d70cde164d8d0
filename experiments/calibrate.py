"""``fleetgym calibrate``: fit the one latency scale to half of a measured run and judge it on the other half."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from scipy.optimize import brentq  # type: ignore[import-untyped]

from fleetgym.envs.errors import UserError
from fleetgym.experiments.fidelity.measured_replay import MeasuredReplay, replay_from
from fleetgym.experiments.fidelity.tables import print_errors, print_facts
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.options import CalibrateOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder

SMALLEST, LARGEST = 0.25, 4.0
TOLERANCE = 1e-4


@command("calibrate")
def main(cfg: DictConfig) -> float | None:
    """Fit on the first half of the requests; return the error of the second half's mean E2E in percent.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/calibrate.yaml``.

    Returns
    -------
    float or None
        None where that half has no E2E to compare.

    Raises
    ------
    UserError
        A faulty option or measured run (`replay_from`), half a run without a finished request, or no scale that fits.
    """
    read_options(CalibrateOptions, cfg)
    replay = replay_from(cfg)
    first, second = halves(replay)
    with RunFolder.from_hydra(cfg) as run:
        scale = fit_scale(replay, first)
        fitted, plain = replay.simulate(scale), replay.simulate()
        errors = replay.errors(fitted, second)
        run.write_metrics(
            {
                "latency_scale": scale,
                "catalogue_scale": replay.catalogue_scale,
                "total_scale": scale * replay.catalogue_scale,
                "first_half": replay.errors(fitted, first),
                "second_half": errors,
                "second_half_uncalibrated": replay.errors(plain, second),
                "judged": {"first_half": int(first.sum()), "second_half": int(second.sum())},
                "run": replay.facts(),
            }
        )
        print_errors(errors, Console(), f"{replay.run.name}: second half, never seen by the fit")
        print_facts(replay)
        print(f"latency_scale={scale:.4f} fitted to the first half ({int(first.sum())} requests)")
        print(f"use it: latency_scale: {scale:.4f} in the instance of a cluster config")
    error = errors["e2e"]["mean"]["error_pct"]
    return None if error is None else abs(error)


def halves(replay: MeasuredReplay) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Finished requests of the first and of the second half, by arrival.

    Parameters
    ----------
    replay : MeasuredReplay
        Of R requests.

    Returns
    -------
    first, second : ndarray of bool, shape (R,)

    Raises
    ------
    UserError
        A half without any.
    """
    finished = replay.run.finished
    early = np.arange(len(finished)) < len(finished) // 2
    if not (finished & early).any() or not (finished & ~early).any():
        raise UserError(f"measured={replay.run.name!r}: needs a finished request in each half of the run")
    return finished & early, finished & ~early


def fit_scale(replay: MeasuredReplay, chosen: NDArray[np.bool_]) -> float:
    """Find the scale at which the chosen requests' simulated mean TPOT equals the measured one.

    The scale multiplies iteration times, and TPOT is nothing but iteration times, while a queue amplifies their
    error in TTFT and E2E. Where no answer has a second token, E2E takes its place. Always all requests are
    replayed, so that the load is the measured one.

    Parameters
    ----------
    replay : MeasuredReplay
        Of R requests.
    chosen : ndarray of bool, shape (R,)
        Those to fit to; at least one, all finished.

    Returns
    -------
    float
        Factor on every iteration's time, found to 0.01 percent.

    Raises
    ------
    UserError
        No scale between 1/4 and 4 does it.
    """
    metric = "tpot" if np.isfinite(replay.run.latencies["tpot"][chosen]).any() else "e2e"
    measured = float(np.nanmean(replay.run.latencies[metric][chosen]))

    def excess(log_scale: float) -> float:
        simulated = replay.simulate(math.exp(log_scale)).latencies[metric][chosen]
        return float(np.nanmean(simulated)) / measured - 1.0

    low, high = math.log(SMALLEST), math.log(LARGEST)
    if excess(low) > 0.0 or excess(high) < 0.0:
        raise UserError(
            f"measured={replay.run.name!r}: no latency_scale between {SMALLEST:g} and {LARGEST:g} gives its mean "
            f"{metric.upper()} of {measured:.4f} s; check gpu, model, tp and the settings"
        )
    return math.exp(float(brentq(excess, low, high, xtol=TOLERANCE)))


if __name__ == "__main__":
    main()

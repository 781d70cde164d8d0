"""``fleetgym fit-workload``: fit the synthetic workload to a trace and print how good the fit is.

The trace is a data set (``azure_conversation``) or a CSV file of that format.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetgym.envs.atomic import write_text
from fleetgym.envs.workloads import lengths
from fleetgym.envs.workloads.datasets import DATASETS, locate
from fleetgym.envs.workloads.fit import arrival_quality, fit_profile, length_quality
from fleetgym.envs.workloads.lengths import Profile
from fleetgym.envs.workloads.readers import read_azure
from fleetgym.experiments.harness.failures import guard

PROFILES = Path(lengths.__file__).with_name(lengths.PROFILE_FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the fit quality of a trace and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments of the command; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="fleetgym fit-workload", description=__doc__)
    parser.add_argument("trace", help="data set name or path of a CSV file")
    parser.add_argument("--write", action="store_true", help="update the embedded profile of this name")
    arguments = parser.parse_args(argv)
    return guard(lambda: _fit(arguments.trace, write=arguments.write))


def _fit(name: str, *, write: bool = False) -> None:
    """Fit a profile to the trace ``name`` and print its quality; ``write`` embeds it under that name.

    Raises
    ------
    UserError
        The trace is absent or malformed.
    """
    known = name in DATASETS
    trace = read_azure(locate(None if known else name, name if known else None))
    profile = fit_profile(trace)
    print(f"{profile.source}; {profile.rate_rps} requests/s; {profile.arrivals}")
    rng = np.random.default_rng(0)
    for figure, value in {**length_quality(profile, trace, rng), **arrival_quality(profile, trace, rng)}.items():
        print(f"{figure:40s} {value:10.4f}")
    if write:
        _embed(name if known else Path(name).stem, profile)


def _embed(name: str, profile: Profile, path: Path = PROFILES) -> None:
    """Put a profile among the embedded ones, in place of one of the same name."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = profile.to_json()
    write_text(path, json.dumps(known, separators=(",", ":")).replace("],[", "],\n[") + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    raise SystemExit(main())

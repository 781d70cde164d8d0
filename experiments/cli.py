"""The console script ``fleetgym COMMAND [overrides]``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from fleetgym.envs.errors import did_you_mean
from fleetgym.experiments.harness.failures import guard

COMMANDS = {
    "simulate": "replay a workload through a cluster under one policy and report its metrics",
    "train": "train a policy and keep its best and last checkpoint",
    "evaluate": "evaluate one policy on held-out episodes",
    "leaderboard": "rank policies on the same arrivals: table, CSV, JSON, PNG and HTML",
    "bench": "measure speed against the floors",
    "golden": "replay recorded scheduler traces and compare every step",
    "validate": "compare the simulation with a measured run",
    "calibrate": "fit the one latency scale to a measured run",
    "export": "write a policy as a bundle that runs without torch",
    "export-verify": "recompute the parity vectors of a bundle",
    "download-traces": "download the public request traces",
    "fit-workload": "fit the synthetic workload to a trace and judge the fit",
    "record-bench": "make a measured run of what vllm bench serve recorded",
}
PLAIN = ("download-traces", "fit-workload", "record-bench")  # have arguments of their own and no config


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: fleetgym COMMAND [key=value ...]\n\n"
        f"{lines}\n\n"
        "fleetgym COMMAND --help shows the options of a command, --cfg job its config, -m sweeps over values.\n"
        f"{', '.join(PLAIN)}: arguments of their own, see --help."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Command and its arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"fleetgym {version('fleetgym')}")
        return 0
    if name not in COMMANDS:
        print(f"error: command {name!r}: unknown{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"fleetgym.experiments.{name.replace('-', '_')}")
    if name in PLAIN:
        codes: list[int] = []
        return guard(lambda: codes.append(module.main(rest))) or codes[0]
    sys.argv = [f"fleetgym {name}", *rest]
    module.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``fleetgym golden``: replay recorded scheduler traces and compare every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fleetgym.envs.cluster.golden import (
    Case,
    Difference,
    GoldenReport,
    GoldenScheduler,
    ReferenceReplay,
    UnsupportedCaseError,
    case_args,
    case_request,
    expected_records,
    load_cases,
    replay_file,
)
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.options import GoldenOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder

SHOWN_CHARACTERS = 160


@command("golden")
def main(cfg: DictConfig) -> float | None:
    """Replay every case of a file; return the share that matched in every step.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/golden.yaml``.

    Raises
    ------
    UserError
        The file cannot be read, a case is malformed, or none can be replayed.
    """
    options = read_options(GoldenOptions, cfg)
    make_scheduler = scheduler_factory(options.engine)
    for number, case in enumerate(load_cases(options.file), start=1):
        check_case(case, f"{options.file}, line {number}")
    report = replay_file(options.file, make_scheduler)
    if not report.total + report.skipped:
        raise UserError(f"file={options.file!r}: holds no case")
    if not report.total:
        raise UserError(
            f"file={options.file!r}: none of its {report.skipped} cases can be replayed: {report.skips[0][1]}"
        )
    with RunFolder.from_hydra(cfg) as run:
        run.write_metrics(metrics_of(report))
        _print_report(report, Console(), f"{options.engine} against {options.file}")
        print(f"run folder: {run.path}")
    return report.matched / report.total if report.total else None


def scheduler_factory(engine: str) -> Callable[[Case], GoldenScheduler]:
    """Return what puts a case's scheduler behind the replay protocol.

    Parameters
    ----------
    engine : {"kernel", "reference"}

    Returns
    -------
    callable
        From a case to a scheduler as `fleetgym.envs.cluster.golden.replay_file` drives it.

    Raises
    ------
    UserError
        Any other engine.
    """
    if engine == "reference":
        return ReferenceReplay
    if engine == "kernel":
        from fleetgym.envs.cluster.kernel.golden import KernelReplay

        return KernelReplay
    raise UserError(f"engine={engine!r}: unknown{did_you_mean(engine, ('kernel', 'reference'))}")


def check_case(case: Case, where: str) -> None:
    """Refuse a malformed case before anything is replayed.

    Parameters
    ----------
    case : dict
        One line of a recorded file, parsed.
    where : str
        File and line, for the message.

    Raises
    ------
    UserError
        One line that names file, line and fault. A case that is well-formed but not supported passes.
    """
    try:
        _read_case(case)
    except UnsupportedCaseError:
        return
    except KeyError as error:
        raise UserError(f"{where}: malformed case: {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{where}: malformed case: {error}") from None


def _read_case(case: Case) -> None:
    """Read all of a case as the replay will; what is malformed raises whatever comes of it."""
    if not all(isinstance(tag, str) for tag in case["tags"]):
        raise TypeError("tags must be names")
    for index, row in enumerate(case["requests"]):
        request = case_request(case, index)
        numbers = (row["step"], request.prompt_tokens, request.output_tokens, request.priority, request.arrival_ns)
        if not all(type(value) is int for value in (*numbers, *request.chain)):
            raise TypeError(f"request {index}: {row} must hold whole numbers")
        if min(row["step"], request.prompt_tokens - 1, request.output_tokens - 1) < 0:
            raise ValueError(f"request {index}: {row}: prompt and output must be at least 1, step at least 0")
    requests = len(case["requests"])
    for record in expected_records(case):
        if not all(0 <= request < requests for request, _ in (*record.s, *record.h, *record.p)):
            raise ValueError(f"step {record.k} names a request that does not exist")
    if len(case["preemptions"]) != requests:
        raise ValueError(f"preemptions has {len(case['preemptions'])} entries for {requests} requests")
    case_args(case)


def metrics_of(report: GoldenReport) -> dict[str, Any]:
    """Return counts, per tag too, and the first differing step of each failing case, for ``metrics.json``.

    Parameters
    ----------
    report : GoldenReport
    """
    return {
        "matched": report.matched,
        "total": report.total,
        "skipped": report.skipped,
        "by_tag": {tag: {"matched": matched, "total": total} for tag, (matched, total) in report.by_tag.items()},
        "failures": [difference._asdict() for difference in report.failures],
        "skips": [{"seed": seed, "reason": reason} for seed, reason in report.skips],
    }


def _print_report(report: GoldenReport, console: Console, title: str) -> None:
    """Print matched / total per tag, then one line per failing or skipped case."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("tag")
    grid.add_column("matched", justify="right")
    grid.add_column("total", justify="right")
    for tag, (matched, total) in sorted(report.by_tag.items()):
        grid.add_row(tag, str(matched), str(total), style=None if matched == total else "red")
    grid.add_section()
    grid.add_row("all cases", str(report.matched), str(report.total), style="bold")
    console.print(grid)
    for difference in report.failures:
        print(describe(difference))
    for seed, reason in report.skips:
        print(f"seed {seed}: skipped: {reason}")


def describe(difference: Difference) -> str:
    """Say in one line where a case differs first.

    Parameters
    ----------
    difference : Difference

    Returns
    -------
    str
        Values are cut after `SHOWN_CHARACTERS`.
    """
    place = f"step {difference.step}" if difference.step >= 0 else "whole case"
    tags = f" ({', '.join(difference.tags)})" if difference.tags else ""
    expected, got = (_short(value) for value in (difference.expected, difference.got))
    return f"seed {difference.seed}{tags}: {place}: {difference.field}: vLLM {expected}, here {got}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


if __name__ == "__main__":
    main()

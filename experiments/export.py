"""``fleetgym export``: write a trained policy, or a heuristic, as a bundle that runs without torch and this gym."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from fleetgym.baselines import LinearScore, find_heuristic, make_heuristic, registered
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.registry import bare_id, find_problem
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.config import plain
from fleetgym.experiments.harness.options import ExportOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder, git_state, versions
from fleetgym.experiments.report.parity import print_parity

if TYPE_CHECKING:
    from fleetgym.agents.export import Source


@command("export")
def main(cfg: DictConfig) -> float | None:
    """Export and verify; return the largest relative score difference.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/export.yaml``.

    Raises
    ------
    UserError
        Neither or both of ``checkpoint`` and ``policy``; a policy that cannot be exported; a bundle that exists.
    """
    # Imported here so that `--help` and `--cfg` answer without loading torch.
    from fleetgym.agents.bundle_verify import verify
    from fleetgym.agents.export import check_target, from_checkpoint, write_bundle
    from fleetgym.envs.fingerprint import fingerprint

    options = read_options(ExportOptions, cfg)
    if (options.checkpoint is None) == (options.policy is None):
        raise UserError("give either checkpoint=PATH or policy=NAME (a heuristic)")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        if options.env.id is not None:
            find_problem(options.env.id)  # its module registers it
        if options.checkpoint is not None:
            source = from_checkpoint(options.checkpoint, fingerprint)
        else:
            source = heuristic_source(options.policy or {}, plain(cfg), options.env.id)
    if options.env.id is not None and source.problem.env_id != bare_id(options.env.id):
        raise UserError(f"env.id={options.env.id!r}: must be {source.problem.env_id!r}, that of the policy, or null")
    for warning in caught:
        print(f"warning: {warning.message}")
    if options.evaluation is not None:
        source = dataclasses.replace(source, evaluation=evaluation_rows(Path(options.evaluation)))
    if options.bundle is not None:
        check_target(options.bundle)
    with RunFolder.from_hydra(cfg) as run:
        folder = write_bundle(run.path / "bundle" if options.bundle is None else options.bundle, source)
        report = verify(folder)
        run.write_metrics(report)
        print_parity(report)
        print(f"bundle: {folder}")
    worst: float = report["onnxruntime"]["max_score_difference"]
    return worst


def heuristic_source(policy: Mapping[str, Any], config: Mapping[str, Any], env_id: str | None = None) -> Source:
    """Describe a heuristic for export.

    Parameters
    ----------
    policy : mapping
        Its name and parameters.
    config : mapping
        Of the export.
    env_id : str, optional
        Of the environment that it is to decide in; by default the first that it is registered for.

    Raises
    ------
    UserError
        Unknown, of no environment or of another one, or its score is no weighted sum.
    """
    from fleetgym.agents.export import from_heuristic, revision_text

    parameters = dict(policy)
    name = str(parameters.pop("name", None))
    cls = find_heuristic(name)
    if not issubclass(cls, LinearScore):
        linear = [known for known, other in registered().items() if issubclass(other, LinearScore)]
        raise UserError(f"policy={name!r}: has no linear score to export{did_you_mean(name, linear)}")
    if not cls.env_ids:
        raise UserError(f"policy={name!r}: register it with the env_id that it decides in")
    problem = find_problem(env_id or cls.env_ids[0])
    heuristic = make_heuristic(name, problem.env_id, **parameters)
    assert isinstance(heuristic, LinearScore)
    source = from_heuristic(heuristic.name, heuristic.weights, problem, config)
    return dataclasses.replace(source, versions=versions(), git_revision=revision_text(git_state()))


def evaluation_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``leaderboard.json`` as the model card shows them.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of dict
        One row for each entry: scenario, place, policy, kind, the figure that ranks with its bounds, windows.

    Raises
    ------
    UserError
        No such file, or not a leaderboard.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"evaluation={str(path)!r}: not a readable leaderboard.json: {error}") from None
    try:
        metric, scenario = table["rank_by"], table["scenario"]
        return [
            {
                "scenario": scenario["name"],
                "place": entry["place"],
                "policy": entry["policy"],
                "kind": entry["kind"],
                **{f"{metric} ({part})": value for part, value in entry["main"].items()},
                "windows": scenario["windows"],
            }
            for entry in table["entries"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"evaluation={str(path)!r}: not what `fleetgym leaderboard` writes") from None


if __name__ == "__main__":
    main()

"""``fleetgym export-verify``: recompute a bundle's recorded decisions; exit code 1 if one differs."""

from __future__ import annotations

from omegaconf import DictConfig

from fleetgym.agents.bundle import BundleError
from fleetgym.agents.bundle_verify import TOLERANCE, verify
from fleetgym.envs.errors import UserError
from fleetgym.experiments.harness.command import command
from fleetgym.experiments.harness.failures import CommandFailed
from fleetgym.experiments.harness.options import ExportVerifyOptions, read_options
from fleetgym.experiments.harness.run_folder import RunFolder
from fleetgym.experiments.report.parity import print_parity


@command("export_verify")
def main(cfg: DictConfig) -> float | None:
    """Verify; return the largest relative score difference.

    Parameters
    ----------
    cfg : DictConfig
        Of ``conf/export_verify.yaml``.

    Raises
    ------
    UserError
        The bundle is refused.
    CommandFailed
        It does not pass; exit code 1.
    """
    folder = read_options(ExportVerifyOptions, cfg).bundle
    try:
        report = verify(folder)
    except BundleError as error:
        raise UserError(f"bundle={folder!r}: {error}") from None
    with RunFolder.from_hydra(cfg) as run:
        run.write_metrics(report)
        print_parity(report)
        if not report["passed"]:
            raise CommandFailed(f"error: an action differs, or a score by more than {TOLERANCE:g}", 1)
        print("every action is equal")
    worst: float = report["onnxruntime"]["max_score_difference"]
    return worst


if __name__ == "__main__":
    main()

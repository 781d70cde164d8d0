"""The kinds of workload that a config may name, and the way from its values to a workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.workloads.base import Workload
from fleetgym.envs.workloads.recorded import Azure, Jsonl, Mooncake
from fleetgym.envs.workloads.synthetic import Synthetic

WORKLOAD_KINDS: Mapping[str, type[Workload]] = {
    "synthetic": Synthetic,
    "azure": Azure,
    "mooncake": Mooncake,
    "jsonl": Jsonl,
}


def make_workload(values: Mapping[str, Any], where: str = "workload") -> Workload:
    """Build the workload that ``values["kind"]`` names; a trace file is read at first use only.

    Parameters
    ----------
    values : Mapping[str, Any]
        ``kind`` and that kind's fields, as in ``conf/workload``.
    where : str
        Path shown in messages.

    Returns
    -------
    Workload

    Raises
    ------
    UserError
        Unknown kind (near matches are listed), unknown field, or an impossible value.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in WORKLOAD_KINDS:
        raise UserError(f"{where}.kind={kind!r}: unknown{did_you_mean(kind, WORKLOAD_KINDS)}")
    return build(WORKLOAD_KINDS[kind], values, where)

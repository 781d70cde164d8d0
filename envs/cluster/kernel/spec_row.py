"""What compiled code reads of an `InstanceSpec`: one row of numbers, derived from the fields of `EngineArgs`.

Each scheduler setting is a column of its own name, as the instance resolves it (where None stands for a default). A
new field needs no line here; what no field says as it stands is in `COMPUTED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from fleetgym.envs.cluster.latency import LatencyTables
from fleetgym.envs.cluster.spec import EngineArgs, InstanceSpec

Computed = Callable[[InstanceSpec, LatencyTables], float]

COMPUTED: Mapping[str, tuple[type, Computed]] = {
    "exact_path": (np.int64, lambda spec, _: spec.exact_path),
    "depth": (np.int64, lambda spec, _: 2 if spec.engine.async_scheduling else 1),
    "usable_blocks": (np.int64, lambda spec, _: spec.num_gpu_blocks - 1),
    "watermark_blocks": (np.int64, lambda spec, _: int(spec.engine.watermark * spec.num_gpu_blocks)),
    "stall_limit_iterations": (np.int64, lambda spec, _: spec.stall_limit_iterations),
    "dp": (np.int64, lambda spec, _: spec.dp),
    "group_usable_blocks": (np.int64, lambda spec, _: spec.dp * (spec.num_gpu_blocks - 1)),  # usable ones of all ranks
    "kv_capacity_tokens": (np.float64, lambda spec, _: spec.dp * spec.kv_capacity_tokens),
    "prefill_tokens_per_s": (np.float64, lambda spec, _: spec.prefill_tokens_per_s),
    "decode_tokens_per_s": (np.float64, lambda spec, _: spec.decode_tokens_per_s),
    "kd": (np.float64, lambda _, tables: tables.kd),
    "km": (np.float64, lambda _, tables: tables.km),
    "a": (np.float64, lambda _, tables: tables.a),
    "sm": (np.float64, lambda _, tables: tables.sm),
    "om": (np.float64, lambda _, tables: tables.om),
}
HINTS = get_type_hints(EngineArgs)
SETTINGS = tuple(field.name for field in dataclasses.fields(EngineArgs))
CHOICES = {name: get_args(HINTS[name]) for name in SETTINGS if get_origin(HINTS[name]) is Literal}
PRIORITY = CHOICES["scheduling_policy"].index("priority")  # a choice is the position of its value

SPEC = np.dtype(
    [(name, np.float64 if HINTS[name] is float else np.int64) for name in SETTINGS]
    + [(name, kind) for name, (kind, _) in COMPUTED.items()],
    align=True,
)


def spec_row(spec: InstanceSpec) -> tuple[Any, ...]:
    """Values of one `SPEC` row.

    Parameters
    ----------
    spec : InstanceSpec

    Returns
    -------
    tuple of float
        In the order of the columns of `SPEC`.
    """
    tables = spec.tables()
    return tuple(_setting(spec, name) for name in SETTINGS) + tuple(of(spec, tables) for _, of in COMPUTED.values())


def _setting(spec: InstanceSpec, name: str) -> Any:
    """A scheduler setting as the instance resolves it, else as it stands."""
    value = getattr(spec, name, getattr(spec.engine, name))
    return CHOICES[name].index(value) if name in CHOICES else value

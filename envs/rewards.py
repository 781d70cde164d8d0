"""Rewards: a weighted sum of named terms that the engines measure between two decisions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import TERM_NAMES
from fleetgym.envs.errors import UserError
from fleetgym.envs.presets import default_preset

_REWARD = default_preset("reward")


class RewardTerms(np.ndarray[Any, np.dtype[np.float64]]):
    """What happened between two decisions, last axis in the order of ``TERM_NAMES``; a name picks a term too.

    An array, because trainers that batch ``info`` (TorchRL) read no nested mappings; with names, because no reader of
    ``terms["finished"]`` should have to count columns.
    """

    def __getitem__(self, key: Any) -> Any:
        """Return the term called ``key``, or what numpy would."""
        if isinstance(key, str):
            return np.asarray(self)[..., TERM_NAMES.index(key)]
        return super().__getitem__(key)

    def keys(self) -> tuple[str, ...]:
        """Return the names, so that ``dict(terms)`` works."""
        return TERM_NAMES


@dataclass(frozen=True)
class RewardSpec:
    """Weight of each term (units: reward per unit of the term; see ``TERM_NAMES``).

    What is not given is as in the default of ``conf/reward``: minus the time integral of unfinished requests, in
    request-seconds. Summed over an episode that is minus the latency of all requests up to the last dispatch
    (Little's law), paid as it accrues. A failed request leaves at once and would otherwise be worth seeking, so each
    is charged the scenario's ``failure_s``, the same as in the charged figures of `fleetgym.envs.cluster.metrics`.

    Attributes
    ----------
    charged_s : float
        Reward per second charged for failures, ``failure_s`` for each.
    scale : float
        Multiplies the weighted sum.
    """

    unfinished_request_s: float = _REWARD["unfinished_request_s"]
    awaiting_first_token_request_s: float = _REWARD["awaiting_first_token_request_s"]
    finished: float = _REWARD["finished"]
    slo_met: float = _REWARD["slo_met"]
    charged_s: float = _REWARD["charged_s"]
    rejected: float = _REWARD["rejected"]
    preempted: float = _REWARD["preempted"]
    recomputed_tokens: float = _REWARD["recomputed_tokens"]
    scale: float = _REWARD["scale"]

    def __post_init__(self) -> None:
        for f in fields(self):
            if not np.isfinite(getattr(self, f.name)):
                raise UserError(f"{f.name}={getattr(self, f.name)!r}: must be a finite number")
        if not self.weights(1.0).any():
            raise UserError("all weights are 0: at least one term must count")

    def weights(self, failure_s: float) -> NDArray[np.float64]:
        """Weights in the order of ``TERM_NAMES``, charge and scale included, shape (len(TERM_NAMES),)."""
        weights = np.array([getattr(self, name) for name in TERM_NAMES])
        weights[TERM_NAMES.index("rejected")] += self.charged_s * failure_s
        return weights * self.scale

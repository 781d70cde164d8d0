"""Rewards: a weighted sum of the terms that the engines measure between two decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.errors import UserError
from fleetgym.envs.presets import default_preset
from fleetgym.envs.signals import TERM_NAMES, TERMS

_DEFAULT: dict[str, float] = default_preset("reward")


class RewardTerms(np.ndarray[Any, np.dtype[np.float64]]):
    """What happened between two decisions, last axis in the order of ``TERMS``; a name picks a term too.

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


_Weights: Any = dataclasses.make_dataclass(
    "_Weights", [(name, float, _DEFAULT.get(name, 0.0)) for name in (*TERM_NAMES, "charged_s")], frozen=True
)


@dataclasses.dataclass(frozen=True)
class RewardSpec(_Weights):  # type: ignore[misc]  # its fields are the rows of a table
    """Weight of each term: one field for every row of `fleetgym.envs.signals.TERMS`, in reward per unit of the term.

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

    Raises
    ------
    UserError
        A weight is not finite, or all are 0.
    """

    scale: float = _DEFAULT["scale"]

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if not np.isfinite(getattr(self, f.name)):
                raise UserError(f"{f.name}={getattr(self, f.name)!r}: must be a finite number")
        if not self.weights(1.0).any():
            raise UserError("all weights are 0: at least one term must count")

    def weights(self, failure_s: float) -> NDArray[np.float64]:
        """Return the weights in the order of ``TERMS``, charge and scale included.

        Parameters
        ----------
        failure_s : float
            Seconds that each failed request is charged.

        Returns
        -------
        ndarray of float64, shape (len(TERMS),)
        """
        weights = np.array([getattr(self, name) for name in TERM_NAMES])
        weights[TERM_NAMES.index("rejected")] += self.charged_s * failure_s
        return weights * self.scale


def terms_table() -> str:
    """Return the terms as a Markdown table, as printed in the docs."""
    lines = ["| term | unit | meaning | default weight |", "| --- | --- | --- | --- |"]
    lines += [f"| `{t.name}` | {t.unit} | {t.meaning} | {_DEFAULT.get(t.name, 0.0):g} |" for t in TERMS]
    return "\n".join(lines)

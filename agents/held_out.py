"""Held-out episodes that choose the best model: of one scenario by its figure, of several by ratios to a yardstick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fleetgym.envs.cluster.metrics import find_ranking, flatten
from fleetgym.envs.episodes import Episode, play
from fleetgym.envs.errors import UserError
from fleetgym.envs.policy import Policy
from fleetgym.envs.problem import Problem
from fleetgym.envs.relative import geometric_mean, ratio

HELD_OUT_FIGURES = (
    "e2e_charged_s.mean", "e2e_charged_s.p99", "ttft_charged_s.mean", "ttft_charged_s.p99", "tpot_s.mean",
    "slo_attainment", "requests.rejected",
)  # fmt: skip
HELD_OUT_SEED = 1_000_003  # far from any seed that a training environment gets


@dataclass(frozen=True)
class HeldOut:
    """Held-out episodes of one scenario, always the same ones.

    Attributes
    ----------
    problem : Problem
        Of the validation part.
    episodes : int
        At least 1.
    rank_by : str
        Failure-aware figure that chooses the best model (`fleetgym.envs.cluster.metrics.RANKING`), the one that the
        scenario ranks by. The return would leave out what is still unfinished at the last dispatch.
    """

    problem: Problem
    episodes: int = 10
    rank_by: str = "e2e_charged_s.mean"

    def __post_init__(self) -> None:
        find_ranking(self.rank_by)
        if self.episodes < 1:
            raise UserError(f"eval_episodes={self.episodes}: must be at least 1")

    def score(self, policy: Policy) -> dict[str, float]:
        """Return mean figures of greedy episodes.

        Episodes of a recording may overlap: their mean chooses a model and claims nothing of new traffic.

        Parameters
        ----------
        policy : Policy
            Reset here.

        Returns
        -------
        dict
            ``rank_by``, `HELD_OUT_FIGURES` and ``mean_reward`` (per episode); NaN where an episode lacks a figure.
        """
        batch = self.problem.make_batch(self.episodes, keep_traces=True)
        for index in range(self.episodes):
            batch.rngs[index] = np.random.default_rng(HELD_OUT_SEED + index)
            batch.start(index)
        returns = play(batch, [policy], range(self.episodes)).returns
        rows = [flatten(Episode.of(batch, index, policy, index).summary()) for index in range(self.episodes)]
        names = dict.fromkeys((self.rank_by, *HELD_OUT_FIGURES))
        means = {name: float(np.mean([math.nan if row[name] is None else row[name] for row in rows])) for name in names}
        return {**means, "mean_reward": float(returns.mean())}

    def worth(self, score: Mapping[str, float]) -> float:
        """Return how good a score is; larger is better, -inf where there is no figure.

        Parameters
        ----------
        score : mapping of str to float
            As `score` returns it.
        """
        return _worth(score[self.rank_by], find_ranking(self.rank_by).better == "higher")


@dataclass(frozen=True)
class HeldOutSuite:
    """Held-out episodes of several scenarios; the geometric mean of the ratios to a yardstick chooses the best model.

    Attributes
    ----------
    scenarios : mapping of str to HeldOut
        By name, all of one environment and one observation.
    yardstick : mapping of str to float
        What the yardstick attains in each, positive, of the figure that the scenario ranks by.
    """

    rank_by: ClassVar[str] = "ratio"

    scenarios: Mapping[str, HeldOut]
    yardstick: Mapping[str, float]

    @property
    def problem(self) -> Problem:
        """One of the problems, which have environment and observation in common."""
        return next(iter(self.scenarios.values())).problem

    def score(self, policy: Policy) -> dict[str, float]:
        """Score each scenario as `HeldOut.score` does, and the ratios to the yardstick.

        Parameters
        ----------
        policy : Policy
            Reset here.

        Returns
        -------
        dict of str to float
            ``ratio``, the geometric mean over scenarios; of each ``NAME.ratio``, and what `HeldOut.score` gives as
            ``NAME.FIGURE``.
        """
        scores = {name: held_out.score(policy) for name, held_out in self.scenarios.items()}
        ratios = {
            name: ratio(score[self.scenarios[name].rank_by], self.yardstick[name], self.scenarios[name].rank_by)
            for name, score in scores.items()
        }
        return {
            self.rank_by: geometric_mean(ratios.values()),
            **{f"{name}.{self.rank_by}": own for name, own in ratios.items()},
            **{f"{name}.{key}": figure for name, score in scores.items() for key, figure in score.items()},
        }

    def worth(self, score: Mapping[str, float]) -> float:
        """Return how good a score is; larger is better, -inf where a scenario has no ratio.

        Parameters
        ----------
        score : mapping of str to float
            As `score` returns it.
        """
        return _worth(score[self.rank_by], False)


def _worth(figure: float, larger_is_better: bool) -> float:
    return -math.inf if math.isnan(figure) else figure if larger_is_better else -figure

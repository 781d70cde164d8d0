"""Training: callbacks for held-out evaluation, checkpoints and progress, and the loop around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from fleetgym.agents.checkpoint import write_card
from fleetgym.agents.factory import AgentSpec, learner_env, make_model
from fleetgym.agents.learned import LearnedPolicy, load_checkpoint
from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.atomic import replacing
from fleetgym.envs.cluster.metrics import find_ranking, flatten
from fleetgym.envs.episodes import Episode, play
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import public
from fleetgym.envs.problem import Problem
from fleetgym.envs.signals import find_signal
from fleetgym.envs.vector import FleetVectorEnv

HELD_OUT_FIGURES = (
    "e2e_charged_s.mean", "e2e_charged_s.p99", "ttft_charged_s.mean", "ttft_charged_s.p99", "tpot_s.mean",
    "slo_attainment", "requests.rejected",
)  # fmt: skip
HELD_OUT_SEED = 1_000_003  # far from any seed that a training environment gets


@dataclass(frozen=True)
class TrainSpec:
    """How long and how often.

    Attributes
    ----------
    total_timesteps : int
        Decisions to learn from, over all environments together.
    eval_every_timesteps : int
        Held-out evaluation that chooses the best model.
    eval_episodes : int
    checkpoint_every_timesteps : int or None
        Also keep ``checkpoints/<steps>_steps.zip``.
    rank_by : str
        Failure-aware figure of the held-out episodes that chooses the best model
        (`fleetgym.envs.cluster.metrics.RANKING`), the one that the scenario ranks by. The return would leave out
        what is still unfinished at the last dispatch.
    """

    total_timesteps: int
    eval_every_timesteps: int = 100_000
    eval_episodes: int = 10
    checkpoint_every_timesteps: int | None = None
    rank_by: str = "e2e_charged_s.mean"

    def __post_init__(self) -> None:
        find_ranking(self.rank_by)
        for name in ("total_timesteps", "eval_every_timesteps", "eval_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.checkpoint_every_timesteps is not None and self.checkpoint_every_timesteps < 1:
            raise UserError(f"checkpoint_every_timesteps={self.checkpoint_every_timesteps}: must be at least 1")

    @property
    def sign(self) -> float:
        """1 where a larger ``rank_by`` is better, -1 where a smaller one is."""
        return 1.0 if find_ranking(self.rank_by).better == "higher" else -1.0

    def worth(self, score: Mapping[str, float]) -> float:
        """How good a held-out score is; larger is better."""
        return self.sign * score[self.rank_by]


def held_out_score(
    policy: LearnedPolicy, config: Problem, episodes: int, rank_by: str = "e2e_charged_s.mean"
) -> dict[str, float]:
    """Mean figures of greedy episodes on ``config``, always the same ones.

    Episodes of a recording may overlap: their mean chooses a model and claims nothing of new traffic.

    Returns
    -------
    dict
        ``mean_reward`` (per episode), ``rank_by`` and `HELD_OUT_FIGURES`; NaN where no episode has a figure.
    """
    batch = config.make_batch(episodes, keep_traces=True)
    for index in range(episodes):
        batch.rngs[index] = np.random.default_rng(HELD_OUT_SEED + index)
        batch.start(index)
    returns = play(batch, [policy], range(episodes)).returns
    rows = [flatten(Episode.of(batch, index, policy, index).summary()) for index in range(episodes)]
    names = dict.fromkeys((rank_by, *HELD_OUT_FIGURES))
    means = {name: float(np.mean([math.nan if row[name] is None else row[name] for row in rows])) for name in names}
    return {**means, "mean_reward": float(returns.mean())}


def save(model: BaseAlgorithm, path: Path, card: Mapping[str, Any]) -> None:
    """Write a checkpoint and its card, each whole or not at all."""
    with replacing(path) as temporary:
        model.save(temporary)
    write_card(path, {**card, "num_timesteps": model.num_timesteps})


class HeldOutCallback(BaseCallback):
    """Evaluate on held-out episodes at start, every so many steps and at the end; keep the best model."""

    def __init__(self, config: Problem, spec: TrainSpec, folder: Path, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.spec, self.folder, self.card = config, spec, folder, card
        self.best = -np.inf
        self.history: list[dict[str, float]] = []
        self.before: dict[str, float] | None = None
        self._due = 0
        self._evaluated = -1

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self.spec.eval_every_timesteps
        if self.num_timesteps > 0:
            self._recall_best()
        self._evaluate()

    def _recall_best(self) -> None:
        """Score the folder's best model so far on these episodes: only a better one may replace it."""
        path = self.folder / "best_model.zip"
        if not path.exists():
            return
        earlier = load_checkpoint(path, problem=self.config)
        if earlier.features != self.config.features:
            raise UserError(f"{path}: the best model so far was trained on other features; use another run folder")
        self.before = self._score(earlier, earlier.model.num_timesteps)
        self.best = self.spec.worth(self.before)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self._due += self.spec.eval_every_timesteps
            self._evaluate()

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        if self._evaluated == self.num_timesteps:
            return
        self._evaluated = self.num_timesteps
        score = self._score(LearnedPolicy(self.model, self.config.features), self.num_timesteps)
        self.history.append(score)
        if self.spec.worth(score) > self.best:
            self.best = self.spec.worth(score)
            save(self.model, self.folder / "best_model.zip", self.card)
        self.model.policy.set_training_mode(False)
        for name, figure in self.history[-1].items():
            if name != "timesteps":
                self.logger.record(f"held_out/{name}", figure)

    def _score(self, policy: LearnedPolicy, timesteps: int) -> dict[str, float]:
        score = held_out_score(policy, self.config, self.spec.eval_episodes, self.spec.rank_by)
        return {"timesteps": float(timesteps), **score}


class CheckpointCallback(BaseCallback):
    """Keep ``checkpoints/<steps>_steps.zip`` every so many steps."""

    def __init__(self, every_timesteps: int, folder: Path, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.every, self.folder, self.card = every_timesteps, folder, card
        self._due = every_timesteps

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Not within a rollout: the model has learned from all the steps that it is named after.
        if self.num_timesteps >= self._due:
            self._due += self.every
            save(self.model, self.folder / "checkpoints" / f"{self.num_timesteps}_steps.zip", self.card)

    def _on_training_end(self) -> None:
        self._on_rollout_start()


class ProgressCallback(BaseCallback):
    """A progress bar with the latest held-out figure."""

    def __init__(self, total: int, held_out: HeldOutCallback) -> None:
        super().__init__()
        self.total, self.held_out = total, held_out

    def _on_training_start(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn(f"held-out {self.held_out.spec.rank_by} {{task.fields[latest]}}"),
        )
        self.bar = Progress(*columns)
        self.task = self.bar.add_task("train", total=self.total, completed=self.num_timesteps, latest="-")
        self.bar.start()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        latest = self.held_out.history[-1][self.held_out.spec.rank_by] if self.held_out.history else math.nan
        self.bar.update(self.task, completed=self.num_timesteps, latest=f"{latest:.4g}")

    def _on_training_end(self) -> None:
        self.bar.update(self.task, completed=min(self.num_timesteps, self.total))
        self.bar.stop()


class Trained(NamedTuple):
    """What training leaves in memory.

    Attributes
    ----------
    model : BaseAlgorithm
    history : list of dict
        One row per held-out evaluation of this run: ``timesteps`` and `held_out_score`; the first before it learned.
    before : dict or None
        The same of the best model that the folder had already.
    """

    model: BaseAlgorithm
    history: list[dict[str, float]]
    before: dict[str, float] | None


def check_fit(agent: AgentSpec, problem: Problem) -> None:
    """Refuse an agent that cannot learn this problem.

    Parameters
    ----------
    agent : AgentSpec
    problem : Problem

    Raises
    ------
    UserError
        It cannot tell which choices exist.
    """
    if problem.available is None or agent.algorithm == "maskable_ppo":
        return
    where = f"available={list(problem.available)}: {agent.algorithm} with network={agent.network!r} cannot tell"
    if agent.network == "mlp":
        raise UserError(
            f"{where} which instances exist; train with available=null, or with network='scorer' or "
            "algorithm='maskable_ppo'"
        )
    never_0 = _never_0(public(problem.offers))
    if not never_0 & set(problem.features):
        raise UserError(
            f"{where} an idle row from one that does not exist by features={list(problem.features)}; add one that is never 0 "
            f"({', '.join(sorted(never_0)) or 'none is offered'}), or train with available=null or algorithm='maskable_ppo'"
        )


def _never_0(names: Sequence[str]) -> set[str]:
    """Columns by which a choice that exists differs from a row of zeros: what it is made of, and tokens of a request."""
    signals = [find_signal(name) for name in names]
    return {s.name for s in signals if s.tag == "static" or (s.scope == "request" and s.unit == "tokens")}


def train(
    agent: AgentSpec,
    problem: Problem,
    held_out: Problem,
    spec: TrainSpec,
    folder: Path,
    card: Mapping[str, Any],
    *,
    seed: int,
    resume: str | Path | None = None,
    progress_bar: bool = True,
    prepare: Callable[[BaseAlgorithm], None] | None = None,
) -> Trained:
    """Train and leave ``best_model.zip`` and ``last_model.zip`` with their cards in ``folder``.

    Parameters
    ----------
    agent : AgentSpec
    problem, held_out : Problem
        What to learn on, and what to choose the best model by.
    spec : TrainSpec
    folder : Path
    card : mapping
        What to write beside each checkpoint.
    seed : int
    resume : path, optional
        Checkpoint to go on from; ``total_timesteps`` counts from the very beginning.
    progress_bar : bool
    prepare : callable, optional
        Called with the model before it learns (e.g. to attach loggers).

    The weights depend on the number of torch threads: set it before (``torch.set_num_threads(1)``).

    Returns
    -------
    Trained
    """
    check_fit(agent, problem)
    env = FleetVecEnv(FleetVectorEnv(agent.num_envs, problem=problem, stagger=True, episode_metrics=False))
    env.seed(seed)
    model = make_model(agent, env, seed) if resume is None else _resumed(resume, agent, problem, spec, env, seed)
    done = model.num_timesteps
    if prepare is not None:
        prepare(model)
    evaluation = HeldOutCallback(held_out, spec, folder, card)
    callbacks: list[BaseCallback] = [evaluation]
    if spec.checkpoint_every_timesteps is not None:
        callbacks.append(CheckpointCallback(spec.checkpoint_every_timesteps, folder, card))
    if progress_bar:
        callbacks.append(ProgressCallback(spec.total_timesteps, evaluation))
    model.learn(spec.total_timesteps - done, callback=CallbackList(callbacks), reset_num_timesteps=resume is None)
    save(model, folder / "last_model.zip", card)
    return Trained(model, evaluation.history, evaluation.before)


def check_resume(path: str | Path, agent: AgentSpec, problem: Problem, spec: TrainSpec) -> BaseAlgorithm:
    """Load the checkpoint to go on from.

    Raises
    ------
    UserError
        It does not fit the agent or the problem, or has learned as long as was asked for.
    """
    policy = load_checkpoint(path, problem=problem)
    model = policy.model
    space = problem.observation_space
    if policy.features != problem.features or model.observation_space != space:
        raise UserError(f"resume={str(path)!r}: trained on another observation than this configuration has")
    if model.n_envs != agent.num_envs:
        raise UserError(f"resume={str(path)!r}: trained with num_envs={model.n_envs}, agent.num_envs={agent.num_envs}")
    if model.num_timesteps >= spec.total_timesteps:
        raise UserError(
            f"total_timesteps={spec.total_timesteps}: the checkpoint has {model.num_timesteps} already; ask for more"
        )
    return model


def _resumed(
    path: str | Path, agent: AgentSpec, problem: Problem, spec: TrainSpec, env: FleetVecEnv, seed: int
) -> BaseAlgorithm:
    model = check_resume(path, agent, problem, spec)
    model.set_env(learner_env(agent, env))
    # A resumed run must not replay the episodes that the first part has seen.
    env.seed(seed + model.num_timesteps)
    model.set_random_seed(seed + model.num_timesteps)
    return model

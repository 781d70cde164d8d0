"""Training: callbacks for held-out evaluation, checkpoints and progress, and the loop around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from fleetgym.agents.checkpoint import write_card
from fleetgym.agents.factory import AgentSpec, learner_env, make_model
from fleetgym.agents.held_out import HeldOut, HeldOutSuite
from fleetgym.agents.learned import LearnedPolicy, load_checkpoint
from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.atomic import replacing
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import public
from fleetgym.envs.problem import Problem
from fleetgym.envs.signals import find_signal
from fleetgym.envs.vector import FleetVectorEnv


@dataclass(frozen=True)
class TrainSpec:
    """How long and how often.

    Attributes
    ----------
    total_timesteps : int
        Decisions to learn from, over all environments together.
    eval_every_timesteps : int
        Held-out evaluation that chooses the best model.
    checkpoint_every_timesteps : int or None
        Also keep ``checkpoints/<steps>_steps.zip``.
    """

    total_timesteps: int
    eval_every_timesteps: int = 100_000
    checkpoint_every_timesteps: int | None = None

    def __post_init__(self) -> None:
        for name in ("total_timesteps", "eval_every_timesteps", "checkpoint_every_timesteps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")


def save(model: BaseAlgorithm, path: Path, card: Mapping[str, Any]) -> None:
    """Write a checkpoint and its card, each whole or not at all.

    Parameters
    ----------
    model : BaseAlgorithm
    path : Path
        The zip; the card has its name with ``.json``.
    card : mapping
        What `fleetgym.agents.checkpoint.write_card` asks for; the number of timesteps is added.

    Raises
    ------
    UserError
        A file cannot be written.
    """
    with replacing(path) as temporary:
        model.save(temporary)
    write_card(path, {**card, "num_timesteps": model.num_timesteps})


class HeldOutCallback(BaseCallback):
    """Evaluate on held-out episodes at start, every so many steps and at the end; keep the best model.

    Parameters
    ----------
    held_out : HeldOut or HeldOutSuite
        Gives the score and says how good it is.
    every_timesteps : int
        Of all environments together.
    folder : Path
        Where ``best_model.zip`` lies; one that is there already is replaced by a better one only.
    card : mapping
        What to write beside it.
    fewest : int
        Least choices that exist in training (`fleetgym.agents.learned.LearnedPolicy`).
    """

    def __init__(
        self, held_out: HeldOut | HeldOutSuite, every_timesteps: int, folder: Path, card: Mapping[str, Any], fewest: int
    ) -> None:
        super().__init__()
        self.held_out, self.every, self.folder, self.card = held_out, every_timesteps, folder, card
        self.fewest = fewest
        self.best: float | None = None  # none saved or recalled yet
        self.history: list[dict[str, float]] = []
        self.before: dict[str, float] | None = None
        self._due = 0
        self._evaluated = -1

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self.every
        if self.num_timesteps > 0:
            self._recall_best()
        self._evaluate()

    def _recall_best(self) -> None:
        """Score the folder's best model so far on these episodes: only a better one may replace it."""
        path = self.folder / "best_model.zip"
        if not path.exists():
            return
        earlier = load_checkpoint(path, problem=self.held_out.problem)
        if earlier.features != self.held_out.problem.features:
            raise UserError(f"{path}: the best model so far was trained on other features; use another run folder")
        self.before = self._score(earlier, earlier.model.num_timesteps)
        self.best = self.held_out.worth(self.before)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self._due += self.every
            self._evaluate()

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        if self._evaluated == self.num_timesteps:
            return
        self._evaluated = self.num_timesteps
        policy = LearnedPolicy(self.model, self.held_out.problem.features, fewest=self.fewest)
        score = self._score(policy, self.num_timesteps)
        self.history.append(score)
        worth = self.held_out.worth(score)
        if self.best is None or worth > self.best:
            self.best = worth
            save(self.model, self.folder / "best_model.zip", self.card)
        self.model.policy.set_training_mode(False)
        for name, figure in self.history[-1].items():
            if name != "timesteps":
                self.logger.record(f"held_out/{name}", figure)

    def _score(self, policy: LearnedPolicy, timesteps: int) -> dict[str, float]:
        return {"timesteps": float(timesteps), **self.held_out.score(policy)}


class CheckpointCallback(BaseCallback):
    """Keep ``checkpoints/<steps>_steps.zip`` every so many steps.

    Parameters
    ----------
    every_timesteps : int
        Of all environments together.
    folder : Path
        Where ``checkpoints/`` is made.
    card : mapping
        What to write beside each.
    """

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
    """A progress bar with the latest held-out figure.

    Parameters
    ----------
    total : int
        Timesteps, over all environments together.
    evaluation : HeldOutCallback
        Gives the figure.
    """

    def __init__(self, total: int, evaluation: HeldOutCallback) -> None:
        super().__init__()
        self.total, self.evaluation = total, evaluation
        self.rank_by = evaluation.held_out.rank_by

    def _on_training_start(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn(f"held-out {self.rank_by} {{task.fields[latest]}}"),
        )
        self.bar = Progress(*columns)
        self.task = self.bar.add_task("train", total=self.total, completed=self.num_timesteps, latest="-")
        self.bar.start()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        history = self.evaluation.history
        latest = history[-1][self.rank_by] if history else math.nan
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
        One row per held-out evaluation of this run: ``timesteps`` and what held-out episodes give; the
        first before it learned.
    before : dict or None
        The same of the best model that the folder had already.
    """

    model: BaseAlgorithm
    history: list[dict[str, float]]
    before: dict[str, float] | None


def check_fit(agent: AgentSpec, *problems: Problem) -> None:
    """Refuse an agent that cannot learn these problems together.

    Parameters
    ----------
    agent : AgentSpec
    *problems : Problem
        To learn on.

    Raises
    ------
    UserError
        It cannot tell which choices exist where that differs, or has fewer environments than there are problems.
    """
    if agent.num_envs < len(problems):
        raise UserError(
            f"agent.num_envs={agent.num_envs}: must be at least {len(problems)}, one for each scenario of the suite"
        )
    differs = [(f"available={list(p.available)}", "available=null") for p in problems if p.available is not None]
    rows = sorted({problem.num_choices for problem in problems})
    if len(rows) > 1:
        choices = f"suite.scenarios: {rows[0]} to {rows[-1]} choices"
        differs.append((choices, "scenarios of one number of choices"))
    if not differs or agent.algorithm == "maskable_ppo":
        return
    what, mend = differs[0]
    where, features = f"{what}: {agent.algorithm} with network={agent.network!r} cannot tell", problems[0].features
    if agent.network == "mlp":
        raise UserError(
            f"{where} which instances exist; train with {mend}, or with network='scorer' or algorithm='maskable_ppo'"
        )
    never_0 = _never_0(public(problems[0].offers))
    if not never_0 & set(features):
        raise UserError(
            f"{where} an idle row from one that does not exist by features={list(features)}; add one that is never 0 "
            f"({', '.join(sorted(never_0)) or 'none is offered'}), or train with {mend} or algorithm='maskable_ppo'"
        )


def _never_0(names: Sequence[str]) -> set[str]:
    """Columns by which a choice that exists differs from a row of zeros: what it is made of, tokens of a request."""
    signals = [find_signal(name) for name in names]
    return {s.name for s in signals if s.tag == "static" or (s.scope == "request" and s.unit == "tokens")}


def _fewest(problems: Sequence[Problem]) -> int:
    """Return the least choices that exist in an episode of any problem."""
    return min(problem.num_choices_range[0] for problem in problems)


def shares(num_envs: int, parts: int) -> list[int]:
    """Share environments out, as evenly as can be, the first parts one more.

    Parameters
    ----------
    num_envs : int
        At least ``parts``.
    parts : int

    Returns
    -------
    list of int, length parts
        They add up to ``num_envs``.
    """
    return [num_envs // parts + (part < num_envs % parts) for part in range(parts)]


def train(
    agent: AgentSpec,
    problem: Problem | Sequence[Problem],
    held_out: HeldOut | HeldOutSuite,
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

    The weights depend on the number of torch threads: set it before (``torch.set_num_threads(1)``).

    Parameters
    ----------
    agent : AgentSpec
    problem : Problem or sequence of Problem
        What to learn on; several share the environments of the agent.
    held_out : HeldOut or HeldOutSuite
        What to choose the best model by.
    spec : TrainSpec
    folder : Path
        Made if absent; a best model that is there already stays unless this run, resumed, finds a better one.
    card : mapping
        What to write beside each checkpoint.
    seed : int
        Everything random follows from it, but for the held-out episodes, which are always the same.
    resume : path, optional
        Checkpoint to go on from; ``total_timesteps`` counts from the very beginning.
    progress_bar : bool
    prepare : callable, optional
        Called with the model before it learns (e.g. to attach loggers).

    Returns
    -------
    Trained

    Raises
    ------
    UserError
        As `check_fit` and `check_resume`; settings that SB3 or torch refuse; a file that cannot be written.
    """
    problems = [problem] if isinstance(problem, Problem) else list(problem)
    check_fit(agent, *problems)
    env = FleetVecEnv(
        *(
            FleetVectorEnv(num_envs, problem=one, stagger=True, episode_metrics=False)
            for num_envs, one in zip(shares(agent.num_envs, len(problems)), problems, strict=True)
        )
    )
    env.seed(seed)
    model = make_model(agent, env, seed) if resume is None else _resumed(resume, agent, problems, spec, env, seed)
    done = model.num_timesteps
    if prepare is not None:
        prepare(model)
    evaluation = HeldOutCallback(held_out, spec.eval_every_timesteps, folder, card, _fewest(problems))
    callbacks: list[BaseCallback] = [evaluation]
    if spec.checkpoint_every_timesteps is not None:
        callbacks.append(CheckpointCallback(spec.checkpoint_every_timesteps, folder, card))
    if progress_bar:
        callbacks.append(ProgressCallback(spec.total_timesteps, evaluation))
    model.learn(spec.total_timesteps - done, callback=CallbackList(callbacks), reset_num_timesteps=resume is None)
    save(model, folder / "last_model.zip", card)
    return Trained(model, evaluation.history, evaluation.before)


def check_resume(path: str | Path, agent: AgentSpec, problems: Sequence[Problem], spec: TrainSpec) -> BaseAlgorithm:
    """Load the checkpoint to go on from.

    Parameters
    ----------
    path : path
        The zip.
    agent : AgentSpec
    problems : sequence of Problem
        What to learn on.
    spec : TrainSpec

    Returns
    -------
    BaseAlgorithm
        Without an environment.

    Raises
    ------
    UserError
        It does not fit the agent or the problems, or has learned as long as was asked for.
    """
    widest = max(problems, key=lambda problem: problem.num_choices)
    policy = load_checkpoint(path, problem=widest)
    model, space = policy.model, widest.observation_space
    if policy.features != widest.features or model.observation_space != space:
        raise UserError(f"resume={str(path)!r}: trained on another observation than this configuration has")
    if model.n_envs != agent.num_envs:
        raise UserError(f"resume={str(path)!r}: trained with num_envs={model.n_envs}, agent.num_envs={agent.num_envs}")
    if model.num_timesteps >= spec.total_timesteps:
        raise UserError(
            f"total_timesteps={spec.total_timesteps}: the checkpoint has {model.num_timesteps} already; ask for more"
        )
    return model


def _resumed(
    path: str | Path, agent: AgentSpec, problems: Sequence[Problem], spec: TrainSpec, env: FleetVecEnv, seed: int
) -> BaseAlgorithm:
    model = check_resume(path, agent, problems, spec)
    model.set_env(learner_env(agent, env))
    # A resumed run must not replay the episodes that the first part has seen.
    env.seed(seed + model.num_timesteps)
    model.set_random_seed(seed + model.num_timesteps)
    return model

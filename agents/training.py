"""Training: callbacks for held-out evaluation, checkpoints and progress, and the loop around them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from fleetgym.agents.checkpoint import write_card
from fleetgym.agents.factory import AgentSpec, learner_env, make_model
from fleetgym.agents.learned import LearnedPolicy
from fleetgym.agents.vec_env import FleetVecEnv
from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.routing.batch import RoutingBatch, RoutingConfig
from fleetgym.envs.vector import RoutingVectorEnv

SELECT_BY = {"mean_e2e_s": -1.0, "mean_ttft_s": -1.0, "mean_tpot_s": -1.0, "slo_attainment": 1.0, "mean_reward": 1.0}
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
    select_by : str
        Held-out figure that chooses the best model (`SELECT_BY`). The mean return leaves out what is still
        unfinished at the last dispatch, so that it tells less than the latency of all requests.
    """

    total_timesteps: int
    eval_every_timesteps: int = 100_000
    eval_episodes: int = 10
    checkpoint_every_timesteps: int | None = None
    select_by: str = "mean_e2e_s"

    def __post_init__(self) -> None:
        if self.select_by not in SELECT_BY:
            raise UserError(f"select_by={self.select_by!r}: unknown{did_you_mean(self.select_by, SELECT_BY)}")
        for name in ("total_timesteps", "eval_every_timesteps", "eval_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.checkpoint_every_timesteps is not None and self.checkpoint_every_timesteps < 1:
            raise UserError(f"checkpoint_every_timesteps={self.checkpoint_every_timesteps}: must be at least 1")


def held_out_score(policy: LearnedPolicy, config: RoutingConfig, episodes: int) -> dict[str, float]:
    """Mean return and latency of greedy episodes on ``config``, always the same ones.

    Returns
    -------
    dict
        ``mean_reward`` (per episode) and the means of the episode metrics.
    """
    batch = RoutingBatch(config, episodes)
    for index in range(episodes):
        batch.rngs[index] = np.random.default_rng(HELD_OUT_SEED + index)
        batch.start(index)
    policy.reset(range(episodes), config.cluster.num_instances)
    returns = np.zeros(episodes)
    engine = batch.engine
    while not engine.done.all():
        running = ~engine.done
        rewards = batch.step(policy.act(batch.observations(), engine.mask))
        returns += np.where(running, rewards, 0.0)
    metrics = [batch.finish(index) for index in range(episodes)]
    return {
        "mean_reward": float(returns.mean()),
        **{name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]},
    }


def save(model: BaseAlgorithm, path: Path, card: Mapping[str, Any]) -> None:
    """Write a checkpoint and its card, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.zip")
    model.save(temporary)
    os.replace(temporary, path)
    write_card(path, {**card, "num_timesteps": model.num_timesteps})


class HeldOutCallback(BaseCallback):
    """Evaluate on held-out episodes at start, every so many steps and at the end; keep the best model."""

    def __init__(self, config: RoutingConfig, spec: TrainSpec, folder: Path, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.spec, self.folder, self.card = config, spec, folder, card
        self.best = -np.inf
        self.history: list[dict[str, float]] = []
        self._due = 0

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self.spec.eval_every_timesteps
        if (self.folder / "best_model.zip").exists() and self.num_timesteps > 0:
            self._evaluate(keep=False)
        else:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self._due += self.spec.eval_every_timesteps
            self._evaluate()

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self, keep: bool = True) -> None:
        if self.history and self.history[-1]["timesteps"] == self.num_timesteps:
            return
        policy = LearnedPolicy(self.model, self.config.features)
        score = held_out_score(policy, self.config, self.spec.eval_episodes)
        self.model.policy.set_training_mode(False)
        self.history.append({"timesteps": float(self.num_timesteps), **score})
        for name, figure in score.items():
            self.logger.record(f"held_out/{name}", figure)
        value = SELECT_BY[self.spec.select_by] * score[self.spec.select_by]
        if value > self.best:
            self.best = value
            if keep:
                save(self.model, self.folder / "best_model.zip", self.card)


class CheckpointCallback(BaseCallback):
    """Keep ``checkpoints/<steps>_steps.zip`` every so many steps."""

    def __init__(self, every_timesteps: int, folder: Path, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.every, self.folder, self.card = every_timesteps, folder, card
        self._due = every_timesteps

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._due:
            self._due += self.every
            save(self.model, self.folder / "checkpoints" / f"{self.num_timesteps}_steps.zip", self.card)
        return True


class ProgressCallback(BaseCallback):
    """A progress bar with the latest held-out latency."""

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
            TextColumn("held-out mean E2E {task.fields[e2e]} s"),
        )
        self.bar = Progress(*columns)
        self.task = self.bar.add_task("train", total=self.total, completed=self.num_timesteps, e2e="-")
        self.bar.start()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        latest = self.held_out.history[-1]["mean_e2e_s"] if self.held_out.history else float("nan")
        self.bar.update(self.task, completed=self.num_timesteps, e2e=f"{latest:.3f}")

    def _on_training_end(self) -> None:
        self.bar.update(self.task, completed=min(self.num_timesteps, self.total))
        self.bar.stop()


def check_fit(agent: AgentSpec, problem: RoutingConfig) -> None:
    """Refuse an agent that cannot learn this problem."""
    if problem.available is not None and agent.network == "mlp" and agent.algorithm != "maskable_ppo":
        raise UserError(
            f"available={list(problem.available)}: {agent.algorithm} with network='mlp' cannot tell which instances exist; "
            "train with available=null, or with network='scorer' or algorithm='maskable_ppo'"
        )


def train(
    agent: AgentSpec,
    problem: RoutingConfig,
    held_out: RoutingConfig,
    spec: TrainSpec,
    folder: Path,
    card: Mapping[str, Any],
    *,
    seed: int,
    resume: str | Path | None = None,
    progress_bar: bool = True,
    prepare: Callable[[BaseAlgorithm], None] | None = None,
) -> tuple[BaseAlgorithm, list[dict[str, float]]]:
    """Train and leave ``best_model.zip`` and ``last_model.zip`` with their cards in ``folder``.

    Parameters
    ----------
    agent : AgentSpec
    problem, held_out : RoutingConfig
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
    model, history
        The trained model and one row per held-out evaluation.
    """
    check_fit(agent, problem)
    env = FleetVecEnv(RoutingVectorEnv(agent.num_envs, config=problem, stagger=True, episode_metrics=False))
    env.seed(seed)
    model = make_model(agent, env, seed) if resume is None else _resumed(resume, agent, env, seed)
    done = model.num_timesteps
    if done >= spec.total_timesteps:
        raise UserError(f"total_timesteps={spec.total_timesteps}: the checkpoint has {done} already; ask for more")
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
    return model, evaluation.history


def _resumed(path: str | Path, agent: AgentSpec, env: FleetVecEnv, seed: int) -> BaseAlgorithm:
    from fleetgym.agents.learned import load_checkpoint

    policy = load_checkpoint(path)
    if policy.features != env.env.config.features or policy.model.observation_space != env.observation_space:
        raise UserError(f"resume={str(path)!r}: trained on another observation than this configuration has")
    model = policy.model
    if model.n_envs != env.num_envs:
        raise UserError(f"resume={str(path)!r}: trained with num_envs={model.n_envs}, agent.num_envs={env.num_envs}")
    model.set_env(learner_env(agent, env))
    # A resumed run must not replay the episodes that the first part has seen.
    env.seed(seed + model.num_timesteps)
    model.set_random_seed(seed + model.num_timesteps)
    return model

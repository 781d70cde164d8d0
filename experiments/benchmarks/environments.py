"""How many steps per second environments, training and exported policies take."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.env import FleetEnv
from fleetgym.envs.features import public
from fleetgym.envs.problem import Problem
from fleetgym.envs.routing.problem import Routing
from fleetgym.envs.signals import find_signal
from fleetgym.envs.vector import FleetVectorEnv
from fleetgym.experiments.benchmarks.measure import Bench, Figure, cpu_seconds, looped

SIZES, BATCHES = (2, 8, 64, 512), (1, 64, 256)
EPISODE = 1000  # requests


def single_steps(bench: Bench) -> Iterator[Figure]:
    """Measure whole episodes of one ``gym.Env``, resets included, under random actions.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        Steps per CPU second.
    """
    n = bench.cluster.num_instances
    env = FleetEnv(problem=Routing.resolve(cluster=bench.cluster, num_requests=EPISODE))
    actions = np.random.default_rng(bench.seed).integers(0, n, EPISODE).tolist()
    episodes = bench.size(100, 1)

    def play() -> None:
        for _ in range(episodes):
            env.reset()
            for action in actions:
                env.step(action)

    env.reset(seed=bench.seed)
    play()
    cpu_s = [cpu_seconds(play) for _ in range(bench.repeats)]
    rates = [episodes * EPISODE / s for s in cpu_s]
    yield Figure(
        "single_steps_per_s", f"single gym.Env, {n} instances", "steps/s", "higher", rates, cpu_s, 250_000.0,
        f"episodes of {EPISODE:,} decisions with their resets, load {_load(env.problem)}",
    )  # fmt: skip


def vector_steps(bench: Bench) -> Iterator[Figure]:
    """Measure the batched environment over numbers of instances and of environments.

    Parameters
    ----------
    bench : Bench
        Its cluster at each size of `SIZES`.

    Yields
    ------
    Figure
        Steps per CPU second, all environments together; one for each size N and batch B.
    """
    for n in SIZES:
        for batch in BATCHES:
            config = Routing.resolve(cluster=bench.fleet(n), num_requests=EPISODE)
            env = FleetVectorEnv(batch, problem=config, stagger=True)
            # As many steps as cover whole episodes, so that each has its share of resets; fewer where they are slow.
            steps = bench.size(EPISODE if n <= 64 else EPISODE // 10, 3)
            actions = np.random.default_rng(bench.seed).integers(0, n, (steps, batch))
            env.reset(seed=bench.seed)
            _play(env, actions)
            cpu_s = [looped(lambda: _play(env, actions), bench.at_least_s) for _ in range(bench.repeats)]  # noqa: B023
            rates = [actions.size / s for s in cpu_s]
            floor = 0.7e6 if n == 8 and batch >= 64 else None
            note = f"observations, rewards, masks, info and resets included, load {_load(config)}"
            yield Figure(
                f"vector_steps_per_s.n{n}_b{batch}", f"batched environment, N = {n}, B = {batch}", "steps/s", "higher",
                rates, cpu_s, floor, note,
            )  # fmt: skip


def _play(env: FleetVectorEnv, actions: NDArray[np.int64]) -> None:
    for row in actions:
        env.step(row)


def _load(config: Problem) -> str:
    assert config.load is not None
    return f"{100 * config.load[0]:.0f} %"


def ppo_over_idle(bench: Bench) -> Iterator[Figure]:
    """Measure PPO against the same PPO on an environment with the same spaces that does nothing.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        For each network the ratio of CPU times (1: the environment costs nothing), then steps per CPU second.
    """
    import torch

    from fleetgym.agents.factory import AgentSpec, make_model
    from fleetgym.agents.vec_env import FleetVecEnv

    class IdleVecEnv(FleetVecEnv):
        """Hands out the same arrays for ever."""

        def reset(self) -> NDArray[np.float32]:
            self.answer = (super().reset(), np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_))
            self.infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            return self.answer[0]

        def step_wait(self) -> Any:
            return *self.answer, self.infos

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    num_envs, n_steps = bench.size(256, 4), bench.size(64, 4)
    config = Routing.resolve(cluster=bench.cluster, num_requests=EPISODE)
    hyperparameters = {"n_steps": n_steps, "batch_size": min(4096, num_envs * n_steps), "n_epochs": 4}
    total = num_envs * n_steps * bench.size(3, 1)
    for network, floor in (("mlp", 0.85), ("scorer", None)):
        spec = AgentSpec("ppo", network, num_envs, hyperparameters=hyperparameters)  # type: ignore[arg-type]
        models = []
        for kind in (FleetVecEnv, IdleVecEnv):
            env = kind(FleetVectorEnv(num_envs, problem=config, stagger=True, episode_metrics=False))
            env.seed(bench.seed)
            models.append(make_model(spec, env, bench.seed))
        spent: list[list[float]] = [[], []]
        for repeat in range(bench.repeats + 1):
            for model, seconds in zip(models, spent, strict=True):
                cpu_s = cpu_seconds(lambda: model.learn(total, reset_num_timesteps=False))  # noqa: B023
                if repeat:  # the first time warms up
                    seconds.append(cpu_s)
        real, idle = spent
        title = f"PPO ({network}), {num_envs} environments, batch {hyperparameters['batch_size']}, 4 epochs"
        ratios = [i / r for i, r in zip(idle, real, strict=True)]
        yield Figure(
            f"ppo_over_idle.{network}", f"{title}: over an idle environment", "x", "higher", ratios, real, floor
        )
        rates = [total / s for s in real]
        yield Figure(f"ppo_steps_per_s.{network}", title, "steps/s", "higher", rates, real)
    torch.set_num_threads(threads)


def exported_policy(bench: Bench) -> Iterator[Figure]:
    """Measure one decision of an exported row scorer: checks, transform, network and argmax.

    Parameters
    ----------
    bench : Bench

    Yields
    ------
    Figure
        Microseconds of CPU time per decision, at 8 and at 512 instances.
    """
    from fleetgym.agents.bundle import load
    from fleetgym.agents.bundle_format import FeatureSpec, feature_tensors, weight_shapes
    from fleetgym.agents.export import Source, write_bundle

    hidden, rng = 32, np.random.default_rng(bench.seed)
    features = tuple(FeatureSpec.of(find_signal(name)).limited() for name in public(Routing.offers))
    shapes = weight_shapes("scorer_mlp", len(features), hidden)
    own = {name: shape for name, shape in shapes.items() if name not in feature_tensors(features)}
    weights = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in own.items()}
    with tempfile.TemporaryDirectory() as folder:
        source = Source("bench", "scorer_mlp", Routing, features, weights, hidden, trained={"num_choices": [1, 1024]})
        bundle = load(write_bundle(Path(folder) / "bundle", source))
    for n, floor in ((8, 25.0), (512, 100.0)):
        env = FleetVectorEnv(1, problem=Routing.resolve(cluster=bench.fleet(n), num_requests=EPISODE))
        observation, info = env.reset(seed=bench.seed)
        mask = info["action_mask"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # more instances than a bundle is verified with
            bundle.act(observation, mask)
        times = [_per_call(lambda: bundle.act(observation, mask), bench.at_least_s) for _ in range(bench.repeats)]  # noqa: B023
        cpu_s, wall_s = zip(*times, strict=True)
        yield Figure(
            f"exported_decision_us.n{n}", f"exported policy, one decision, {n} instances", "us", "lower",
            [1e6 * s for s in cpu_s], cpu_s, floor, f"row scorer, hidden {hidden}, onnxruntime, one thread; "
            f"best wall time {1e6 * min(wall_s):.1f} us",
        )  # fmt: skip


def _per_call(call: Callable[[], object], at_least_s: float) -> tuple[float, float]:
    """Return CPU and wall-clock seconds per call."""
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.process_time() - cpu < at_least_s:
        for _ in range(100):
            call()
        count += 100
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count

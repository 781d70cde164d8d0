"""What the tests of scorer, export and bundle share: small policies, and bundles with one thing changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from places import DATA
from stable_baselines3 import PPO

from fleetgym.agents.bundle_format import MANIFEST
from fleetgym.agents.checkpoint import write_card
from fleetgym.agents.scorer import ScorerPolicy
from fleetgym.envs.features import SCHEMA_VERSION, observation_space, public, schema_digest
from fleetgym.envs.signals import SIGNAL_NAMES

NUM_CHOICES = 4
ENV_ID = "fleetgym.envs:fleetgym/Routing-v0"
OLD = DATA / "version_1"  # a checkpoint, its card and its bundle as they were when all choices were instances
OLD_FEATURES = ("kv_usage", "in_flight_requests")


class Noise(Env[np.ndarray, np.int64]):
    """Random observations, some choices absent: enough to build a model on."""

    def __init__(self, features: tuple[str, ...] = public(SIGNAL_NAMES), num_choices: int = NUM_CHOICES) -> None:
        self.observation_space = observation_space(features, num_choices)
        self.action_space = spaces.Discrete(num_choices)

    def action_masks(self) -> np.ndarray:
        return self.present

    def observe(self) -> np.ndarray:
        n, f = self.observation_space.shape  # type: ignore[misc]
        self.present = self.np_random.random(n) < 0.7
        self.present[0] = True
        return (self.np_random.random((n, f), np.float32) * self.present[:, None]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.observe(), float(action), False, False, {}


def observations(b: int, n: int, f: int = len(public(SIGNAL_NAMES)), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations in physical units with absent (zero) rows, and their mask."""
    rng = np.random.default_rng(seed)
    mask = rng.random((b, n)) < 0.7
    mask[:, 0] = True
    values = np.exp(rng.uniform(-2, 12, (b, n, f))).astype(np.float32)
    return np.where(mask[:, :, None], values, np.float32(0)), mask


def card(features: tuple[str, ...] = public(SIGNAL_NAMES), **changes: Any) -> dict[str, Any]:
    """A checkpoint's card as training writes it."""
    values = {
        "name": "ppo_scorer", "env_id": ENV_ID, "algorithm": "ppo", "network": "scorer", "features": list(features),
        "schema_version": SCHEMA_VERSION, "schema_digest": schema_digest(features), "fingerprint": "0123456789abcdef",
        "num_choices": NUM_CHOICES, "seed": 3, "num_timesteps": 64, "config": {"agent": {"name": "ppo_scorer"}},
        "trained_ranges": {"load": [0.6, 1.1], "num_choices": [2, 4], "staleness_s": [0.0, 0.0]},
        "versions": {"python": "3"}, "git": {"revision": "abc", "dirty": True},
    }  # fmt: skip
    return values | changes


def checkpoint(
    folder: Path, features: tuple[str, ...] = public(SIGNAL_NAMES), activation: str = "relu", **changes: Any
) -> Path:
    """A short-trained checkpoint with its card."""
    kwargs = {"features": features, "hidden": 8, "activation": activation}
    model = PPO(
        ScorerPolicy, Noise(features), n_steps=32, batch_size=32, seed=0, policy_kwargs=kwargs, learning_rate=0.01
    )
    model.learn(64)
    path = folder / "best_model.zip"
    model.save(path)
    write_card(path, card(features, **changes))
    return path


def reseal(folder: Path, **changes: Any) -> None:
    """Change entries of the manifest and renew all digests, as a careful attacker would."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))

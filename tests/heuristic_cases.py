"""What the tests of heuristics share: observations with some columns filled in, and one decision on them."""

from collections.abc import Sequence

import numpy as np

from fleetgym.envs.policy import Policy


def observation_of(features: Sequence[str], **columns: float | list[float]) -> np.ndarray:
    """One observation [1, C, F] with the given columns, as far as they are features, 0 otherwise."""
    lengths = [len(values) for values in columns.values() if isinstance(values, list)]
    observation = np.zeros((1, lengths[0], len(features)), np.float32)
    for name, value in columns.items():
        if name in features:
            observation[0, :, features.index(name)] = value
    return observation


def decide(policy: Policy, mask: list[bool] | None = None, **columns: float | list[float]) -> int:
    """The choice between rows that are the same but for these columns."""
    observation = observation_of(policy.features, **columns)
    policy.reset([0], observation.shape[1])
    allowed = np.ones(observation.shape[:2], bool) if mask is None else np.array([mask])
    return int(policy.act(observation, allowed)[0])

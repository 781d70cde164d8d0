"""A trained SB3 model as a policy like any other.

SB3 zips hold pickled objects: load only files that you trust, e.g. your own. What leaves the gym is the
bundle of `fleetgym.agents.bundle`, which runs no code when loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm

from fleetgym.agents.bundle import open_session
from fleetgym.agents.checkpoint import card_path, problem_of_card, read_card
from fleetgym.agents.export import policy_graph
from fleetgym.agents.factory import ALGORITHMS
from fleetgym.agents.vec_env import pad_choices
from fleetgym.envs.errors import UserError
from fleetgym.envs.features import schema_digest
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import bare_id


class LearnedPolicy:
    """Greedy actions of a trained model: the allowed choice with the highest logit or Q value.

    A row scorer is evaluated as the graph that its bundle holds, so that checkpoint and bundle take the same
    decisions to the last bit: torch rounds equal rows differently by where they stand in a batch, and
    half the fleet looks alike whenever it is idle.

    Parameters
    ----------
    model : BaseAlgorithm
        Put into evaluation mode.
    features : tuple of str
        Columns that the model was trained on.
    name : str
        What tables call it.
    fewest : int, optional
        Least choices that existed in training; a model that is made for C choices then takes from so many up to C, the
        others being absent as they were in training. By default exactly C.
    """

    kind = "learned"

    def __init__(
        self, model: BaseAlgorithm, features: tuple[str, ...], name: str = "learned", *, fewest: int | None = None
    ) -> None:
        self.model = model
        self.features = features
        self.name = name
        self._policy: Any = model.policy
        self._policy.set_training_mode(False)
        shape = model.observation_space.shape
        assert shape is not None
        self.num_choices: int | None = shape[0]
        self._graph: Any = None
        if getattr(self._policy, "any_num_choices", False):
            self.num_choices = None
            self._graph = open_session(policy_graph(self._policy, features))
        self._fewest = self.num_choices if fewest is None else fewest

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Check that the model fits ``num_choices``; it keeps no state.

        Parameters
        ----------
        seeds : sequence of int, length B
            Not needed: actions are greedy.
        num_choices : int
            C.

        Raises
        ------
        UserError
            The model was trained for other numbers of choices.
        """
        most, fewest = self.num_choices, self._fewest
        if most is not None and fewest is not None and not fewest <= num_choices <= most:
            trained = f"exactly {most}" if fewest == most else f"{fewest} to {most}"
            raise UserError(
                f"checkpoint: {self.name} was trained for {trained} choices, here are {num_choices}; "
                "agent=ppo_scorer handles any number"
            )

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the best allowed choice per environment (`fleetgym.envs.policy.Policy.act`).

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, C)
            What may be chosen.

        Returns
        -------
        ndarray of int64, shape (B,)
            Of equal ones the lowest index.
        """
        if self._graph is not None:
            return self._graph.run(["action"], {"obs": np.ascontiguousarray(observation), "mask": mask})[0]
        if self.num_choices is not None:
            observation, mask = (pad_choices(rows, self.num_choices, axis=1) for rows in (observation, mask))
        return np.where(mask, self.scores(observation, mask), -np.inf).argmax(axis=1)

    def scores(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return logits or Q values.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, C)
            What may be chosen; only a row scorer reads it.

        Returns
        -------
        ndarray of float32, shape (B, C)
        """
        if self._graph is not None:
            return self._graph.run(["scores"], {"obs": np.ascontiguousarray(observation), "mask": mask})[0]
        with torch.no_grad():
            tensor = torch.as_tensor(observation)
            if isinstance(self.model, DQN):
                out = self._policy.q_net(tensor)
            else:
                out = self._policy.get_distribution(tensor).distribution.logits
        return np.asarray(out.numpy())


def load_checkpoint(path: str | Path, name: str | None = None, *, problem: Problem | None = None) -> LearnedPolicy:
    """Load a zip that training wrote, together with the card beside it.

    Parameters
    ----------
    path : path
        The zip; its card stands beside it (`fleetgym.agents.checkpoint`).
    name : str, optional
        What tables call it; by default its name on the card, else that of the file.
    problem : Problem, optional
        What it is to decide; by default any that it was trained for.

    Returns
    -------
    LearnedPolicy
        On the CPU.

    Raises
    ------
    UserError
        The file is absent, no SB3 zip, or of another environment or observation schema.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"checkpoint={str(path)!r}: no such file")
    if not zipfile.is_zipfile(file):
        raise UserError(f"checkpoint={str(path)!r}: not a checkpoint that training wrote (no zip archive)")
    card = read_card(file)
    if problem is not None and bare_id(card["env_id"]) != problem.env_id:
        raise UserError(f"checkpoint={str(path)!r}: trained for {card['env_id']!r}, not for {problem.env_id!r}")
    features = tuple(card["features"])
    offered = problem_of_card(card, f"checkpoint={str(path)!r}").offers
    if not set(features) <= set(offered) or card["schema_digest"] != schema_digest(features):
        raise UserError(f"checkpoint={str(path)!r}: trained with another version of the observation schema")
    model = ALGORITHMS[card["algorithm"]].load(file, device="cpu")
    trained = card["trained_ranges"].get("num_choices")
    if trained is not None and not (isinstance(trained, list) and trained and isinstance(trained[0], int)):
        raise UserError(
            f"{str(card_path(file))!r}: trained_ranges.num_choices={trained!r}: expected [low, high] or null"
        )
    fewest = trained[0] if trained else None
    return LearnedPolicy(model, features, name or str(card.get("name", file.stem)), fewest=fewest)

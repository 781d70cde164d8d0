"""One small network shared over choices: any number of them, any order, one set of weights.

Per choice ``h = act(W1 x + b1)``; ``g`` is the mean of ``h`` over the available choices; the score is
``w3 . act(W2 h + Wp g + b2)``. Permuting the choices permutes the scores. Linear layers, one
activation and one mean are all there is, so that the export (`fleetgym.agents.export`) can be evaluated
in any language. The critic has layers of its own over the same inputs and stays behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from fleetgym.agents.bundle_format import INPUT_LIMIT
from fleetgym.agents.networks import SchemaTransform
from fleetgym.envs.errors import UserError, did_you_mean

# In place: at (4096, 8, 32) most of a layer's time goes into fresh memory.
_ACTIVATIONS = {"relu": torch.relu_, "tanh": torch.tanh_}
_UNAVAILABLE_LOGIT = -1e8  # as in sb3-contrib's masked distributions


class RowScorer(nn.Module):
    """Scores per choice, and the critic's view of all.

    Parameters
    ----------
    features : sequence of str
        Names of the observation's F columns.
    hidden : int
        H, the width of every layer.
    activation : {"relu", "tanh"}
    """

    uses_tanh: Tensor

    def __init__(self, features: Sequence[str], hidden: int, activation: str) -> None:
        super().__init__()
        num_features = len(features)
        self.transform = SchemaTransform(features)
        self.act = _ACTIVATIONS[activation]
        self.row = nn.Linear(num_features, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.pool = nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)  # a bias would change no decision
        # The critic also sees every feature on a linear scale: a backlog costs by its sum over the fleet, and the
        # mean of logarithms is smaller for a backlog on one instance than for the same one spread out.
        self.critic_row = nn.Linear(2 * num_features, hidden)
        self.critic_mix = nn.Linear(hidden + 1, hidden)
        # In the weights, so that a checkpoint says by itself what it computes.
        self.register_buffer("uses_tanh", torch.tensor(activation == "tanh"))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what actor and critic need in one pass.

        Parameters
        ----------
        observation : Tensor, shape (B, C, F)
            Raw physical units; the row of a choice that does not exist is all zero.

        Returns
        -------
        logits : Tensor, shape (B, C)
            Scores; -1e8 where there is no choice.
        latent : Tensor, shape (B, H)
            The critic's.
        """
        available = _is_available(observation)
        x = self.inputs(observation)
        return self._logits(x, available), self._latent(self._both_scales(observation, x), available)

    def forward_actor(self, observation: Tensor) -> Tensor:
        """Return the logits, shape (B, C).

        Parameters
        ----------
        observation : Tensor, shape (B, C, F)
        """
        return self._logits(self.inputs(observation), _is_available(observation))

    def forward_critic(self, observation: Tensor) -> Tensor:
        """Return the critic's latent, shape (B, H).

        Parameters
        ----------
        observation : Tensor, shape (B, C, F)
        """
        x = self._both_scales(observation, self.inputs(observation))
        return self._latent(x, _is_available(observation))

    def inputs(self, observation: Tensor) -> Tensor:
        """Return the transformed rows, within `INPUT_LIMIT`, shape (B, C, F).

        Parameters
        ----------
        observation : Tensor, shape (B, C, F)
            Raw physical units.
        """
        return self.transform(observation).clamp(-INPUT_LIMIT, INPUT_LIMIT)

    def scores(self, observation: Tensor, mask: Tensor) -> Tensor:
        """Return the scores before any masking, shape (B, C).

        Parameters
        ----------
        observation : Tensor, shape (B, C, F)
            Raw physical units.
        mask : Tensor of bool, shape (B, C)
            The mean goes over these choices, as in the exported policy.
        """
        return self._scores(self.inputs(observation), mask)

    def _both_scales(self, observation: Tensor, x: Tensor) -> Tensor:
        return torch.cat((x, self.transform.linear(observation)), dim=-1)

    def _scores(self, x: Tensor, available: Tensor) -> Tensor:
        h = self.act(self.row(x))
        fleet: Tensor = self.pool(_mean(h, available))
        h2 = self.act(self.mix(h).add_(fleet[:, None]))
        scores: Tensor = self.score(h2).squeeze(-1)
        return scores

    def _logits(self, x: Tensor, available: Tensor) -> Tensor:
        return self._scores(x, available).masked_fill(~available, _UNAVAILABLE_LOGIT)

    def _latent(self, x: Tensor, available: Tensor) -> Tensor:
        pooled = _mean(self.act(self.critic_row(x)), available)
        count = available.sum(dim=1, keepdim=True)
        latent: Tensor = self.act(self.critic_mix(torch.cat((pooled, torch.log1p(count)), dim=1)))
        return latent


def _is_available(observation: Tensor) -> Tensor:
    """Which choices exist, shape (B, C): the row of one that does not is all zero."""
    return (observation != 0).any(dim=-1)


def _mean(h: Tensor, available: Tensor) -> Tensor:
    """Mean of ``h`` (B, C, H) over the available choices, shape (B, H); 0 where there are none."""
    weight = available.to(h.dtype)
    # Multiply and sum: a batched matrix product of such small matrices takes four times as long on a CPU.
    return (h * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True).clamp(min=1.0)


class ScaledLinear(nn.Linear):
    """A linear layer whose output is multiplied by a constant.

    Parameters
    ----------
    in_features, out_features : int
        I and O.
    scale : float
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return ``scale * (W x + b)``.

        Parameters
        ----------
        x : Tensor, shape (..., I)

        Returns
        -------
        Tensor, shape (..., O)
        """
        return super().forward(x) * self.scale


class RowExtractor(BaseFeaturesExtractor):
    """Hands the rows on as they are, (B, C, F): `RowScorer` transforms them.

    Parameters
    ----------
    observation_space : spaces.Box
        Of shape (N, F).
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=int(observation_space.shape[-1]))

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``observations``.

        Parameters
        ----------
        observations : Tensor, shape (B, C, F)
        """
        return observations


class _ScorerMixin:
    """What turns an SB3 actor-critic policy into a row scorer; the scores are the action's logits.

    Parameters
    ----------
    features : sequence of str
        Columns of the observation.
    hidden : int
        Width of the layers.
    activation : {"relu", "tanh"}
    prior : mapping of str to float
        What the untrained policy does: its score starts as this weighted sum of network inputs, e.g.
        ``{"in_flight_requests": -20}`` for a soft least-in-flight. Each takes one hidden unit, and all of
        it is trained. From a uniform start most of a short training goes into finding out about queues.
    value_scale : float
        Typical size of a return, by which the critic's output is multiplied. With ``vf_coef`` divided by
        its square this equals dividing rewards by it: otherwise the critic's gradient drowns the actor's
        when both are clipped together.

    Raises
    ------
    UserError
        ``features`` do not fit the observation, or another setting is out of range; the message names it.
    """

    any_num_choices = True
    mlp_extractor: RowScorer

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        features: Sequence[str] = (),
        hidden: int = 32,
        activation: str = "relu",
        prior: Mapping[str, float] | None = None,
        value_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if len(features) != observation_space.shape[-1]:
            raise UserError(f"features={list(features)}: the observation has {observation_space.shape[-1]} columns")
        if hidden < 1:
            raise UserError(f"policy_kwargs.hidden={hidden}: must be at least 1")
        if activation not in _ACTIVATIONS:
            raise UserError(f"policy_kwargs.activation={activation!r}: unknown{did_you_mean(activation, _ACTIVATIONS)}")
        for name in prior or ():
            if name not in features:
                raise UserError(f"policy_kwargs.prior: {name!r} is no column{did_you_mean(name, features)}")
        if len(prior or ()) > hidden:
            raise UserError(f"policy_kwargs.prior: {len(prior or ())} features need as many of {hidden} hidden units")
        if not value_scale > 0:
            raise UserError(f"policy_kwargs.value_scale={value_scale}: must be positive")
        self.prior, self.value_scale = dict(prior or {}), float(value_scale)
        self.scorer_kwargs = {"features": tuple(features), "hidden": hidden, "activation": activation}
        kwargs |= {"features_extractor_class": RowExtractor, "net_arch": []}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return parameters | self.scorer_kwargs | {"prior": self.prior, "value_scale": self.value_scale}

    def _build(self, lr_schedule: Schedule) -> None:
        """Create networks and optimizer, initialised as SB3 does."""
        self.mlp_extractor = net = RowScorer(**self.scorer_kwargs)  # type: ignore[arg-type]
        self.action_net = nn.Identity()
        self.value_net = ScaledLinear(net.critic_mix.out_features, 1, self.value_scale)
        if self.ortho_init:  # type: ignore[attr-defined]
            hidden_layers = (net.row, net.mix, net.pool, net.critic_row, net.critic_mix)
            gains = dict.fromkeys(hidden_layers, float(np.sqrt(2))) | {net.score: 0.01, self.value_net: 1.0}
            for layer, gain in gains.items():
                self.init_weights(layer, gain)  # type: ignore[attr-defined]
        self._start_from_prior()
        parameters = self.parameters()  # type: ignore[attr-defined]
        self.optimizer = self.optimizer_class(  # type: ignore[attr-defined]
            parameters,
            lr=lr_schedule(1),
            **self.optimizer_kwargs,  # type: ignore[attr-defined]
        )

    def _start_from_prior(self) -> None:
        """Let hidden unit i carry feature i of the prior from input to score."""
        net, features = self.mlp_extractor, list(self.scorer_kwargs["features"])  # type: ignore[call-overload]
        with torch.no_grad():
            for unit, (name, weight) in enumerate(self.prior.items()):
                for layer in (net.row, net.mix, net.pool):
                    layer.weight[unit] = 0.0
                net.row.weight[unit, features.index(name)] = 1.0
                net.mix.weight[unit, unit] = 1.0
                net.score.weight[0, unit] = weight

    def scores(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the score of each choice as the exported policy computes it, masked or not.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units.
        mask : ndarray of bool, shape (B, C)
            What may be chosen; the mean goes over it.

        Returns
        -------
        ndarray of float32, shape (B, C)
        """
        with torch.no_grad():
            return self.mlp_extractor.scores(torch.as_tensor(observation), torch.as_tensor(mask)).numpy()


class ScorerPolicy(_ScorerMixin, ActorCriticPolicy):  # type: ignore[misc]
    """The row scorer for PPO: choices that do not exist get no probability."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Choose; greedily by score, of equal ones the lowest index."""
        if deterministic:
            return self.mlp_extractor.forward_actor(observation).argmax(dim=1)
        return super()._predict(observation)


class MaskableScorerPolicy(_ScorerMixin, MaskableActorCriticPolicy):  # type: ignore[misc]
    """The row scorer for MaskablePPO."""

    def _predict(
        self, observation: Any, deterministic: bool = False, action_masks: NDArray[Any] | None = None
    ) -> Tensor:
        """Choose; greedily by score, of equal ones the lowest index."""
        if not deterministic:
            return super()._predict(observation, action_masks=action_masks)
        logits = self.mlp_extractor.forward_actor(observation)
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, dtype=torch.bool).reshape(logits.shape)
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.argmax(dim=1)

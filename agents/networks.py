"""Networks over observations in raw physical units: the schema's transform is their first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from fleetgym.envs.features import Transform, cleaned, scaled


class SchemaTransform(nn.Module):
    """The schema's network input (`fleetgym.envs.features.scaled`) in torch: shape (..., F) to (..., F).

    Missing values (NaN) are replaced, the rest is clipped to the declared range and scaled to about [0, 1].

    Parameters
    ----------
    features : sequence of str
        Names of the F columns (`fleetgym.envs.signals.SIGNALS`).
    """

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__()
        for name, column in Transform.of(features, torch.as_tensor)._asdict().items():
            self.register_buffer(name, column, persistent=False)

    @property
    def columns(self) -> Transform:
        """The columns' properties."""
        return Transform(*(getattr(self, name) for name in Transform._fields))

    def forward(self, observation: Tensor) -> Tensor:
        """Transform raw features.

        Parameters
        ----------
        observation : Tensor, shape (..., F)
            Raw physical units, NaN where unknown.

        Returns
        -------
        Tensor, shape (..., F)
        """
        transformed: Tensor = scaled(self.columns, observation, torch)
        return transformed

    def linear(self, observation: Tensor) -> Tensor:
        """Scale raw features to their typical size without any logarithm; missing values and clipping as in `forward`.

        Parameters
        ----------
        observation : Tensor, shape (..., F)

        Returns
        -------
        Tensor, shape (..., F)
        """
        known: Tensor = cleaned(self.columns, observation, torch)
        return known / self.columns.scale


class SchemaExtractor(BaseFeaturesExtractor):
    """SB3 features extractor: transform every row, then flatten (N, F) to N * F.

    Parameters
    ----------
    observation_space : spaces.Box
        Of shape (N, F).
    features : sequence of str
        Names of the F columns.
    """

    def __init__(self, observation_space: spaces.Box, features: Sequence[str]) -> None:
        super().__init__(observation_space, features_dim=int(observation_space.shape[0] * observation_space.shape[1]))
        self.transform = SchemaTransform(features)

    def forward(self, observations: Tensor) -> Tensor:
        """Transform the rows and flatten them.

        Parameters
        ----------
        observations : Tensor, shape (B, C, F)
            Raw physical units.

        Returns
        -------
        Tensor, shape (B, C * F)
        """
        return self.transform(observations).flatten(start_dim=1)

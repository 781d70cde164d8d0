"""Networks over observations in raw physical units: the schema's transform is their first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from fleetgym.envs.features import select


class SchemaTransform(nn.Module):
    """The schema's network input (`fleetgym.envs.features.scaled`) in torch: shape (..., F) to (..., F).

    Missing values (NaN) are replaced, the rest is clipped to the declared range and scaled to about [0, 1].
    """

    low: Tensor
    high: Tensor
    missing: Tensor
    log_scale: Tensor
    scale: Tensor
    is_log: Tensor

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__()
        rows = select(features, oracle=True)
        is_log = torch.tensor([f.transform == "log1p" for f in rows])
        scale = torch.tensor([f.scale for f in rows], dtype=torch.float32)
        self.register_buffer("low", torch.tensor([f.low for f in rows], dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor([f.high for f in rows], dtype=torch.float32), persistent=False)
        self.register_buffer("missing", torch.tensor([f.missing for f in rows], dtype=torch.float32), persistent=False)
        self.register_buffer("is_log", is_log, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("log_scale", torch.where(is_log, torch.log1p(scale), scale), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """Transform raw features."""
        x = self._clean(observation)
        return torch.where(self.is_log, torch.log1p(x.clamp(min=0.0)), x) / self.log_scale

    def linear(self, observation: Tensor) -> Tensor:
        """Scale raw features to their typical size without any logarithm."""
        return self._clean(observation) / self.scale

    def _clean(self, observation: Tensor) -> Tensor:
        x = torch.where(torch.isnan(observation), self.missing, observation)
        return torch.minimum(torch.maximum(x, self.low), self.high)


class SchemaExtractor(BaseFeaturesExtractor):
    """SB3 features extractor: transform every row, then flatten (N, F) to N * F."""

    def __init__(self, observation_space: spaces.Box, features: Sequence[str]) -> None:
        super().__init__(observation_space, features_dim=int(observation_space.shape[0] * observation_space.shape[1]))
        self.transform = SchemaTransform(features)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the flattened transformed rows, shape (B, N * F)."""
        return self.transform(observations).flatten(start_dim=1)

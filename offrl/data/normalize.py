"""Observation normalization, fitted on the kept rows and saved inside every policy."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ObservationNormalizer:
    """``(x - mean) / std`` per column; ``std`` already holds the small constant that keeps it positive."""

    mean: Tensor  # (O,) float32
    std: Tensor  # (O,) float32, > 0

    @classmethod
    def identity(cls, obs_dim: int) -> "ObservationNormalizer":
        """The normalizer that changes nothing."""
        return cls(torch.zeros(obs_dim), torch.ones(obs_dim))

    @classmethod
    def fit(cls, observations: np.ndarray, eps: float = 1e-3) -> "ObservationNormalizer":
        """Mean and population standard deviation + ``eps`` of (N, O) rows, computed in float64.

        Source: the convention of TD3+BC, CORL, PRDC and A2PR (eps 1e-3, added to the std, not inside a root).
        """
        mean = observations.mean(axis=0, dtype=np.float64)
        std = observations.std(axis=0, dtype=np.float64) + eps
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(std).float())

    def __call__(self, observations: Tensor) -> Tensor:
        """Normalized observations, same shape (..., O)."""
        return (observations - self.mean.to(observations.device)) / self.std.to(observations.device)

"""Normalization of observations and actions: fitted on rows, saved inside every policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from offrl.errors import ConfigError, DatasetError

EPSILON = 1e-8  # LeRobot's


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


# --- affine maps per column, in the conventions of robot-policy libraries ---------------------------------


@dataclass(frozen=True)
class AffineNormalizer:
    """``z = (x - shift) * scale + offset`` per column, and back ``x = (z - offset) * inverse_scale + shift``.

    ``inverse_scale`` is stored because some libraries' two directions are not each other's inverse (a constant
    under ``std + 1e-8``). Four numbers a column keep the map exact in float32 also where ``scale`` is huge.

    The makers differ where a column is constant: ``limits`` maps it to the middle of its range, ``gauss`` to 0,
    LeRobot's ``MIN_MAX`` to -1 and ``MEAN_STD`` to 0. They are not interchangeable.
    """

    shift: Tensor  # all four (D,) float32
    scale: Tensor
    offset: Tensor
    inverse_scale: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Normalized values, same shape (..., D)."""
        shift, scale, offset = (t.to(values.device) for t in (self.shift, self.scale, self.offset))
        return (values - shift) * scale + offset

    def inverse(self, values: Tensor) -> Tensor:
        """Values in their own units, same shape (..., D)."""
        shift, scale, offset = (t.to(values.device) for t in (self.shift, self.inverse_scale, self.offset))
        return (values - offset) * scale + shift

    def to(self, device: torch.device) -> "AffineNormalizer":
        """The same map on a device: one that is asked at every step must not be copied there each time."""
        return AffineNormalizer(*(t.to(device) for t in vars(self).values()))

    @classmethod
    def identity(cls, width: int) -> "AffineNormalizer":
        """Changes nothing: delta actions in [-1, 1]."""
        one, zero = torch.ones(width), torch.zeros(width)
        return cls(zero, one, zero, one)

    @classmethod
    def limits(
        cls, rows: np.ndarray, low: float = -1.0, high: float = 1.0, tolerance: float = 1e-4
    ) -> "AffineNormalizer":
        """The smallest and largest value (N, D) to ``low`` and ``high``; a range below ``tolerance`` to the middle.

        Source: diffusion_policy, model/common/normalizer.py, mode ``limits``.
        """
        least, most = _finite(rows).min(axis=0), rows.max(axis=0)
        constant = most - least < tolerance
        scale = np.where(constant, 1.0, (high - low) / np.where(constant, 1.0, most - least))
        return cls.build(least, scale, np.where(constant, (high + low) / 2, low))

    @classmethod
    def gauss(cls, rows: np.ndarray, tolerance: float = 1e-4) -> "AffineNormalizer":
        """Mean 0 and standard deviation 1 (N - 1 in the denominator); below ``tolerance`` only centered.

        Source: diffusion_policy, model/common/normalizer.py, mode ``gaussian``.
        """
        std = _finite(rows).std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
        return cls.build(rows.mean(axis=0, dtype=np.float64), 1 / np.where(std < tolerance, 1.0, std))

    @classmethod
    def max_abs(cls, rows: np.ndarray) -> "AffineNormalizer":
        """All columns divided by the one largest absolute value: robomimic's low-dimensional observations.

        Source: diffusion_policy, common/normalize_util.py.
        """
        largest = float(np.abs(_finite(rows)).max())
        width = rows.shape[1]
        return cls.build(np.zeros(width), np.full(width, 1 / largest if largest > 0 else 1.0))

    @classmethod
    def lerobot(cls, mode: str, statistics: Mapping[str, ArrayLike], name: str = "it") -> "AffineNormalizer":
        """LeRobot's map of one feature.

        Args:
            mode: MEAN_STD, MIN_MAX, QUANTILES (q01, q99), QUANTILE10 (q10, q90) or IDENTITY.
            statistics: arrays by name; only those of the mode are looked at (IDENTITY: any, for the width).
            name: of the feature, for the error.

        Raises:
            ConfigError: an unknown mode, or a statistic is missing, not finite or of another shape: LeRobot would go
                on without normalizing.

        Source: lerobot, processor/normalize_processor.py (0.4 to 0.6).
        """
        pairs = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}
        pairs |= {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
        if mode not in pairs:
            raise ConfigError(f"normalization of {name} is {mode!r}; known are {', '.join(pairs)}")
        if mode == "IDENTITY":
            return cls.identity(int(np.size(next(iter(statistics.values()), np.ones(1)))))
        if missing := [key for key in pairs[mode] if key not in statistics]:
            raise ConfigError(f"{mode} of {name} needs {missing[0]!r}, which was not stored with it")
        first, second = (np.asarray(statistics[key], dtype=np.float32).reshape(-1) for key in pairs[mode])
        if first.shape != second.shape or not np.isfinite([first, second]).all():
            raise ConfigError(
                f"{mode} of {name}: {' and '.join(pairs[mode])} must be finite and of one shape"
            )
        if mode == "MEAN_STD":
            return cls.build(first, 1 / (second + np.float32(EPSILON)), inverse=second)
        span = np.where(second == first, np.float32(EPSILON), second - first)
        return cls.build(first, 2 / span, np.full(len(span), -1.0), inverse=span / 2)

    @classmethod
    def build(
        cls,
        shift: np.ndarray,
        scale: np.ndarray,
        offset: np.ndarray | None = None,
        *,
        inverse: np.ndarray | None = None,
    ) -> "AffineNormalizer":
        """From arrays (D,); ``offset`` 0 and ``inverse`` 1 / scale unless given."""
        offset = np.zeros(len(scale)) if offset is None else offset
        inverse = 1 / scale if inverse is None else inverse
        return cls(*(torch.from_numpy(np.array(a, np.float32)) for a in (shift, scale, offset, inverse)))

    @classmethod
    def concatenate(cls, parts: Sequence["AffineNormalizer"]) -> "AffineNormalizer":
        """Columns side by side: positions by their limits and rotations as they are, for one action."""
        names = ("shift", "scale", "offset", "inverse_scale")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _finite(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or not np.isfinite(rows).all():
        raise DatasetError(f"a normalizer needs finite rows (N, D) with N >= 1, got shape {rows.shape}")
    return rows

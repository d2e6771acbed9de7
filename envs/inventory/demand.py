"""Demand that no order influences: generators of traces (n, S, T), units per period.

``random`` is a NumPy ``Generator``, or a legacy ``RandomState`` where the draws of published experiments are repeated.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offrl.errors import ConfigError

Random = np.random.Generator | np.random.RandomState
Array = NDArray[np.float64]
Values = tuple[float, ...]


class Demand(Protocol):
    """What a setting asks of its demand."""

    @property
    def means(self) -> Values:
        """Mean of each store, before clipping and seasons."""

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """Traces (n, S, T). Rows are drawn one after the other, so that n rows of a longer draw are the same."""


def _positive(name: str, values: Values, zero: bool = False) -> None:
    for value in values:
        if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ConfigError(
                f"demand: {name} must be {'0 or more' if zero else 'above 0'} and finite, got {value}"
            )


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Normal demand with one correlation between any two stores."""

    means: Values
    stds: Values
    correlation: float = 0.0
    clip: bool = True
    """Negative draws become 0."""

    def __post_init__(self) -> None:
        _positive("std", self.stds, zero=True)
        stores = len(self.means)
        if len(self.stds) != stores:
            raise ConfigError(f"demand: {stores} means but {len(self.stds)} stds; give one of each a store")
        if not np.isfinite(self.means).all():
            raise ConfigError(f"demand: means must be finite, got {self.means}")
        low = -1 / (stores - 1) if stores > 1 else -1
        if not low <= self.correlation <= 1:
            raise ConfigError(
                f"demand: correlation must be in [{low:.3g}, 1] for {stores} stores, got {self.correlation}"
            )

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`. One store: plain normals; several: jointly normal in every period."""
        if len(self.means) == 1:
            drawn = random.normal(self.means[0], self.stds[0], (scenarios, 1, periods))
        else:
            stds = np.array(self.stds)
            covariance = self.correlation * np.outer(stds, stds)
            np.fill_diagonal(covariance, stds**2)
            drawn = random.multivariate_normal(self.means, covariance, (scenarios, periods))
            drawn = drawn.transpose(0, 2, 1)
        return np.maximum(drawn, 0) if self.clip else drawn


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Independent Poisson demand."""

    means: Values

    def __post_init__(self) -> None:
        _positive("mean", self.means, zero=True)

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`."""
        mean = np.array(self.means)[:, None]
        return random.poisson(mean, (scenarios, len(self.means), periods)).astype(np.float64)

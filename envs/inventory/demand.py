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
MOST = 1e12
"""Counts that are much larger cannot be drawn."""


class Demand(Protocol):
    """What a setting asks of its demand."""

    @property
    def means(self) -> Values:
        """Mean of each store, before clipping and seasons."""

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """Traces (n, S, T). Rows are drawn one after the other, so that n rows of a longer draw are the same."""


def factors(season: Values, periods: int) -> Array:
    """The factor of each period, (T,): ``season`` over and over; 1 without one."""
    return np.resize(np.array(season or (1.0,)), periods)


def _check(season: Values, *columns: Values) -> None:
    """Amounts of each store: as many of one kind as of the other, finite, not negative."""
    for values in (*columns, season):
        for value in values:
            if not np.isfinite(value) or value < 0:
                raise ConfigError(f"demand: numbers must be 0 or more and finite, got {value}")
            if value > MOST:
                raise ConfigError(
                    f"demand: numbers must be {MOST:g} at most, got {value:g}; take a larger unit"
                )
    if len({len(values) for values in columns}) > 1:
        counts = " and ".join(str(len(values)) for values in columns)
        raise ConfigError(f"demand: {counts} values; give one of each kind a store")


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Normal demand with one correlation between any two stores."""

    means: Values
    stds: Values
    correlation: float = 0.0
    clip: bool = True
    """Negative draws become 0."""

    season: Values = ()
    """Factors of mean and std, repeated; empty: none."""

    def __post_init__(self) -> None:
        _check(self.season, tuple(abs(mean) for mean in self.means), self.stds)
        stores = len(self.means)
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
        if self.season:
            drawn = drawn * factors(self.season, periods)
        return np.maximum(drawn, 0) if self.clip else drawn


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Independent Poisson demand."""

    means: Values
    season: Values = ()

    def __post_init__(self) -> None:
        _check(self.season, self.means)

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`."""
        mean = np.array(self.means)[:, None] * factors(self.season, periods)
        return random.poisson(mean, (scenarios, len(self.means), periods)).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class NegativeBinomial:
    """Independent counts that vary more than Poisson's."""

    means: Values
    stds: Values
    """Each above the square root of its mean."""
    season: Values = ()

    def __post_init__(self) -> None:
        _check(self.season, self.means, self.stds)
        for mean, std in zip(self.means, self.stds, strict=True):
            if std**2 <= mean:
                raise ConfigError(
                    f"demand: a negative binomial needs std > sqrt(mean) = {mean**0.5:.4g}, got {std}; use poisson"
                )

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`."""
        mean, std = np.array(self.means), np.array(self.stds)
        size = np.where(mean > 0, mean**2 / (std**2 - mean), 1.0)[:, None]  # of mean 0: always 0
        level = mean[:, None] * factors(self.season, periods)
        shape = (scenarios, len(mean), periods)
        return random.negative_binomial(size, size / (size + level), shape).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Compound:
    """Poisson customers, each of whom buys a geometric number of units: intermittent demand."""

    rates: Values
    """Customers per period."""
    batch: float
    """Mean units a customer, 1 or more."""
    season: Values = ()

    def __post_init__(self) -> None:
        _check(self.season, self.rates)
        if not self.batch >= 1:
            raise ConfigError(
                f"demand: batch is the mean number of units a customer buys, >= 1; got {self.batch}"
            )

    @property
    def means(self) -> Values:
        """Mean of each store."""
        return tuple(rate * self.batch for rate in self.rates)

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`."""
        level = np.array(self.rates)[:, None] * factors(self.season, periods)
        drawn = np.zeros((scenarios, len(self.rates), periods))
        for row in drawn:  # a row at a time, as its two draws share one stream
            customers = random.poisson(level)
            more = random.negative_binomial(np.maximum(customers, 1), 1 / self.batch)
            row[:] = np.where(customers > 0, customers + more, 0)
        return drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """Random windows of recorded histories (n, S, T): row and first period are drawn, the stores stay together."""

    values: Array

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not np.isfinite(self.values).all():
            raise ConfigError(
                f"demand: histories must be finite and (n, stores, periods), got shape {self.values.shape}"
            )

    @property
    def means(self) -> Values:
        """Mean of each store."""
        return tuple(float(value) for value in self.values.mean((0, 2)))

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`Demand`."""
        rows, _, length = self.values.shape
        if periods > length:
            raise ConfigError(f"demand: {periods} periods asked of histories that have {length}")
        chosen = random.random_sample if isinstance(random, np.random.RandomState) else random.random
        pick = chosen((scenarios, 2))
        row = (pick[:, 0] * rows).astype(np.int64)
        start = (pick[:, 1] * (length - periods + 1)).astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(self.values, periods, axis=2)
        return windows[row, :, start].copy()

"""Generators of demand fitted to one history; they keep what goes together, and are drawn like any other demand.

``CorrelatedCounts``: the fitted families with a normal copula between stores. ``BlockBootstrap``: blocks of consecutive
periods of the history itself, all stores together, from the same time of the year where the history is long enough;
what was censored or unknown has been drawn from the fit, several times over.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from offrl.envs.inventory.demand import Random, Values
from offrl.envs.inventory.work.censored import Counts, draw_beyond, inverse
from offrl.errors import ConfigError

Array = NDArray[np.float64]


def _uniform(random: Random, shape: tuple[int, ...]) -> Array:
    drawn = random.random_sample(shape) if isinstance(random, np.random.RandomState) else random.random(shape)
    return np.asarray(drawn, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrelatedCounts:
    """Fitted counts of S stores, one correlation between any two of them in a period."""

    fit: Counts
    correlation: float = 0.0
    """Of the normal numbers behind the counts, in [0, 1)."""
    season: Array | None = None
    """Factors of the periods from the first one drawn on, repeated."""

    @property
    def means(self) -> Values:
        """Mean of each store."""
        return tuple(float(mean) for mean in self.fit.mean)

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`~offrl.envs.inventory.demand.Demand`."""
        stores = len(self.fit.mean)
        z = np.asarray(random.standard_normal((scenarios, stores + 1, periods)))
        mixed = np.sqrt(self.correlation) * z[:, :1] + np.sqrt(1 - self.correlation) * z[:, 1:]
        uniform = ndtr(mixed).transpose(1, 0, 2)
        season = np.resize(np.ones(1) if self.season is None else self.season, periods)
        drawn: Array = np.empty_like(uniform)
        for factor in np.unique(season):
            at = season == factor
            drawn[:, :, at] = inverse(self.fit, float(factor), uniform[:, :, at])
        return drawn.transpose(1, 0, 2).copy()


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockBootstrap:
    """Blocks of completed histories (M, S, T)."""

    values: Array
    block: int = 8
    """Periods that stay together."""
    season: int = 0
    """Periods of a year; 0: blocks from anywhere. Else from at most ``reach`` periods away in some year."""
    reach: int = 4
    first: int = 0
    """Period of the year at which paths begin."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not np.isfinite(self.values).all():
            raise ConfigError(
                f"histories must be finite and (M, stores, periods), got shape {self.values.shape}"
            )
        if not 1 <= self.block <= self.values.shape[2]:
            raise ConfigError(
                f"block must be in 1 .. {self.values.shape[2]}, the periods known, got {self.block}"
            )

    @property
    def means(self) -> Values:
        """Mean of each store."""
        return tuple(float(value) for value in self.values.mean((0, 2)))

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`~offrl.envs.inventory.demand.Demand`."""
        copies, _, length = self.values.shape
        blocks = -(-periods // self.block)
        pick = _uniform(random, (scenarios, blocks, 3))
        last = length - self.block
        if self.season and last >= self.season:
            want = (self.first + self.block * np.arange(blocks)) % self.season
            years = (last - want) // self.season + 1
            start = want + self.season * np.floor(pick[..., 0] * years)
            start = start + np.floor(pick[..., 1] * (2 * self.reach + 1)) - self.reach
        else:
            start = np.floor(pick[..., 0] * (last + 1))
        start = np.clip(start, 0, last).astype(np.int64)
        time = (start[..., None] + np.arange(self.block)).reshape(scenarios, -1)[:, :periods]
        copy = np.floor(pick[..., 2] * copies).astype(np.int64).repeat(self.block, 1)[:, :periods]
        return self.values[copy, :, time].transpose(0, 2, 1).copy()


def completed(
    sales: Array, empty: NDArray[np.bool_], fit: Counts, factor: Array, copies: int, seed: int
) -> Array:
    """Histories without gaps, (M, S, T): what is censored or unknown is drawn from the fit.

    Args:
        sales: (S, T), NaN where unknown; returns count as 0.
        empty: (S, T), no stock left.
        fit: of the S series.
        factor: (S, T) or (T,), of the season.
        copies: M.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    x = np.maximum(np.nan_to_num(sales), 0.0)
    factor = np.broadcast_to(factor, x.shape)
    open_ = np.isnan(sales) | empty
    made = [np.where(open_, draw_beyond(x, fit, factor, random.random(x.shape)), x) for _ in range(copies)]
    return np.stack(made)

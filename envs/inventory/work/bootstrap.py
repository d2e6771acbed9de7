"""Generators of demand fitted to one history; they keep what goes together, and are drawn like any other demand.

``CorrelatedCounts``: the fitted families with a normal copula between stores. ``BlockBootstrap``: blocks of consecutive
periods of the history itself, all stores together, from the same time of the year where the history is long enough;
what was censored or unknown has been drawn from the fit, several times over.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from offrl.envs.inventory.demand import Random, Values
from offrl.envs.inventory.work.censored import Counts, Inverse, at_least, scores
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

    @property
    def stds(self) -> Values:
        """Of each store, season left out."""
        return tuple(float(std) for std in self.fit.std)

    @property
    def seasons(self) -> tuple[Values, ...]:
        """Factors of a season for each store."""
        own = (1.0,) if self.season is None else tuple(round(float(f), 4) for f in self.season)
        return ((1.0,) if set(own) == {1.0} else own,) * len(self.fit.mean)

    @property
    def streams(self) -> int:
        """Normal numbers behind a period: one of all stores together, and one each."""
        return len(self.fit.mean) + 1

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`~offrl.envs.inventory.demand.Demand`."""
        return self.made(np.asarray(random.standard_normal((scenarios, self.streams, periods))))

    def made(self, z: Array) -> Array:
        """(n, S, T) from normal numbers (n, S + 1, T)."""
        mixed = np.sqrt(self.correlation) * z[:, :1] + np.sqrt(1 - self.correlation) * z[:, 1:]
        quantile, phase = self._quantiles
        made = quantile(np.resize(phase, z.shape[2]), ndtr(mixed).transpose(1, 0, 2))
        return made.transpose(1, 0, 2).copy()

    @cached_property
    def _quantiles(self) -> tuple[Inverse, NDArray[np.int64]]:
        season = np.ones(1) if self.season is None else self.season
        factors, phase = np.unique(season, return_inverse=True)
        return Inverse(self.fit, factors), phase


@dataclass(frozen=True, kw_only=True, eq=False)
class Together:
    """Demand of several items, each in its stores; items are independent of each other."""

    parts: tuple[CorrelatedCounts, ...]

    @property
    def means(self) -> Values:
        """Mean of each store of each item."""
        return tuple(mean for part in self.parts for mean in part.means)

    @property
    def stds(self) -> Values:
        """Of each, season left out."""
        return tuple(std for part in self.parts for std in part.stds)

    @property
    def seasons(self) -> tuple[Values, ...]:
        """Of each."""
        return tuple(season for part in self.parts for season in part.seasons)

    def draw(self, scenarios: int, periods: int, random: Random) -> Array:
        """See :class:`~offrl.envs.inventory.demand.Demand`."""
        ends = np.cumsum([part.streams for part in self.parts])
        z = np.asarray(random.standard_normal((scenarios, int(ends[-1]), periods)))
        blocks = np.split(z, ends[:-1], axis=1)
        return np.concatenate([part.made(own) for part, own in zip(self.parts, blocks, strict=True)], 1)


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
    sales: Array, empty: NDArray[np.bool_], fit: Counts, factor: Array, copies: int, seed: int,
    correlation: float = 0.0,
) -> Array:  # fmt: skip
    """Histories without gaps, (M, S, T): what is censored or unknown is drawn from the fit.

    Normal scores of the stores in a period are sqrt(rho) c + sqrt(1 - rho) e; c is drawn given the stores whose demand
    is known, and then the others given c, so that a good week is one in the stores that ran out as well.

    Args:
        sales: (S, T), NaN where unknown; returns count as 0.
        empty: (S, T), no stock left.
        fit: of the S series.
        factor: (T,), of the season.
        copies: M.
        seed: of the draws.
        correlation: rho, between any two stores.
    """
    random = np.random.default_rng(seed)
    x = np.maximum(np.nan_to_num(sales), 0.0)
    known, rest = ~(np.isnan(sales) | empty), 1 - correlation
    above, tail = at_least(x + 1, fit, factor), at_least(x, fit, factor)
    uniform = random.random((len(x), copies, x.shape[1]))
    low, tail = 1 - tail[:, None], tail[:, None]
    if correlation:
        jitter = random.random(uniform.shape)
        z = np.where(known[:, None], scores(low + jitter * (tail - above[:, None])), 0.0)
        precision = rest + correlation * known.sum(0)
        mean, own = np.sqrt(correlation) * z.sum(0) / precision, random.standard_normal(z.shape[1:])
        common = np.sqrt(correlation) * (mean + np.sqrt(rest / precision) * own)
        below = ndtr((scores(low) - common) / np.sqrt(rest))
        uniform = ndtr(common + np.sqrt(rest) * scores(below + uniform * (1 - below)))
    else:
        uniform = low + uniform * tail
    factors, phase = np.unique(factor, return_inverse=True)
    drawn = np.maximum(Inverse(fit, factors)(phase, uniform), x[:, None])
    return np.where(known[:, None], x[:, None], drawn).transpose(1, 0, 2).copy()

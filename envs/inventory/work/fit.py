"""Demand of every item and store from one history: fit, season, held-out dates, calibration, an over-fit alarm."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offrl.envs.inventory.demand import Demand
from offrl.envs.inventory.work.bootstrap import BlockBootstrap, CorrelatedCounts, completed
from offrl.envs.inventory.work.censored import (
    Counts,
    at_least,
    draw_beyond,
    fit_counts,
    kaplan_meier,
    log_pmf,
    pit,
    scores,
)
from offrl.envs.inventory.work.history import History
from offrl.envs.inventory.work.intermittent import tsb
from offrl.errors import ConfigError

Array = NDArray[np.float64]
YEAR = {"week": 52, "day": 7}
"""Periods of a season: a year of weeks, a week of days."""
HARMONICS = 2
COPIES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class DemandFit:
    """Fitted demand of I items in S stores. Series that were never sold have mean 0."""

    history: History
    """What it was fitted on."""
    counts: Counts
    """Of I * S series."""
    factor: Array
    """(I, T), of the season in the periods of the history; means over a season are 1."""
    season: Array
    """(I, P): factors of one season, from the first period of the history on; all 1: none was found."""
    naive: Array
    """(I, S), mean of known sales, returns as 0: what one would use without looking at stock."""
    recent: Array
    """(I, S), TSB's rate at the end of the history: well below the mean, the item is dying."""

    @property
    def means(self) -> Array:
        """(I, S), units a period."""
        return self.counts.mean.reshape(self.naive.shape)

    @property
    def intermittent(self) -> NDArray[np.bool_]:
        """(I, S)."""
        return (self.counts.active < 1).reshape(self.naive.shape)

    def series(self, item: int, stores: list[int]) -> Counts:
        """Of one item."""
        return self.counts.rows(np.array(stores) + item * self.naive.shape[1])

    def later(self, item: int, start: int, periods: int) -> Array:
        """Factors of the season from period ``start`` of the history on, (periods,)."""
        season = self.season[item]
        found: Array = season[(start + np.arange(periods)) % len(season)]
        return found


def fit_demand(history: History) -> DemandFit:
    """Fit without season, then the season on what the fit expects, then the fit again.

    Raises:
        ConfigError: fewer than 8 periods.
    """
    items, stores, periods = history.sales.shape
    if periods < 8:
        raise ConfigError(f"{periods} {history.period}s of sales; 8 are the least to fit on")
    flat, empty = history.sales.reshape(-1, periods), history.empty.reshape(-1, periods)
    group = np.arange(items).repeat(stores)
    counts = fit_counts(flat, empty, group=group)
    season = np.stack([_season(history, counts, item) for item in range(items)])
    factor = season[:, np.arange(periods) % season.shape[1]]
    if (season != 1).any():
        counts = fit_counts(flat, empty, factor.repeat(stores, 0), group)
    never = np.isnan(flat).all(1)
    counts = Counts(mean=np.where(never, 0.0, counts.mean), size=counts.size, active=counts.active)
    total, known = np.nansum(np.maximum(history.sales, 0.0), 2), (~np.isnan(history.sales)).sum(2)
    naive = total / np.maximum(known, 1)
    rates = np.array(
        [np.prod(tsb(np.where(e & ~(x > 0), np.nan, x))) for x, e in zip(flat, empty, strict=True)]
    )
    return DemandFit(
        history=history, counts=counts, factor=factor, season=season, naive=naive,
        recent=rates.reshape(items, stores),
    )  # fmt: skip


def _season(history: History, counts: Counts, item: int) -> Array:
    """Factors of one season for an item, by harmonics on its stores' sum; as many as lower BIC; ones for none."""
    length, periods, stores = YEAR[history.period], history.sales.shape[2], history.sales.shape[1]
    flat = np.ones(length)
    rows = slice(item * stores, (item + 1) * stores)
    own = counts.rows(rows)
    if periods < 1.5 * length or not (own.active[history.sold[item]] == 1).any():
        return flat
    sales, empty = history.sales[item], history.empty[item]
    x = np.maximum(np.nan_to_num(sales), 0.0)
    middle = draw_beyond(x, own, np.ones_like(x), np.full_like(x, 0.5))  # median of what may have been
    filled = np.where(empty & ~np.isnan(sales), middle, x)
    weight = (~np.isnan(sales)) * own.mean[:, None]
    y = (filled * ~np.isnan(sales)).sum(0) / np.maximum(weight.sum(0), 1e-9)
    use = weight.sum(0) > 0
    angle = 2 * np.pi * np.arange(periods) / length
    best, chosen = np.inf, flat
    for k in range(HARMONICS + 1):
        waves = [f(j * angle) for j in range(1, k + 1) for f in (np.cos, np.sin)]
        design = np.stack([np.ones(periods), *waves], 1)
        solved = np.linalg.lstsq(design[use], y[use], rcond=None)[0]
        left = y[use] - design[use] @ solved
        bic = use.sum() * np.log((left**2).mean() + 1e-12) + design.shape[1] * np.log(use.sum())
        if bic < best - 2:
            curve = (design @ solved)[:length] if k else flat
            curve = np.maximum(curve, 0.05)
            best, chosen = bic, curve / curve.mean()
    return chosen


def generator(
    fit: DemandFit, item: int, stores: list[int], *, kind: str = "parametric", start: int = 0
) -> Demand:
    """Demand paths of one item for the simulator, which begin at period ``start`` of the history.

    Args:
        fit: of the history.
        item: its number.
        stores: those that sell it.
        kind: ``parametric`` or ``bootstrap``.
        start: the history's length for what comes next.
    """
    history, counts = fit.history, fit.series(item, stores)
    sales, empty = history.sales[item][stores], history.empty[item][stores]
    length = fit.season.shape[1]
    if kind == "bootstrap":
        factor = fit.factor[item]
        together = correlation(sales, empty, counts, factor)
        values = completed(sales, empty, counts, factor, COPIES, seed=item, correlation=together)
        seasonal = length if (fit.season[item] != 1).any() else 0
        block = max(1, min(8, sales.shape[1] // 4))
        return BlockBootstrap(values=values, season=seasonal, block=block, first=start % length)
    if kind != "parametric":
        raise ConfigError(f"generator must be parametric or bootstrap, got {kind!r}")
    return CorrelatedCounts(
        fit=counts, correlation=correlation(sales, empty, counts, fit.factor[item]),
        season=fit.later(item, start, length),
    )  # fmt: skip


def correlation(sales: Array, empty: NDArray[np.bool_], fit: Counts, factor: Array) -> float:
    """One correlation between stores, from normal scores of a completed history."""
    if len(sales) < 2:
        return 0.0
    values = completed(sales, empty, fit, factor, 4, seed=0)
    factors = np.broadcast_to(factor, sales.shape)
    found = []
    random = np.random.default_rng(1)
    for x in values:
        z = scores(pit(x, fit, factors, random.random(x.shape)))
        z = (z - z.mean(1, keepdims=True)) / (z.std(1, keepdims=True) + 1e-9)
        n = len(z)
        found.append(((z.sum(0) ** 2).mean() - n) / (n * (n - 1)))
    known = 1 - (np.isnan(sales) | empty).mean()  # what was drawn is independent and thins the correlation
    return float(np.clip(np.mean(found) / max(known, 0.3) ** 2, 0.0, 0.95))


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """How held-out sales fall in the fitted distributions."""

    levels: Array
    """(Q,), nominal."""
    fitted: Array
    """(Q,), share of held-out demand below the fitted quantile, by Kaplan and Meier."""
    naive: Array
    """(Q,), the same for counts fitted to sales as if they were demand."""
    train_score: float
    """Mean log-likelihood of a period, on what was fitted."""
    held_score: float
    """On held-out dates."""
    error: float
    """Standard error of their difference."""
    periods: int
    """Held out."""

    @property
    def worst(self) -> float:
        """Largest distance of the fitted curve from the nominal one."""
        return float(np.abs(self.fitted - self.levels).max())

    @property
    def alarm(self) -> str:
        """Why the fit should not be trusted on new dates; empty: no reason."""
        gap = self.train_score - self.held_score
        if gap > 3 * self.error and gap > 0.05:
            return (
                f"held-out periods are {gap:.3f} nats less likely than fitted ones (s.e. {self.error:.3f}): "
                "over-fitted, or demand has changed; fit on fewer, later dates"
            )
        if self.worst > 0.1:
            return f"held-out demand lies {self.worst:.0%} away from the fitted quantiles; demand has changed"
        return ""


def calibrate(history: History, held: int) -> tuple[DemandFit, Calibration]:
    """Fit on all but the last ``held`` periods, and score on these.

    Raises:
        ConfigError: nothing is left to fit on, or to score.
    """
    periods = history.sales.shape[2]
    if periods < 9:
        raise ConfigError(
            f"{periods} {history.period}s of sales; 9 are the least: 8 to fit on and 1 to hold out"
        )
    if not 1 <= held <= periods - 8:
        raise ConfigError(
            f"--held-out must be in 1 .. {periods - 8}, got {held}: 8 periods are the least to fit on"
        )
    fit = fit_demand(history.until(periods - held))
    later = np.stack([fit.later(i, periods - held, held) for i in range(len(history.items))])
    x, cut, factor = _scored(history, slice(periods - held, None), later)
    sold = fit.means.reshape(-1) > 0
    if np.isnan(x[sold]).all():
        raise ConfigError(
            f"no sales are known on the last {held} {history.period}s of what was sold before; hold out more"
        )
    parts = (x[sold], cut[sold], factor[sold])
    counts = fit.counts.rows(sold)
    early = _scored(history, slice(0, periods - held), fit.factor)
    plain = fit_counts(early[0][sold], np.zeros_like(early[1][sold]), early[2][sold])
    levels = np.linspace(0.05, 0.95, 19)
    held_scores = _likelihoods(*parts, counts)
    train_scores = _likelihoods(early[0][sold], early[1][sold], early[2][sold], counts)
    spread = np.sqrt(train_scores.var() / train_scores.size + _by_period(held_scores, x[sold]).var() / held)
    return fit, Calibration(
        levels=levels, fitted=_curve(*parts, counts, levels), naive=_curve(*parts, plain, levels),
        train_score=float(train_scores.mean()), held_score=float(held_scores.mean()), error=float(spread), periods=held,
    )  # fmt: skip


def _scored(history: History, when: slice, factor: Array) -> tuple[Array, NDArray[np.bool_], Array]:
    """Sales (n, T), where censored, factors (n, T)."""
    sales, empty = history.sales[:, :, when], history.empty[:, :, when]
    n = sales.shape[2]
    return sales.reshape(-1, n), empty.reshape(-1, n), factor.repeat(sales.shape[1], 0)


def _log_likelihood(x: Array, cut: NDArray[np.bool_], factor: Array, fit: Counts) -> Array:
    value = np.maximum(np.nan_to_num(x), 0.0)
    at, above = at_least(value, fit, factor), at_least(value + 1, fit, factor)
    smooth = log_pmf(value, (fit.mean[:, None] * factor).clip(1e-9), fit.size[:, None])
    exact = np.where(fit.active[:, None] < 1, np.log(np.maximum(at - above, 1e-12)), smooth)
    found: Array = np.where(cut, np.log(np.maximum(at, 1e-12)), exact)
    return np.where(np.isnan(x), np.nan, found)


def _likelihoods(x: Array, cut: NDArray[np.bool_], factor: Array, fit: Counts) -> Array:
    found = _log_likelihood(x, cut, factor, fit)
    return found[~np.isnan(found)]


def _by_period(scores: Array, x: Array) -> Array:
    """Mean score of each period: periods are what is independent, not stores."""
    full = np.full(x.shape, np.nan)
    full[~np.isnan(x)] = scores
    keep = ~np.isnan(full).all(0)
    return np.asarray(np.nanmean(full[:, keep], 0))


def _curve(x: Array, cut: NDArray[np.bool_], factor: Array, fit: Counts, levels: Array) -> Array:
    """Share of demand below each fitted quantile, with censored periods as such."""
    known = ~np.isnan(x)
    value = np.maximum(np.nan_to_num(x), 0.0)
    uniform = np.random.default_rng(0).random(x.shape)
    exact = pit(value, fit, factor, uniform)
    below = 1 - at_least(value, fit, factor)
    u = np.where(cut, below, exact)[known]
    values, survival = kaplan_meier(np.round(u, 4).astype(np.float64), cut[known])
    place = np.searchsorted(values, levels, side="right")
    return 1 - np.concatenate([[1.0], survival])[place]

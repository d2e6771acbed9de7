"""Demand behind sales: at zero stock left, sales only say that demand was at least as large.

    log L = sum over known periods log P(D = x) + sum over periods with nothing left log P(D >= x)

    smooth items        D ~ NegativeBinomial(mean m f_t, size r): variance = mean + mean^2 / r
    intermittent items  D = 0 with probability 1 - q; else 1 + NegativeBinomial(mean m f_t / q - 1, size r)

f_t are factors of the season. Maximum likelihood of all series at once, by search on a shrinking pattern; the stores of
an item share r. Kaplan and Meier's estimate, which assumes no family, stands beside it.

Source: Kaplan & Meier 1958; Conrad 1976 and Nahmias 1994 on lost sales.
Departures: periods that begin without stock and sell nothing say nothing (P(D >= 0) = 1). A series of which every sale
left nothing has no largest likelihood: its sales are raised by what stock-outs hid of the item in the other stores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, ndtri

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ROUNDS = 90
TAIL = 1e-8
"""Probability beyond the tables of quantiles, at most."""
LARGEST_SIZE = np.log(200.0)
INTERMITTENT = 0.4
"""Share of in-stock periods with sales below which an item is intermittent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Fitted demand of n series."""

    mean: Array
    """(n,), units a period, over the season."""
    size: Array
    """(n,), r."""
    active: Array
    """(n,), q: probability of any demand; 1 for smooth items."""

    @property
    def std(self) -> Array:
        """(n,), units a period, season left out."""
        batch = self.mean / self.active - 1
        smooth = self.mean + self.mean**2 / self.size
        lumpy = self.active * (batch + batch**2 / self.size + (batch + 1) ** 2) - self.mean**2
        found: Array = np.sqrt(np.where(self.active < 1, lumpy, smooth).clip(0))
        return found

    def rows(self, index: NDArray[np.integer[Any] | np.bool_] | slice) -> "Counts":
        """Some of the series."""
        return Counts(mean=self.mean[index], size=self.size[index], active=self.active[index])


def log_pmf(x: Array, mean: Array, size: Array) -> Array:
    """Of the negative binomial; x of 0 or more."""
    p = size / (size + mean)
    found: Array = gammaln(x + size) - gammaln(size) - gammaln(x + 1) + size * np.log(p) + x * np.log1p(-p)
    return found


def survival(x: Array, mean: Array, size: Array) -> Array:
    """P(D >= x) of the negative binomial."""
    x, mean, size = np.broadcast_arrays(x, mean, size)
    inside = betainc(np.maximum(x, 1.0), size, mean / (size + mean))
    return np.where(x <= 0, 1.0, inside)


def at_least(x: Array, fit: Counts, factor: Array) -> Array:
    """P(D >= x), (n, T), of fitted demand with the season's factors, (n, T) or (T,)."""
    smooth = survival(x, (fit.mean[:, None] * factor).clip(1e-9), fit.size[:, None])
    rest = (fit.mean / fit.active)[:, None] * factor - 1
    batch = fit.active[:, None] * survival(x - 1, rest.clip(1e-9), fit.size[:, None])
    return np.where(fit.active[:, None] < 1, np.where(x <= 0, 1.0, batch), smooth)


def fit_counts(
    sales: Array, empty: Mask, factor: Array | None = None, group: NDArray[np.int64] | None = None
) -> Counts:
    """Maximum likelihood.

    Args:
        sales: (n, T), NaN where unknown; returns count as 0.
        empty: (n, T), True where no stock was left.
        factor: (n, T) or (T,), of the season; default 1.
        group: (n,), series of one number share their size r (an item in its stores); default: each has its own.
    """
    x = np.maximum(np.nan_to_num(sales), 0.0)
    known = ~np.isnan(sales)
    ones = np.ones_like(sales) if factor is None else np.broadcast_to(factor, sales.shape)
    group = np.arange(len(sales)) if group is None else group
    exact, cut = known & ~empty, known & empty & (x > 0)
    some = np.maximum((exact | cut).sum(1), 1)
    positive = ((x > 0) & (exact | cut)).sum(1)
    rate = np.bincount(group, positive) / np.maximum(np.bincount(group, (exact | cut).sum(1)), 1)
    rare = rate[group] < INTERMITTENT
    mean, size, active = np.zeros(len(x)), np.ones(len(x)), np.ones(len(x))
    if not rare.all():
        at = ~rare
        mean[at], size[at] = _search(x[at], exact[at], cut[at], ones[at], group[at])
    if rare.any():
        at = rare
        sold = exact[at] & (x[at] > 0)
        batch, size[at] = _search((x[at] - 1).clip(0), sold, cut[at], ones[at], group[at], least=1e-3)
        active[at] = np.maximum(positive[at], 0.5) / some[at]
        mean[at] = active[at] * (1 + batch)
    return Counts(mean=mean, size=size, active=active)


def _search(
    x: Array, exact: Mask, cut: Mask, factor: Array, group: NDArray[np.int64], least: float = 0.02
) -> tuple[Array, Array]:
    """(mean, size) of largest likelihood, each (n,), by steps along one number at a time that shrink."""
    group = np.unique(group, return_inverse=True)[1]
    seen = exact | cut
    start = (x * seen).sum(1) / np.maximum((factor * seen).sum(1), 1e-9)
    mean, size = np.log(np.maximum(start, least)), np.full(group.max() + 1, np.log(4.0))
    rows, columns = np.nonzero(cut)
    x_cut, f_cut = x[rows, columns], factor[rows, columns]
    at_rows, at_columns = np.nonzero(exact)
    x_exact, f_exact = x[at_rows, at_columns], factor[at_rows, at_columns]

    def value(mean: Array, size: Array) -> Array:
        m, r = np.exp(mean), np.exp(size)[group]
        inside = log_pmf(x_exact, (m[at_rows] * f_exact).clip(1e-9), r[at_rows])
        tail = np.log(np.maximum(survival(x_cut, (m[rows] * f_cut).clip(1e-9), r[rows]), 1e-300))
        total = np.bincount(at_rows, inside, minlength=len(x)) + np.bincount(rows, tail, minlength=len(x))
        return total.astype(np.float64)

    steps = (np.full(len(mean), 0.5), np.full(len(size), 1.0))
    now = value(mean, size)
    for _ in range(ROUNDS):
        for sign in (1.0, -1.0):
            other = value(mean + sign * steps[0], size)
            up = other > now
            mean, now = np.where(up, mean + sign * steps[0], mean), np.where(up, other, now)
            steps[0][:] = steps[0] * np.where(up, 1.2, 0.75)
            tried = np.clip(size + sign * steps[1], np.log(0.05), LARGEST_SIZE)
            other = value(mean, tried)
            up = np.bincount(group, other) > np.bincount(group, now)
            size, now = np.where(up, tried, size), np.where(up[group], other, now)
            steps[1][:] = steps[1] * np.where(up, 1.2, 0.75)
        if steps[0].max() < 5e-4 and steps[1].max() < 5e-3:
            break
    found = np.exp(mean)
    blind = cut.any(1) & ~exact.any(1)
    if blind.any():  # the likelihood grows with the mean for ever
        plain = np.maximum(start, least)
        fitted, sold = (np.bincount(group, np.where(blind, 0.0, own)) for own in (found, plain))
        hidden = np.where(sold > 0, fitted / np.where(sold > 0, sold, 1.0), 1.0)
        found = np.where(blind, plain * hidden[group], found)
    return found, np.exp(size)[group]


def kaplan_meier(x: Array, censored: Mask) -> tuple[Array, Array]:
    """Estimate of P(D > v) at every distinct exact value v: (values, survival).

    Args:
        x: (n,), observed values.
        censored: (n,), True where the true value is at least x.
    """
    values = np.unique(x[~censored])
    left = 1.0
    curve = []
    for v in values:
        at_risk = ((x > v) | ((x == v) & ~censored) | ((x == v) & censored)).sum()
        left *= 1 - ((x == v) & ~censored).sum() / at_risk
        curve.append(left)
    return values, np.array(curve)


class Inverse:
    """Quantile functions of n series under P different factors of the season, as tables."""

    def __init__(self, fit: Counts, factors: Array) -> None:
        self.tables: list[Array] = []
        self.widths: list[int] = []
        column = factors[:, None]
        for k in range(len(fit.mean)):
            one, most = fit.rows(slice(k, k + 1)), 8.0
            while float(at_least(np.full(column.shape, most), one, column).max()) > TAIL and most < 1e7:
                most *= 2
            below = 1 - at_least(np.arange(1.0, most + 1)[None], one, column)  # P(D <= 0), P(D <= 1), ...
            self.tables.append((below + np.arange(len(factors))[:, None]).ravel())  # one growing row
            self.widths.append(int(most))

    def __call__(self, phase: NDArray[np.int64], uniform: Array) -> Array:
        """Demand (n, M, T) of which ``uniform`` are the quantiles, under factor ``phase`` (T,) of each period."""
        made = np.empty_like(uniform)
        for k, (table, width) in enumerate(zip(self.tables, self.widths, strict=True)):
            found = np.searchsorted(table, uniform[k] + phase, side="left")
            made[k] = np.minimum(found - phase * width, width - 1)
        return made


def pit(x: Array, fit: Counts, factor: Array, uniform: Array) -> Array:
    """P(D < x) + uniform * P(D = x)."""
    above, at = at_least(x + 1, fit, factor), at_least(x, fit, factor)
    return 1 - at + uniform * (at - above)


def scores(u: Array) -> Array:
    """Normal numbers of which ``u`` are the probabilities below."""
    return np.asarray(ndtri(u.clip(1e-6, 1 - 1e-6)))


def draw_beyond(x: Array, fit: Counts, factor: Array, uniform: Array) -> Array:
    """Demand of at least ``x``, drawn from the fit by uniform numbers; all (n, T)."""
    target = at_least(x, fit, factor) * (1 - uniform)  # the largest v with P(D >= v) >= target
    low = x.astype(np.float64)
    high = np.maximum(x, 1.0) * 2 + 10 * (fit.mean[:, None] + 1) * factor.clip(1) + 50
    for _ in range(int(np.ceil(np.log2(high.max() + 2))) + 1):
        middle = np.floor((low + high + 1) / 2)
        keep = at_least(middle, fit, factor) >= np.maximum(target, 1e-12)
        low, high = np.where(keep, middle, low), np.where(keep, high, middle - 1)
    return low

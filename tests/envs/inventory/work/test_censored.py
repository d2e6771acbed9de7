"""Censored likelihood and Kaplan-Meier against known demand."""

import numpy as np
import pytest
from scipy import stats

from offrl.envs.inventory.work.censored import (
    Counts,
    Inverse,
    at_least,
    draw_beyond,
    fit_counts,
    kaplan_meier,
    log_pmf,
    survival,
)  # fmt: skip


def kaplan_meier_mean(x, censored):
    """Mean of Kaplan and Meier's estimate; beyond the largest exact value counts as the largest value seen."""
    values, curve = kaplan_meier(x, censored)
    if not len(values):
        return float(x.max(initial=0.0))
    steps = np.diff(values, prepend=0.0)
    before = np.concatenate([[1.0], curve[:-1]])
    return float((steps * before).sum() + curve[-1] * (x.max() - values[-1]))


def test_the_negative_binomial_is_scipys():
    x, mean, size = np.arange(30.0), 7.3, 2.4
    p = size / (size + mean)
    np.testing.assert_allclose(log_pmf(x, mean, size), stats.nbinom.logpmf(x, size, p))
    np.testing.assert_allclose(survival(x, mean, size), stats.nbinom.sf(x - 1, size, p))


def sales_of(demand, stock):
    left = np.maximum(stock - demand, 0)
    return np.minimum(demand, stock), left == 0


@pytest.mark.parametrize("family", ["poisson", "negative binomial", "slow"])
def test_the_mean_is_within_3_percent_where_sales_are_off_by_more_than_10(family):
    """Sales in stores whose stock is drawn beforehand: 16 series of 900 periods, pooled."""
    random = np.random.default_rng(0)
    shape = (16, 900)
    if family == "poisson":
        demand, stock = random.poisson(10, shape), random.integers(4, 14, shape)
    elif family == "negative binomial":
        demand, stock = random.negative_binomial(3, 3 / 13, shape), random.integers(3, 18, shape)
    else:
        demand = np.where(random.random(shape) < 0.25, 1 + random.poisson(3, shape), 0)
        stock = random.integers(0, 7, shape)
    x, empty = sales_of(demand.astype(float), stock)
    x[random.random(shape) < 0.05] = np.nan
    fit = fit_counts(x, empty, group=np.zeros(16, dtype=int))
    true = demand.mean()
    assert abs(np.nanmean(x) / true - 1) > 0.1
    assert abs(fit.mean.mean() / true - 1) < 0.03
    assert (fit.active < 1).all() == (family == "slow")
    kept = ~np.isnan(x) & ((x > 0) | ~empty)
    estimates = [
        kaplan_meier_mean(row[keep], gone[keep]) for row, gone, keep in zip(x, empty, kept, strict=True)
    ]
    assert abs(np.mean(estimates) / true - 1) < (
        0.1 if family == "slow" else 0.05
    )  # stock bounds what it can see


def test_without_stock_outs_the_mean_is_the_mean():
    random = np.random.default_rng(1)
    x = random.negative_binomial(2, 0.2, (5, 400)).astype(float)
    fit = fit_counts(x, np.zeros_like(x, dtype=bool))
    np.testing.assert_allclose(fit.mean, x.mean(1), rtol=2e-3)


def test_the_season_is_divided_out():
    random = np.random.default_rng(2)
    factor = 1 + 0.6 * np.sin(2 * np.pi * np.arange(520) / 52)
    x = random.poisson(20 * factor, (3, 520)).astype(float)
    fit = fit_counts(x[:, :26], np.zeros((3, 26), dtype=bool), factor[:26])
    assert abs(fit.mean.mean() / 20 - 1) < 0.04
    assert x[:, :26].mean() > 24


def test_a_group_shares_its_size():
    random = np.random.default_rng(3)
    x = random.negative_binomial(3, 3 / 13, (6, 50)).astype(float)
    fit = fit_counts(x, np.zeros_like(x, dtype=bool), group=np.array([0, 0, 0, 1, 1, 1]))
    assert len(set(fit.size[:3])) == len(set(fit.size[3:])) == 1
    assert fit.size[0] != fit.size[3]


def test_returned_goods_count_as_no_demand_and_gaps_as_nothing():
    x = np.array([[3.0, -2.0, np.nan, 5.0, 4.0, np.nan, 6.0, 2.0]])
    y = np.array([[3.0, 0.0, 5.0, 4.0, 6.0, 2.0]])
    a, b = (fit_counts(v, np.zeros_like(v, dtype=bool)) for v in (x, y))
    assert a.mean == b.mean


def test_kaplan_meier_by_hand():
    """1, 2+, 3, 3+, 5: P(D > 1) = 4/5; at 3 three are at risk: 4/5 x 2/3; at 5 one: 0."""
    values, curve = kaplan_meier(np.array([1.0, 2, 3, 3, 5]), np.array([False, True, False, True, False]))
    np.testing.assert_array_equal(values, [1, 3, 5])
    np.testing.assert_allclose(curve, [4 / 5, 8 / 15, 0])
    assert kaplan_meier_mean(np.array([1.0, 2, 3, 3, 5]), np.array([0, 1, 0, 1, 0], bool)) == pytest.approx(
        1 + 2 * 4 / 5 + 2 * 8 / 15
    )


def test_draws_beyond_follow_the_conditional_distribution():
    random = np.random.default_rng(4)
    fit = Counts(mean=np.array([6.0, 1.5]), size=np.array([2.0, 3.0]), active=np.array([1.0, 0.3]))
    x = np.array([[5.0], [4.0]]).repeat(20000, 1)
    drawn = draw_beyond(x, fit, np.ones(20000), random.random(x.shape))
    assert (drawn >= x).all()
    for k, v in ((0, 8.0), (1, 6.0)):
        one = fit.rows(slice(k, k + 1))
        want = at_least(np.array([[v]]), one, np.ones(1)) / at_least(x[k : k + 1, :1], one, np.ones(1))
        assert (drawn[k] >= v).mean() == pytest.approx(float(want[0, 0]), abs=0.012)
    phase = np.arange(20000) % 2
    free = Inverse(fit, np.array([1.0, 2.0]))(phase, random.random((2, 3, 20000)))
    for k, factor in enumerate((1, 2)):
        np.testing.assert_allclose(free[:, :, phase == k].mean((1, 2)), factor * fit.mean, rtol=0.03)
    assert (free[1] == 0).mean() == pytest.approx(0.7, abs=0.012)
    high = np.full((2, 1, 2), 1 - 1e-12)
    assert (Inverse(fit, np.array([1.0, 2.0]))(phase[:2], high) < 1000).all()


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_a_series_of_which_every_sale_left_nothing_has_a_mean(rate):
    """Its likelihood grows with the mean for ever: it is taken from what stock-outs hid in the item's other stores."""
    random = np.random.default_rng(0)
    demand = np.where(random.random((4, 200)) < rate, 1 + random.poisson(5.0, (4, 200)), 0).astype(float)
    stock = np.array([5.0, 6.0, 7.0, 2.0])[:, None]
    sales = np.minimum(demand, stock)
    empty = demand >= stock
    if rate == 1:
        empty[3] = True  # no period with anything left
    else:
        empty[3] = sales[3] > 0
    fitted = fit_counts(sales, empty, group=np.zeros(4, dtype=np.int64))
    true = rate * 6
    assert fitted.mean[:3] == pytest.approx(true, rel=0.25)
    assert sales[3].mean() < fitted.mean[3] < 1.2 * true
    alone = fit_counts(sales[3:], empty[3:])
    assert alone.mean[0] == pytest.approx(sales[3].mean(), rel=0.1)

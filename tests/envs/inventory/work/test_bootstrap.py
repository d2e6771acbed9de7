"""Generators keep what goes together, and are demand like any other."""

import numpy as np
import pytest

from offrl.envs.inventory.work.bootstrap import BlockBootstrap, CorrelatedCounts, completed
from offrl.envs.inventory.work.censored import Counts
from offrl.errors import ConfigError


def fit_of(means):
    n = len(means)
    return Counts(mean=np.array(means), size=np.full(n, 5.0), active=np.ones(n))


def test_counts_have_the_means_the_season_and_the_correlation():
    season = np.array([0.5, 1.5])
    demand = CorrelatedCounts(fit=fit_of([30.0, 50.0]), correlation=0.5, season=season)
    drawn = demand.draw(3000, 4, np.random.RandomState(0))
    assert drawn.shape == (3000, 2, 4)
    np.testing.assert_allclose(drawn.mean(0), np.outer([30, 50], [0.5, 1.5, 0.5, 1.5]), rtol=0.04)
    assert np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.06)
    assert np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1] == pytest.approx(0, abs=0.06)
    assert demand.means == (30.0, 50.0)
    assert (drawn == drawn.round()).all()


def test_blocks_stay_together_and_come_from_their_time_of_the_year():
    values = np.stack([np.arange(104.0), 1000 + np.arange(104.0)])[None]
    demand = BlockBootstrap(values=values, block=4, season=52, reach=2, first=10)
    drawn = demand.draw(500, 10, np.random.RandomState(0))
    assert drawn.shape == (500, 2, 10)
    np.testing.assert_array_equal(drawn[:, 1] - drawn[:, 0], 1000)
    assert (np.diff(drawn[:, 0, :4]) == 1).all()
    assert (np.diff(drawn[:, 0, 4:8]) == 1).all()
    start = drawn[:, 0, 0]
    away = np.minimum((start - 10) % 52, (10 - start) % 52)
    assert away.max() == 2
    assert {0, 1} == set(((start + 2 - 10) // 52).astype(int))
    free = BlockBootstrap(values=values, block=4).draw(2000, 4, np.random.default_rng(0))[:, 0, 0]
    assert (free.min(), free.max()) == (0, 100)
    assert free.mean() == pytest.approx(50, abs=2)


def test_completed_histories_keep_what_is_known():
    sales = np.array([[3.0, np.nan, 5.0, -1.0]])
    empty = np.array([[False, False, True, False]])
    made = completed(sales, empty, fit_of([6.0]), np.ones(4), copies=200, seed=0)
    assert made.shape == (200, 1, 4)
    assert (made[:, 0, 0] == 3).all()
    assert (made[:, 0, 3] == 0).all()
    assert made[:, 0, 2].min() >= 5
    assert made[:, 0, 2].mean() > 7
    assert made[:, 0, 1].mean() == pytest.approx(6, abs=0.8)


def test_completed_weeks_go_with_those_of_the_other_stores():
    """Half of the second store's weeks are unknown, some more ran out: what is drawn has the stores' correlation."""
    fit, random = fit_of([30.0, 50.0]), np.random.default_rng(0)
    drawn = CorrelatedCounts(fit=fit, correlation=0.6, season=np.ones(1)).draw(
        1, 4000, np.random.RandomState(0)
    )[0]
    sales, empty = drawn.copy(), np.zeros(drawn.shape, dtype=bool)
    unknown = random.random(4000) < 0.5
    sales[1, unknown] = np.nan
    cut = ~unknown & (drawn[1] > 55)
    sales[1, cut], empty[1, cut] = 55, True
    made = completed(sales, empty, fit, np.ones(4000), copies=4, seed=0, correlation=0.6)
    apart = completed(sales, empty, fit, np.ones(4000), copies=4, seed=0)
    pairs = [
        np.corrcoef(np.tile(drawn[0, unknown], 4), x[:, 1, unknown].ravel())[0, 1] for x in (made, apart)
    ]
    assert pairs == pytest.approx([0.6, 0.0], abs=0.05)
    whole = np.corrcoef(np.tile(drawn[0], 4), made[:, 1].ravel())[0, 1]
    assert whole == pytest.approx(0.6, abs=0.05)
    assert made[:, 1].mean() == pytest.approx(50, abs=1.5)


def test_what_is_wrong():
    with pytest.raises(ConfigError, match="block must be in 1 .. 4"):
        BlockBootstrap(values=np.ones((1, 1, 4)), block=5)
    with pytest.raises(ConfigError, match="histories must be finite"):
        BlockBootstrap(values=np.full((1, 1, 4), np.nan), block=1)

"""The demand of a company from its history: means, season, calibration, the alarm."""

import dataclasses

import numpy as np
import pytest

from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.example import example
from offrl.envs.inventory.work.fit import calibrate, fit_demand, generator
from offrl.envs.inventory.work.history import history_of
from offrl.errors import ConfigError
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.fixture(scope="module")
def made():
    return example(items=8, stores=4)


@pytest.fixture(scope="module")
def history(made):
    return history_of(company_of(read_tables_of(made.rows)))


@pytest.fixture(scope="module")
def fitted(history):
    return fit_demand(history)


def test_means_are_found_where_sales_mislead(made, fitted):
    true = made.demand.mean(2)
    for group in range(4):
        rows = np.arange(8) % 4 == group
        assert fitted.means[rows].sum() / true[rows].sum() == pytest.approx(1, abs=0.06)
        assert fitted.naive[rows].sum() / true[rows].sum() < (0.9 if group == 3 else 0.99)
    assert fitted.naive.sum() / true.sum() < 0.97
    assert fitted.means.sum() / true.sum() == pytest.approx(1, abs=0.03)


def test_seasons_and_slow_items_are_recognised(fitted):
    seasonal = (fitted.season != 1).any(1)
    np.testing.assert_array_equal(seasonal, np.arange(8) % 4 == 2)
    want = 1 + 0.5 * np.sin(2 * np.pi * (np.arange(52) - 10) / 52)
    np.testing.assert_allclose(fitted.season[2], want, atol=0.2)
    np.testing.assert_allclose(fitted.season.mean(1), 1)
    np.testing.assert_array_equal(fitted.intermittent.all(1), np.arange(8) % 4 == 3)
    np.testing.assert_array_equal(fitted.later(2, 60, 3), fitted.season[2][8:11])


@pytest.mark.parametrize("kind", ["parametric", "bootstrap"])
def test_generated_paths_are_like_the_demand(made, fitted, kind):
    for item in (1, 2, 3):
        demand = generator(fitted, item, [0, 1, 2, 3], kind=kind, start=0)
        drawn = demand.draw(400, 104, np.random.RandomState(0))
        assert drawn.mean() / made.demand[item].mean() == pytest.approx(1, abs=0.1)
        ratio = drawn.std((0, 2)) / made.demand[item].std(1)
        assert ratio.mean() == pytest.approx(1, abs=0.2)
    some = generator(fitted, 0, [1, 3], kind=kind).draw(5, 6, np.random.RandomState(0))
    assert some.shape == (5, 2, 6)
    with pytest.raises(ConfigError, match="parametric or bootstrap"):
        generator(fitted, 0, [0], kind="normal")


def test_stores_keep_their_correlation(made, fitted):
    drawn = generator(fitted, 1, [0, 1, 2, 3]).draw(300, 52, np.random.RandomState(0))
    ours = np.corrcoef(drawn.transpose(1, 0, 2).reshape(4, -1))[np.triu_indices(4, 1)].mean()
    true = np.corrcoef(made.demand[1])[np.triu_indices(4, 1)].mean()
    assert ours == pytest.approx(true, abs=0.12)
    assert ours > 0.08


def test_held_out_demand_is_foretold_and_sales_are_not(history):
    fit, found = calibrate(history, 20)
    assert fit.history.sales.shape[2] == 84
    assert found.worst < 0.05
    assert np.abs(found.naive - found.levels).max() > found.worst
    assert found.periods == 20
    assert found.alarm == ""


def test_the_alarm_rings_when_demand_changes(history):
    sales = history.sales.copy()
    sales[:, :, 84:] *= 2
    _, found = calibrate(dataclasses.replace(history, sales=sales), 20)
    assert "demand has changed" in found.alarm


def test_short_histories_are_refused(history):
    with pytest.raises(ConfigError, match="6 weeks of sales; 8 are the least"):
        fit_demand(history.until(6))
    with pytest.raises(ConfigError, match="--held-out must be in 1 .. 96, got 97"):
        calibrate(history, 97)
    with pytest.raises(ConfigError, match="8 weeks of sales; 9 are the least: 8 to fit on and 1 to hold out"):
        calibrate(history.until(8), 1)
    assert calibrate(history.until(9), 1)[1].periods == 1


def test_returned_goods_are_not_counted_as_hidden_by_stock_outs(history):
    """Where stock never ran out, nothing is hidden: the mean of sales counts returns as 0, as the fit does."""
    sales = np.where(np.isnan(history.sales), np.nan, np.maximum(history.sales, 0.0))
    back = sales.copy()
    back[0, 0, np.flatnonzero(~np.isnan(sales[0, 0]))[:5]] = -4.0
    none = sales.copy()
    none[back < 0] = 0.0
    found, want = (fit_demand(dataclasses.replace(history, sales=x)) for x in (back, none))
    np.testing.assert_array_equal(found.naive, want.naive)
    np.testing.assert_array_equal(found.means, want.means)

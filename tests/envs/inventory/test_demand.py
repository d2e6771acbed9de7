"""Demand generators: moments against formulas, seasons, windows, errors."""

import numpy as np
import pytest

from offrl.envs.inventory.demand import Compound, NegativeBinomial, Normal, Poisson, Recorded, factors
from offrl.errors import ConfigError


def moments(demand, season_length: int = 1):
    drawn = demand.draw(2000, 40, np.random.default_rng(0))
    assert drawn.shape == (2000, len(demand.means), 40)
    return drawn.mean((0, 2)), drawn.std((0, 2)), drawn


# mean and variance by formula; 80,000 draws, so five standard errors are 1.8 % of a standard deviation
@pytest.mark.parametrize(
    ("demand", "means", "stds", "whole"),
    [
        (Normal(means=(50.0, 80.0), stds=(4.0, 9.0)), (50, 80), (4, 9), False),
        (Poisson(means=(5.0, 0.0, 20.0)), (5, 0, 20), (5**0.5, 0, 20**0.5), True),
        (NegativeBinomial(means=(5.0, 9.0), stds=(4.0, 3.5)), (5, 9), (4, 3.5), True),
        # a customer buys a geometric number: E X^2 = 2 b^2 - b, so the variance is rate (2 b^2 - b)
        (Compound(rates=(0.5, 2.0), batch=3.0), (1.5, 6.0), (7.5**0.5, 30**0.5), True),
    ],
)
def test_moments(demand, means, stds, whole):
    mean, std, drawn = moments(demand)
    np.testing.assert_array_less(np.abs(mean - means), 5 * np.array(stds) / np.sqrt(80_000) + 1e-9)
    np.testing.assert_allclose(std, stds, rtol=0.03, atol=1e-9)
    assert demand.means == tuple(means)
    assert (drawn == drawn.round()).all() == whole
    assert drawn.min() >= 0


def test_correlation():
    demand = Normal(means=(50.0, 50.0, 50.0), stds=(1.0, 2.0, 3.0), correlation=0.6)
    drawn = demand.draw(2000, 40, np.random.default_rng(0)).transpose(0, 2, 1).reshape(-1, 3)
    assert np.corrcoef(drawn.T)[np.triu_indices(3, 1)] == pytest.approx(0.6, abs=0.012)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Normal(means=(60.0,), stds=(2.0,), season=s),
        lambda s: Poisson(means=(60.0,), season=s),
        lambda s: NegativeBinomial(means=(60.0,), stds=(20.0,), season=s),
        lambda s: Compound(rates=(30.0,), batch=2.0, season=s),
    ],
)
def test_seasons_multiply_the_mean_of_their_period(make):
    drawn = make((0.5, 1.0, 1.5)).draw(3000, 7, np.random.default_rng(0))[:, 0]
    np.testing.assert_allclose(drawn.mean(0), 60 * factors((0.5, 1.0, 1.5), 7), rtol=0.03)
    np.testing.assert_allclose(factors((0.5, 1.0, 1.5), 7), [0.5, 1, 1.5, 0.5, 1, 1.5, 0.5])


@pytest.mark.parametrize(
    "demand",
    [
        Normal(means=(5.0, 6.0), stds=(1.0, 1.0), correlation=0.5),
        Poisson(means=(5.0, 6.0)),
        NegativeBinomial(means=(5.0, 6.0), stds=(4.0, 4.0)),
        Compound(rates=(0.5, 2.0), batch=3.0),
        Recorded(values=np.arange(60.0).reshape(2, 2, 15)),
    ],
)
@pytest.mark.parametrize("random", [np.random.default_rng, np.random.RandomState])
def test_a_longer_draw_begins_with_the_shorter_one(demand, random):
    few, many = (demand.draw(n, 9, random(3)) for n in (4, 11))
    np.testing.assert_array_equal(few, many[:4])
    first = random(3)
    parts = [demand.draw(n, 9, first) for n in (4, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), many)


def test_recorded_windows_keep_stores_and_periods_together():
    values = np.arange(60.0).reshape(2, 2, 15)
    drawn = Recorded(values=values).draw(200, 6, np.random.default_rng(0))
    assert {tuple(np.diff(row)) for row in drawn.reshape(-1, 6)} == {(1.0,) * 5}
    np.testing.assert_array_equal(drawn[:, 1] - drawn[:, 0], np.full((200, 6), 15.0))
    starts = {(row[0, 0] // 30, row[0, 0] % 15) for row in drawn}
    assert len(starts) == 2 * 10, "every row and every start is drawn, none beyond the end"
    with pytest.raises(ConfigError, match="16 periods asked of histories that have 15"):
        Recorded(values=values).draw(1, 16, np.random.default_rng(0))


def test_negative_demand_is_kept_unless_clipped():
    wide = {"means": (1.0,), "stds": (5.0,)}
    assert Normal(**wide, clip=False).draw(9, 9, np.random.default_rng(0)).min() < 0
    assert Normal(**wide).draw(9, 9, np.random.default_rng(0)).min() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(means=(5.0,), stds=(-1.0,)), "must be 0 or more and finite, got -1.0"),
        (lambda: Normal(means=(5.0, 4.0), stds=(1.0,)), "2 and 1 values"),
        (lambda: Normal(means=(float("nan"),), stds=(1.0,)), "got nan"),
        (
            lambda: Normal(means=(5.0,) * 3, stds=(1.0,) * 3, correlation=-0.6),
            r"in \[-0.5, 1\] for 3 stores, got -0.6",
        ),
        (lambda: Poisson(means=(-5.0,)), "got -5.0"),
        (lambda: Poisson(means=(5.0,), season=(1.0, -2.0)), "got -2.0"),
        (
            lambda: NegativeBinomial(means=(4.0,), stds=(2.0,)),
            r"std > sqrt\(mean\) = 2, got 2.0; use poisson",
        ),
        (lambda: Compound(rates=(1.0,), batch=0.5), "mean number of units a customer buys, >= 1; got 0.5"),
        (lambda: Recorded(values=np.full((1, 1, 3), np.nan)), "histories must be finite"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_store_without_demand_and_one_with_too_much():
    drawn = NegativeBinomial(means=(0.0, 5.0), stds=(1.0, 4.0)).draw(50, 20, np.random.default_rng(0))
    assert drawn[:, 0].max() == 0
    assert drawn[:, 1].mean() == pytest.approx(5, abs=0.6)
    with pytest.raises(ConfigError, match=r"numbers must be 1e\+12 at most, got 1e\+30"):
        Poisson(means=(1e30,))

"""Demand on a grid: moments, convex order, sums, errors."""

import numpy as np
import pytest
from scipy import integrate, stats

from offrl.envs.inventory.solvers.demand import convolved, from_pmf, parse_demand
from offrl.errors import ConfigError

CONTINUOUS = {
    "normal:5,1.6": lambda x: stats.norm(5, 1.6).sf(x),
    "normal:2,2": lambda x: stats.norm(2, 2).sf(x),  # clipped hard
    "gamma:5,2": lambda x: stats.gamma(6.25, scale=0.8).sf(x),
}


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("step", [0.5, 0.02])
def test_the_grid_demands_enclose_the_continuous_one(name, step):
    """E(W - x)^+ >= E(X - x)^+ at every x, with equal means; the rounded one's mean is off by its offsets."""
    demand = parse_demand(name, step)
    points = step * np.arange(len(demand.pmf))
    assert demand.pmf.sum() == pytest.approx(1, abs=1e-12)
    assert demand.spread.sum() == pytest.approx(1, abs=1e-12)
    assert demand.pmf @ points + demand.offset.sum() == pytest.approx(demand.mean, abs=1e-12)
    assert demand.spread @ points + demand.tail == pytest.approx(demand.mean, abs=1e-10)
    for x in (0.3, 3.21, 5.0, 8.888):
        fine = np.linspace(x, 60, 100_001)
        true = np.trapezoid(CONTINUOUS[name](fine), fine)
        wide = demand.spread @ np.maximum(points - x, 0)
        assert (
            true - 1e-7 <= wide <= true + step**2 / 8 + 1e-7
        )  # a chord of E(X - x)^+, whose curvature is below 1


def test_offsets_are_the_means_within_the_cells():
    """Checked by quadrature on one cell, and on the cell at zero, where clipped demand has no offset."""
    demand = parse_demand("normal:2,2", 0.5)
    density = stats.norm(2, 2).pdf
    (one, _) = integrate.quad(lambda x: (x - 1.5) * density(x), 1.25, 1.75)
    (zero, _) = integrate.quad(lambda x: x * density(x), 0, 0.25)
    assert demand.offset[3] == pytest.approx(one, abs=1e-12)
    assert demand.offset[0] == pytest.approx(zero, abs=1e-12)


def test_clipped_normal_mean():
    """E max(X, 0) = mu Phi(mu / s) + s phi(mu / s)."""
    u = 5 / 1.6
    assert parse_demand("normal:5,1.6").mean == pytest.approx(
        5 * stats.norm.cdf(u) + 1.6 * stats.norm.pdf(u), abs=1e-12
    )


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("poisson:5", 5, 5**0.5),
        ("geometric:2", 2, 6**0.5),
        ("negative_binomial:5,3", 5, 3),
        ("pmf:.25,.5,.25", 1, 0.5**0.5),
    ],
)
def test_whole_number_demand_is_itself(name, mean, std):
    demand = parse_demand(name)
    values = np.arange(len(demand.pmf))
    assert demand.mean == pytest.approx(mean)
    assert demand.std == pytest.approx(std)
    assert demand.pmf.sum() == pytest.approx(1, abs=1e-12)
    assert demand.pmf @ values == pytest.approx(mean, abs=1e-9)
    assert (demand.pmf @ values**2 - mean**2) ** 0.5 == pytest.approx(std, abs=1e-9)
    assert demand.tail < 1e-14
    assert not demand.continuous


def test_sums_of_poisson_demands_are_poisson():
    demand = parse_demand("poisson:2")
    total = convolved((demand.pmf, 7))
    np.testing.assert_allclose(total, stats.poisson(14).pmf(np.arange(len(total))), atol=1e-15)
    both = convolved((demand.pmf, 3), (parse_demand("poisson:5").pmf, 1))
    np.testing.assert_allclose(both, stats.poisson(11).pmf(np.arange(len(both))), atol=1e-15)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("poison:5", "unknown demand 'poison:5'; known are poisson:MEAN"),
        ("poisson:x", "needs numbers: poisson:MEAN"),
        ("poisson", "needs numbers: poisson:MEAN"),
        ("normal:5", "has 1 parameters; it is normal:MEAN,STD"),
        ("normal:5,-1", "must be positive and finite"),
        ("poisson:nan", "must be positive and finite"),
        ("negative_binomial:5,2", "variance 4 must exceed its mean 5"),
        ("pmf:.5,.6", "that add to 1"),
        ("pmf:1,0", "that add to 1"),
        ("pmf:-.5,1.5", "that add to 1"),
    ],
)
def test_what_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        parse_demand(name)


def test_steps_that_are_refused():
    with pytest.raises(ConfigError, match="whole-numbered"):
        parse_demand("poisson:5", 0.5)
    for step in (0.0, -1.0, 3.0, float("nan")):
        with pytest.raises(ConfigError, match="grid step"):
            parse_demand("normal:5,2", step)
    with pytest.raises(ConfigError, match="probabilities"):
        from_pmf(np.ones((2, 2)) / 4)

"""The newsvendor: printed optima, closed forms, brackets, stockpyl."""

import numpy as np
import pytest
from scipy import stats
from stockpyl import newsvendor

from offrl.envs.inventory.solvers.base_stock import base_stock, base_stock_costs
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.errors import ConfigError

PENALTIES = (4, 9, 19, 39)
PRINTED = {  # lead time -> level and cost for each penalty, demand Normal(5, 1.6) clipped at 0, on a .01 grid
    1: "11.90 / 3.1666 | 12.90 / 3.9703 | 13.72 / 4.6666 | 14.43 / 5.2891",
    4: "28.01 / 5.0062 | 29.59 / 6.2769 | 30.88 / 7.3779 | 32.01 / 8.3620",
    7: "43.81 / 6.3319 | 45.80 / 7.9392 | 47.44 / 9.3317 | 48.87 / 10.5766",
    10: "59.47 / 7.4245 | 61.80 / 9.3091 | 63.73 / 10.9419 | 65.40 / 12.4017",
    15: "85.39 / 8.9538 | 88.20 / 11.2265 | 90.53 / 13.1958 | 92.54 / 14.9562",
    20: "111.17 / 10.2576 | 114.40 / 12.8612 | 117.06 / 15.1171 | 119.37 / 17.1338",
}


@pytest.mark.parametrize("lead_time", PRINTED)
def test_printed_optima(lead_time):
    """All digits on the grid that they were made with; on a finer one the proven bracket lies within a grid error."""
    coarse, fine = parse_demand("normal:5,1.6", 0.01), parse_demand("normal:5,1.6")
    got = [base_stock(coarse, lead_time, 1, p) for p in PENALTIES]
    assert " | ".join(f"{found.level:.2f} / {found.cost:.4f}" for found in got) == PRINTED[lead_time]
    for p, rough in zip(PENALTIES, got, strict=True):
        exact = base_stock(fine, lead_time, 1, p)
        assert rough.lower <= exact.lower <= exact.cost <= exact.upper <= rough.upper
        assert exact.upper - exact.lower < 2e-5
        assert exact.level == pytest.approx(rough.level, abs=1e-3)


@pytest.mark.parametrize("step", [2.0, 0.5, 0.05, None])
@pytest.mark.parametrize("lead_time", [0, 1, 6])
def test_the_bracket_holds_the_closed_form(step, lead_time):
    """Normal demand far from zero: cost (h + p) s sqrt(L + 1) phi(z), on any grid."""
    h, p, n = 1.0, 9.0, lead_time + 1
    z = stats.norm.ppf(p / (p + h))
    cost = (h + p) * 2 * n**0.5 * stats.norm.pdf(z)
    found = base_stock(parse_demand("normal:30,2", step), lead_time, h, p)
    assert found.lower - 1e-8 <= cost <= found.upper + 1e-8
    assert found.upper - found.lower < (0.6 * n * (step or 0.005) ** 2 + 1e-7) * (h + p)
    if step is None:
        assert found.level == pytest.approx(30 * n + z * 2 * n**0.5, abs=2e-3)
        assert found.cost == pytest.approx(cost, abs=1e-5)


@pytest.mark.parametrize(("std", "lead_time", "penalty"), [(20.0, 1, 4.0), (20.0, 4, 9.0), (8.0, 3, 19.0)])
def test_demand_that_is_mostly_close_to_zero(std, lead_time, penalty):
    """Most of a gamma demand of a large spread lies in the first cell of the grid, which rounds it to 0."""
    found = base_stock(parse_demand(f"gamma:5,{std}"), lead_time, 1.0, penalty)
    shape, scale, mean = (lead_time + 1) * (5 / std) ** 2, std**2 / 5, 5 * (lead_time + 1)
    total, longer = stats.gamma(shape, scale=scale), stats.gamma(shape + 1, scale=scale)
    level = total.ppf(penalty / (penalty + 1))
    left = level * total.cdf(level) - mean * longer.cdf(level)
    assert found.lower - 1e-9 <= left + penalty * (left + mean - level) <= found.upper + 1e-9
    assert found.lower <= found.cost <= found.upper
    assert found.level == pytest.approx(level, abs=0.2)


def test_the_protection_interval_is_one_period_longer_than_the_lead_time():
    """The commonest timing mistake shifts the cost of L = 4, p = 9 from 6.277 to 5.614."""
    demand = parse_demand("normal:5,1.6")
    assert base_stock(demand, 3, 1, 9).cost == pytest.approx(5.614, abs=5e-4)


@pytest.mark.parametrize("penalty", [4, 9, 39])
def test_poisson_agrees_with_stockpyl(penalty):
    """stockpyl takes the demand of all L + 1 periods as one."""
    level, cost = newsvendor.newsvendor_poisson(1, penalty, 25)
    found = base_stock(parse_demand("poisson:5"), 4, 1, penalty)
    assert found.level == level
    assert found.cost == pytest.approx(cost, abs=1e-9)
    assert found.upper - found.lower < 1e-9


def test_normal_agrees_with_stockpyl():
    level, cost = newsvendor.newsvendor_normal(0.18, 0.70, 50, 8)
    found = base_stock(parse_demand("normal:50,8"), 0, 0.18, 0.70)
    assert found.level == pytest.approx(level, abs=2e-3)
    assert found.cost == pytest.approx(cost, abs=1e-5)


def test_costs_of_all_levels():
    """At each level E[h (S - X)^+ + p (X - S)^+], here from the Poisson formula."""
    levels, costs = base_stock_costs(parse_demand("poisson:5"), 1, 2, 7)
    values = np.arange(80)
    pmf = stats.poisson(10).pmf(values)
    for level in (0, 3, 12):
        left = level - values
        assert levels[level] == level
        assert costs[level] == pytest.approx(pmf @ np.where(left > 0, 2 * left, -7 * left), abs=1e-9)


def test_cost_grows_with_penalty_and_lead_time():
    demand = parse_demand("gamma:5,3", 0.05)
    costs = np.array([[base_stock(demand, L, 1, p).cost for p in (1, 4, 19)] for L in (0, 1, 4)])
    assert (np.diff(costs, axis=0) > 0).all()
    assert (np.diff(costs, axis=1) > 0).all()


@pytest.mark.parametrize(
    "bad", [(-1, 1, 1), (1, 0, 1), (1, 1, -2), (1, float("nan"), 1), (1, 1, float("inf"))]
)
def test_what_is_refused(bad):
    with pytest.raises(ConfigError, match=r"lead_time|holding|penalty"):
        base_stock(parse_demand("poisson:5"), *bad)

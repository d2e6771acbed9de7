"""Clark and Scarf: printed optima, limits, stockpyl, simulation."""

import numpy as np
import pytest
from stockpyl import ssm_serial
from stockpyl.demand_source import DemandSource

from offrl.envs.inventory.solvers.base_stock import base_stock
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.serial import serial
from offrl.errors import ConfigError

HOLDINGS = [0.1, 0.2, 0.5, 1]
PRINTED = {  # store lead time, penalty -> levels -> cost; other lead times 2, 4, 3, demand Normal(5, 2) clipped, .02 grid
    (1, 4): "64.42 54.28 30.68 13.62 -> 6.899",
    (1, 9): "67.36 56.82 32.54 14.66 -> 8.367",
    (1, 19): "69.72 58.86 34.08 15.54 -> 9.608",
    (1, 39): "71.72 60.62 35.42 16.34 -> 10.701",
    (2, 4): "69.52 59.44 36.00 19.44 -> 7.598",
    (2, 9): "72.64 62.16 38.06 20.70 -> 9.261",
    (2, 19): "75.14 64.36 39.78 21.78 -> 10.670",
    (2, 39): "77.26 66.26 41.26 22.76 -> 11.913",
    (3, 4): "74.64 64.62 41.30 25.12 -> 8.206",
    (3, 9): "77.92 67.50 43.54 26.58 -> 10.037",
    (3, 19): "80.54 69.84 45.40 27.84 -> 11.592",
    (3, 39): "82.78 71.84 47.02 28.96 -> 12.965",
    (4, 4): "79.76 69.80 46.60 30.74 -> 8.753",
    (4, 9): "83.18 72.82 49.00 32.36 -> 10.734",
    (4, 19): "85.94 75.28 51.00 33.76 -> 12.420",
    (4, 39): "88.28 77.40 52.74 35.02 -> 13.910",
}


def test_printed_optima():
    """All digits, with the upper bound as the cost: the optimum of (4, 4) is 8.75245, which that grid shows as 8.753."""
    coarse, fine = parse_demand("normal:5,2", 0.02), parse_demand("normal:5,2")
    for (lead_time, penalty), printed in PRINTED.items():
        found = serial(coarse, [2, 4, 3, lead_time], HOLDINGS, penalty)
        assert " ".join(f"{s:.2f}" for s in found.levels) + f" -> {found.upper:.3f}" == printed
        exact = serial(fine, [2, 4, 3, lead_time], HOLDINGS, penalty)
        assert found.lower <= exact.lower <= exact.cost <= exact.upper <= found.upper
        assert exact.cost == pytest.approx(float(printed.split()[-1]), abs=6e-4)
        assert exact.upper - exact.lower < 5e-4


@pytest.mark.parametrize("name", ["poisson:5", "normal:5,1.6"])
def test_one_stage_is_a_base_stock_policy(name):
    demand = parse_demand(name)
    one, alone = serial(demand, [4], [1], 9), base_stock(demand, 4, 1, 9)
    assert one.levels[0] == pytest.approx(alone.level, abs=0.01)
    assert one.cost == pytest.approx(alone.cost, abs=1e-7)


@pytest.mark.parametrize("name", ["poisson:5", "normal:5,1.6"])
@pytest.mark.parametrize("lead_times", [[2, 1, 3], [0, 6, 0]])
def test_equal_holding_costs_push_everything_down(name, lead_times):
    """No stock is kept upstream, and the lead times add up."""
    demand = parse_demand(name)
    found, alone = serial(demand, lead_times, [1, 1, 1], 9), base_stock(demand, 6, 1, 9)
    assert found.levels[1:] == (np.inf, np.inf)
    assert found.local_levels[:2] == (0, 0)
    assert found.cost == pytest.approx(alone.cost, abs=1e-7)
    assert found.levels[0] == pytest.approx(alone.level, abs=0.01)


@pytest.mark.parametrize(
    ("lead_times", "holdings", "penalty"), [([2, 1, 1], [1, 2, 4], 20), ([1, 3], [0.5, 1], 9)]
)
def test_poisson_agrees_with_stockpyl(lead_times, holdings, penalty, monkeypatch):
    """There the last stage's lead time holds the L + 1 periods, and stock on its way pays.

    G_N differs by h_N mu, so that our cost is theirs + h_N mu - H_N mu - sum_j H_j mu L_{j+1}.
    """

    def find_nearest(array, values, *_):  # theirs does not work with NumPy 2
        return np.abs(np.asarray(array) - np.asarray(values)[..., None]).argmin(axis=-1)

    monkeypatch.setattr(ssm_serial, "find_nearest", find_nearest)
    mean, n = 2.0, len(lead_times)
    rates = np.diff(holdings, prepend=0)
    theirs, cost = ssm_serial.optimize_base_stock_levels(
        num_nodes=n,
        node_order_in_system=list(range(n, 0, -1)),
        echelon_holding_cost={n - i: float(rate) for i, rate in enumerate(rates)},
        lead_time={n - i: lead + (i == n - 1) for i, lead in enumerate(lead_times)},
        stockout_cost=penalty,
        demand_source=DemandSource(type="P", mean=mean),
        ltd_upper_tail_prob=1e-9,
        ltd_lower_tail_prob=1e-9,
        sum_ltd_upper_tail_prob=1e-9,
        sum_ltd_lower_tail_prob=1e-9,
    )
    found = serial(parse_demand("poisson:2"), lead_times, holdings, penalty)
    assert found.levels == tuple(theirs[n - i] for i in range(n))
    pipeline = sum(h * mean * lead for h, lead in zip(holdings, lead_times[1:], strict=False))
    assert found.cost == pytest.approx(cost + rates[-1] * mean - holdings[-1] * mean - pipeline, abs=2e-4)


def test_the_recursion_written_plainly():
    """Small penalty and lumpy demand, so that positions below zero matter; sums over demand, no straight lines."""
    pmf = {0: 0.6, 1: 0.1, 4: 0.3}
    mean, rates, holding, p = 1.3, (0.3, 0.2, 0.4), (0.3, 0.5, 0.9), 0.7
    twice = dict.fromkeys((a + b for a in pmf for b in pmf), 0.0)
    for a, x in pmf.items():
        for b, y in pmf.items():
            twice[a + b] += x * y

    def best(cost):
        return min(range(-5, 30), key=cost)

    def store(y):
        return rates[2] * (y - mean) + (p + holding[2]) * sum(c * max(d - y, 0) for d, c in twice.items())

    def above(rate, cost, lead, demand):
        low = best(cost)
        return lambda y: rate * (y - mean * lead) + sum(c * cost(min(low, y - d)) for d, c in demand.items())

    four = dict.fromkeys((a + b for a in twice for b in twice), 0.0)
    for a, x in twice.items():
        for b, y in twice.items():
            four[a + b] += x * y

    middle = above(rates[1], store, 1, pmf)
    first = above(rates[0], middle, 4, four)
    found = serial(parse_demand("pmf:.6,.1,0,0,.3"), [4, 1, 1], list(holding), p)
    assert found.levels == (best(first), best(middle), best(store))
    wanted = first(best(first)) - mean * (holding[2] + holding[0] + holding[1])
    assert found.cost == pytest.approx(wanted, abs=1e-9)


def simulate(levels, lead_times, holdings, penalty, demands):
    """Cost per period of each path, (B,), of echelon base-stock in the sheet's order of events; ``demands`` is (B, T)."""
    paths, periods = demands.shape
    stages = len(lead_times)
    stock = np.zeros((stages, paths))
    coming = [np.zeros((paths, lead - 1)) for lead in lead_times]
    stock[-1] = levels[-1]
    costs = np.zeros((paths, periods))
    for t in range(periods):
        echelon = np.zeros(paths)
        orders = np.zeros((stages, paths))
        for j in range(stages - 1, -1, -1):
            echelon = echelon + stock[j] + coming[j].sum(axis=1)
            orders[j] = np.maximum(levels[j] - echelon, 0)
            if j:
                orders[j] = np.minimum(orders[j], np.maximum(stock[j - 1], 0))
        left = stock[-1] - demands[:, t]
        costs[:, t] = holdings[-1] * np.maximum(left, 0) + penalty * np.maximum(-left, 0)
        stock[-1] = left
        for j in range(stages - 1):
            stock[j] -= orders[j + 1]
            costs[:, t] += holdings[j] * stock[j]
        for j in range(stages):
            coming[j] = np.concatenate([coming[j], orders[j][:, None]], axis=1)
            stock[j] += coming[j][:, 0]
            coming[j] = coming[j][:, 1:]
    return costs[:, periods // 4 :].mean(axis=1)


def test_the_levels_cost_what_the_solver_says():
    """Played on 2,000 paths, two ways: at the optimal levels, and at others that must cost more."""
    lead_times, penalty = [2, 4, 3, 2], 9
    found = serial(parse_demand("normal:5,2"), lead_times, HOLDINGS, penalty)
    demands = np.maximum(np.random.default_rng(0).normal(5, 2, size=(2000, 240)), 0)
    costs = simulate(found.levels, lead_times, HOLDINGS, penalty, demands)
    error = costs.std() / len(costs) ** 0.5
    assert costs.mean() == pytest.approx(found.cost, abs=3 * error)
    assert error < 0.04
    for shift in ([3, 0, 0, 0], [0, -4, 0, 0], [0, 0, 0, 3]):
        worse = simulate(np.add(found.levels, shift), lead_times, HOLDINGS, penalty, demands)
        assert (worse - costs).mean() > 0


def test_local_levels_are_the_same_policy():
    found = serial(parse_demand("poisson:5"), [1, 1, 1], [1, 2, 3], 9)
    assert np.cumsum(found.local_levels[::-1])[::-1].tolist() == list(found.levels)


@pytest.mark.parametrize(
    ("lead_times", "holdings", "words"),
    [
        ([1, 2], [1], "2 lead times, 1 holding costs"),
        ([], [], "every stage"),
        ([1, 1], [2, 1], "must not fall towards the customer"),
        ([1, -1], [1, 2], "lead_time must be 0 periods or more"),
        ([1, 1], [0, 2], "holding must be a positive cost"),
    ],
)
def test_what_is_refused(lead_times, holdings, words):
    with pytest.raises(ConfigError, match=words):
        serial(parse_demand("poisson:5"), lead_times, holdings, 9)

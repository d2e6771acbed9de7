"""(s, S) policies: the limit without fixed cost, brute force, stockpyl."""

import numpy as np
import pytest
from stockpyl.ss import s_s_discrete_exact

from offrl.envs.inventory.solvers.base_stock import base_stock, base_stock_costs
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.fixed_cost import fixed_cost
from offrl.errors import ConfigError


@pytest.mark.parametrize("lead_time", [0, 3])
def test_without_a_fixed_cost_it_is_a_base_stock_policy(lead_time):
    demand = parse_demand("poisson:5")
    found, alone = fixed_cost(demand, lead_time, 1, 9, 0), base_stock(demand, lead_time, 1, 9)
    assert (found.reorder_point, found.level) == (alone.level - 1, alone.level)
    assert found.cost == pytest.approx(alone.cost, abs=1e-12)


@pytest.mark.parametrize(
    ("holding", "penalty", "fixed", "mean"), [(1, 4, 5, 6), (1, 9, 64, 10), (2, 3, 20, 2)]
)
def test_without_lead_time_it_agrees_with_stockpyl(holding, penalty, fixed, mean):
    s, level, cost = s_s_discrete_exact(holding, penalty, fixed, True, mean)
    found = fixed_cost(parse_demand(f"poisson:{mean}"), 0, holding, penalty, fixed)
    assert (found.reorder_point, found.level) == (s, level)
    assert found.cost == pytest.approx(cost, abs=1e-8)


def chain_cost(pmf, stage, s, level, fixed):
    """Cost of (s, S) from the stationary distribution of the position after ordering, s + 1 .. S."""
    size = level - s
    moves, orders = np.zeros((size, size)), np.zeros(size)
    for i in range(size):
        for d, chance in enumerate(pmf):
            j = i - d if i - d >= 0 else size - 1
            moves[i, j] += chance
            orders[i] += chance * (i - d < 0)
    system = np.eye(size) - moves.T
    system[0] = 1
    stationary = np.linalg.solve(system, np.eye(size)[0])
    return stationary @ [stage(s + 1 + i) + fixed * orders[i] for i in range(size)]


@pytest.mark.parametrize(("lead_time", "fixed"), [(2, 12.0), (1, 0.5)])
def test_no_other_s_and_level_cost_less(lead_time, fixed):
    demand = parse_demand("pmf:.3,.2,.1,.3,.1")
    _, curve = base_stock_costs(demand, lead_time, 1, 6)

    def stage(y):
        last = len(curve) - 1
        return curve[min(max(y, 0), last)] - 6 * min(y, 0) + max(y - last, 0)

    found = fixed_cost(demand, lead_time, 1, 6, fixed)
    costs = {
        (s, S): chain_cost(demand.pmf, stage, s, S, fixed)
        for s in range(-4, 12)
        for S in range(s + 1, s + 22)
    }
    assert found.cost == pytest.approx(min(costs.values()), abs=1e-10)
    assert costs[found.reorder_point, found.level] == pytest.approx(found.cost, abs=1e-10)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="whole-number demand, not normal:5,1"):
        fixed_cost(parse_demand("normal:5,1"), 1, 1, 9, 5)
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        fixed_cost(parse_demand("poisson:5"), 1, 1, 9, -1)

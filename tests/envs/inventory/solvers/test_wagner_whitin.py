"""Wagner and Whitin: stockpyl, all plans by hand, and the same cost in the simulator."""

import itertools

import numpy as np
import pytest
import torch
from stockpyl.wagner_whitin import wagner_whitin as theirs

from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.scenarios import Scenarios, rollout
from offrl.envs.inventory.solvers.wagner_whitin import wagner_whitin
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError


def simulated(orders, demand, holding, fixed, purchase):
    """Lead time 0: order, delivery, demand."""
    network = Network(
        name="one", lost_sales=True, same_period=True,
        nodes=(Node(name="s", kind="store", holding_cost=holding, underage_cost=1e6),),
        edges=(Edge(source=OUTSIDE, target="s", lead_time=0, cost=purchase, fixed_cost=fixed),),
    )  # fmt: skip
    scenarios = Scenarios(
        network=network, initial=torch.zeros(1, 1, 1, dtype=torch.float64),
        demands=torch.tensor(demand, dtype=torch.float64)[:, None, None],
        parameters=Parameters.of(network, torch.float64),
    )  # fmt: skip
    plan = torch.tensor(orders, dtype=torch.float64)
    return float(rollout(lambda seen: plan[seen.period].view(1, 1), scenarios).costs.sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_stockpyls_and_costs_that_in_the_simulator(seed):
    random = np.random.default_rng(seed)
    demand = random.integers(0 if seed else 1, 120, 12).tolist()
    plan = wagner_whitin(demand, 2.0, 500.0, 1.5)
    orders, cost, _, _ = theirs(12, 2.0, 500.0, demand, 1.5)
    assert plan.cost == pytest.approx(cost)
    assert simulated(plan.orders, demand, 2.0, 500.0, 1.5) == pytest.approx(plan.cost)
    assert simulated(orders[1:], demand, 2.0, 500.0, 1.5) == pytest.approx(plan.cost)


def test_no_other_plan_is_cheaper():
    demand, holding, fixed = [9, 0, 4, 7, 0, 12, 3, 5], 1.0, 11.0
    costs = []
    for setups in itertools.product((0, 1), repeat=7):
        starts = [0, *(k + 1 for k, on in enumerate(setups) if on), 8]
        orders = np.zeros(8)
        for a, b in itertools.pairwise(starts):
            orders[a] = sum(demand[a:b])
        costs.append(simulated(orders, demand, holding, fixed, 0.0))
    assert wagner_whitin(demand, holding, fixed).cost == pytest.approx(min(costs))


def test_the_textbook_example():
    """Snyder and Shen, example 3.9: 90, 120, 80, 70 at K = 500, h = 2 cost 1380."""
    plan = wagner_whitin([90, 120, 80, 70], 2, 500)
    np.testing.assert_array_equal(plan.orders, [210, 0, 150, 0])
    assert plan.cost == 1380


def test_costs_by_period_and_mistakes():
    plan = wagner_whitin([5, 5, 5], [1, 10, 1], [3, 3, 30], [0, 0, 0])
    np.testing.assert_array_equal(plan.orders, [10, 0, 5]) if plan.orders[1] == 0 else None
    assert plan.cost == pytest.approx(min(3 + 5 + 30, 3 + 3 + 30, 3 + 3 + 50, 3 + 10 + 5 + 50))
    with pytest.raises(ConfigError, match="fixed must be 0 or more"):
        wagner_whitin([1, 2], 1, -1)
    with pytest.raises(ConfigError, match="demand must be a list"):
        wagner_whitin([], 1, 1)

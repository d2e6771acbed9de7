"""The timeline and the convention table agree with the simulators."""

import numpy as np
import torch
from stockpyl.sim import simulation
from stockpyl.supply_chain_network import single_stage_system

from offrl.envs.inventory.extended import simulator_of
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.envs.inventory.work.company import read_company
from offrl.envs.inventory.work.timeline import event_order, timeline


def test_one_order_goes_the_longest_way(folder):
    network = read_company(folder).network(2)
    assert timeline(network, "week") == [
        "week  0: East orders from outside Asia (packs of 6, 20 an order, in periods 0 of every 2)",
        "week  6: Store 01 orders from East",
        "week  7: the unit meets demand at Store 01",
    ]
    assert len(event_order(network, "week")) == 4


def store(lead_time):
    return Network(
        name="one", nodes=(Node(name="s", kind="store", underage_cost=9, holding_cost=1),), lost_sales=False,
        edges=(Edge(source=OUTSIDE, target="s", lead_time=lead_time),), same_period=lead_time == 0,
    )  # fmt: skip


def test_lead_time_zero_says_its_event_order():
    lines = event_order(store(0), "day")
    assert lines[1] == "   Lead time 0 (outside -> s): delivered at once, before the demand of the same day."


def test_stockpyl_calls_our_n_one_more():
    """Constant demand 5 and level 20 leave the same stock: theirs 1, 2, 3 are ours 0, 1, 2."""
    for ours in (0, 1, 2):
        simulator = simulator_of(store(ours))
        state = simulator.start(simulator.initial(1))
        for _ in range(20):
            order = (20 - simulator.stock(state).sum(-1)).clamp(min=0)
            state, cost = simulator.step(state, order, torch.tensor([[5.0]]))
        theirs = single_stage_system(
            holding_cost=1, stockout_cost=9, demand_type="D", demand_list=[5] * 20, base_stock_level=20,
            policy_type="BS", shipment_lead_time=ours + 1,
        )  # fmt: skip
        simulation(theirs, 20, rand_seed=1, progress_bar=False)
        (level,) = theirs.nodes[0].state_vars[19].inventory_level.values()
        assert float(cost.sum()) == level == 20 - 5 * (ours + 1)
        assert np.isfinite(level)

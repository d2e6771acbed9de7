"""KPIs on paths that can be counted by hand."""

import pytest
import torch

from offrl.envs.inventory.kpis import kpis
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.scenarios import Scenarios, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError


def one(demand, stock, *, lost=True, profit=False, cost=0.0):
    network = Network(
        name="store",
        nodes=(Node(name="s", kind="store", holding_cost=1.0, underage_cost=9.0),),
        edges=(Edge(source=OUTSIDE, target="s", lead_time=2, cost=cost),),
        lost_sales=lost,
        profit=profit,
    )
    return Scenarios(
        network=network,
        initial=torch.tensor([[stock]]),
        demands=torch.tensor(demand)[:, None, None],
        parameters=Parameters.of(network),
    )


@pytest.mark.parametrize(
    ("lost", "fill", "waiting", "missed"), [(True, 6 / 7, 0, 1 / 3), (False, 4 / 7, 1.0, 0)]
)
def test_service_by_hand(lost, fill, waiting, missed):
    """Stock (3, 1), orders 2, 0, 5, demand 4, 1, 2. Lost: 3, 1, 2 served at once; backlogged: 3, 0, 1 (1 waits)."""
    scenarios = one([4.0, 1.0, 2.0], [3.0, 1.0], lost=lost, cost=0.5)
    orders = torch.tensor([2.0, 0.0, 5.0])
    result = rollout(lambda o: orders[o.period].reshape(1, 1), scenarios, record=True)
    got = kpis(result, scenarios)
    assert got.fill_rate.item() == pytest.approx(fill)
    assert got.cycle_service.item() == pytest.approx(2 / 3 if lost else 0)
    assert got.lost_units.item() == pytest.approx(missed)
    assert got.waiting_units.item() == pytest.approx(waiting)
    assert got.on_hand.item() == 0
    assert got.pipeline.item() == pytest.approx((1 + 2 + 0) / 3)
    assert got.procurement.item() == pytest.approx(0.5 * 7 / 3)
    assert got.underage.item() == pytest.approx(9 / 3 if lost else 9)
    assert got.cost.item() == pytest.approx((got.holding + got.underage + got.procurement).item())


def test_warm_up_is_left_out():
    scenarios = one([9.0, 1.0, 1.0, 1.0], [0.0, 5.0])
    result = rollout(lambda o: torch.zeros(1, 1), scenarios, record=True)
    assert kpis(result, scenarios).fill_rate.item() == pytest.approx(3 / 12)
    assert kpis(result, scenarios, ignore=1).fill_rate.item() == 1.0
    with pytest.raises(ConfigError, match=r"ignore must be in \[0, 4\), got 4"):
        kpis(result, scenarios, ignore=4)
    with pytest.raises(ConfigError, match="pass record=True"):
        kpis(rollout(lambda o: torch.zeros(1, 1), scenarios), scenarios)


def test_a_base_stock_policy_passes_demand_on():
    """Backlogged, order up to a level: orders repeat demand, so the bullwhip is 1; twice the demand before it is 4."""
    setting = load_setting("one_store_backlogged").resized(train=64, dev=2)
    drawn = setting.draw("train")
    policy = lambda o: (40 - o.stock.sum(-1)).clamp(min=0)  # noqa: E731
    result = rollout(policy, drawn, record=True)
    assert kpis(result, drawn, ignore=10).bullwhip.item() == pytest.approx(1.0, abs=0.02)
    double = result._replace(actions=2 * result.actions)
    assert kpis(double, drawn, ignore=10).bullwhip.item() == pytest.approx(4.0, abs=0.08)


@pytest.mark.parametrize(
    "name",
    ["many_warehouses_lost_demand", "serial_system", "or_gym_network_management", "favorita_21_stores"],
)
def test_parts_make_the_cost_of_every_node(name):
    drawn = load_setting(name).resized(train=4, dev=2).draw("train")
    orders = torch.full((len(drawn), len(drawn.network.edges)), 3.0)
    result = rollout(lambda o: orders, drawn, periods=20, feasibility="project", record=True)
    got = kpis(result, drawn, ignore=4)
    torch.testing.assert_close(got.holding + got.underage + got.procurement, got.cost)
    torch.testing.assert_close(got.cost.sum(), result.costs[4:].double().sum() / (16 * len(drawn)))
    table = got.rows(drawn)
    assert len(table) == len(drawn.network.nodes) + 1
    assert {len(row) for row in table} == {10}
    plain = not drawn.network.extended
    if plain:
        costless = [i for i, e in enumerate(drawn.network.edges) if e.cost == 0]
        fed = {drawn.network.targets[i] for i in range(len(orders[0]))} - {
            drawn.network.targets[i] for i in range(len(orders[0])) if i not in costless
        }
        assert all(abs(got.procurement[i]) < 1e-4 for i in fed)
    assert ((got.fill_rate >= 0) & (got.fill_rate <= 1)).all()

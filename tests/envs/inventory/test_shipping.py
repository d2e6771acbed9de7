"""Feasibility layers against numbers worked out by hand."""

import pytest
import torch

from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.shipping import Shipping
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node


def two_by_three():
    """W1 -> a, b; W2 -> b, c; W2 may not hold. Edges: W1a, W1b, W2b, W2c, then two from outside."""
    nodes = [Node(name="W1", kind="warehouse"), Node(name="W2", kind="warehouse", holds=False)]
    nodes += [Node(name=n, kind="store") for n in "abc"]
    lanes = [("W1", "a"), ("W1", "b"), ("W2", "b"), ("W2", "c"), (OUTSIDE, "W1"), (OUTSIDE, "W2")]
    edges = tuple(Edge(source=s, target=t, lead_time=1) for s, t in lanes)
    return Network(name="n", nodes=tuple(nodes), edges=edges, lost_sales=True)


def test_proportional_shrinks_what_exceeds_and_ships_all_where_nothing_may_stay():
    ship = Shipping(two_by_three())
    wish = torch.tensor([[4.0, 8.0, 1.0, 3.0, 50.0, 60.0], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]])
    got = ship.proportional(torch.tensor([[6.0, 8.0], [6.0, 8.0]]), wish)
    want = torch.tensor([[2.0, 4.0, 2.0, 6.0, 50.0, 60.0], [1.0, 2.0, 4.0, 4.0, 5.0, 6.0]])
    torch.testing.assert_close(got, want)


def test_what_is_kept_competes():
    ship = Shipping(two_by_three())
    got = ship.proportional(
        torch.tensor([[6.0, 8.0]]), torch.tensor([[2.0, 4.0, 1.0, 1.0]]), keep=torch.tensor([[6.0, 0.0]])
    )
    torch.testing.assert_close(got, torch.tensor([[1.0, 2.0, 4.0, 4.0]]))


def test_softmax_keeps_a_share_with_logit_one_and_none_where_nothing_may_stay():
    ship = Shipping(two_by_three())
    z = torch.tensor([[0.0, 1.0, 2.0, 2.0]])
    got = ship.softmax(torch.tensor([[10.0, 8.0]]), z)
    e = torch.tensor(1.0).exp()
    total = 1 + e + e
    torch.testing.assert_close(
        got, torch.stack([10 / total, 10 * e / total, torch.tensor(4.0), torch.tensor(4.0)])[None]
    )


def test_negative_stock_ships_nothing():
    ship = Shipping(two_by_three())
    stock = torch.tensor([[-1.0, -2.0]])
    assert not ship.proportional(stock, torch.ones(1, 4)).any()
    assert not ship.softmax(stock, torch.ones(1, 4)).any()


@pytest.mark.parametrize(
    "name", ["serial_system", "one_warehouse_lost_demand", "many_warehouses_lost_demand"]
)
def test_totals_and_spread_are_those_of_a_loop(name):
    network = load_setting(name).network
    ship, values = Shipping(network), torch.rand(3, network.internal)
    for node in range(network.upstream):
        lanes = [e for e in range(network.internal) if network.sources[e] == node]
        torch.testing.assert_close(ship.totals(values)[:, node], values[:, lanes].sum(1))
    own = torch.rand(3, network.upstream)
    spread = ship.spread(own).expand(-1, network.internal)
    assert torch.equal(spread, own[:, list(network.sources[: network.internal])])

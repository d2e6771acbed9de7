"""The nearest classical policy: one that is classical is found again."""

import numpy as np
import pytest
import torch

from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.explain import _threshold, nearest
from offrl.envs.inventory.work.planning import min_max, plan_of, setting_of
from tests.envs.inventory.work.test_company import read_tables_of


def test_the_threshold_parts_orders_from_none():
    position = np.array([[5.0, 1, 9, 3, np.nan], [5, 1, 9, 3, 7], [1, 2, 3, 4, 5]])
    orders = np.array([[0, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 0, 1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(_threshold(position, orders), [4, 6, 4.5])


@pytest.mark.parametrize("kind", ["sS", "base-stock"])
def test_levels_of_a_classical_policy_are_found_again(kind, small):
    """Of Asia's item, which may be ordered in every second week only; stock upstream is scarce at times."""
    plan = plan_of(company_of(read_tables_of(small.rows)), 2)
    top = torch.tensor([900.0, 900, 60, 70, 80])
    levels = torch.stack([top if kind == "base-stock" else top * 0.6, top], 1)
    paths = setting_of(plan, "x").draw("dev")
    rule = min_max(plan.network, levels)
    found = nearest(rule, paths, kind)
    np.testing.assert_allclose(found[:, 1], top, atol=1)
    np.testing.assert_allclose(found[:, 0], levels[:, 0], atol=1 if kind == "base-stock" else 12)
    never = nearest(lambda seen: 0 * rule(seen), paths, kind)
    assert (never == 0).all()


def two_tiers():
    nodes = (
        Node(name="A", kind="warehouse", initial=100.0), Node(name="B", kind="warehouse", initial=100.0),
        Node(name="s", kind="store", holding_cost=1.0, underage_cost=9.0, initial=20.0),
    )  # fmt: skip
    lanes = (
        Edge(source=OUTSIDE, target="A", lead_time=2), Edge(source="A", target="B", lead_time=2),
        Edge(source="B", target="s", lead_time=1),
    )  # fmt: skip
    network = Network(name="chain", nodes=nodes, edges=lanes, lost_sales=True)
    split = Split(scenarios=8, batch=8, periods=60, ignore=0, demand_seed=1)
    setting = Setting(
        name="chain", network=network, demand=Poisson(means=(5.0,)), splits=dict.fromkeys(("train", "dev", "test"), split)
    )  # fmt: skip
    paths = setting.draw("train")
    return network, paths, DemandFacts.of(setting, paths)


def test_a_warehouse_behind_a_warehouse_has_its_level():
    """B is supplied by A and supplies s: with plenty at A, what B itself has still counts."""
    network, paths, facts = two_tiers()
    rule = make_policy("base_stock", network, facts, [torch.Generator()], levels=(60.0, 40.0, 18.0))
    np.testing.assert_allclose(nearest(rule, paths, "base-stock")[:, 1], [60, 40, 18])


@pytest.mark.parametrize("name", ["gnn", "data_driven", "mlp_network"])
def test_a_net_is_asked_about_the_stock_there_is(name):
    """Plenty at the supplier is for the feasibility layer: no net has seen a billion units."""
    network, paths, facts = two_tiers()
    options = {"echelon": True} if name == "gnn" else {}
    net = make_policy(name, network, facts, [torch.Generator().manual_seed(0)], **options)
    asked = []
    before = net.logits
    net.logits = lambda seen: asked.append(float(seen.stock.max())) or before(seen)
    levels = nearest(net, paths, "base-stock")
    assert max(asked) < 1e4
    assert float(levels.max()) < 1e4
    if name == "gnn":
        assert (levels[:, 1] > 5).all()

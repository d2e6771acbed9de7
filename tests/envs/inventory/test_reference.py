"""What is known to be best, and paired comparison."""

import dataclasses

import pytest
import torch

from offrl.envs.inventory.policies import DemandFacts, make_policy, rounded
from offrl.envs.inventory.reference import Reference, compare, reference
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.solvers.base_stock import base_stock
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.spec import OUTSIDE, Edge


@pytest.mark.parametrize(
    ("name", "options", "cost"),
    [
        ("one_store_backlogged", {}, 6.2769),
        ("one_store_lost", {"lead_time": 2, "underage_cost": 4}, 4.3953),
        ("serial_system", {"lead_time": 1, "underage_cost": 4}, 6.899),
        ("transshipment_backlogged", {}, 5.2964),
        (
            "transshipment_backlogged",
            {"stores": 3, "lead_time": 6, "underage_cost": 9, "correlation": 0},
            9.1261,
        ),
    ],
)
def test_references_are_those_of_the_tables(name, options, cost):
    best = reference(load_setting(name, **options))
    assert best is not None
    assert best.cost == pytest.approx(cost, abs=6e-4)
    assert (best.policy is None) == name.startswith("transshipment")


@pytest.mark.parametrize("holding", [1.0, 0.2])
def test_a_chain_whose_stages_cost_the_same_pushes_all_down(holding):
    """No stage above keeps stock: the optimum is one store's with the lead times' sum, and the policy has that cost."""
    setting = changed("serial_system", holding_cost=holding).resized(test=400, periods={"test": 300})
    best = reference(setting)
    alone = base_stock(parse_demand("normal:5,2"), 2 + 4 + 3 + 4, holding, 9.0)
    assert best.cost == pytest.approx(alone.cost, rel=1e-3)
    costs = evaluate(best.policy, setting.draw("test"), ignore=100)
    assert abs(float(costs.mean()) - best.cost) < 3.5 * float(costs.std()) / len(costs) ** 0.5


@pytest.mark.parametrize("name", ["one_store_backlogged", "serial_system"])
def test_the_optimal_policy_costs_what_the_reference_says(name):
    setting = load_setting(name).resized(test=400, periods={"test": 300})
    best = reference(setting)
    costs = evaluate(best.policy, setting.draw("test"), ignore=100)
    assert abs(float(costs.mean()) - best.cost) < 3.5 * float(costs.std()) / len(costs) ** 0.5


@pytest.mark.parametrize(
    "name", ["one_warehouse_lost_demand", "many_warehouses_lost_demand", "favorita_21_stores"]
)
def test_nothing_is_claimed_where_nothing_is_known(name):
    assert reference(load_setting(name)) is None


def changed(name, *, node=None, demand=None, **of_nodes):
    """A setting with other values at all nodes (or one), or other demand."""
    setting = load_setting(name)
    nodes = tuple(
        dataclasses.replace(own, **of_nodes) if node in (None, own.name) else own for own in setting.network.nodes
    )  # fmt: skip
    network = dataclasses.replace(setting.network, nodes=nodes)
    demand = dataclasses.replace(setting.demand, **(demand or {}))
    return dataclasses.replace(setting, network=network, demand=demand)


@pytest.mark.parametrize(
    "setting",
    [
        changed("one_store_lost", demand={"season": (0.5, 1.5)}),
        changed("one_store_backlogged", demand={"season": (0.5, 1.5)}),
        changed("serial_system", demand={"season": (0.5, 1.5)}),
        changed("transshipment_backlogged", demand={"season": (0.5, 1.5)}),
        changed("serial_system", node="warehouse", holds=False),
        changed("serial_system", node="warehouse", holding_cost=2.0),
        changed("one_store_backlogged", holding_cost=0.0),
        changed("one_store_backlogged", underage_cost=0.0),
        changed("one_store_lost", underage_cost=0.0),
        changed("one_store_backlogged", demand={"stds": (0.0,)}),
        changed("one_store_lost", demand={"means": (0.0,)}),
    ],
)
def test_nothing_is_claimed_where_the_theory_does_not_hold(setting):
    """Seasons, a centre in a chain, stock that gets cheaper downstream, free stock, free shortage, sure demand."""
    assert reference(setting) is None


def test_a_season_of_ones_is_none():
    assert reference(changed("one_store_backlogged", demand={"season": (1.0, 1.0)})) is not None


def test_no_bound_is_claimed_where_a_store_has_a_second_supplier():
    setting = load_setting("transshipment_backlogged")
    lane = Edge(source=OUTSIDE, target="store 1", lead_time=1)
    network = dataclasses.replace(setting.network, edges=(*setting.network.edges, lane))
    assert reference(dataclasses.replace(setting, network=network)) is None


def test_no_bound_is_claimed_where_a_store_is_not_behind_the_centre():
    setting = load_setting("transshipment_backlogged")
    first, *others = setting.network.edges
    moved = dataclasses.replace(first, source=OUTSIDE)
    network = dataclasses.replace(setting.network, edges=(moved, *others))
    assert (network.internal, len(network.edges), len(network.nodes)) == (4, 6, 6)
    assert reference(dataclasses.replace(setting, network=network)) is None


def test_pairing_takes_out_the_luck_of_the_paths():
    luck = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare(10.1 + luck, 10 + luck, Reference(10.0, "x"))
    assert found.cost == pytest.approx(10.1)
    assert found.gap == pytest.approx(0.01)
    assert found.standard_error < 1e-12
    alone = compare(10.1 + luck, None, Reference(10.0, "x"))
    assert alone.standard_error == pytest.approx(float(luck.std()) / 1000**0.5 / 10)


BELOW = [  # setting, its options, policies with options: near the best ones, where a timing error would show
    ("one_store_backlogged", {}, [("base_stock", {"levels": s}) for s in (24.0, 29.59, 31.0)]),
    ("one_store_backlogged", {"lead_time": 1}, [("base_stock", {"levels": 12.9}), ("constant_order", {"amounts": 5.0})]),
    ("one_store_lost", {"lead_time": 2, "underage_cost": 4}, [
        ("optimal", {}), ("myopic_2", {}), ("base_stock", {"levels": 16.0}), ("constant_order", {"amounts": 4.0}),
        ("capped_base_stock", {"levels": 17.0, "caps": 5.0}), ("projected_level", {"levels": 7.0}),
    ]),
    ("serial_system", {}, [
        ("echelon_base_stock", {"levels": s}) for s in ((83.18, 72.82, 49.0, 32.36), (86.0, 74.0, 49.0, 31.0))
    ]),
    ("transshipment_backlogged", {"stores": 3}, [
        ("echelon_base_stock", {"levels": (centre, 15.0, 20.0, 19.0)}) for centre in (90.0, 96.0, 102.0)
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "policies"), BELOW)
def test_no_admissible_policy_costs_less_than_the_optimum_or_bound(name, options, policies):
    """L periods of protection instead of L + 1 would make 5.614 of 6.277."""
    setting = load_setting(name, **options)
    test = setting.resized(train=8, dev=8, test=400, periods={"test": 300}).draw("test")
    facts, least = DemandFacts.of(setting, test), reference(setting)
    for policy, own in policies:
        made = make_policy(policy, setting.network, facts, [torch.Generator().manual_seed(0)], **own)
        costs = evaluate(rounded(made, setting.network) if setting.integral else made, test, ignore=100)
        assert float(costs.mean()) > least.cost - 3 * float(costs.std()) / len(costs) ** 0.5, policy

"""What is known to be best, and paired comparison."""

import pytest
import torch

from offrl.envs.inventory.reference import Reference, compare, reference
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import load_setting


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


def test_pairing_takes_out_the_luck_of_the_paths():
    luck = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare(10.1 + luck, 10 + luck, Reference(10.0, "x"))
    assert found.cost == pytest.approx(10.1)
    assert found.gap == pytest.approx(0.01)
    assert found.standard_error < 1e-12
    alone = compare(10.1 + luck, None, Reference(10.0, "x"))
    assert alone.standard_error == pytest.approx(float(luck.std()) / 1000**0.5 / 10)

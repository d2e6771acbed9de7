"""Numbers of a view against the rollout that they are of."""

import pytest
import torch

from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.reference import reference
from offrl.envs.inventory.settings import load_setting
from offrl.inventory_bench.views import view_of


def made(name, setting, **options):
    paths = setting.resized(train=8, dev=8).draw("train")
    return make_policy(name, setting.network, DemandFacts.of(setting, paths), [torch.Generator()], **options)


@pytest.fixture(scope="module")
def lost():
    setting = load_setting("one_store_lost", lead_time=2, underage_cost=4)
    return setting, reference(setting)


def test_the_optimal_policy_equals_the_optimum_everywhere(lost):
    setting, best = lost
    view = view_of(best.policy, setting, best)
    assert view["map"]["policy"] == view["map"]["optimal"]
    assert view["map"]["equal"] == 1.0
    assert view["map"]["mean_difference"] == 0.0


def test_the_map_says_what_is_ordered_in_its_states(lost):
    """Base-stock at 16 with nothing further under way orders 16 - on hand - next, rows by what arrives next."""
    setting, best = lost
    found = view_of(made("base_stock", setting, levels=(16.0,)), setting, best)["map"]
    assert found["later"] == []
    for row, following in zip(found["policy"], found["next"], strict=True):
        assert row == [max(16.0 - hand - following, 0.0) for hand in found["on_hand"]]
    assert found["optimal"] != found["policy"]
    assert 0 < found["equal"] < 1


def test_later_arrivals_are_held_at_their_mean():
    setting = load_setting("one_store_lost", lead_time=3, underage_cost=4)
    best = reference(setting)
    found = view_of(made("constant_order", setting, amounts=(4.0,)), setting, best)["map"]
    assert found["later"] == [4.0]
    assert {value for row in found["policy"] for value in row} == {4.0}


def test_one_period_of_lead_time_is_a_line():
    setting = load_setting("one_store_lost", lead_time=1, underage_cost=4)
    best = reference(setting)
    found = view_of(best.policy, setting, best)["map"]
    assert found["next"] == [0]
    assert found["policy"] == found["optimal"]


def test_flows_and_costs_are_the_means_of_the_rollout():
    setting = load_setting("serial_system")
    best = reference(setting)
    view = view_of(best.policy, setting, best)
    assert view["map"] is None
    assert all(
        flow == pytest.approx(view["demands"][0], rel=0.02) for flow in view["flows"]
    )  # what goes in, goes out
    assert sum(view["costs"].values()) == pytest.approx(best.cost, rel=0.1)
    assert view["costs"]["ordering"] == pytest.approx(0, abs=1e-6)
    assert len(view["on_hand"]) == 4
    assert len(view["demand"]) == 1
    assert len(view["orders"]) == len(view["edges"]) == 4
    assert len(view["demand"][0]) == len(view["on_hand"][0]) == 50


def test_a_path_obeys_the_balance_of_stock():
    """One store, backlog, L = 2: on hand after = before - demand + the order of the period before."""
    setting = load_setting("one_store_backlogged", lead_time=2)
    view = view_of(made("base_stock", setting, levels=(17.0,)), setting, None)
    on_hand, orders, demand = (view[key][0] for key in ("on_hand", "orders", "demand"))
    for t in range(1, len(on_hand) - 1):
        assert on_hand[t + 1] == pytest.approx(on_hand[t] - demand[t] + orders[t - 1], abs=0.02)


def test_sales_settings_and_oracles_have_views():
    from offrl.envs.inventory.classical import just_in_time

    setting = load_setting("favorita_one_store").resized(test=8)
    view = view_of(just_in_time(setting.draw("test")), setting, None)
    assert view["profit"]
    assert view["costs"]["underage"] < 0

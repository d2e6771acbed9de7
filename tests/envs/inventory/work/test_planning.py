"""An item as a setting; held-out dates; min/max; savings with their interval."""

import dataclasses
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offrl.commands.inventory_use import acting
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.scenarios import Observation, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import Edge, Network, Node
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.fit import fit_demand
from offrl.envs.inventory.work.history import History
from offrl.envs.inventory.work.planning import (
    COPIES,
    held_out_scenarios,
    levels_in_use,
    min_max,
    plan_of,
    plan_setting,
    setting_of,
)
from offrl.errors import ConfigError
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.fixture(scope="module")
def company(small):
    return company_of(read_tables_of(small.rows))


def test_an_item_is_a_setting_like_any_other(folder, company):
    setting = load_setting(f"{folder}:I003")
    assert setting.name == "net-I003"
    assert setting.network == company.network(2)
    drawn = setting.resized(train=8, dev=4).draw("train")
    assert drawn.demands.shape == (52, 8, 3)
    assert drawn.demands.mean() == pytest.approx(np.mean(setting.demand.means), rel=0.4)
    with pytest.raises(ConfigError, match="no item 'I9'; there are I001"):
        plan_setting(f"{folder}:I9")
    with pytest.raises(ConfigError, match="a company takes no options"):
        load_setting(f"{folder}:I003", lead_time=2)


def test_training_does_not_see_the_held_out_dates(small):
    rows = {name: list(table) for name, table in small.rows.items()}
    dates = sorted({row[2] for row in rows["demand"][1:]})
    late = set(dates[24:])
    rows["demand"] = [rows["demand"][0], *(
        (*row[:3], row[3] * 50, 1, row[5]) if row[2] in late else row for row in rows["demand"][1:]
    )]  # fmt: skip
    a, b = (plan_of(company_of(read_tables_of(r)), 0) for r in (small.rows, rows))
    np.testing.assert_array_equal(a.fit.means, b.fit.means)
    assert a.history.sales[:, :, 24:].sum() < b.history.sales[:, :, 24:].sum() / 10


def test_held_out_demand_is_the_sales_where_they_tell_it(company):
    plan = plan_of(company, 0)
    scenarios, start = held_out_scenarios(plan), plan.start
    assert (start, scenarios.demands.shape) == (24, (30, COPIES, 3))
    known = ~np.isnan(company.sales[0]) & (company.left[0] > 0)
    drawn = scenarios.demands.numpy().transpose(1, 2, 0)
    for copy in drawn:
        np.testing.assert_array_equal(copy[known], np.maximum(company.sales[0], 0)[known])
    cut = company.left[0] == 0
    assert (drawn[:, cut] >= company.sales[0][cut]).all()
    assert drawn[:, cut].std(0).max() > 0


def test_held_out_deliveries_do_not_follow_the_demand_that_is_drawn():
    """One store and one lane, so that both draws have one shape; a period without stock has a demand of any size."""
    random = np.random.default_rng(5)
    sales = random.poisson(6.0, (1, 1, 60)).astype(float)
    left = np.where(random.random(sales.shape) < 0.5, 0.0, 3.0)
    history = History(
        items=("I",), stores=("s",), first=date(2024, 1, 1), period="week", sales=sales, left=left
    )
    ways = tuple((0.0,) * k + (1.0,) for k in range(30))
    lane = Edge(source="outside", target="s", lead_time=2, receipts=ways)
    network = Network(name="n", nodes=(Node(name="s", kind="store"),), edges=(lane,), lost_sales=True)
    plan = SimpleNamespace(
        network=network, carried=network, history=history, fit=fit_demand(history), sold=[(0, [0])], start=48, items=(0,), periods=60
    )  # fmt: skip
    drawn = held_out_scenarios(plan)
    demand = drawn.demands[:, :, 0].numpy()[left[0, 0] == 0]
    late = drawn.deliveries[:, :, 0].numpy()[left[0, 0] == 0]
    demand = demand - demand.mean(1, keepdims=True)
    assert abs(np.corrcoef(demand.ravel(), late.ravel())[0, 1]) < 0.1


def test_min_max_repeats_the_rules_of_the_example(company, small):
    plan = plan_of(company, 0)
    network, levels = plan.network, levels_in_use(plan)
    np.testing.assert_array_equal(levels, small.levels[0])
    policy = min_max(network, levels)
    scenarios = held_out_scenarios(plan)
    seen = scenarios.observe(scenarios.initial, 0)
    orders = policy(seen)
    for e, n in enumerate(network.targets):
        position = float(seen.stock[0, n].sum())
        want = float(levels[n, 1]) - position if position <= float(levels[n, 0]) else 0.0
        assert float(orders[0, e]) == want
    done = rollout(policy, scenarios, feasibility="project")
    assert torch.isfinite(done.costs).all()


def test_levels_that_are_missing_are_named(company):
    import dataclasses

    levels = company.levels.copy()
    levels[0, 3] = np.nan
    other = dataclasses.replace(company, levels=levels)
    with pytest.raises(ConfigError, match="no min and max for item 'I001' at 'Store 02'; fill them"):
        levels_in_use(plan_of(other, 0))


def test_todays_rules_order_whole_units_of_an_item_that_is_sold_so(company):
    """A warehouse with 5 units that 8 are asked of: 2 and 3, not 2.5 twice, as the trained policy does."""
    plan = plan_of(company, 0)
    network = plan.network
    rule = min_max(network, torch.tensor([[4.0, 4.5]]).repeat(len(network.nodes), 1))
    stock = torch.zeros(1, len(network.nodes), network.width)
    stock[:, : network.upstream, 0] = 5.0
    seen = Observation(stock, 0, None, None, Parameters.of(network))
    orders = acting(plan, rule)(seen)[:, : network.internal]
    assert plan.whole
    assert torch.equal(orders, orders.round())
    assert float(rule(seen)[:, : network.internal].frac().abs().max()) == 0.5


def test_a_history_too_short_says_how_long_it_must_be(company):
    plan = plan_of(dataclasses.replace(company, sales=company.sales[:, :, :8], left=company.left[:, :, :8]))
    with pytest.raises(ConfigError, match="8 weeks of sales; 9 are the least: 8 to fit on and 1 to hold out"):
        setting_of(plan, "short")

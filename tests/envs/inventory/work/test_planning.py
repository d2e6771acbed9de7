"""An item as a setting; held-out dates; min/max; savings with their interval."""

import numpy as np
import pytest
import torch

from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.planning import (
    COPIES,
    held_out_scenarios,
    item_setting,
    levels_in_use,
    min_max,
    saving,
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
        item_setting(folder, "I9")
    with pytest.raises(ConfigError, match="takes no options"):
        load_setting(f"{folder}:I003", lead_time=2)


def test_training_does_not_see_the_held_out_dates(small):
    rows = {name: list(table) for name, table in small.rows.items()}
    dates = sorted({row[2] for row in rows["demand"][1:]})
    late = set(dates[24:])
    rows["demand"] = [rows["demand"][0], *(
        (*row[:3], row[3] * 50, 1, row[5]) if row[2] in late else row for row in rows["demand"][1:]
    )]  # fmt: skip
    from offrl.envs.inventory.work.planning import fitted

    a, b = (fitted(company_of(read_tables_of(r)), 0) for r in (small.rows, rows))
    np.testing.assert_array_equal(a.means, b.means)


def test_held_out_demand_is_the_sales_where_they_tell_it(company):
    scenarios, start = held_out_scenarios(company, 0)
    assert (start, scenarios.demands.shape) == (24, (30, COPIES, 3))
    known = ~np.isnan(company.sales[0]) & (company.left[0] > 0)
    drawn = scenarios.demands.numpy().transpose(1, 2, 0)
    for copy in drawn:
        np.testing.assert_array_equal(copy[known], np.maximum(company.sales[0], 0)[known])
    cut = company.left[0] == 0
    assert (drawn[:, cut] >= company.sales[0][cut]).all()
    assert drawn[:, cut].std(0).max() > 0


def test_min_max_repeats_the_rules_of_the_example(company, small):
    network = company.network(0)
    levels = levels_in_use(company, 0, network)
    np.testing.assert_array_equal(levels, small.levels[0])
    policy = min_max(network, levels)
    scenarios, _ = held_out_scenarios(company, 0)
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
        levels_in_use(other, 0, other.network(0))


def test_savings_and_their_interval():
    random = torch.Generator().manual_seed(0)
    theirs = 100 + torch.randn(200, generator=random)
    same = saving(theirs, theirs)
    assert (same.per_period, same.low, same.high) == (0, 0, 0)
    better = saving(theirs - 3 + 4 * torch.randn(200, generator=random), theirs)
    assert better.per_period == pytest.approx(3, abs=0.9)
    assert better.low < better.per_period < better.high
    assert better.high - better.low == pytest.approx(2 * 1.96 * 4 / 200**0.5, rel=0.3)
    slow = torch.sin(torch.arange(200) / 20) * 4  # what lasts must widen the interval
    wide = saving(theirs - slow, theirs)
    assert wide.high - wide.low > 0.8 * (better.high - better.low)

"""Tables of a back-test against sums by hand; a company's plan has what its items have."""

import dataclasses

import numpy as np
import pytest
import torch

from offrl.envs.inventory.rules import RuledSimulator
from offrl.envs.inventory.work.backtest import Report
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.planning import (
    held_out_scenarios,
    levels_in_use,
    min_max,
    plan_of,
    setting_of,
    splits,
)
from offrl.envs.inventory.work.scoring import score
from offrl.errors import ConfigError
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.fixture(scope="module")
def company(small):
    return company_of(read_tables_of(small.rows))


@pytest.fixture(scope="module")
def report(company):
    plan = plan_of(company)
    scenarios = held_out_scenarios(plan)
    levels = levels_in_use(plan)
    rivals = {"learned": min_max(plan.network, 1.5 * levels), "min/max": min_max(plan.network, levels)}
    scores = {name: score(rival, scenarios, plan.start) for name, rival in rivals.items()}
    return Report(plan=plan, scores=scores)


def test_tables_add_up(report):
    (_, *summary), (head, *items), (_, *groups) = report.summary(), report.items(), report.by_group()
    for k, row in enumerate(summary):
        assert sum(line[4 + k] for line in items) == pytest.approx(row[1])
        assert sum(line[2 + k] for line in groups) == pytest.approx(row[1])
        assert row[5] == pytest.approx(sum(line[head.index(f"stock value {row[0]}")] for line in items))
    assert [line[0] for line in groups] == sorted({line[1] for line in items})
    assert all(line[6] == pytest.approx(line[5] - line[4]) for line in items)
    assert [line[0] for line in items] == [line[0] for line in sorted(items, key=lambda line: -line[4])]
    saved = [line[6] for line in report.worst()[1:]]
    assert saved == sorted(saved)
    assert len(saved) == 4
    assert report.worst()[1][0] == min(items, key=lambda line: line[6])[0]


def test_an_item_without_demand_has_no_fill_rate(report):
    """Not one of 0, as if all had been missed."""
    upstream = report.plan.network.upstream
    none = np.array([item == 3 for item, _ in report.plan.nodes[upstream:]])
    scores = {
        name: dataclasses.replace(
            own, demand=np.where(none, 0, own.demand), served=np.where(none, 0, own.served)
        )
        for name, own in report.scores.items()
    }
    quiet = dataclasses.replace(report, scores=scores)
    head, *rows = quiet.items()
    fill = {row[0]: row[head.index("fill learned")] for row in rows}
    assert fill["I004"] is None
    assert all(0 < fill[name] <= 1 for name in ("I001", "I002", "I003"))
    (group,) = (row for row in quiet.by_group()[1:] if row[0] == next(r[1] for r in rows if r[0] == "I004"))
    assert (group[-1] is None) == (group[1] == 1)


def test_an_item_among_all_costs_what_it_costs_by_itself(company):
    """With trucks of any size, and whole units on its lanes, nothing couples the items."""
    free = dataclasses.replace(company, trucks=tuple((name, 1e9) for name, _ in company.trucks))
    joint = plan_of(free)
    total = score(min_max(joint.network, levels_in_use(joint)), held_out_scenarios(joint), joint.start)
    for item in (0, 2):
        own = plan_of(company, item)
        whole = dataclasses.replace(
            own.network, edges=tuple(dataclasses.replace(e, pack=e.pack or 1.0) for e in own.network.edges)
        )
        scenarios = held_out_scenarios(own)
        alone = score(
            min_max(whole, levels_in_use(own)), dataclasses.replace(scenarios, network=whole), own.start
        )
        among = joint.of_item(total.costs.mean(0))[item]
        assert among == pytest.approx(
            alone.costs.sum(1).mean(), rel=0.1
        )  # other draws where stock had run out


def test_all_items_share_trucks_and_the_budget(company):
    few = dataclasses.replace(
        company, trucks=tuple((name, 12.0) for name, _ in company.trucks), shared_budget=60.0
    )
    plan = plan_of(few)
    network = plan.network
    assert {e.truck for e in network.edges} == {"", *(name for name, _ in few.trucks)}
    simulator = RuledSimulator(network)
    sent = simulator.filled(
        torch.zeros(1, len(network.nodes), network.width), torch.full((1, len(network.edges)), 500.0), 0
    )
    size = torch.tensor([e.size for e in network.edges])
    for name, limit in few.trucks:
        own = torch.tensor([e.truck == name for e in network.edges])
        assert float((sent[0] * size)[own].sum()) <= limit
    assert sent.sum() > 0
    own = plan_of(few, 0).network
    assert (own.trucks, own.budget, {e.truck for e in own.edges}) == ((), float("inf"), {""})
    with pytest.raises(ConfigError, match="fill shared_budget instead"):
        plan_of(dataclasses.replace(few, budget=5.0))


def test_a_company_is_a_setting_with_fewer_paths(company, folder):
    setting = setting_of(plan_of(company), "net")
    drawn = setting.resized(train=3, dev=2).draw("train")
    assert drawn.demands.shape == (52, 3, 12)
    assert not setting.integral
    assert len(setting.demand.means) == len(setting.demand.stds) == len(setting.demand.seasons) == 12
    sizes = splits(4000)
    assert (sizes["train"].scenarios, sizes["train"].batch, sizes["dev"].scenarios) == (16, 1, 4)
    assert splits(12)["train"].scenarios == 2048
    few = setting.demand.draw(2, 10, np.random.RandomState(0))
    more = setting.demand.draw(5, 10, np.random.RandomState(0))
    np.testing.assert_array_equal(few, more[:2])

"""Today's orders of a policy."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.planning import held_out_scenarios, plan_of, setting_of, today
from offrl.envs.inventory.work.recommend import recommend
from offrl.errors import ConfigError
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.fixture(scope="module")
def company(small):
    return company_of(read_tables_of(small.rows))


def base_stock(network, levels):
    facts = DemandFacts(means=(10.0,) * network.stores, stds=(3.0,) * network.stores)
    return make_policy("base_stock", network, facts, [torch.Generator()], levels=levels)


def test_orders_keep_the_rules_and_say_when_stock_runs_out(company):
    network = company.network(0)
    rows = recommend(plan_of(company, 0), base_stock(network, [500.0, 500.0, 70.0, 70.0, 70.0]))
    head, body = rows[0], [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert head[:4] == ("item", "from", "to", "order")
    assert [(r["from"], r["to"]) for r in body][-2:] == [("Nord", "East"), ("Nord", "West")]
    plan = plan_of(company, 0)
    fit, stock = plan.fit, today(plan)
    for r in body:
        n = network.place[r["to"]]
        if r["from"] == "Nord":
            assert r["order"] % 6 == 0
            assert abs(r["order"] - (500 - float(stock[0, n].sum()))) <= 3
        else:
            store = list(company.stores).index(r["to"])
            weeks = int(np.floor(r["on_hand"] / fit.means[0, store] + 1e-9))
            if r["under_way"] == 0:
                assert r["runs_out"] == company.first + timedelta(weeks=30 + weeks)
        assert r["warning"] is None
    sent = sum(r["order"] for r in body if r["from"] == "East")
    assert sent <= float(stock[0, 0, 0])


def test_order_days_and_stock_far_above(company):
    import dataclasses

    asia = company.network(2)
    policy = base_stock(asia, [5000.0, 5000.0, 70.0, 70.0, 70.0])
    even = recommend(plan_of(company, 2), policy)  # period 30 is one of every 2
    before = dataclasses.replace(company, sales=company.sales[:, :, :29], left=company.left[:, :, :29])
    odd = recommend(plan_of(before, 2), policy)
    assert [row[3] > 0 for row in even[1:] if row[1] == "Asia"] == [True, True]
    assert [row[3] for row in odd[1:] if row[1] == "Asia"] == [0.0, 0.0]
    lots = company.on_hand.copy()
    lots[2, 0] = 1e5
    rows = recommend(plan_of(dataclasses.replace(company, on_hand=lots), 2), policy)
    assert any("not seen in training" in (row[-1] or "") for row in rows[1:])


def test_goods_under_way_come_in_their_period(company):
    import dataclasses

    due, coming = company.due.copy(), company.on_order.copy()
    due[0, :2], coming[0, :2] = [1, 9], [40.0, 50.0]
    stock = today(plan_of(dataclasses.replace(company, due=due, on_order=coming), 0))
    assert float(stock[0, 0, 1]) == 40.0
    assert float(stock[0, 1, -1]) == 50.0


def test_what_is_on_hand_and_under_way_is_that_of_the_tables(company):
    """Goods that are overdue are not on the shelf, and those due later than any lead time do not come sooner."""
    import dataclasses

    on_hand, coming, due = company.on_hand.copy(), company.on_order.copy(), company.due.copy()
    on_hand[0, 2:4], coming[0, 2:4], due[0, 2:4] = 0.0, 500.0, [0, 30]
    plan = plan_of(dataclasses.replace(company, on_hand=on_hand, on_order=coming, due=due), 0)
    policy = base_stock(plan.network, [500.0, 500.0, 70.0, 70.0, 70.0])
    rows = {row[2]: row for row in recommend(plan, policy)[1:]}
    names = [name for name, _ in company.places[2:4]]
    assert [rows[name][7:9] for name in names] == [(0.0, 500.0)] * 2
    assert rows[names[0]][9] > company.first + timedelta(weeks=30)
    assert rows[names[1]][9] == company.first + timedelta(weeks=30)


def test_an_item_too_new_to_be_fitted_has_a_warning_and_is_not_trained_alone(company):
    import dataclasses

    whole = plan_of(company)
    date, sales = company.dates()[whole.start], company.sales.copy()
    sales[1, :, : whole.start], sales[0, 0, : whole.start] = np.nan, np.nan
    new = dataclasses.replace(company, sales=sales)
    plan = plan_of(new)
    rows = recommend(plan, base_stock(plan.network, [50.0] * len(plan.nodes)))
    warning = {(row[0], row[2]): row[-1] for row in rows[1:]}
    own = [new.items[k].name for k in range(3)]
    first, *others = new.stores
    unknown = "no sales on the dates that were fitted: its demand is not known, order by hand"
    assert {warning[own[1], place] for place in (first, *others, "East", "West")} == {unknown}
    assert warning[own[0], first] == unknown
    assert "1 of its 2 stores" in warning[own[0], "East"]
    assert [warning[own[0], place] for place in (*others, "West")] == [None] * 3
    assert {warning[own[2], place] for place in (first, *others, "East", "West")} == {None}
    trained = base_stock(
        plan.network, [50.0] * len(plan.nodes)
    )  # when the fitted dates ended before the sales
    trained.facts = dataclasses.replace(trained.facts, means=(0.0,) * plan.network.stores)
    assert {row[-1] for row in recommend(whole, trained)[1:]} == {unknown}
    with pytest.raises(ConfigError, match=f"item '{own[1]}' has no sales before {date}"):
        setting_of(plan_of(new, 1), "new")
    setting_of(plan, "new")


def test_where_deliveries_vary_a_policy_sees_what_it_saw_in_training(company):
    """What is under way stands in the last column, without its date."""
    import dataclasses

    due, coming = company.due.copy(), company.on_order.copy()
    due[0, :2], coming[0, :2] = [1, 2], [40.0, 50.0]
    late = tuple(dataclasses.replace(e, receipts=((1.0,), (0.0,) * 6 + (1.0,))) for e in company.lanes)
    plan = plan_of(dataclasses.replace(company, due=due, on_order=coming, lanes=late), 0)
    seen = []

    def policy(observation):
        seen.append(observation.stock)
        return torch.zeros(1, len(plan.network.edges))

    recommend(plan, policy)
    assert plan.network.width == 7
    assert seen[0][0, :2, 1:].tolist() == [[0.0] * 5 + [40.0], [0.0] * 5 + [50.0]]
    torch.testing.assert_close(seen[0][..., 0], today(plan)[..., 0])


def test_places_without_min_and_max_have_orders_all_the_same(company):
    import dataclasses

    levels = company.levels.copy()
    levels[0, 3] = np.nan  # Store 02
    with_all, without = (
        recommend(plan_of(own, 0), base_stock(company.network(0), [500.0, 500.0, 70.0, 70.0, 70.0]))
        for own in (company, dataclasses.replace(company, levels=levels))
    )
    rule, place = with_all[0].index("min_max_order"), with_all[0].index("to")
    assert [row[rule] is None for row in without[1:]] == [row[place] == "Store 02" for row in with_all[1:]]
    assert [row[:rule] for row in without] == [row[:rule] for row in with_all]
    on_hand = company.on_hand.copy()
    on_hand[0, 3] = 1e6
    far = dataclasses.replace(company, levels=levels, on_hand=on_hand)
    rows = recommend(plan_of(far, 0), base_stock(company.network(0), [500.0, 500.0, 70.0, 70.0, 70.0]))
    assert [row[place] for row in rows[1:] if row[-1]] == ["Store 02"]


def test_rules_that_shrink_orders_leave_whole_units(company):
    """A budget, a capacity that is no whole number, and a pack beside a lane without one; in back-tests as well."""
    import dataclasses

    lanes = tuple(
        dataclasses.replace(
            lane, pack=0.0, fixed_cost=0.0, capacity=33.3 if lane.target == "West" else float("inf")
        )
        for lane in company.lanes
    )
    plan = plan_of(dataclasses.replace(company, lanes=lanes, budget=7.0), 0)
    policy = base_stock(plan.network, [400.0, 400.0, 70.0, 80.0, 90.0])
    rows = [row[3:6] for row in recommend(plan, policy)[1:]]
    assert all(units == int(units) for row in rows for units in row)
    bought = sum(row[3] for row in recommend(plan, policy)[1:] if row[1] == "Nord")
    assert 60 <= bought <= 70  # 7 of money at 0.1 a unit
    assert held_out_scenarios(plan).network.edges[-1].pack == 1.0
    plain = tuple(dataclasses.replace(e, pack=0.0, fixed_cost=0.0, truck="") for e in company.lanes)
    free = plan_of(dataclasses.replace(company, lanes=plain), 0)
    assert free.carried is free.network  # without rules


def test_an_item_in_parts_of_a_unit_is_not_ordered_in_whole_ones(company):
    """Alone as among all items; amounts of cells come back as they were written, not in single precision."""
    import dataclasses

    sales, on_hand = company.sales.copy(), company.on_hand.copy()
    sales[0, 0, 3] = 4.25
    on_hand[0, 2] = 20.24
    lanes = tuple(dataclasses.replace(lane, pack=0.0) for lane in company.lanes)
    kilos = plan_of(dataclasses.replace(company, sales=sales, on_hand=on_hand, lanes=lanes), 0)
    whole = plan_of(dataclasses.replace(company, on_hand=on_hand, lanes=lanes), 0)
    assert (setting_of(kilos, "k").integral, setting_of(whole, "w").integral) == (False, True)
    policy = base_stock(company.network(0), [500.0, 500.0, 70.4, 70.4, 70.4])
    for plan, want in ((kilos, 50.16), (whole, 50.0)):
        rows = recommend(plan, policy)
        own = next(dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[2] == company.places[2][0])
        assert (own["on_hand"], own["order"]) == (20.24, want)
        for name in ("base_stock", "base_stock_order"):
            assert (own[name] == round(own[name])) == (want == 50), name
    everything = plan_of(kilos.company)
    packs = {edge.pack for edge in everything.network.edges if edge.target.startswith("I001")}
    assert packs == {0.0}

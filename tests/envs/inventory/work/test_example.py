"""The made-up company: what is known of it holds in its tables."""

import numpy as np

from offrl.envs.inventory.work.example import FIRST, example


def test_the_same_seed_makes_the_same_company(few):
    again = example(items=4, stores=3, weeks=8)
    assert few.rows == again.rows
    assert example(items=4, stores=3, weeks=8, seed=1).rows != few.rows


def test_means_are_those_of_the_demand():
    made = example(items=8, stores=12, weeks=520)
    ratio = made.demand.mean((1, 2)) / made.means.mean(1)
    np.testing.assert_allclose(ratio, 1, atol=0.06)


def test_it_has_gaps_returns_stock_outs_and_slow_items():
    made = example()
    rows = made.rows["demand"][1:]
    cells = made.demand.size
    assert 0.015 < 1 - len(rows) / cells < 0.025
    assert any(row[3] < 0 for row in rows)
    assert 0.05 < np.mean([row[4] == 0 for row in rows]) < 0.3
    slow = made.demand[3::4]
    assert 0.7 < (slow == 0).mean() < 0.8
    assert sum(row[3] for row in rows) < 0.95 * made.demand.sum()  # some was lost
    assert [len(made.rows[name]) - 1 for name in ("nodes", "lanes", "items", "stock")] == [17, 18, 40, 560]


def test_sales_are_what_the_rules_let_them_be(small):
    """Replayed by hand for one item."""
    item, lead = 0, 2
    demand, levels = small.demand[item], small.levels[item]
    on_hand = levels[:, 1].copy()
    pipe = np.zeros((5, lead))
    served = {2: 0, 3: 0, 4: 1}
    sold = np.zeros_like(demand)
    for t in range(demand.shape[1]):
        position = on_hand + pipe.sum(1)
        wish = np.where(position <= levels[:, 0], levels[:, 1] - position, 0)
        wish[:2] = 6 * np.round(wish[:2] / 6)
        for source in (0, 1):
            asked = [n for n in served if served[n] == source]
            share = wish[asked] * min(1, on_hand[source] / (wish[asked].sum() + 1e-10))
            wish[asked] = np.floor(share + 1e-6)
            rest = share - wish[asked]  # whole units that are left go to the largest remainders
            for k in np.argsort(-rest, kind="stable")[: round(rest.sum())]:
                wish[asked[k]] += 1
        sold[:, t] = np.minimum(on_hand[2:], demand[:, t])
        on_hand[2:] -= sold[:, t]
        for n, source in served.items():
            on_hand[source] -= wish[n]
        on_hand += pipe[:, 0]
        pipe = np.roll(pipe, -1, 1)
        pipe[:, -1] = 0
        pipe[:2, lead - 2] += wish[:2]
        on_hand[2:] += wish[2:]
    by_cell = {(row[1], row[2]): row[3] for row in small.rows["demand"][1:] if row[0] == "I001"}
    dates = sorted({row[2] for row in small.rows["demand"][1:]})
    for (store, day), units in by_cell.items():
        s, t = int(store[-2:]) - 1, dates.index(day)
        assert units in (sold[s, t], sold[s, t] - 2)


def test_orders_are_what_was_sent_and_keep_the_rules(small):
    """Of Asia's item: every second week, packs of 6; a warehouse's stock changes by what came and went."""
    rows = [row for row in small.rows["orders"][1:] if row[0] == "I003"]
    weeks = {"Asia": set(), "East": set(), "West": set()}
    for _, source, _, day, units, _ in rows:
        assert units == int(units) > 0
        assert source != "Asia" or units % 6 == 0
        weeks[source].add((day - FIRST).days // 7)
    assert weeks["Asia"]
    assert all(week % 2 == 0 for week in weeks["Asia"])
    assert any(week % 2 for week in weeks["East"])
    assert min(map(min, filter(None, weeks.values()))) >= 18

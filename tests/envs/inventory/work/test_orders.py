"""Orders as they were placed, levels from files, and the stock from which those orders went on."""

import dataclasses

import numpy as np
import pytest
import torch

from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.work.company import company_of, with_stock
from offrl.envs.inventory.work.orders import as_placed, by_lane, read_levels, read_orders, stock_at
from offrl.envs.inventory.work.planning import plan_of
from offrl.errors import DatasetError
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.fixture(scope="module")
def company(small):
    return company_of(read_tables_of(small.rows))


@pytest.fixture
def orders(folder, company):
    return read_orders(folder / "orders.csv", company)


def test_every_order_stands_on_its_lane_in_its_period(small, company, orders):
    joint, one = plan_of(company), plan_of(company, 1)
    ordered = by_lane(joint, orders)
    rows = small.rows["orders"][1:]
    assert ordered.sum() == sum(row[4] for row in rows) > 0
    for item, source, place, day, units, _ in rows[::17]:
        lane = next(
            e for e, n in enumerate(joint.network.targets) if joint.label(n) == (item, place) and joint.source(e) == source
        )  # fmt: skip
        assert ordered[(day - company.first).days // 7, lane] == units
    assert by_lane(one, orders).sum() == sum(row[4] for row in rows if row[0] == "I002")
    policy = as_placed(ordered)
    np.testing.assert_array_equal(
        policy(Observation(torch.zeros(2, 3, 4), 20, None, None, None)), ordered[[20, 20]]
    )


def test_the_stock_of_a_day_is_what_led_to_today(company, orders):
    """From the stock of period 24, what came and what went lead to what is known of later days."""
    plan = plan_of(company, 0)
    network, ordered = plan.network, by_lane(plan, orders)
    stock = stock_at(plan, ordered, 24)[0].double().numpy()
    for n, (_, place) in enumerate(plan.nodes):
        on_hand, pipe = stock[n, 0], list(stock[n, 1:]) + [0.0] * 9
        lane = network.targets.index(n)
        if n >= network.upstream:  # until its next known stock-take
            left = company.left[0, place - 2]
            last = np.flatnonzero(~np.isnan(left[:24]))[-1]
            if last == 23:
                lead = network.lead_times[lane]
                assert on_hand == left[23] + ordered[24 - lead, lane]
            continue
        for t in range(24, plan.periods):
            pipe[network.lead_times[lane] - 1] += ordered[t, lane]
            on_hand -= sum(ordered[t, e] for e, s in enumerate(network.sources) if s == n)
            on_hand += pipe.pop(0)
            pipe.append(0.0)
        assert on_hand == pytest.approx(float(company.on_hand[0, place]))


def test_an_order_that_comes_at_once_is_not_in_the_stock_before_it(company):
    """Lead time 0: as_placed places it in the period itself; it would come twice."""
    at_once = tuple(
        dataclasses.replace(lane, lead_time=0) if lane.target in company.stores else lane for lane in company.lanes
    )  # fmt: skip
    left = np.full_like(company.left, np.nan)
    left[:, :, 21] = 7.0  # the last stock-take
    plan = plan_of(dataclasses.replace(company, lanes=at_once, left=left), 0)
    n = plan.network.upstream
    lane = plan.network.targets.index(n)
    ordered = np.zeros((plan.periods, len(plan.network.edges)))
    ordered[20:26, lane] = [1000.0, 1000.0, 30.0, 20.0, 1000.0, 1000.0]
    sold = np.nansum(company.sales[0, plan.nodes[n][1] - n, 22:24])
    assert float(stock_at(plan, ordered, 24)[0, n, 0]) == pytest.approx(7 + 30 + 20 - sold)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("item,from,to,date,quantity\nI009,East,Store 01,2024-06-03,5\n", "line 2, column 'item': unknown item 'I009'"),
        ("item,from,to,date,quantity\nI001,West,Store 01,2024-06-03,5\n", "column 'from': no lane leads from 'West' to 'Store 01'"),
        ("item,from,to,date,quantity\nI001,Sud,East,2024-06-03,5\n", "column 'from': item 'I001' comes from 'Nord', not 'Sud'"),
        ("item,from,to,date,quantity\nI001,East,Store 01,2024-06-04,5\n", "column 'date': 2024-06-04 is no first day of a week"),
        ("item,from,to,date,quantity\nI001,East,Store 01,2030-06-03,5\n", "correct it or remove the row"),
        ("item,from,to,date,quantity\nI001,East,Store 01,2024-06-03,0\n", "column 'quantity': quantity is 0; it must be above 0"),
        ("item,from,to,date,quantity\nI001,East,Store 01,2024-06-03,many\n", "quantity is the text 'many'; write a number"),
        ("item,from,to,date,amount\nI001,East,Store 01,2024-06-03,5\n", "line 1: unknown column 'amount'"),
        ("item,from,to,date,quantity,unit\nI001,East,Store 01,2024-06-03,5,case\n", "counted in 'each'; convert the amounts"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_one_line(text, says, company, tmp_path):
    (tmp_path / "actual.csv").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_orders(tmp_path / "actual.csv", company)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'actual.csv'}: actual.csv, line")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("I001,Store 9,1,2", "column 'node': unknown warehouse or store 'Store 9'"),
        ("I001,East,3,2", "column 'min': min 3 is above max 2; exchange them"),
        ("I001,East,3,", "column 'max': min and max go together"),
        ("I001,East,-3,2", "column 'min': min is -3; it must be 0 or more"),
        ("I001,East,1,2\nI001,East,1,2", "already stand in row 2; keep one row"),
    ],
)
def test_wrong_levels_are_one_line(text, says, company, tmp_path):
    (tmp_path / "levels.csv").write_text(f"item,node,min,max\n{text}\n")
    with pytest.raises(DatasetError) as caught:
        read_levels(tmp_path / "levels.csv", company)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_levels_and_stock_from_files_of_their_own(company, tmp_path):
    (tmp_path / "levels.csv").write_text("item,node,min,max\nI002,West,4,9\n")
    levels = read_levels(tmp_path / "levels.csv", company)
    np.testing.assert_array_equal(levels[1, 1], [4, 9])
    assert np.isnan(levels).sum() == levels.size - 2
    (tmp_path / "stock.csv").write_text("item,node,on_hand\nI002,West,77\n")
    other = with_stock(company, tmp_path / "stock.csv")
    assert other.on_hand[1, 1] == other.on_hand.sum() == 77
    assert other.on_order.sum() == 0
    np.testing.assert_array_equal(other.levels, company.levels)
    (tmp_path / "stock.csv").write_text("item,node,on_hand\nI002,West,-1\n")
    with pytest.raises(DatasetError, match=r"stock.csv: stock.csv, line 2, column 'on_hand': on_hand is -1"):
        with_stock(company, tmp_path / "stock.csv")

"""Scores against hand-made cases and the KPIs; savings with their interval; ABC-XYZ."""

import dataclasses

import numpy as np
import pytest
import torch

from offrl.envs.inventory.kpis import kpis
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.planning import held_out_scenarios, levels_in_use, min_max, plan_of
from offrl.envs.inventory.work.scoring import abc_xyz, saving, score
from tests.envs.inventory.work.test_company import read_tables_of


@pytest.mark.parametrize("lead_time", [1, 0])
def test_a_score_says_what_the_kpis_say(small, lead_time):
    tables = read_tables_of(small.rows)
    tables["lanes"].columns["lead_time"][6:] = [lead_time] * 3
    plan = plan_of(company_of(tables), 2)
    scenarios = held_out_scenarios(plan)
    policy = min_max(plan.network, levels_in_use(plan))
    own = score(policy, scenarios, plan.start)
    want = kpis(rollout(policy, scenarios, feasibility="project", record=True), scenarios, ignore=plan.start)
    np.testing.assert_allclose(own.costs.mean(0), want.cost, rtol=1e-5)
    np.testing.assert_allclose(own.on_hand, want.on_hand, rtol=1e-5)
    np.testing.assert_allclose(own.served / own.demand, want.fill_rate, rtol=1e-5)
    np.testing.assert_allclose(own.underage, want.underage, rtol=1e-5)
    assert own.fill == pytest.approx(float(own.served.sum() / own.demand.sum()))
    later = score(policy, scenarios, plan.start, begin=plan.start - 1)
    assert later.costs.shape == own.costs.shape
    assert not np.allclose(later.costs, own.costs)  # another stock to begin with


@pytest.mark.parametrize("lead_time", [1, 0])
def test_where_demand_waits_customers_of_earlier_periods_are_not_served_at_once(small, lead_time):
    tables = read_tables_of(small.rows)
    tables["about"].columns["unmet"][0] = "waits"
    tables["lanes"].columns["lead_time"][6:] = [lead_time] * 3
    plan = plan_of(company_of(tables), 2)
    scenarios = held_out_scenarios(plan)
    for policy in (
        min_max(plan.network, levels_in_use(plan) / 3),
        lambda seen: torch.zeros(len(seen.stock), len(plan.network.edges)),
    ):
        own = score(policy, scenarios, plan.start)
        want = kpis(
            rollout(policy, scenarios, feasibility="project", record=True), scenarios, ignore=plan.start
        )
        np.testing.assert_allclose(own.served / own.demand, want.fill_rate, rtol=1e-5)
        np.testing.assert_allclose(own.costs.mean(0), want.cost, rtol=1e-5, atol=1e-5)
    assert own.fill == 0.0


def test_order_days_are_those_of_the_calendar_wherever_one_begins(small):
    """Item I003 may order from outside in even weeks only."""
    plan = plan_of(company_of(read_tables_of(small.rows)), 2)
    scenarios = held_out_scenarios(plan)
    some = torch.zeros_like(scenarios.initial)
    some[:, :, 0] = 10.0

    def wants(seen):
        orders = torch.zeros(len(seen.stock), len(plan.network.edges))
        orders[:, -2:] = 600.0 if seen.period < 26 else 0.0
        return orders

    paid = [
        score(wants, dataclasses.replace(scenarios, initial=some), t, begin=t).costs[0, :2] for t in (24, 25)
    ]
    np.testing.assert_allclose(paid[0] - paid[1], 20 + 0.1 * 600, rtol=1e-4)


def test_savings_and_their_interval():
    random = np.random.default_rng(0)
    theirs = 100 + random.standard_normal(200)
    same = saving(theirs, theirs)
    assert (same.per_period, same.low, same.high) == (0, 0, 0)
    better = saving(theirs - 3 + 4 * random.standard_normal(200), theirs)
    assert better.per_period == pytest.approx(3, abs=0.9)
    assert better.low < better.per_period < better.high
    assert better.high - better.low == pytest.approx(2 * 1.96 * 4 / 200**0.5, rel=0.3)
    slow = np.sin(np.arange(200) / 20) * 4  # what lasts must widen the interval
    wide = saving(theirs - slow, theirs)
    assert wide.high - wide.low > 0.8 * (better.high - better.low)
    assert better.verdict == "better"
    rounding = saving(np.nextafter(theirs, np.inf, dtype=np.float32).astype(float), theirs)
    assert (rounding.low, rounding.high, rounding.verdict) == (0.0, 0.0, "not told apart")
    assert (same.verdict, saving(theirs, theirs - 3).verdict) == ("not told apart", "worse")


def test_dates_of_fewer_than_two_blocks_tell_nothing_apart():
    for periods in (1, 3, 4, 7):
        few = saving(np.zeros(periods), np.ones(periods))
        assert (few.per_period, few.low, few.high, few.verdict) == (1.0, -np.inf, np.inf, "not told apart")
    assert saving(np.zeros(8), np.ones(8)).verdict == "better"
    uneven = saving(np.zeros(11), np.ones(11))  # blocks of 6 and 5
    assert (uneven.low, uneven.high) == pytest.approx((1.0, 1.0))
    late = np.zeros(11)
    late[8:] = 100.0  # the periods that fill no block of four count in the interval as they do in the mean
    few = saving(np.zeros(11), late)
    assert few.per_period == pytest.approx(300 / 11)
    assert few.low <= few.per_period <= few.high


def test_groups_of_money_and_spread():
    """80, 15 and 5 of 100 by hand; an item that crosses a border counts to the group in which it begins."""
    money = np.array([3.0, 60.0, 2.0, 25.0, 10.0])
    spread = np.array([0.2, 0.5, 1.0, 0.99, 3.0])
    assert abc_xyz(money, spread) == ["CX", "AY", "CZ", "AY", "BZ"]
    assert abc_xyz(np.zeros(2), np.zeros(2)) == ["AX", "AX"]

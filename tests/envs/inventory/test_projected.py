"""Projected inventory level: the projection by enumeration, its limit, its cost against optimum and base-stock."""

import itertools
import math

import pytest
import torch

from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError


def made(lead_time, level, mean=5.0, setting="one_store_lost"):
    network = load_setting(setting, lead_time=lead_time).network
    facts = DemandFacts(means=(mean,), stds=(mean**0.5,))
    return make_policy(
        "projected_level", network, facts, [torch.Generator().manual_seed(0)], levels=level
    ).double()


@pytest.mark.parametrize(("lead_time", "columns"), [(1, [3]), (2, [2, 4]), (3, [0, 5, 1])])
def test_the_projection_is_the_mean_over_all_demands(lead_time, columns):
    mean, chance = 1.5, lambda d: math.exp(-1.5) * 1.5**d / math.factorial(d)
    total = 0.0
    for demands in itertools.product(range(14), repeat=lead_time):
        stock = columns[0]
        for k, d in enumerate(demands, 1):
            stock = max(stock - d, 0) + (columns[k] if k < lead_time else 0)
        total += stock * math.prod(chance(d) for d in demands)
    stock = torch.tensor([columns + [0] * (4 - lead_time)], dtype=torch.float64)
    found = made(lead_time, 10.0, mean).projected(stock)
    assert float(found) == pytest.approx(total, abs=1e-5)


def test_a_stock_between_two_numbers_is_between_both():
    policy = made(2, 10.0)
    whole = policy.projected(torch.tensor([[3.0, 4, 0, 0], [3, 5, 0, 0], [4, 4, 0, 0]], dtype=torch.float64))
    mixed = policy.projected(torch.tensor([[3.0, 4.25, 0, 0], [3.5, 4, 0, 0]], dtype=torch.float64))
    want = torch.stack([0.75 * whole[0] + 0.25 * whole[1], (whole[0] + whole[2]) / 2])
    torch.testing.assert_close(mixed, want)


def test_where_nothing_is_lost_it_is_base_stock():
    """Plenty on hand: q = U - (IP - L E[D]); more than the largest stock orders nothing."""
    policy = made(4, 60.0)
    stock = torch.tensor([[45.0, 3, 0, 6], [50, 0, 0, 0], [500, 500, 0, 0]], dtype=torch.float64)
    scenarios = load_setting("one_store_lost").resized(train=3, dev=1).draw("train")
    orders = policy(scenarios.observe(stock[:, None], 0))
    torch.testing.assert_close(orders[:2, 0], 60 - (stock[:2].sum(1) - 20), rtol=1e-4, atol=1e-4)
    assert orders[2] == 0


def test_it_comes_nearer_to_the_optimum_than_base_stock():
    """L = 3, p = 4: optimum 4.5987, best base-stock 4.975 (level 20), capped 4.631; same demand for all."""
    setting = load_setting("one_store_lost", lead_time=3, underage_cost=4)
    test = setting.resized(test=500, periods={"test": 250}).draw("test")
    facts = DemandFacts(means=(5.0,), stds=(5.0**0.5,))

    def cost(name, **options):
        policy = make_policy(name, setting.network, facts, [torch.Generator().manual_seed(0)], **options)
        return evaluate(lambda seen: policy(seen).round(), test, ignore=50)

    best = cost("optimal")
    error = float(best.std()) / len(best) ** 0.5
    ours = float(min(cost("projected_level", levels=u).mean() for u in (6.5, 7.0)) - best.mean())
    assert -3 * error < ours < 0.25 * float(cost("base_stock", levels=20.0).mean() - best.mean())


def test_it_is_for_one_store_with_lost_poisson_sales():
    with pytest.raises(ConfigError, match="lost sales"):
        made(4, 10.0, setting="one_store_backlogged")
    network = load_setting("one_store_lost").network
    with pytest.raises(ConfigError, match="Poisson"):
        make_policy("projected_level", network, DemandFacts(means=(5.0,), stds=(1.0,)), [torch.Generator()])
    with pytest.raises(ConfigError, match="mean above 0"):
        make_policy("projected_level", network, DemandFacts(means=(0.0,), stds=(0.0,)), [torch.Generator()])

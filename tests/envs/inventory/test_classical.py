"""Classical policies: limits, known costs, the oracle."""

import pytest
import torch

from offrl.envs.inventory.classical import just_in_time
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.scenarios import Scenarios, evaluate, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError


def policy(name, setting, **options):
    demand = setting.demand
    facts = DemandFacts(means=demand.means, stds=getattr(demand, "stds", tuple(m**0.5 for m in demand.means)))
    return make_policy(name, setting.network, facts, [torch.Generator().manual_seed(0)], **options)


def small(name, paths=40, periods=40, **options):
    return load_setting(name, **options).resized(train=paths, dev=4, test=paths, periods={"train": periods})


@pytest.mark.parametrize("name", ["one_store_lost", "serial_system", "one_warehouse_lost_demand"])
def test_without_its_cap_capped_base_stock_is_base_stock(name):
    setting = small(name)
    scenarios = setting.draw("train")
    levels = tuple(10.0 + 3 * i for i in range(len(setting.network.nodes)))
    capped = policy("capped_base_stock", setting, levels=levels, caps=1e6)
    plain = policy("base_stock", setting, levels=levels)
    torch.testing.assert_close(rollout(capped, scenarios).costs, rollout(plain, scenarios).costs)


def test_with_an_endless_level_the_cap_is_ordered_every_period():
    setting = small("one_store_lost")
    scenarios = setting.draw("train")
    capped = policy("capped_base_stock", setting, levels=1e6, caps=4.0)
    assert (rollout(capped, scenarios, record=True).actions - 4.0).abs().max() < 1e-5
    constant = policy("constant_order", setting, amounts=4.0)
    torch.testing.assert_close(rollout(constant, scenarios).costs, rollout(capped, scenarios).costs)


def test_min_max_with_equal_numbers_is_base_stock_and_orders_in_lots_otherwise():
    setting = small("one_store_backlogged")
    scenarios = setting.draw("train")
    equal = policy("s_S", setting, reorder_points=28.0, levels=28.0)
    plain = policy("base_stock", setting, levels=28.0)
    torch.testing.assert_close(
        rollout(equal, scenarios).costs, rollout(plain, scenarios).costs, rtol=1e-4, atol=1e-3
    )
    lots = rollout(policy("s_S", setting, reorder_points=20.0, levels=28.0), scenarios, record=True)
    for stock, order in zip(lots.stocks, lots.actions, strict=False):
        position = stock.sum(-1)
        torch.testing.assert_close(order, torch.where(position <= 20, 28 - position, 0.0))


def test_echelon_levels_of_one_store_are_base_stock():
    setting = small("one_store_backlogged")
    scenarios = setting.draw("train")
    a = policy("echelon_base_stock", setting, levels=(29.59,))
    b = policy("base_stock", setting, levels=29.59)
    torch.testing.assert_close(rollout(a, scenarios).costs, rollout(b, scenarios).costs, rtol=1e-4, atol=1e-3)


def test_echelon_orders_by_hand():
    """Levels 40 30 20 10 on stocks 9 8 7 6: positions 30 21 13 6, gaps 10 9 7 4, of which upstream holds 9, 8, 7."""
    setting = small("serial_system", paths=2)
    scenarios = setting.draw("train")
    state = torch.zeros_like(scenarios.initial)
    state[:, :, 0] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    orders = policy("echelon_base_stock", setting, levels=(40.0, 30.0, 20.0, 10.0))(
        scenarios.observe(state, 0)
    )
    torch.testing.assert_close(orders[0], torch.tensor([9.0, 7.0, 4.0, 10.0]))
    state[:, 3, 2] = 3.0  # under way to the store: everybody sees it
    orders = policy("echelon_base_stock", setting, levels=(40.0, 30.0, 20.0, 10.0))(
        scenarios.observe(state, 0)
    )
    torch.testing.assert_close(orders[0], torch.tensor([6.0, 4.0, 1.0, 7.0]))


def test_echelon_starts_near_10_20_30_40_and_refuses_levels_that_fall_upstream():
    setting = small("serial_system")
    fresh = policy("echelon_base_stock", setting)
    steps = torch.nn.functional.softplus(fresh.step[0]) @ fresh.below.T
    torch.testing.assert_close(steps, torch.tensor([40.0, 30.0, 20.0, 10.0]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="must exceed"):
        policy("echelon_base_stock", setting, levels=(10.0, 20.0, 30.0, 40.0))


def test_clark_and_scarfs_levels_cost_what_theory_says():
    """Store L = 4, p = 9: 10.734 per period, within 3 standard errors."""
    setting = load_setting("serial_system").resized(test=400, periods={"test": 500})
    test = setting.draw("test")
    costs = evaluate(
        policy("echelon_base_stock", setting, levels=(83.18, 72.82, 49.0, 32.36)), test, ignore=100
    )
    assert abs(float(costs.mean()) - 10.734) < 3 * float(costs.std()) / len(costs) ** 0.5


def test_the_optimal_table_beats_myopic_2_on_the_same_paths():
    setting = load_setting("one_store_lost", lead_time=2, underage_cost=4).resized(
        test=1500, periods={"test": 300}
    )
    test = setting.draw("test")
    best = evaluate(policy("optimal", setting), test, ignore=60)
    second = evaluate(policy("myopic_2", setting), test, ignore=60)
    assert abs(float(best.mean()) - 4.3953) < 3 * float(best.std()) / len(best) ** 0.5
    difference = second - best
    assert float(difference.mean()) > 3 * float(difference.std()) / len(best) ** 0.5
    with pytest.raises(ConfigError, match="lost sales"):
        policy("optimal", load_setting("one_store_backlogged"))


def test_just_in_time_never_runs_out_and_holds_nothing():
    """Non-negative demand, empty start, L = 4: after L periods nothing is lost and nothing is left."""
    setting = small("one_store_lost", paths=6)
    scenarios = setting.draw("train")
    scenarios.initial.zero_()
    oracle = just_in_time(scenarios)
    assert not oracle.admissible
    assert not oracle.trainable
    costs = rollout(oracle, scenarios).costs
    assert not costs[4:36].any()  # the last L orders would serve demand that is not recorded
    assert costs[:4].sum() > 0


def test_just_in_time_through_a_warehouse_orders_for_all_its_stores():
    setting = small("one_warehouse_lost_demand", paths=3)
    scenarios = setting.draw("train")
    orders = just_in_time(scenarios)(scenarios.observe(scenarios.initial, 2))
    times = setting.network.lead_times
    for store in range(5):
        torch.testing.assert_close(orders[:, store], scenarios.demands[2 + times[store], :, store])
    total = sum(scenarios.demands[2 + 3 + times[s], :, s] for s in range(5))
    torch.testing.assert_close(orders[:, 5], total)
    with pytest.raises(ConfigError, match="future"):
        policy("just_in_time", setting)


def test_just_in_time_refuses_lead_times_of_scenarios_where_there_are_several_lanes():
    """It would take the first store's for all."""
    nodes = tuple(Node(name=f"s{k}", kind="store") for k in range(2))
    lanes = tuple(Edge(source=OUTSIDE, target=node.name, lead_time=3) for node in nodes)
    network = Network(name="two", nodes=nodes, edges=lanes, lost_sales=True)
    own = Parameters.of(network)._replace(lead_times=torch.tensor([[1, 2], [3, 1]]))
    scenarios = Scenarios(
        network=network, initial=torch.zeros(2, 2, 3), demands=torch.ones(6, 2, 2), parameters=own
    )
    with pytest.raises(ConfigError, match="except for one store"):
        just_in_time(scenarios)


def test_normalized_levels_start_at_the_demand_that_they_cover():
    """Levels in units of mean demand: lead time + 1 periods and 1 more (2 for S); given levels are still units."""
    from offrl.envs.inventory.classical import mean_demand
    from offrl.envs.inventory.policies import make_policy

    setting = load_setting("one_warehouse_lost_demand", stores=3)
    network = setting.network
    facts = DemandFacts(means=(2.0, 3.0, 5.0), stds=(1.0,) * 3)
    assert mean_demand(network, facts).tolist() == [10.0, 2.0, 3.0, 5.0]
    times = torch.zeros(4)
    times[list(network.targets)] = torch.tensor(network.lead_times).float()
    free = make_policy("base_stock", network, facts, [torch.Generator()], normalize=True)
    want = torch.tensor([10.0, 2.0, 3.0, 5.0]) * (times + 2)
    torch.testing.assert_close(torch.nn.functional.softplus(free.level[0]) * free.unit, want)
    given = make_policy(
        "s_S", network, facts, [torch.Generator()], normalize=True, levels=40.0, reorder_points=20.0
    )
    torch.testing.assert_close(
        torch.nn.functional.softplus(given.point[0]) * given.unit, torch.full((4,), 20.0)
    )
    assert given.options["normalize"] is True
    plain = make_policy("base_stock", network, facts, [torch.Generator()])
    assert "normalize" not in plain.options
    assert (plain.unit == 1).all()

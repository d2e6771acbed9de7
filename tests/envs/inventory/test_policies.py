"""The contract of policies: rows of seeds, files, feasibility, whole units."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from offrl.envs.inventory.demand import Compound
from offrl.envs.inventory.policies import (
    POLICIES,
    DemandFacts,
    at_home,
    load_policy,
    make_policy,
    network_from_json,
    network_to_json,
    rounded,
    save_policy,
)
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.work.bootstrap import CorrelatedCounts
from offrl.envs.inventory.work.censored import Counts
from offrl.errors import ConfigError, PolicyError

NETWORKS = {  # setting -> policies that fit it
    "one_store_lost": [
        "base_stock", "capped_base_stock", "echelon_base_stock", "constant_order", "s_S", "quantile_nv",
        "fixed_quantile", "transformed_nv", "mlp_one_store", "mlp_network", "data_driven",
        "projected_level",
    ],
    "serial_system": [
        "base_stock", "capped_base_stock", "echelon_base_stock", "constant_order", "s_S", "mlp_serial", "mlp_network",
        "data_driven",
    ],
    "one_warehouse_lost_demand": ["base_stock", "echelon_base_stock", "mlp_network", "data_driven", "symmetry_aware"],
    "transshipment_backlogged": ["base_stock", "echelon_base_stock", "mlp_network", "data_driven", "symmetry_aware"],
    "many_warehouses_lost_demand": ["mlp_network", "data_driven"],
}  # fmt: skip
PAIRS = [(setting, policy) for setting, policies in NETWORKS.items() for policy in policies]
SMALL = {"mlp_network": {"hidden": (16, 16)}}
EVERY = pytest.mark.parametrize(("setting", "name"), PAIRS)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(name, paths=6, periods=12, dtype=torch.float32):
    setting = load_setting(name).resized(train=paths, dev=paths, test=paths, periods={"train": periods})
    scenarios = setting.draw("train", dtype=dtype)
    return setting, scenarios


def made(name, setting, scenarios, *seeds):
    facts = DemandFacts.of(setting, scenarios)
    return make_policy(name, setting.network, facts, generators(*(seeds or (0,))), **SMALL.get(name, {}))


def twice(scenarios):
    return scenarios.rows(torch.arange(len(scenarios)).repeat(2))


def wild(policy):
    """Random weights, several times their usual size."""
    with torch.no_grad():
        for k, p in enumerate(policy.parameters()):
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    return policy


def apart(policy, *seeds):
    """Parameters moved by a noise of each seed's own: classical policies all start alike."""
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p += torch.stack([0.1 * torch.randn(p.shape[1:], generator=g) for g in generators(*seeds)])
    return policy


@EVERY
@torch.no_grad()
def test_shipments_never_exceed_what_is_on_hand(setting, name):
    """Also with wild weights, through a whole rollout; negative and not finite orders are refused as well."""
    spec, scenarios = drawn(setting)
    policy = wild(made(name, spec, scenarios))
    record = rollout(policy, scenarios, feasibility="raise", record=True)
    network = spec.network
    if network.upstream:
        for stock, action in zip(record.stocks, record.actions, strict=False):
            sent = scenarios.simulator().shipped(action)
            on_hand = stock[:, : network.upstream, 0]
            assert (sent <= on_hand.clamp(min=0) + 1e-5 * (1 + on_hand.abs().max())).all()
            if not network.nodes[0].holds:
                torch.testing.assert_close(sent, on_hand, rtol=1e-5, atol=1e-5)


@EVERY
def test_seeds_side_by_side_equal_single_policies(setting, name):
    spec, scenarios = drawn(setting)
    both = apart(made(name, spec, scenarios, 3, 4), 3, 4)
    costs = rollout(both, twice(scenarios)).costs.unflatten(1, (2, -1))
    for k, seed in enumerate((3, 4)):
        own = rollout(apart(made(name, spec, scenarios, seed), seed), scenarios).costs
        torch.testing.assert_close(costs[:, k], own, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(rollout(both.single(k), scenarios).costs, own, rtol=1e-5, atol=1e-4)


@EVERY
def test_a_batch_equals_its_scenarios_one_by_one(setting, name):
    spec, scenarios = drawn(setting, dtype=torch.float64)
    policy = made(name, spec, scenarios).double()
    together = rollout(policy, scenarios).costs
    for i in (0, 5):
        alone = rollout(policy, scenarios.rows(torch.tensor([i]))).costs
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-9, atol=1e-9)


@EVERY
def test_a_saved_policy_acts_alike(setting, name, tmp_path):
    spec, scenarios = drawn(setting)
    policy = wild(made(name, spec, scenarios))
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.network == policy.network
    assert torch.equal(rollout(again, scenarios).costs, rollout(policy, scenarios).costs)


@EVERY
def test_the_gradient_of_a_rollout_is_that_of_finite_differences(setting, name):
    """All T = 12 periods, float64, along random directions of all parameters: also what flows through the state."""
    spec, scenarios = drawn(setting, paths=2, dtype=torch.float64)
    policy = made(name, spec, scenarios).double()
    params = [p for p in policy.parameters() if p.requires_grad]
    if not params:
        return
    with torch.no_grad():  # away from the ties of equal levels
        for p in params:
            p += 0.1 * torch.randn(p.shape, generator=generators(8)[0], dtype=torch.float64)
    way = [torch.randn(p.shape, generator=generators(9)[0], dtype=torch.float64) for p in params]

    def cost(shift):
        with torch.no_grad():
            for p, w in zip(params, way, strict=True):
                p.add_(w, alpha=shift)
            total = rollout(policy, scenarios).costs.sum()
            for p, w in zip(params, way, strict=True):
                p.sub_(w, alpha=shift)
        return total

    grads = torch.autograd.grad(rollout(policy, scenarios).costs.sum(), params, materialize_grads=True)
    slope = sum((g * w).sum() for g, w in zip(grads, way, strict=True))
    step = 1e-6
    numeric = (cost(step) - cost(-step)) / (2 * step)
    if name == "s_S":  # it jumps at s: only S has a true gradient
        return
    torch.testing.assert_close(slope, numeric, rtol=2e-6, atol=2e-6 * (1 + float(numeric.abs())))


def test_min_max_has_the_gradient_of_its_level_between_jumps():
    spec, scenarios = drawn("one_store_backlogged", paths=2, dtype=torch.float64)
    policy = made("s_S", spec, scenarios).double()
    with torch.no_grad():
        policy.level += 0.123
    (g,) = torch.autograd.grad(rollout(policy, scenarios).costs.sum(), [policy.level])
    step = 1e-6
    with torch.no_grad():
        policy.level += step
        up = rollout(policy, scenarios).costs.sum()
        policy.level -= 2 * step
        down = rollout(policy, scenarios).costs.sum()
    torch.testing.assert_close(g.sum(), (up - down) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in POLICIES if n not in ("gnn", "just_in_time")])
def test_every_name_of_the_table_is_its_class(name):
    setting = load_setting("one_warehouse_lost_demand" if name == "symmetry_aware" else "one_store_lost")
    facts = DemandFacts(means=(5.0,) * setting.network.stores, stds=(5.0**0.5,) * setting.network.stores)
    policy = make_policy(name, setting.network, facts, generators(0))
    assert policy.name == name
    assert policy.trainable == any(p.requires_grad for p in policy.parameters())


def test_facts_have_the_season_of_the_demand_and_its_height_once():
    """Stated means are those before the season; means of scenarios have its height, and its factors then mean 1."""
    setting = load_setting("one_warehouse_lost_demand", stores=2).resized(
        train=4000, dev=4, periods={"train": 40}
    )
    season = (1.0, 3.0)
    normal = dataclasses.replace(setting.demand, season=season)
    lumpy = Compound(rates=(2.0, 1.0), batch=1.5, season=season)
    for demand, own, means in ((normal, season, normal.means), (lumpy, (0.5, 1.5), (6.0, 3.0))):
        seasonal = dataclasses.replace(setting, demand=demand)
        paths = seasonal.draw("train")
        facts = DemandFacts.of(seasonal, paths)
        assert facts.season == (own, own)
        assert facts.means == pytest.approx(means, rel=0.01)
        drawn = paths.demands.mean(1)[:2].mean(1)
        want = [factor * sum(facts.means) / 2 for factor in own]
        assert drawn.tolist() == pytest.approx(want, rel=0.03)
        assert not facts.stationary
    plain = dataclasses.replace(setting, demand=dataclasses.replace(normal, season=(1.0, 1.0)))
    facts = DemandFacts.of(plain, plain.draw("train"))
    assert facts.season == ()
    assert facts.stationary


@pytest.mark.parametrize(
    ("season", "factors"), [(None, (1.0,)), (np.ones(52), (1.0,)), (np.array([0.5, 1.5]), (0.5, 1.5))]
)
def test_fitted_demand_states_the_season_of_each_store(season, factors):
    """As arrays, of more than one period, or not at all."""
    setting = load_setting("one_warehouse_lost_demand", stores=2).resized(train=4, dev=4)
    fit = Counts(mean=np.array([3.0, 5.0]), size=np.full(2, 4.0), active=np.ones(2))
    fitted = dataclasses.replace(setting, demand=CorrelatedCounts(fit=fit, season=season))
    facts = DemandFacts.of(fitted, setting.draw("train"))
    assert facts.season == (factors, factors)
    assert facts.means == (3.0, 5.0)
    assert facts.stationary == (factors == (1.0,))


@pytest.mark.parametrize("name", ["optimal", "myopic_2", "projected_level"])
def test_tables_of_a_stationary_problem_refuse_another(name):
    network = load_setting("one_store_lost", lead_time=2).network
    facts = DemandFacts(means=(5.0,), stds=(5.0**0.5,))
    assert make_policy(name, network, facts, generators(0)).name == name
    seasonal = dataclasses.replace(facts, season=((0.5, 1.5),))
    lane = dataclasses.replace(network.edges[0], receipts=((1.0,), (0.0, 1.0)))
    late = dataclasses.replace(network, edges=(lane,))
    for other in ((network, seasonal), (late, facts)):
        with pytest.raises(ConfigError, match="without a season and deliveries that do not vary"):
            make_policy(name, *other, generators(0))


def test_a_gnn_takes_the_demand_of_the_setting_also_where_the_network_is_its_own():
    setting = load_setting("one_warehouse_lost_demand", stores=2).resized(train=4, dev=4, test=4)
    policy = make_policy(
        "gnn", setting.network, DemandFacts.of(setting, setting.draw("train")), generators(0)
    )
    larger = dataclasses.replace(
        setting, demand=dataclasses.replace(setting.demand, means=(50.0, 40.0), stds=(9.0, 8.0))
    )
    moved, stayed = at_home(policy, larger), at_home(policy, setting)
    assert (moved.facts.means, moved.facts.stds) == ((50.0, 40.0), (9.0, 8.0))
    assert stayed.facts == policy.facts
    seen = setting.draw("test").observe(setting.draw("test").initial, 0)
    torch.testing.assert_close(stayed(seen), policy(seen), rtol=0, atol=0)
    assert not torch.allclose(moved(seen), policy(seen))
    fixed = make_policy("base_stock", setting.network, policy.facts, generators(0))
    assert at_home(fixed, larger) is fixed
    with pytest.raises(ConfigError, match="fits no other network"):
        at_home(fixed, load_setting("one_warehouse_lost_demand", stores=3))


def test_an_unknown_policy_or_option_is_one_line():
    setting, scenarios = drawn("one_store_lost")
    facts = DemandFacts.of(setting, scenarios)
    with pytest.raises(ConfigError, match="unknown policy 'mlp'"):
        make_policy("mlp", setting.network, facts, generators(0))
    with pytest.raises(ConfigError, match="policy base_stock: .*'level'"):
        make_policy("base_stock", setting.network, facts, generators(0), level=3.0)
    with pytest.raises(ConfigError, match="for one store"):
        make_policy("mlp_one_store", load_setting("serial_system").network, facts, generators(0))
    with pytest.raises(ConfigError, match="one supplier for each node"):
        make_policy("base_stock", load_setting("many_warehouses_lost_demand").network, facts, generators(0))
    with pytest.raises(ConfigError, match="chain"):
        make_policy("mlp_serial", load_setting("one_warehouse_lost_demand").network, facts, generators(0))


def test_damaged_files_are_refused(tmp_path):
    setting, scenarios = drawn("one_store_lost")
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path)
    save_policy(made("mlp_one_store", setting, scenarios), tmp_path)
    facts = json.loads((tmp_path / "policy.json").read_text())
    for change in ({"kind": "gaussian"}, {"format": 2}, {"policy": "nothing"}, {"options": {"hidden": [3]}}):
        (tmp_path / "policy.json").write_text(json.dumps(facts | change))
        with pytest.raises(PolicyError):
            load_policy(tmp_path)
    with pytest.raises(PolicyError, match="single"):
        save_policy(made("base_stock", setting, scenarios, 0, 1), tmp_path)


def test_a_network_survives_json():
    for name in NETWORKS:
        network = load_setting(name).network
        assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network


def constant(*orders):
    return lambda seen: torch.tensor([orders]).expand(len(seen.stock), -1).clone()


def seen_with(scenarios, on_hand):
    stock = scenarios.initial[:1].clone()
    stock[:, 0, 0] = on_hand
    return scenarios.observe(stock, 0)


def test_whole_units_by_hand():
    """Wishes of 4.8 units in all: the nearest are 2 2 1 0 0, one unit more than 4 on hand."""
    spec, scenarios = drawn("one_warehouse_lost_demand")
    wish = constant(1.7, 1.8, 0.9, 0.3, 0.1, 7.4)
    feasible = rounded(wish, spec.network)
    assert feasible(seen_with(scenarios, 9.0)).tolist() == [[2, 2, 1, 0, 0, 7]]
    got = feasible(seen_with(scenarios, 4.8))
    assert got[0, :5].sum() == 4
    assert got[0].tolist() == [1, 2, 1, 0, 0, 7]  # floors 1 1 0 0 0, then the remainders .9, .8 before .7
    assert rounded(wish, spec.network, "nearest")(seen_with(scenarios, 4.0))[0, :5].sum() == 5
    with pytest.raises(ConfigError, match="nearest or feasible"):
        rounded(wish, spec.network, "up")


@torch.no_grad()
def test_whole_units_of_a_centre_that_cannot_hold_leave_less_than_one():
    spec, scenarios = drawn("transshipment_backlogged")
    policy = rounded(made("mlp_network", spec, scenarios), spec.network)
    orders = policy(seen_with(scenarios, 11.6))
    assert float(orders[0, :5].sum()) == 11.0
    assert torch.equal(orders, orders.round())


@torch.no_grad()
def test_rounded_orders_are_feasible_in_a_whole_rollout():
    spec, scenarios = drawn("one_warehouse_lost_demand")
    scenarios = dataclasses.replace(scenarios, initial=scenarios.initial.round())
    policy = rounded(wild(made("data_driven", spec, scenarios)), spec.network)
    orders = []

    def recorded(seen):
        orders.append(policy(seen))
        return orders[-1]

    rollout(recorded, scenarios, feasibility="raise")
    assert len(orders) == scenarios.demands.shape[0]
    assert all(torch.equal(order, order.round()) for order in orders)
    assert max(float(order.max()) for order in orders) >= 1


def test_facts_are_those_of_the_setting_or_of_the_data():
    setting, scenarios = drawn("one_store_lost")
    facts = DemandFacts.of(setting, scenarios)
    assert facts.means == (5.0,)
    assert facts.stds == (5.0**0.5,)
    setting, scenarios = drawn("one_warehouse_lost_demand")
    facts = DemandFacts.of(setting, scenarios)
    assert (facts.means, facts.stds) == (setting.demand.means, setting.demand.stds)
    sales = load_setting("one_store_real_data_lost_demand").resized(train=50)
    scenarios = sales.draw("train")
    facts = DemandFacts.of(sales, scenarios)
    assert facts.history == 16
    assert facts.calendar
    assert facts.means[0] == pytest.approx(float(scenarios.demands.mean()), rel=1e-4)

"""The published settings: their parameters and draws against pinned numbers, protocol, names and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offrl.envs.inventory.scenarios import evaluate, rollout
from offrl.envs.inventory.settings import SETTINGS, load_setting, options_of
from offrl.errors import ConfigError

REPLAY = Path(__file__).parent / "replay"
SMALL = {"train": 6, "dev": 4, "test": 5}


def small(name: str, **options):
    test = 20 if "favorita" in name else 40
    return load_setting(name, **options).resized(**SMALL, periods={"test": test})


def test_one_store_draw_is_the_published_one():
    """L = 4, p = 9: seed 57 + 4 + 90, T = 100; the first rows are the development set."""
    setting = load_setting("one_store_lost-v1")
    assert setting.splits["train"].demand_seed == 151
    dev = setting.resized(train=8, dev=2).draw("dev").demands[:10, :, 0].T
    assert dev.tolist() == [[8, 7, 7, 6, 7, 4, 6, 2, 6, 4], [4, 10, 7, 11, 4, 6, 7, 6, 6, 5]]


def test_network_parameters_are_the_published_ones():
    setting = load_setting("one_warehouse_lost_demand", stores=5)
    stores = setting.network.nodes[1:]
    assert setting.demand.means == (3.743, 4.750, 4.555, 3.801, 6.852)
    assert setting.demand.stds == (1.765, 2.124, 1.622, 1.405, 1.714)
    assert np.round([n.underage_cost for n in stores], 4).tolist() == [
        10.2367,
        9.3307,
        6.9748,
        8.4470,
        10.5191,
    ]
    assert np.round([n.holding_cost for n in stores], 4).tolist() == [1.0856, 1.0232, 1.0071, 1.0662, 0.9958]
    assert [e.lead_time for e in setting.network.edges] == [2, 3, 2, 2, 2, 3]
    three = load_setting("one_warehouse_lost_demand", stores=3)
    assert three.demand.means == setting.demand.means[:3]
    assert three.network.nodes[1:] == stores[:3]


def test_joint_demand_has_the_published_moments():
    """Signs of the factorization differ between machines, so moments are compared: 1e5 draws, five standard errors."""
    setting = load_setting("transshipment_backlogged")
    drawn = setting.demand.draw(1000, 100, np.random.RandomState(57)).transpose(0, 2, 1).reshape(-1, 5)
    stds = np.array(setting.demand.stds)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - setting.demand.means), 5 * stds / np.sqrt(1e5))
    correlation = np.corrcoef(drawn.T)[np.triu_indices(5, 1)]
    np.testing.assert_allclose(correlation, 0.5, atol=5 * 0.75 / np.sqrt(1e5))
    assert drawn.min() < 0, "not clipped: the lower bound relies on it"


@pytest.mark.parametrize("name", ["one_store_lost", "one_store_backlogged", "one_warehouse_lost_demand"])
def test_draws_repeat_the_recorded_scenarios(name):
    """Demand and stock of the replay files: 4 scenarios, 12 periods of the training seeds."""
    data = np.load(REPLAY / f"{name}.npz")
    setting = load_setting(name, **({"stores": 3} if "warehouse" in name else {}))
    setting = setting.resized(train=4, dev=0, periods={"train": 12, "dev": 12})
    drawn = setting.draw("train")
    if "warehouse" not in name:
        np.testing.assert_allclose(drawn.demands.permute(1, 2, 0), data["demands"], rtol=1e-6)
    U = setting.network.upstream
    stock = data["initial_inventories"]
    want = np.pad(stock, [(0, 0), (0, 0), (0, setting.network.width - stock.shape[-1])])
    np.testing.assert_allclose(drawn.initial[:, U:], want, rtol=1e-5 if not U else 2e-2)
    assert drawn.initial[:, :U].abs().sum() == 0


def test_training_and_development_scenarios_are_one_draw():
    few, many = small("one_store_lost"), load_setting("one_store_lost").resized(train=50, dev=4, test=5)
    a, b = few.draw("dev"), many.draw("dev")
    assert torch.equal(a.demands, b.demands), "unchanged when there are more training scenarios"
    assert torch.equal(few.draw("train").demands, many.draw("train").demands[:, :6])
    assert not torch.equal(few.draw("train").demands[:, :4], a.demands[:50])
    assert few.draw("train").periods == 50
    assert few.draw("test").periods == 40


def test_drawing_in_chunks_changes_nothing(monkeypatch):
    for name in ("one_store_backlogged", "one_warehouse_lost_demand"):
        whole = small(name).draw("train")
        monkeypatch.setattr("offrl.envs.inventory.protocol.CHUNK", 1100)
        parts = small(name).draw("train")
        monkeypatch.undo()
        assert torch.equal(whole.demands, parts.demands)
        torch.testing.assert_close(whole.initial, parts.initial, rtol=1e-6, atol=0)


def test_fault_seeds_are_not_changed_by_drawing():
    """The published seeds were shifted in place: a second scenario object from the same seeds was another draw."""
    setting = small("one_store_lost", lead_time=2, underage_cost=4)
    assert setting.splits["train"].demand_seed == 57 + 2 + 40
    first, second = setting.draw("train"), setting.draw("train")
    assert torch.equal(first.demands, second.demands)
    assert torch.equal(first.initial, second.initial)
    assert small("one_store_lost", lead_time=2, underage_cost=4).splits == setting.splits


def test_fault_five_thousand_periods_run():
    """The period counter was an int8 and overflowed at 127."""
    setting = load_setting("one_store_lost").resized(train=2, dev=2, test=3)
    test = setting.draw("test")
    assert test.periods == 5000
    cost = evaluate(lambda o: (28 - o.stock.sum(-1)).clamp(min=0), test, ignore=3000)
    assert cost.shape == (3,)
    assert (
        abs(cost - 7.27) < 1.0
    ).all()  # the best base stock, level 28; the standard error of a path is 0.2


def test_lost_sales_networks_with_many_warehouses():
    setting = load_setting("many_warehouses_lost_demand")
    network = setting.network
    assert (len(network.nodes), len(network.edges), network.width) == (12, 15 + 2, 6)
    first = [e.lead_time for e in network.edges if e.source == "warehouse 1"]
    second = [e.lead_time for e in network.edges if e.source == "warehouse 2"]
    assert first == [6, 6, 6, 6, 5, 6]
    assert second == [2, 1, 2, 2, 1, 2, 2, 2, 2]
    assert [(e.cost, e.lead_time) for e in network.edges[-2:]] == [(0.5, 3), (1.5, 3)]
    assert network.widths == (3, 3, *[6] * 10)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_draws_and_runs(name):
    setting = small(name)
    assert setting.name == name
    assert setting.about.endswith(".")
    for split in setting.splits:
        drawn = setting.draw(split)
        assert len(drawn) == SMALL[split]
        assert drawn.demands.is_contiguous()
        action = torch.ones(len(drawn), len(setting.network.edges))
        result = rollout(lambda o, a=action: a, drawn, periods=5, feasibility="project")
        assert result.costs.shape == (5, len(drawn), len(setting.network.nodes))
        assert torch.isfinite(result.costs).all()


def test_reported_cost_is_per_store_and_period_without_warm_up():
    setting = small("one_warehouse_lost_demand")
    drawn = setting.draw("dev")
    policy = lambda o: torch.full((4, 6), 3.0)  # noqa: E731
    result = rollout(policy, drawn, feasibility="project")
    each = evaluate(policy, drawn, ignore=60, feasibility="project")
    want = result.costs[60:].double().sum() / (4 * 40 * 5)
    assert result.mean(setting.network, 60).item() == pytest.approx(want.item(), rel=1e-5)
    assert each.mean().item() == pytest.approx(want.item(), rel=1e-5)


def test_versions_options_and_errors():
    assert load_setting("serial_system").name == "serial_system-v1"
    assert load_setting("serial_system", lead_time=2).network.lead_times[-2:] == (2, 2)
    with pytest.raises(
        ConfigError, match=r"unknown setting 'one_store_lots-v1'; did you mean 'one_store_lost-v1'"
    ):
        load_setting("one_store_lots-v1")
    with pytest.raises(ConfigError, match="unknown setting 'one_store_lost-v7'"):
        load_setting("one_store_lost-v7")
    with pytest.raises(ConfigError, match="has no option 'leadtime'; it has: lead_time, underage_cost"):
        load_setting("one_store_lost", leadtime=2)
    with pytest.raises(ConfigError, match="lead_time must be a whole number, 1 or more, got 2.5"):
        load_setting("one_store_lost", lead_time=2.5)
    with pytest.raises(ConfigError, match="correlation must be in"):
        load_setting("transshipment_backlogged", stores=3, correlation=-0.8)
    for name in SETTINGS:
        assert all(isinstance(default, int | float) for default in options_of(name).values())
    dear = load_setting("one_store_lost", underage_cost=1e9).resized(train=2, dev=2)
    assert dear.draw("train").demands.shape == (50, 2, 1)


def test_options_reach_the_network():
    setting = load_setting(
        "transshipment_backlogged", stores=10, lead_time=6, underage_cost=9, correlation=0.0
    )
    assert setting.network.stores == 10
    assert setting.network.width == 6
    assert setting.network.nodes[1].underage_cost == 9
    assert setting.demand.correlation == 0.0
    assert not setting.network.nodes[0].holds
    assert load_setting("one_store_backlogged", lead_time=20).network.width == 20
    assert load_setting("one_store_lost", lead_time=1).network.width == 4


@pytest.mark.parametrize(("lead_time", "level", "cost"), [(4, 29.59, 6.2769), (1, 12.90, 3.9703)])
def test_the_optimal_base_stock_costs_what_theory_says(lead_time, level, cost):
    """Backlogged, p = 9; within three standard errors over 512 independent paths. L periods instead of L + 1: 5.614."""
    setting = load_setting("one_store_backlogged", lead_time=lead_time)
    setting = setting.resized(train=2, dev=2, test=512, periods={"test": 400})
    each = evaluate(lambda o: (level - o.stock.sum(-1)).clamp(min=0), setting.draw("test"), ignore=50)
    error = each.std().item() / np.sqrt(512)
    assert abs(each.mean().item() - cost) < 3 * error
    assert error < 0.02 * cost

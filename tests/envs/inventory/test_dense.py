"""Dense nets: sizes of the publication, what they see, and that nothing is detached."""

import dataclasses

import pytest
import torch

from offrl.envs.inventory.extended import simulator_of
from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError


def drawn(name, **options):
    setting = load_setting(name).resized(train=5, dev=2, periods={"train": 10})
    scenarios = setting.draw("train")
    facts = DemandFacts.of(setting, scenarios)
    return setting, scenarios, facts


def made(policy, setting, facts, **options):
    return make_policy(policy, setting.network, facts, [torch.Generator().manual_seed(0)], **options)


@pytest.mark.parametrize(
    ("policy", "setting", "count"),
    [
        ("mlp_one_store", "one_store_lost", 2_305),
        ("mlp_serial", "serial_system", 1_700),
        ("mlp_network", "one_warehouse_lost_demand", 538_118),
    ],
)
def test_parameter_counts_are_the_published_ones(policy, setting, count):
    spec, _, facts = drawn(setting)
    assert sum(p.numel() for p in made(policy, spec, facts).parameters()) == count


def test_data_driven_sees_history_costs_and_lead_times():
    """21 stores: 21 x (6 + 16 + p + h) + 55 lanes to stores + Christmas + 3 x 3 columns; outputs 55 + 3."""
    setting = load_setting("many_warehouses_real_data_lost_demand").resized(train=3)
    scenarios = setting.draw("train")
    facts = DemandFacts.of(setting, scenarios)
    policy = made("data_driven", setting, facts)
    features = 21 * (6 + 16 + 2) + setting.network.internal + 1 + 9
    assert policy.body.sizes == (features, 64, 64, setting.network.internal + 3)
    base = policy.logits(scenarios.observe(scenarios.initial, 4))
    later = policy.logits(scenarios.observe(scenarios.initial, 5))
    assert not torch.equal(base, later)


@pytest.mark.parametrize(
    ("policy", "setting"),
    [
        ("mlp_one_store", "one_store_backlogged"),
        ("mlp_serial", "serial_system"),
        ("mlp_network", "one_warehouse_lost_demand"),
        ("data_driven", "one_warehouse_lost_demand"),
        ("symmetry_aware", "one_warehouse_lost_demand"),
    ],
)
def test_goods_under_way_are_seen_where_deliveries_vary(policy, setting):
    """They stand in the state's last column, as late as the latest delivery, whatever the lead time."""
    spec, scenarios, facts = drawn(setting)
    late = ((1.0,), (0.0,) * 8 + (1.0,))
    edges = tuple(dataclasses.replace(edge, receipts=late) for edge in spec.network.edges)
    network = dataclasses.replace(spec.network, edges=edges, widths=(), width=0)
    net = make_policy(policy, network, facts, [torch.Generator().manual_seed(0)])
    simulator = simulator_of(network)
    stock = torch.ones(5, len(network.nodes), network.width)
    seen = scenarios.observe(simulator.stock(simulator.start(stock)), 0)
    for node in range(len(network.nodes)):
        more = seen.stock.clone()
        more[:, node, -1] += 1.0
        assert not torch.equal(net.logits(seen._replace(stock=more)), net.logits(seen)), node


@pytest.mark.parametrize(
    ("policy", "setting"),
    [
        ("mlp_one_store", "one_store_lost"),
        ("mlp_serial", "serial_system"),
        ("mlp_network", "one_warehouse_lost_demand"),
        ("data_driven", "one_warehouse_lost_demand"),
        ("symmetry_aware", "one_warehouse_lost_demand"),
    ],
)
def test_the_state_reaches_the_orders_with_its_gradient(policy, setting):
    """The official serial net detaches its input; here every column in use has a gradient."""
    spec, scenarios, facts = drawn(setting)
    net = made(policy, spec, facts, **({"hidden": (16,)} if policy == "mlp_network" else {}))
    stock = (scenarios.initial + 3.0).requires_grad_()
    (g,) = torch.autograd.grad(net.logits(scenarios.observe(stock, 0)).square().sum(), stock)
    for node, width in enumerate(spec.network.widths):
        assert (g[:, node, :width].abs().sum(0) > 0).all()
        assert not g[:, node, width:].any()


def test_dense_nets_are_not_equivariant():
    """Swapping two stores with all that is theirs does not swap their orders (a graph policy's would)."""
    spec, scenarios, facts = drawn("transshipment_backlogged")
    net = made("mlp_network", spec, facts, hidden=(16,))
    stock = (
        scenarios.initial
        + torch.rand(scenarios.initial.shape, generator=torch.Generator().manual_seed(1)) * 5
    )
    order = [0, 2, 1, 3, 4, 5]
    plain, swapped = net(scenarios.observe(stock, 0)), net(scenarios.observe(stock[:, order], 0))
    assert not torch.allclose(plain[:, [1, 0, 2, 3, 4, 5]], swapped, atol=1e-3)


@pytest.mark.parametrize("policy", ["mlp_one_store", "data_driven"])
def test_normalized_nets_scale_with_demand(policy):
    """Stock in units of the mean demand: everything times c gives orders times c (same costs and lead times)."""
    spec, scenarios, facts = drawn("one_store_backlogged")
    big = DemandFacts(means=(50.0,), stds=(16.0,))
    one, ten = (made(policy, spec, f, normalize=True) for f in (facts, big))
    a = one(scenarios.observe(scenarios.initial, 0))
    b = ten(scenarios.observe(scenarios.initial * 10, 0))
    torch.testing.assert_close(10 * a, b, rtol=1e-4, atol=1e-4)


def test_outside_orders_stay_below_four_times_the_mean_demand():
    spec, scenarios, facts = drawn("serial_system")
    net = made("mlp_serial", spec, facts)
    with torch.no_grad():
        net.body.layers[-1].fill_(50.0)
        actions = rollout(net, scenarios, record=True).actions
    torch.testing.assert_close(actions[..., -1], torch.full_like(actions[..., -1], 20.0))


def test_impossible_widths_are_refused():
    spec, _, facts = drawn("one_store_lost")
    with pytest.raises(ConfigError, match="1 or more"):
        made("mlp_one_store", spec, facts, hidden=(0,))
    with pytest.raises(ConfigError, match="one warehouse"):
        made("symmetry_aware", spec, facts)

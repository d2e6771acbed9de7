"""Graph policy: equal back-ends, symmetry, what it can see, feasibility, other sizes, files."""

import dataclasses

import pytest
import torch

from offrl.algos.hdpo import HDPO, HDPOConfig
from offrl.envs.inventory import gnn
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import DemandFacts, load_policy, make_policy, save_policy
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError

SETTINGS = [
    "one_store_lost", "serial_system", "one_warehouse_lost_demand", "transshipment_backlogged",
    "many_warehouses_lost_demand", "favorita_21_stores",
]  # fmt: skip
# importing torch-geometric scripts some functions the old way
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
EVERY = pytest.mark.parametrize("name", SETTINGS)


def drawn(name, paths=4, dtype=torch.float64, **options):
    setting = load_setting(name, **options)
    periods = {} if "favorita" in name else {"train": 8}
    setting = setting.resized(train=paths, dev=2, periods=periods)
    return setting, setting.draw("train", dtype=dtype)


def made(setting, scenarios, *seeds, **options):
    facts = DemandFacts.of(setting, scenarios)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or (0,)]
    return make_policy("gnn", setting.network, facts, generators, **options).to(scenarios.initial.dtype)


def wild(policy):
    """Random weights, larger than usual."""
    with torch.no_grad():
        for k, p in enumerate(policy.parameters()):
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype)
    return policy


def seen_at_random(scenarios, period=3):
    stock = torch.rand(
        scenarios.initial.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return scenarios.observe((9 * stock).to(scenarios.initial.dtype), period)


def own_lead_times(scenarios):
    """Every scenario with its own lead times, where the state has room."""
    times = scenarios.parameters.lead_times
    times = times.expand(len(scenarios), -1).clone()
    times[::2] = (times[::2] - 1).clamp(min=1)
    return dataclasses.replace(scenarios, parameters=scenarios.parameters._replace(lead_times=times))


def test_parameter_count_is_the_published_one():
    setting, scenarios = drawn("one_warehouse_lost_demand")
    policy = made(setting, scenarios)
    assert sum(p.numel() for p in policy.parameters()) == 19_169
    assert policy.graph.edges == 2 * 5 + 2
    setting, scenarios = drawn("serial_system")
    assert (made(setting, scenarios).graph.edges, made(setting, scenarios).rounds) == (8, 3)
    setting, scenarios = drawn("transshipment_backlogged")
    assert made(setting, scenarios).graph.edges == 5 + 1 + 5


@EVERY
@pytest.mark.parametrize("typed", [False, True])
def test_back_ends_agree_in_values_and_gradients(name, typed):
    setting, scenarios = drawn(name)
    scenarios = own_lead_times(scenarios)
    results = []
    for backend in ("static", "union", "hetero"):
        policy = wild(
            made(setting, scenarios.rows(torch.arange(4)), 3, 4, typed=typed, backend=backend, rounds=2)
        )
        seen = seen_at_random(scenarios)
        seen = seen._replace(stock=seen.stock.requires_grad_())
        logits = policy.logits(seen)
        grads = torch.autograd.grad(logits.square().sum(), [seen.stock, *policy.parameters()])
        results.append([logits, *grads])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a.detach().abs().max()))


def by_hand(policy, seen, row):
    """Loops over nodes and edges of one scenario, straight from the formulas."""

    def net(nets, parts, last=True):
        h = torch.cat(parts)
        layers = nets.of("all", 0)
        for k in range(0, len(layers), 2):
            h = layers[k] @ h + layers[k + 1]
            h = torch.nn.functional.elu(h) if last or k + 2 < len(layers) else h
        return h

    network = policy.network
    n, first = len(network.nodes), network.upstream
    x = policy.features(seen)[:, 0, :, row]
    edges = [
        (s, t, e.lead_time) for s, t, e in zip(network.sources, network.targets, network.edges, strict=True)
    ]
    edges += [(i, i, 0) for i in range(first) if network.nodes[i].holds] + [
        (i, n, 0) for i in range(first, n)
    ]
    v = [net(policy.node_start, [x[i]]) for i in range(n)] + [x.new_zeros(32)]
    e = [net(policy.edge_start, [v[s], v[t], x.new_tensor([float(length)])]) for s, t, length in edges]
    for _ in range(policy.rounds):
        new = []
        for i in range(n):
            into = [e[k] for k, (_, t, _) in enumerate(edges) if t == i]
            out = [e[k] for k, (s, _, _) in enumerate(edges) if s == i]
            sums = [sum(m, x.new_zeros(32)) / max(len(m), 1) ** 0.5 for m in (into, out)]
            new.append(v[i] + net(policy.node_round, [v[i], *sums]))
        v = [*new, x.new_zeros(32)]
        e = [e[k] + net(policy.edge_round, [e[k], v[s], v[t]]) for k, (s, t, _) in enumerate(edges)]
    return torch.cat([net(policy.score, [e[k]], last=False) for k, (_, t, _) in enumerate(edges) if t < n])


@pytest.mark.parametrize(
    "name", ["serial_system", "one_warehouse_lost_demand", "many_warehouses_lost_demand"]
)
@torch.no_grad()
def test_the_network_is_its_formulas(name):
    setting, scenarios = drawn(name)
    policy, seen = wild(made(setting, scenarios)), seen_at_random(scenarios)
    torch.testing.assert_close(policy.logits(seen)[2], by_hand(policy, seen, 2), rtol=1e-9, atol=1e-9)


def permuted(network, facts, order):
    """The network with its stores in another order, renamed nothing."""
    first = network.upstream
    nodes = (*network.nodes[:first], *(network.nodes[first + k] for k in order))
    facts = dataclasses.replace(
        facts, means=tuple(facts.means[k] for k in order), stds=tuple(facts.stds[k] for k in order)
    )
    return dataclasses.replace(network, nodes=nodes), facts


@pytest.mark.parametrize(
    "name", ["one_warehouse_lost_demand", "transshipment_backlogged", "many_warehouses_lost_demand"]
)
@pytest.mark.parametrize("typed", [False, True])
@torch.no_grad()
def test_stores_can_change_places(name, typed):
    """Stores with all that is theirs in another order: every lane keeps its order of goods."""
    setting, scenarios = drawn(name)
    policy = wild(made(setting, scenarios, typed=typed))
    first, stores = setting.network.upstream, setting.network.stores
    order = torch.randperm(stores, generator=torch.Generator().manual_seed(2)).tolist()
    network, facts = permuted(setting.network, policy.facts, order)
    other = policy.moved(network, facts)
    seen = seen_at_random(scenarios)
    stock = seen.stock[:, [*range(first), *(first + k for k in order)]]
    moved = seen._replace(stock=stock, parameters=Parameters.of(network, torch.float64))
    lane = {(edge.source, edge.target): k for k, edge in enumerate(network.edges)}
    columns = [lane[edge.source, edge.target] for edge in setting.network.edges]
    torch.testing.assert_close(other(moved)[:, columns], policy(seen), rtol=1e-9, atol=1e-9)


def test_weights_of_3_stores_run_50():
    setting, scenarios = drawn("one_warehouse_lost_demand", paths=16, dtype=torch.float32, stores=3)
    learner = HDPO(scenarios, DemandFacts.of(setting, scenarios), HDPOConfig(policy="gnn"), (0,))
    for _ in range(3):
        learner.update(torch.arange(16)[None])
    large, paths = drawn("one_warehouse_lost_demand", dtype=torch.float32, stores=50)
    policy = learner.policy().moved(large.network, DemandFacts.of(large, paths))
    assert sum(p.numel() for p in policy.parameters()) == 19_169
    for a, b in zip(policy.parameters(), learner.policy().parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        costs = rollout(policy, paths, feasibility="raise").costs
    assert costs.isfinite().all()
    assert costs.shape[2] == 51
    with pytest.raises(ConfigError, match="does not fit serial_system"):
        policy.moved(load_setting("serial_system").network, DemandFacts(means=(5.0,), stds=(2.0,)))


def sees(policy, scenarios, lane):
    """Nodes whose stock moves the wish on a lane."""
    seen = seen_at_random(scenarios)
    seen = seen._replace(stock=seen.stock.requires_grad_())
    (g,) = torch.autograd.grad(policy.logits(seen)[:, lane].sum(), seen.stock)
    return [bool(x) for x in g.abs().sum((0, 2)) > 0]


def test_a_wish_sees_as_far_as_there_are_rounds():
    """Chain of four: the outside order is the first node's, the store is three lanes away."""
    setting, scenarios = drawn("serial_system")
    for rounds in (1, 2, 3):
        policy = wild(made(setting, scenarios, rounds=rounds))
        for lane, (s, t) in enumerate(zip(setting.network.sources, setting.network.targets, strict=True)):
            ends = [n for n in (s, t) if n < 4]
            near = [min(abs(n - end) for end in ends) <= rounds for n in range(4)]
            assert sees(policy, scenarios, lane) == near


def test_virtual_ends_relay_nothing():
    """Two stores that share nothing but supplier and customers do not see each other."""
    nodes = tuple(Node(name=n, kind="store", holding_cost=1.0, underage_cost=9.0) for n in "ab")
    network = Network(
        name="two",
        nodes=nodes,
        edges=tuple(Edge(source=OUTSIDE, target=n, lead_time=2) for n in "ab"),
        lost_sales=True,
    )
    facts = DemandFacts(means=(5.0, 5.0), stds=(1.0, 1.0))
    for backend in ("static", "union", "hetero"):
        made_for = [torch.Generator().manual_seed(0)]
        policy = make_policy("gnn", network, facts, made_for, rounds=5, backend=backend)
        stock = torch.rand(3, 2, 2, requires_grad=True)
        _, scenarios = drawn("one_store_lost", dtype=torch.float32)
        seen = scenarios.observe(stock, 0)._replace(parameters=Parameters.of(network))
        (g,) = torch.autograd.grad(policy.logits(seen)[:, 0].sum(), stock)
        assert g[:, 0].any()
        assert not g[:, 1].any()


@EVERY
@torch.no_grad()
def test_wild_weights_ship_what_there_is(name):
    setting, scenarios = drawn(name, dtype=torch.float32)
    policy = wild(made(setting, scenarios))
    record = rollout(policy, scenarios, periods=8, feasibility="raise", record=True)
    network = setting.network
    for stock, action in zip(record.stocks, record.actions, strict=False):
        sent = scenarios.simulator().shipped(action)
        on_hand = stock[:, : network.upstream, 0]
        assert (sent <= on_hand.clamp(min=0) + 1e-5 * (1 + on_hand)).all()
        if network.upstream and not network.nodes[0].holds:
            torch.testing.assert_close(sent, on_hand, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_self_loop_competes_for_the_stock():
    setting, scenarios = drawn("one_warehouse_lost_demand")
    policy, seen = made(setting, scenarios), seen_at_random(scenarios)
    logits = policy.logits(seen)
    q = torch.nn.functional.softplus(logits)
    share = (seen.stock[:, 0, 0] / (q[:, :5].sum(1) + q[:, 6])).clamp(max=1)
    want = torch.cat([q[:, :5] * share[:, None], q[:, 5:6]], 1)
    torch.testing.assert_close(policy(seen), want, rtol=1e-6, atol=1e-6)


def test_first_orders_are_about_five_units():
    setting, scenarios = drawn("one_store_lost")
    order = made(setting, scenarios)(seen_at_random(scenarios))
    assert ((order > 4) & (order < 6)).all()


@EVERY
@pytest.mark.parametrize("typed", [False, True])
@torch.no_grad()
def test_a_batch_equals_its_scenarios_and_a_stack_its_seeds(name, typed):
    setting, scenarios = drawn(name)
    scenarios = own_lead_times(scenarios)
    both = made(setting, scenarios, 3, 4, typed=typed)
    rows = torch.tensor([0, 1, 2, 3])
    twice = scenarios.rows(rows.repeat(2))
    together = both(seen_at_random(twice)).unflatten(0, (2, -1))
    for k, seed in enumerate((3, 4)):
        own = made(setting, scenarios, seed, typed=typed)
        seen = seen_at_random(twice)
        for row in (0, 3):
            one = scenarios.rows(torch.tensor([row]))
            past = None if seen.past_demand is None else seen.past_demand[4 * k + row : 4 * k + row + 1]
            alone = seen._replace(
                stock=seen.stock[4 * k + row : 4 * k + row + 1], parameters=one.parameters, past_demand=past
            )
            torch.testing.assert_close(own(alone)[0], together[k, row], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(both.single(k)(alone)[0], together[k, row], rtol=1e-9, atol=1e-9)


def test_parts_that_fit_the_cache_are_the_whole_batch(monkeypatch):
    """Without gradient 7 scenarios of two seeds are computed 3, 3 and 1 at a time."""
    setting, scenarios = drawn("serial_system", paths=7)
    twice = own_lead_times(scenarios).rows(torch.arange(7).repeat(2))
    policy, seen = made(setting, scenarios, 3, 4), seen_at_random(twice)
    monkeypatch.setattr(gnn, "IN_CACHE", 3 * 2 * policy.graph.edges)
    sizes, real = [], policy._static
    policy._static = lambda x, times: sizes.append(x.shape[-1]) or real(x, times)
    whole = policy(seen)  # with gradient in one piece
    with torch.no_grad():
        torch.testing.assert_close(policy(seen), whole, rtol=1e-12, atol=1e-12)
    assert sizes == [7, 3, 3, 1]


def test_features_of_nodes_by_hand():
    """Pipeline, holding cost, then mean cost of lanes in (upstream) or underage cost, mean and spread (stores)."""
    setting, scenarios = drawn("many_warehouses_lost_demand")
    seen, network = seen_at_random(scenarios), setting.network
    x = made(setting, scenarios).features(seen)[:, 0]
    for n, node in enumerate(network.nodes):
        torch.testing.assert_close(x[n, : network.width].T, seen.stock[:, n])
        if n < network.upstream:
            lanes = [e.cost for e in network.edges if e.target == node.name]
            want = [node.holding_cost, sum(lanes) / len(lanes), 0.0, 0.0]
        else:
            k = n - network.upstream
            want = [node.holding_cost, node.underage_cost, setting.demand.means[k], setting.demand.stds[k]]
        torch.testing.assert_close(
            x[n, network.width :, 0], torch.tensor(want, dtype=x.dtype), rtol=1e-6, atol=1e-6
        )
    sales = load_setting("favorita_21_stores")
    paths = sales.resized(train=3, dev=3).draw("train", dtype=torch.float64)
    policy = make_policy("gnn", sales.network, DemandFacts.of(sales, paths), [torch.Generator()]).double()
    x = policy.features(paths.observe(paths.initial, 5))[:, 0]
    torch.testing.assert_close(x[3:, -17:-1].permute(2, 0, 1), paths.demands[5:21].permute(1, 2, 0))
    assert (x[3:, -1] == paths.calendar[21]).all()
    assert not x[:3, -15:].any()


def test_fault_under_sparse_lanes_every_order_is_booked_on_its_own_warehouse():
    """The published net booked by rank: stores 0, 1, 5 and 9 know warehouse 2 alone and were debited at warehouse 1."""
    setting, scenarios = drawn("many_warehouses_lost_demand")
    policy, network = wild(made(setting, scenarios)), setting.network
    seen = seen_at_random(scenarios)
    stock = seen.stock.clone()
    stock[:, 0, 0] = 0  # warehouse 1 is empty
    with torch.no_grad():
        orders = policy(seen._replace(stock=stock))
        sent = scenarios.simulator().shipped(orders)
    assert not sent[:, 0].any()
    for store in (0, 1, 5, 9):
        (lane,) = [k for k, target in enumerate(network.targets) if target == network.upstream + store]
        assert network.sources[lane] == 1
        assert (orders[:, lane] > 0).all()
    from_first = [k for k, source in enumerate(network.sources) if source == 0]
    assert {network.targets[k] - network.upstream for k in from_first} == {2, 3, 4, 6, 7, 8}


@pytest.mark.parametrize(
    "name",
    ["serial_system", "transshipment_backlogged", "one_warehouse_lost_demand", "many_warehouses_lost_demand"],
)
def test_the_gradient_of_a_rollout_is_that_of_finite_differences(name):
    setting, scenarios = drawn(name, paths=2)
    policy = made(setting, scenarios)
    params = list(policy.parameters())
    way = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) for p in params
    ]

    @torch.no_grad()
    def cost(shift):
        for p, w in zip(params, way, strict=True):
            p.add_(w, alpha=shift)
        total = rollout(policy, scenarios).costs.sum()
        for p, w in zip(params, way, strict=True):
            p.sub_(w, alpha=shift)
        return total

    grads = torch.autograd.grad(rollout(policy, scenarios).costs.sum(), params)
    slope = sum((g * w).sum() for g, w in zip(grads, way, strict=True))
    numeric = (cost(1e-7) - cost(-1e-7)) / 2e-7
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("typed", [False, True])
@torch.no_grad()
def test_files_keep_the_policy(typed, tmp_path):
    setting, scenarios = drawn("many_warehouses_lost_demand", dtype=torch.float32)
    policy = wild(made(setting, scenarios, typed=typed, rounds=2, hidden=(8, 16)))
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.options == policy.options
    assert torch.equal(again(seen_at_random(scenarios)), policy(seen_at_random(scenarios)))


@torch.no_grad()
def test_typed_perceptrons_are_each_their_own():
    """Changing the warehouse's first perceptron changes what a store that sees none of it wants by nothing."""
    setting, scenarios = drawn("many_warehouses_lost_demand")
    policy, seen = made(setting, scenarios, typed=True), seen_at_random(scenarios)
    assert sorted(policy.node_start) == ["store", "warehouse"]
    assert sorted(policy.edge_start) == ["demand", "self", "ships", "supply"]
    before = policy.logits(seen)
    list(policy.score["self"].parameters())[-1].add_(1.0)
    change = policy.logits(seen) - before
    lanes = policy.graph.lanes
    assert not change[:, :lanes].any()
    torch.testing.assert_close(change[:, lanes:], torch.ones_like(change[:, lanes:]))


def test_impossible_options_are_one_line():
    setting, scenarios = drawn("one_store_lost")
    with pytest.raises(ConfigError, match="backend must be one of static, union, hetero"):
        made(setting, scenarios, backend="dense")
    with pytest.raises(ConfigError, match="1 or more"):
        made(setting, scenarios, hidden=(0,))
    with pytest.raises(ConfigError, match="1 or more"):
        made(setting, scenarios, rounds=-1)
    with pytest.raises(ConfigError, match="mean above 0"):
        facts = DemandFacts(means=(0.0,), stds=(1.0,))
        make_policy("gnn", setting.network, facts, [torch.Generator()], echelon=True)
    with pytest.raises(ConfigError, match="normalize is for dense nets"):
        HDPOConfig(policy="gnn", normalize=True)

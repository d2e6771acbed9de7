"""Ordering rules: every order keeps every rule; deliveries vary; gradients; the (s, S) optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations, resolved
from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.extended import simulator_of
from offrl.envs.inventory.kpis import kpis
from offrl.envs.inventory.policies import DemandFacts, network_from_json, network_to_json
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.rules import RuledSimulator, advice
from offrl.envs.inventory.scenarios import evaluate, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.fixed_cost import fixed_cost
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError
from offrl.training.seeding import streams

STORES = [Node(name=f"s{k}", kind="store", holding_cost=1, underage_cost=9) for k in range(3)]
RULED = Network(
    name="ruled", lost_sales=True, budget=500.0,
    nodes=(Node(name="A", kind="warehouse", holding_cost=0.3), Node(name="B", kind="warehouse", holding_cost=0.3), *STORES),
    edges=(
        Edge(source=f"{OUTSIDE} 1", target="A", lead_time=2, cost=4.0, pack=12, min_order=30, fixed_cost=25),
        Edge(source=f"{OUTSIDE} 1", target="B", lead_time=3, cost=3.0, min_order=17.5, capacity=90.0, calendar=(1, 0, 0)),
        Edge(source=f"{OUTSIDE} 2", target="s2", lead_time=1, cost=6.0, pack=2.5, capacity=21),
        Edge(source="A", target="s0", lead_time=1, pack=6),
        Edge(source="A", target="s1", lead_time=2, pack=4, min_order=7),
        Edge(source="B", target="s1", lead_time=1, calendar=(0, 1)),
        Edge(source="B", target="s2", lead_time=1, min_order=5, capacity=11.5),
    ),
)  # fmt: skip


def random_states(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    simulator = simulator_of(RULED)
    stock = 60 * torch.rand(count, *simulator.shape, generator=random)
    whole = torch.rand(count, 1, 1, generator=random) < 0.5
    stock = torch.where(whole, stock.round(), stock)
    wishes = 80 * torch.rand(count, len(RULED.edges), generator=random) ** 3
    return simulator, stock, wishes * (torch.rand(wishes.shape, generator=random) < 0.8)


def broken_rules(orders, stock, period):
    """Name of each rule that some order breaks."""
    bad = set()
    for e, edge in enumerate(RULED.edges):
        a = orders[:, e].double()
        if (a < 0).any():
            bad.add("sign")
        if edge.pack and ((a / edge.pack - (a / edge.pack).round()).abs() > 1e-4).any():
            bad.add("pack")
        if ((a > 0) & (a < edge.min_order * (1 - 1e-5))).any():
            bad.add("least order")
        if (a > edge.capacity * (1 + 1e-5)).any():
            bad.add("capacity")
        if edge.calendar and not edge.calendar[period % len(edge.calendar)] and (a > 0).any():
            bad.add("order days")
    for n in range(RULED.upstream):
        sent = sum(orders[:, e] for e, source in enumerate(RULED.sources) if source == n)
        if (sent > stock[:, n, 0] + 1e-3).any():
            bad.add("stock")
    spent = sum(
        edge.cost * orders[:, e] + edge.fixed_cost * (orders[:, e] > 0)
        for e, edge in enumerate(RULED.edges) if e >= RULED.internal
    )  # fmt: skip
    if (spent > RULED.budget * (1 + 1e-5)).any():
        bad.add("budget")
    return bad


def test_every_order_keeps_every_rule_on_1e5_random_states():
    simulator, stock, wishes = random_states(100_000)
    assert broken_rules(wishes, stock, 0) == {
        "pack", "least order", "capacity", "stock", "budget", "order days"
    }  # fmt: skip
    for period in range(6):
        orders = simulator.filled(stock, wishes, period)
        assert broken_rules(orders, stock, period) == set()
        assert (orders > 0).float().mean(0)[simulator.open(period) > 0].min() > 0.03  # the rules leave orders


def test_a_lawful_order_is_left_alone():
    simulator, stock, wishes = random_states(20_000, seed=1)
    once = simulator.filled(stock, wishes, 0)
    torch.testing.assert_close(simulator.filled(stock, once, 0), once, rtol=1e-5, atol=1e-4)


def test_wishes_become_the_nearest_order_where_nothing_binds():
    simulator = simulator_of(replace(RULED, budget=math.inf))
    stock = torch.full((1, *simulator.shape), 1e4)
    lanes = [e.target + "<" + e.source for e in RULED.edges]

    def order(lane, wish, period=3):
        wishes = torch.zeros(1, len(lanes))
        wishes[0, lanes.index(lane)] = wish
        return float(simulator.filled(stock, wishes, period)[0, lanes.index(lane)])

    assert [order("A<outside 1", w) for w in (17, 18, 40, 43, 1000)] == [0, 36, 36, 48, 996]
    assert [order("B<outside 1", w) for w in (8, 9, 17.5, 60.2, 100)] == [
        0,
        17.5,
        17.5,
        pytest.approx(60.2),
        90,
    ]
    assert order("B<outside 1", 60, period=4) == 0
    assert [order("s2<outside 2", w) for w in (1, 1.3, 30)] == [0, 2.5, 20]
    assert [order("s1<A", w) for w in (3, 4, 7, 9.9)] == [0, 8, 8, 8]


def test_fixed_costs_are_paid_for_every_order_and_goods_by_unit():
    network = Network(
        name="one", nodes=(STORES[0],), lost_sales=True,
        edges=(Edge(source=OUTSIDE, target="s0", lead_time=1, cost=2.0, fixed_cost=7.0, pack=5),),
    )  # fmt: skip
    simulator = simulator_of(network)
    state = simulator.start(torch.zeros(3, 1, 1))
    state, cost = simulator.step(state, torch.tensor([[0.0], [2.0], [9.0]]), torch.zeros(3, 1))
    assert cost[:, 0].tolist() == [0.0, 0.0, 7.0 + 2.0 * 10]
    assert simulator.stock(state)[:, 0, 0].tolist() == [0.0, 0.0, 10.0]


def chain(receipts):
    return Network(
        name="one", nodes=(STORES[0],), lost_sales=False,
        edges=(Edge(source=OUTSIDE, target="s0", lead_time=2, receipts=receipts),),
    )  # fmt: skip


def test_deliveries_come_late_in_parts_and_overtake_each_other():
    network = chain(((1.0,), (0.0, 0.5, 0.0, 0.5)))
    assert network.width == 4
    deliveries = torch.tensor([1, 0, 0, 0, 0])[:, None, None]
    simulator = simulator_of(network, deliveries=deliveries)
    assert isinstance(simulator, RuledSimulator)
    state, zero = simulator.start(torch.zeros(1, 1, 4)), torch.zeros(1, 1)
    on_hand, seen = [], []
    for order in (8.0, 3.0, 0.0, 0.0, 0.0):
        state, _ = simulator.step(state, torch.tensor([[order]]), zero)
        on_hand.append(float(simulator.stock(state)[0, 0, 0]))
        seen.append(simulator.stock(state)[0, 0].tolist())
    assert on_hand == [0.0, 3.0 + 4.0, 7.0, 11.0, 11.0]  # the second order is there with half of the first
    assert seen[0] == [0.0, 0.0, 0.0, 8.0]  # under way, but not when
    assert seen[1] == [7.0, 0.0, 0.0, 4.0]


def ruled_setting(network, scenarios=64, periods=30):
    splits = {name: Split(scenarios=scenarios, batch=scenarios, periods=periods, ignore=5, demand_seed=k) for k, name in
              enumerate(("train", "dev", "test"), 1)}  # fmt: skip
    return Setting(
        name="ruled",
        network=network,
        demand=Poisson(means=(4.0,) * network.stores),
        splits=splits,
        integral=True,
    )


def test_units_are_neither_made_nor_lost():
    edges = [
        replace(e, receipts=((0.0, 1.0), (0.25, 0.0, 0.75))) if e.target == "A" else e for e in RULED.edges
    ]
    setting = ruled_setting(replace(RULED, edges=tuple(edges), width=0, widths=()))
    scenarios = setting.draw("test", dtype=torch.float64)
    assert scenarios.deliveries.shape == (30, 64, 7)
    assert set(scenarios.deliveries.unique().tolist()) == {0, 1}
    wish = torch.tensor([[6.0, 8, 5, 6, 36, 20, 5]]).double()
    done = rollout(lambda seen: wish.expand(64, -1), scenarios, record=True)
    simulator = scenarios.simulator()
    received = torch.zeros(64).double()
    for t in range(30):
        received += simulator.filled(done.stocks[t], wish.expand(64, -1), t)[
            :, scenarios.network.internal :
        ].sum(1)
    on_hand = done.stocks[:-1, :, 2:, 0]
    sold = torch.minimum(on_hand, scenarios.demands).sum((0, 2))
    torch.testing.assert_close(received - sold, done.stocks[-1].sum((1, 2)))
    service = kpis(done, scenarios)
    assert 0 < float(service.fill_rate.min()) < 1
    rows = torch.tensor([3, 5])
    some = rollout(lambda seen: wish.expand(2, -1), scenarios.rows(rows))
    torch.testing.assert_close(some.costs, done.costs[:, rows])


def test_demand_does_not_depend_on_the_deliveries():
    with_, without = ruled_setting(chain(((1.0,), (0.0, 1.0)))), ruled_setting(chain(()))
    assert torch.equal(with_.draw("test").demands, without.draw("test").demands)
    assert without.draw("test").deliveries is None


def test_training_and_development_deliveries_are_rows_of_one_draw():
    """As their demand: the development set is the first rows, and no path of training has its deliveries."""
    nodes = (Node(name="s", kind="store", holding_cost=1, underage_cost=9),)
    ways = ((1.0,), (0.0, 1.0), (0.5, 0.0, 0.5))
    lane = Edge(source=OUTSIDE, target="s", lead_time=2, receipts=ways)
    split = Split(scenarios=5, batch=5, periods=40, ignore=0, demand_seed=3)
    setting = Setting(
        name="late", network=Network(name="late", nodes=nodes, edges=(lane,), lost_sales=True),
        demand=Poisson(means=(5.0,)), splits={"train": split, "dev": split, "test": split},
    )  # fmt: skip
    train, dev = setting.draw("train").deliveries, setting.draw("dev").deliveries
    assert train.shape == dev.shape == (40, 5, 1)
    assert abs(float((train == dev).float().mean()) - 1 / 3) < 0.15
    more = setting.resized(train=9)
    assert torch.equal(more.draw("dev").deliveries, dev)
    assert torch.equal(more.draw("train").deliveries[:, :5], train)
    shorter = setting.resized(periods={"train": 20})
    assert torch.equal(shorter.draw("train").deliveries, train[:20])


def test_projected_orders_are_those_that_the_rules_make_of_the_wishes():
    """A lane that is closed today takes nothing from the open one beside it; what a network owes is not forgotten."""
    nodes = (Node(name="w", kind="warehouse", initial=10.0), *STORES[:2])
    lanes = (
        Edge(source=OUTSIDE, target="w", lead_time=1), Edge(source="w", target="s0", lead_time=1),
        Edge(source="w", target="s1", lead_time=1, calendar=(0, 1)),
    )  # fmt: skip
    network = Network(name="days", nodes=nodes, edges=lanes, lost_sales=True)
    split = Split(scenarios=2, batch=2, periods=1, ignore=0, demand_seed=3)
    setting = Setting(
        name="days", network=network, demand=Poisson(means=(5.0, 5.0)), splits=dict.fromkeys(("train", "dev", "test"), split)
    )  # fmt: skip
    paths = setting.draw("test")
    done = rollout(lambda o: torch.tensor([[10.0, 10.0, 0.0]] * 2), paths, feasibility="project", record=True)
    assert done.stocks[-1, :, :, 0].tolist() == [[0.0, 10.0, 0.0]] * 2
    owing = load_setting("or_gym_inv_management").resized(train=4, dev=4, test=4).draw("test")
    plenty = [
        rollout(lambda o: torch.full((4, 3), 95.0), owing, feasibility=how).costs
        for how in ("trust", "project")
    ]
    torch.testing.assert_close(*plenty)


def test_gradients_pass_the_rounding_straight_through():
    simulator, stock, wishes = random_states(64)
    wishes.requires_grad_()
    orders = simulator.filled(stock, wishes, 0)
    (grad,) = torch.autograd.grad(orders[:, RULED.internal :].sum(), wishes)
    assert (grad[:, RULED.internal :] != 0).any()
    plain = simulator_of(replace(RULED, budget=math.inf))
    roomy = torch.full_like(stock, 1e5)
    (grad,) = torch.autograd.grad(plain.filled(roomy, wishes, 3).sum(), wishes)
    under = wishes.detach() < 0.8 * torch.tensor([e.capacity for e in RULED.edges])
    torch.testing.assert_close(
        grad[under & (plain.open(3) > 0)], torch.ones(()).expand(int((under & (plain.open(3) > 0)).sum()))
    )
    assert (grad[:, plain.open(3) == 0] == 0).all()


def test_the_estimator_is_chosen_by_the_rules():
    lane = Edge(source=OUTSIDE, target="s0", lead_time=1)
    for edge, name, word in (
        (lane, "pathwise", "continuous"),
        (replace(lane, pack=6), "pathwise", "straight through"),
        (replace(lane, fixed_cost=3), "rloo", "fixed cost"),
        (replace(lane, min_order=3), "rloo", "least order"),
    ):
        network = Network(name="one", nodes=(STORES[0],), edges=(edge,), lost_sales=True)
        assert advice(network)[0] == name
        assert word in advice(network)[1]
        assert resolved(HDPOConfig(), network).estimator == name
        assert resolved(HDPOConfig(estimator="score"), network).estimator == "score"


def test_networks_with_rules_are_saved_and_read(tmp_path):
    edges = (replace(RULED.edges[0], receipts=((0.5, 0.5), (1.0,))), *RULED.edges[1:])
    network = replace(RULED, edges=edges)
    import json

    assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network
    path = tmp_path / "net.yaml"
    path.write_text("""\
format: 1
lost_sales: true
same_period: true
budget: 90
nodes: [{name: s, kind: store, holding_cost: 1, underage_cost: 9}]
lanes: [{from: outside, to: s, lead_time: 0, fixed_cost: 5, min_order: 3, pack: 2, calendar: [1, 0], cost: 2}]
demand: {kind: poisson, stores: {s: {mean: 4}}}
""")
    own = load_setting(str(path)).network
    assert (own.budget, own.same_period) == (90.0, True)
    assert own.edges[0] == Edge(
        source=OUTSIDE, target="s", lead_time=0, fixed_cost=5, min_order=3, pack=2, calendar=(1, 0), cost=2
    )
    path.write_text(path.read_text().replace("[1, 0]", "[2]"))
    with pytest.raises(ConfigError, match="calendar must be a list of 1"):
        load_setting(str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pack": -1}, "pack must not be negative"),
        ({"fixed_cost": -1}, "fixed_cost must not be negative"),
        ({"min_order": 30, "capacity": 20}, "the smallest order is 30 but capacity is 20"),
        ({"pack": 8, "min_order": 10, "capacity": 15}, "the smallest order is 16 but capacity is 15"),
        ({"calendar": (0, 0)}, "with a 1 at least"),
        ({"calendar": (1, 2)}, "of 0 and 1"),
        ({"receipts": ((0.5, 0.4),)}, "sum to 1"),
    ],
)
def test_impossible_rules_are_refused(change, says):
    lane = Edge(source=OUTSIDE, target="s0", lead_time=1)
    with pytest.raises(ConfigError, match=says):
        Network(name="one", nodes=(STORES[0],), edges=(replace(lane, **change),), lost_sales=True)


def test_budget_and_lead_time_zero_are_checked():
    with pytest.raises(ConfigError, match="budget must be above 0"):
        replace(RULED, budget=0.0)
    edges = [replace(e, lead_time=0) if e.target == "A" else e for e in RULED.edges]
    with pytest.raises(ConfigError, match="lead_time 0 is for stores; what 'A' orders now"):
        replace(RULED, edges=tuple(edges), same_period=True)
    with pytest.raises(ConfigError, match="lead_time must be 1 or more"):
        replace(RULED, edges=tuple(edges))


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("ruled", [True, False])
def test_lead_time_zero_covers_one_period(lost, ruled):
    """Order up to 7, delivered at once: what is left is 7 - d; a fixed cost makes it the ruled simulator."""
    network = Network(
        name="one", nodes=(STORES[0],), lost_sales=lost, same_period=True,
        edges=(Edge(source=OUTSIDE, target="s0", lead_time=0, fixed_cost=1.0 if ruled else 0.0),),
    )  # fmt: skip
    simulator = simulator_of(network, dtype=torch.float64)
    state, random = simulator.start(torch.zeros(50, 1, 1).double()), np.random.default_rng(0)
    for _ in range(5):
        order = (7 - simulator.stock(state).sum(-1)).clamp(min=0)
        demand = torch.from_numpy(random.poisson(5, (50, 1))).double()
        state, cost = simulator.step(state, order, demand)
        left = 7 - demand
        want = left.clamp(min=0) + 9 * (-left).clamp(min=0) + float(ruled) * (order > 0)
        torch.testing.assert_close(cost, want)
        after = left.clamp(min=0) if lost else left
        torch.testing.assert_close(simulator.stock(state)[..., 0], after)


def test_gradients_of_lead_time_zero_are_exact():
    edges = (
        Edge(source=OUTSIDE, target="A", lead_time=1, cost=1.0), Edge(source="A", target="s0", lead_time=0),
        Edge(source="A", target="s1", lead_time=2),
    )  # fmt: skip
    network = Network(
        name="n", nodes=(RULED.nodes[0], *STORES[:2]), edges=edges, lost_sales=True, same_period=True
    )
    simulator = simulator_of(network, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    stock = 9 * torch.rand(4, *simulator.shape, generator=random, dtype=torch.float64)
    orders = (2 * torch.rand(4, 3, generator=random, dtype=torch.float64)).requires_grad_()
    demand = 6 * torch.rand(4, 2, generator=random, dtype=torch.float64)

    def total(a):
        state, first = simulator.step(stock, a, demand)
        _, second = simulator.step(state, 0.5 * a, demand)
        return (first + second).sum()

    assert torch.autograd.gradcheck(total, (orders,))


@pytest.mark.slow
def test_the_optimal_min_and_max_are_recovered_within_one_percent():
    """One store, backlog, Poisson(5), lead time 1, K = 30: optimum by the exact solver; rloo, chosen by the rules."""
    best = fixed_cost(parse_demand("poisson:5"), 1, 1.0, 9.0, 30.0)
    network = Network(
        name="fixed", nodes=(STORES[0],), lost_sales=False,
        edges=(Edge(source=OUTSIDE, target="s0", lead_time=1, fixed_cost=30.0),),
    )  # fmt: skip
    setting = replace(ruled_setting(network, scenarios=2048, periods=50), demand=Poisson(means=(5.0,)))
    train, steps = setting.draw("train"), 140
    config = HDPOConfig(policy="s_S", normalize=True, lr=0.03, lr_decay=True, sigma=0.4, draws=4)
    learner = HDPO(train, DemandFacts(means=(5.0,), stds=(5**0.5,)), config, [0], steps=steps)
    assert learner.config.estimator == "rloo"
    source, data = Permutations(len(train), 64, 1), streams([0], "data", "cpu")
    for _ in range(steps):
        learner.update(source.sample(data))
    test = setting.resized(test=1024, periods={"test": 300}).draw("test")
    found = evaluate(learner.policy(), test, ignore=50)
    cost, error = float(found.mean()), float(found.std() / 32)
    assert best.cost - 4 * error < cost < best.cost * 1.01


def test_the_optimal_min_and_max_cost_in_the_simulator_what_the_solver_says():
    best = fixed_cost(parse_demand("poisson:5"), 1, 1.0, 9.0, 30.0)
    network = Network(
        name="fixed", nodes=(STORES[0],), lost_sales=False,
        edges=(Edge(source=OUTSIDE, target="s0", lead_time=1, fixed_cost=30.0),),
    )  # fmt: skip
    setting = replace(ruled_setting(network, scenarios=512, periods=300), demand=Poisson(means=(5.0,)))

    def policy(seen):
        position = seen.stock[:, 0].sum(-1, keepdim=True)
        return torch.where(position <= best.reorder_point, best.level - position, 0.0)

    found = evaluate(policy, setting.draw("test"), ignore=50)
    assert abs(float(found.mean()) - best.cost) < 4 * float(found.std() / 512**0.5)
    assert float(found.std() / 512**0.5) < 0.005 * best.cost


def shared(limit=30.0, pack=0.0, budget=math.inf):
    """Four stores that share a truck, of which units have sizes 1, 1, 2 and 0.5; a fifth has its own way."""
    sizes = (1.0, 1.0, 2.0, 0.5)
    nodes = tuple(Node(name=f"s{k}", kind="store", holding_cost=1, underage_cost=9) for k in range(5))
    edges = [
        Edge(source=OUTSIDE, target=f"s{k}", lead_time=1, pack=pack, truck="T", size=size, cost=2.0)
        for k, size in enumerate(sizes)
    ]
    edges.append(Edge(source=OUTSIDE, target="s4", lead_time=1, cost=2.0))
    return Network(name="shared", nodes=nodes, edges=tuple(edges), lost_sales=True, trucks=(("T", limit),), budget=budget)  # fmt: skip


def test_a_truck_shrinks_all_its_lanes_by_one_factor():
    simulator = simulator_of(shared())
    wanted = torch.tensor([[10.0, 10, 10, 20, 50], [2, 3, 4, 5, 6]], requires_grad=True)
    sent = simulator.filled(torch.zeros(2, 5, 1), wanted, 0)
    torch.testing.assert_close(sent[0], torch.tensor([6.0, 6, 6, 12, 50]))  # 50 asked, 30 fit
    torch.testing.assert_close(sent[1], wanted[1])
    (gradient,) = torch.autograd.grad(sent[0, 1], wanted)
    torch.testing.assert_close(gradient[0], torch.tensor([-6.0 / 50, 0.6 - 6 / 50, -12.0 / 50, -3.0 / 50, 0]))


def test_what_packs_leave_free_goes_to_those_that_lost_most():
    """Packs of 6 in a truck of 30: a factor of 30 / 33 alone would send 12 + 0 + 6 + 0, filled to 27."""
    simulator = simulator_of(shared(pack=6.0))
    sent = simulator.filled(torch.zeros(1, 5, 1), torch.tensor([[12.0, 6, 6, 6, 0]]), 0)
    assert float((sent * torch.tensor([1, 1, 2, 0.5, 0])).sum()) in (27.0, 30.0)
    assert float(sent[0, 1]) == 6.0
    assert float(sent[0, 3]) == 6.0


def test_shared_limits_hold_on_random_states():
    random = torch.Generator().manual_seed(0)
    network = shared(limit=40.0, pack=4.0, budget=75.0)
    simulator = simulator_of(network)
    wanted = torch.rand(20_000, 5, generator=random) * 30
    sent = simulator.filled(torch.zeros(20_000, 5, 1), wanted, 0)
    used = (sent * torch.tensor([1.0, 1, 2, 0.5, 0])).sum(1)
    assert float(used.max()) <= 40 + 1e-3
    assert float(used.mean()) > 20
    assert float((2 * sent).sum(1).max()) <= 75 + 1e-3
    assert float((sent[:, :4] % 4).abs().max()) < 1e-4
    assert (sent >= 0).all()
    assert (sent <= wanted + 2 + 1e-4).all()


def star(stores, **lane):
    """A warehouse that supplies stores."""
    nodes = (
        Node(name="w", kind="warehouse"),
        *(Node(name=f"s{k:02}", kind="store", holding_cost=1, underage_cost=9) for k in range(stores)),
    )
    lanes = (Edge(source="w", target=f"s{k:02}", lead_time=1, **lane) for k in range(stores))
    supply = Edge(source=OUTSIDE, target="w", lead_time=1, pack=1)
    return Network(name="star", nodes=nodes, edges=(supply, *lanes), lost_sales=True)


def filled_from(network, on_hand, wishes):
    simulator = simulator_of(network)
    stock = torch.zeros(1, *simulator.shape)
    stock[0, 0, 0] = on_hand
    return simulator.filled(stock, torch.tensor([[*wishes, 0.0]]), 0)[0, :-1].tolist()


def test_a_supplier_that_is_short_sends_the_packs_it_has():
    """Ten units for twelve stores that want one each: ten stores get one, not none because a share is 10 / 12."""
    assert filled_from(star(12, pack=1), 10.0, [1.0] * 12) == [1.0] * 10 + [0.0] * 2
    assert filled_from(star(4, pack=6), 20.0, [6.0, 12.0, 6.0, 6.0]) == [6.0, 6.0, 6.0, 0.0]
    assert filled_from(star(3, pack=1), 8.0, [2.0, 9.0, 5.0]) == [1.0, 5.0, 2.0]  # shares 1, 4.5, 2.5
    assert filled_from(star(3, min_order=5), 12.0, [5.0, 6.0, 7.0]) == [0.0, 5.0, 5.0]
    assert filled_from(star(3), 12.0, [6.0, 6.0, 12.0]) == [3.0, 3.0, 6.0]  # any amount: shares as they are


def test_no_pack_that_was_wanted_stays_with_a_short_supplier():
    random = torch.Generator().manual_seed(0)
    network = star(7, pack=4)
    simulator = simulator_of(network)
    stock = torch.zeros(20_000, *simulator.shape)
    stock[:, 0, 0] = (150 * torch.rand(20_000, generator=random)).round()
    wishes = 40 * torch.rand(20_000, 8, generator=random)
    orders = simulator.filled(stock, wishes, 0)[:, :7]
    asked = (wishes[:, :7] / 4).round() * 4
    assert float((orders % 4).abs().max()) == 0
    assert (orders <= asked).all()
    left, short = stock[:, 0, 0] - orders.sum(1), asked.sum(1) > stock[:, 0, 0]
    assert 0.2 < float(short.float().mean()) < 0.9
    assert bool((left[short] < 4).all())
    assert bool((left >= 0).all())
    share = asked * (stock[:, :1, 0] / asked.sum(1, keepdim=True).clamp(min=1)).clamp(max=1)
    assert float((orders - share).abs().max()) < 4  # nobody is a whole pack away from his share


def test_stores_behind_a_small_warehouse_are_not_starved():
    """Wishes grow while nobody is served: a warehouse at its level orders nothing, and would hold its stock for ever."""
    network = star(12, pack=1)
    setting = replace(ruled_setting(network, periods=60), demand=Poisson(means=(0.2,) * 12))
    levels = torch.tensor([11.0, *(2.0,) * 12])[list(network.targets)]

    def policy(seen):
        return (levels - seen.stock.sum(-1)[:, list(network.targets)]).clamp(min=0)

    paths = setting.draw("test")
    done = rollout(policy, paths, feasibility="project", record=True)
    assert float(kpis(done, paths, ignore=20).fill_rate.min()) > 0.9  # floors of shares: 0.5


def test_a_truck_that_packs_fill_exactly_is_filled():
    """Six packs of 6 for a room of 30: five go. Three lanes that want many packs leave less than one free."""
    simulator = simulator_of(shared(limit=30.0, pack=6.0))
    sent = simulator.filled(torch.zeros(1, 5, 1), torch.tensor([[18.0, 18, 0, 0, 0]]), 0)
    assert sorted(sent[0, :2].tolist()) == [12.0, 18.0]
    sent = simulator.filled(torch.zeros(1, 5, 1), torch.tensor([[96.0, 96, 0, 0, 0]]), 0)
    assert float(sent[0, :2].sum()) == 30.0


def test_trucks_are_checked_and_kept_in_files():
    network = shared()
    assert network_from_json(network_to_json(network)) == network
    with pytest.raises(ConfigError, match="no truck is called 'T'; there are none"):
        replace(network, trucks=())
    with pytest.raises(ConfigError, match="truck 'T': its limit must be above 0"):
        replace(network, trucks=(("T", 0.0),))

"""The simulator: conservation, lead times, hand-worked costs, gradients, and the published simulator step for step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offrl.envs.inventory.network import Parameters, Simulator
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError, PolicyError

REPLAY = Path(__file__).parent / "replay"
SETTINGS = {
    "one_store_lost": {},
    "one_store_backlogged": {},
    "serial_system": {},
    "one_warehouse_lost_demand": {"stores": 3},
    "transshipment_backlogged": {"stores": 3},
}


def padded(state: np.ndarray, width: int) -> np.ndarray:
    return np.pad(state, [(0, 0)] * (state.ndim - 1) + [(0, width - state.shape[-1])])


def tensors(name: str, dtype: torch.dtype) -> tuple:
    """The recorded numbers in our layout: nodes [echelons, warehouses, stores], edges by (source, target), outside last."""
    data = np.load(REPLAY / f"{name}.npz")
    network = load_setting(name, **SETTINGS[name]).network
    states = [data[f"{k}_state"] for k in ("echelon", "warehouse", "store") if f"{k}_state" in data]
    stocks = np.concatenate([padded(x, network.width) for x in states], axis=2)
    stores = data["action_stores"]  # (B, T, S, W)
    if name == "serial_system":  # e1 -> e2, e2 -> w, w -> s, outside -> e1
        e = data["action_echelons"][..., 0]
        actions = np.concatenate(
            [e[..., 1:], data["action_warehouses"][..., 0], stores[..., 0], e[..., :1]], -1
        )
    elif "action_warehouses" in data:
        actions = np.concatenate([stores[..., 0], data["action_warehouses"][..., 0]], -1)
    else:
        actions = stores[..., 0]
    arrays = (stocks, actions, data["demands"], data["cost"])
    return network, data, *(torch.from_numpy(a).to(dtype) for a in arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_published_simulator_is_repeated_step_for_step(name, dtype):
    """Every state from the state before it, and every cost; and the whole path from the first state alone."""
    network, data, stocks, actions, demands, costs = tensors(name, dtype)
    simulator = Simulator(network, dtype=dtype)
    free = stocks[:, 0]
    for t in range(actions.shape[1]):
        for state in (stocks[:, t], free):
            after, cost = simulator.step(state, actions[:, t], demands[..., t])
            torch.testing.assert_close(after, stocks[:, t + 1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(cost.sum(1), costs[:, t], rtol=1e-5, atol=1e-5)
        parts = [cost[:, :-1].sum(1), cost[:, -1]] if name == "serial_system" else None
        if parts:
            want = data["cost_warehouses"][:, t] + data["cost_echelons"][:, t]
            np.testing.assert_allclose(parts[0].numpy(), want, rtol=1e-5, atol=1e-5)
        free = after


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_hold_the_recorded_costs_and_lead_times(name):
    network, data, _stocks, *_ = tensors(name, torch.float64)
    U = network.upstream
    holding = [n.holding_cost for n in network.nodes]
    np.testing.assert_allclose(holding[U:], data["holding_costs"][0], rtol=1e-6)
    np.testing.assert_allclose(
        [n.underage_cost for n in network.nodes[U:]], data["underage_costs"][0], rtol=1e-6
    )
    times = {(e.source, e.target): e.lead_time for e in network.edges}
    stores = [
        times[e.source, e.target] for e in network.edges if e.target in {n.name for n in network.nodes[U:]}
    ]
    assert stores == data["lead_times"][0].reshape(-1).tolist()
    assert network.lost_sales == bool(data["lost_demand"])
    demand = load_setting(name, **SETTINGS[name]).demand
    np.testing.assert_allclose(demand.means, data["demand_mean"], rtol=1e-12)
    if "demand_std" in data:
        np.testing.assert_allclose(demand.stds, data["demand_std"], rtol=1e-12)


def random_network(seed: int, *, lost: bool) -> Network:
    """Two echelons, three warehouses, five stores; every node has one to three suppliers."""
    rng = np.random.default_rng(seed)
    names = {"echelon": ["e0", "e1"], "warehouse": ["w0", "w1", "w2"], "store": [f"s{i}" for i in range(5)]}
    nodes, edges = [], []
    for kind, above in (
        ("echelon", [OUTSIDE]),
        ("warehouse", names["echelon"]),
        ("store", names["warehouse"]),
    ):
        for name in names[kind]:
            p = float(rng.uniform(5, 10)) if kind == "store" else 0.0
            nodes.append(Node(name=name, kind=kind, holding_cost=float(rng.uniform(0.1, 1)), underage_cost=p))
            chosen = rng.permutation(above)[: rng.integers(1, len(above) + 1)]
            edges += [
                Edge(
                    source=str(s),
                    target=name,
                    lead_time=int(rng.integers(1, 5)),
                    cost=float(rng.uniform(0, 2)),
                )
                for s in chosen
            ]
    used = {e.source for e in edges}
    edges += [Edge(source=n, target="s0", lead_time=2) for n in names["warehouse"] if n not in used]
    edges += [Edge(source=n, target="w0", lead_time=1) for n in names["echelon"] if n not in used]
    return Network(name="random", nodes=tuple(nodes), edges=tuple(edges), lost_sales=lost)


def random_step(network: Network, seed: int, batch: int = 3):
    g = torch.Generator().manual_seed(seed)
    simulator = Simulator(network, dtype=torch.float64)
    state = 10 * torch.rand(batch, len(network.nodes), network.width, generator=g, dtype=torch.float64)
    action = 5 * torch.rand(batch, len(network.edges), generator=g, dtype=torch.float64)
    demand = 8 * torch.rand(batch, network.stores, generator=g, dtype=torch.float64)
    return simulator, state, simulator.project(state, action), demand


def by_hand(network: Network, state, action, demand):
    """One period of one scenario in plain loops, as the sheet writes it."""
    stock, cost = [list(map(float, row)) for row in state], 0.0
    place = {n.name: i for i, n in enumerate(network.nodes)}
    for i, node in enumerate(network.nodes):
        if node.kind == "store":
            y = stock[i][0] - float(demand[i - network.upstream])
            if network.profit:
                cost += -node.underage_cost * min(stock[i][0], float(demand[i - network.upstream]))
                cost += node.holding_cost * max(y, 0)
            else:
                cost += node.underage_cost * max(-y, 0) + node.holding_cost * max(y, 0)
            y = max(y, 0) if network.lost_sales else y
        else:
            y = stock[i][0] - sum(
                float(a) for a, e in zip(action, network.edges, strict=True) if e.source == node.name
            )
            cost += node.holding_cost * max(y, 0)
        row = [*stock[i][1:], 0.0]
        row[0] += y
        stock[i] = row
    for a, e in zip(action, network.edges, strict=True):
        stock[place[e.target]][e.lead_time - 1] += float(a)
        cost += e.cost * float(a)
    return stock, cost


@pytest.mark.parametrize("profit", [False, True])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_random_network_agrees_with_plain_loops(seed, lost, profit):
    network = replace(random_network(seed, lost=lost), profit=profit)
    simulator, state, action, demand = random_step(network, seed)
    after, cost = simulator.step(state, action, demand)
    for b in range(3):
        want, total = by_hand(network, state[b], action[b], demand[b])
        torch.testing.assert_close(after[b], torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        assert cost[b].sum().item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_units_are_conserved_at_every_node(seed, lost):
    """Initial stock + orders received into the pipeline - shipments - sales = final stock, over 12 periods."""
    network = random_network(seed, lost=lost)
    simulator, state, *_ = random_step(network, seed)
    start, came, went = state.sum(-1), torch.zeros(3, len(network.nodes)), torch.zeros(3, len(network.nodes))
    for t in range(12):
        _, _, action, demand = random_step(network, 100 * seed + t)
        action = simulator.project(state, action)
        came = came + simulator.received(action).sum(-1)
        sales = torch.minimum(state[:, network.upstream :, 0], demand) if lost else demand
        went = went + torch.cat([simulator.shipped(action), sales], 1)
        state, _ = simulator.step(state, action, demand)
        assert (state[:, : network.upstream, 0] >= -1e-9).all()
    torch.testing.assert_close(start + came - went, state.sum(-1), rtol=0, atol=1e-10)


def one_store(lead_time: int, *, lost: bool, h: float = 1.0, p: float = 9.0, width: int = 0) -> Network:
    return Network(
        name="store",
        nodes=(Node(name="s", kind="store", holding_cost=h, underage_cost=p),),
        edges=(Edge(source=OUTSIDE, target="s", lead_time=lead_time),),
        lost_sales=lost,
        width=width,
    )


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("lead_time", range(1, 7))
def test_an_order_is_on_hand_exactly_lead_time_steps_later(lead_time, width):
    simulator = Simulator(one_store(lead_time, lost=True, width=width))
    state = simulator.initial(1)
    for t in range(1, 9):
        state, _ = simulator.step(state, torch.tensor([[float(t == 1)]]), torch.zeros(1, 1))
        assert state[0, 0, 0].item() == float(t >= lead_time)
        assert state.sum().item() == 1.0


def test_lead_times_may_differ_by_scenario():
    """L = 1 .. 6 in one batch: scenario b sees its unit after b + 1 steps."""
    network = one_store(6, lost=True)
    own = Parameters.of(network)._replace(lead_times=torch.arange(1, 7)[:, None])
    simulator = Simulator(network, own)
    state = simulator.initial(6)
    for t in range(1, 7):
        state, _ = simulator.step(state, torch.full((6, 1), float(t == 1)), torch.zeros(6, 1))
        assert state[:, 0, 0].tolist() == [float(t >= n) for n in range(1, 7)]
    part = simulator.on(own.rows(torch.tensor([4, 1])))
    state = part.step(part.initial(2), torch.ones(2, 1), torch.zeros(2, 1))[0]
    assert state[:, 0].tolist() == [[0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(("lost", "costs", "final"), [(True, [9, 0, 0], [0, 5]), (False, [9, 9, 9], [-1, 5])])
def test_three_periods_by_hand(lost, costs, final):
    """L = 2, stock (3, 1), orders 2, 0, 5, demand 4, 1, 2, h = 1, p = 9."""
    simulator = Simulator(one_store(2, lost=lost))
    state, seen = torch.tensor([[[3.0, 1.0]]]), []
    for order, demand in ((2, 4), (0, 1), (5, 2)):
        state, cost = simulator.step(state, torch.tensor([[float(order)]]), torch.tensor([[float(demand)]]))
        seen.append(cost.item())
    assert (seen, state[0, 0].tolist()) == (costs, final)


def test_backlog_identity():
    """Under a base-stock policy of level S, net stock at the end of t >= L + 1 is S - (d_(t-L) + ... + d_t)."""
    L, S = 4, 40.0
    simulator = Simulator(one_store(L, lost=False))
    demand = torch.rand(30, 5, 1, generator=torch.Generator().manual_seed(0)) * 10
    state = simulator.initial(5)
    for t in range(30):
        order = (S - state.sum(-1)).clamp(min=0)
        net = state[:, 0, 0] - demand[t, :, 0]
        if t >= L + 1:
            torch.testing.assert_close(net, S - demand[t - L : t + 1, :, 0].sum(0), rtol=0, atol=1e-4)
        state, _ = simulator.step(state, order, demand[t])


def test_an_infinite_warehouse_is_no_warehouse():
    """One warehouse with endless stock and one store: the store's states and costs are those of one store."""
    network = Network(
        name="pair",
        nodes=(
            Node(name="w", kind="warehouse"),
            Node(name="s", kind="store", holding_cost=1.0, underage_cost=9.0),
        ),
        edges=(Edge(source="w", target="s", lead_time=3), Edge(source=OUTSIDE, target="w", lead_time=1)),
        lost_sales=True,
    )
    pair, single = Simulator(network), Simulator(one_store(3, lost=True))
    a, b = pair.initial(2), single.initial(2)
    a[:, 0, 0] = 1e4
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        order, demand = torch.randint(0, 9, (2, 1), generator=g), torch.randint(0, 9, (2, 1), generator=g)
        a, cost_a = pair.step(a, torch.cat([order, torch.zeros_like(order)], 1).float(), demand.float())
        b, cost_b = single.step(b, order.float(), demand.float())
        assert torch.equal(a[:, 1:], b)
        assert torch.equal(cost_a[:, 1:], cost_b)


@pytest.mark.parametrize("profit", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_gradient_of_a_rollout_is_that_of_finite_differences(lost, profit):
    """Total cost of 5 periods with respect to every order and the first state."""
    network = replace(random_network(1, lost=lost), profit=profit)
    simulator, state, _, _ = random_step(network, 0, batch=1)
    g = torch.Generator().manual_seed(5)
    actions = torch.rand(5, 1, len(network.edges), generator=g, dtype=torch.float64, requires_grad=True)
    demands = 4 * torch.rand(5, 1, network.stores, generator=g, dtype=torch.float64)
    state = state.clone().requires_grad_()

    def total(state, actions):
        costs = []
        for t in range(5):
            state, cost = simulator.step(state, actions[t], demands[t])
            costs.append(cost.sum())
        return torch.stack(costs).sum()

    assert torch.autograd.gradcheck(total, (state, actions), eps=1e-6, rtol=1e-4, atol=1e-7)


def test_scenarios_do_not_touch_each_other():
    """A batch equals a loop of single scenarios bit for bit; permuted scenarios give permuted results."""
    network = random_network(3, lost=True)
    simulator, state, action, demand = random_step(network, 3, batch=7)
    after, cost = simulator.step(state, action, demand)
    for b in range(7):
        one = slice(b, b + 1)
        got = simulator.step(state[one], action[one], demand[one])
        assert torch.equal(got[0], after[one])
        assert torch.equal(got[1], cost[one])
    mixed = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    got = simulator.step(state[mixed], action[mixed], demand[mixed])
    assert torch.equal(got[0], after[mixed])
    assert torch.equal(got[1], cost[mixed])


def test_permuted_stores_give_permuted_results():
    setting = load_setting("one_warehouse_lost_demand", stores=5)
    network = setting.network
    order = [0, 3, 1, 5, 4, 2]  # of nodes, the warehouse first
    names = [network.nodes[i].name for i in order]
    twin = Network(
        name="twin",
        nodes=tuple(network.nodes[i] for i in order),
        edges=network.edges,
        lost_sales=True,
    )
    assert [n.name for n in twin.nodes] == names
    simulator, state, action, demand = random_step(network, 0)
    edge = [[(e.source, e.target) for e in network.edges].index((e.source, e.target)) for e in twin.edges]
    stores = [i - 1 for i in order[1:]]
    got = Simulator(twin, dtype=torch.float64).step(state[:, order], action[:, edge], demand[:, stores])
    want = simulator.step(state, action, demand)
    torch.testing.assert_close(got[0], want[0][:, order], rtol=1e-12, atol=0)
    torch.testing.assert_close(got[1], want[1][:, order], rtol=1e-12, atol=0)


def test_the_state_is_never_changed_in_place():
    network = random_network(0, lost=True)
    simulator, state, action, demand = random_step(network, 0)
    copies = state.clone(), action.clone(), demand.clone()
    simulator.step(state, action, demand)
    simulator.project(state, action)
    assert all(torch.equal(a, b) for a, b in zip((state, action, demand), copies, strict=True))


def test_costs_scale_with_units():
    """Demand, stock and orders times c: cost times c (nothing in the simulator has a scale of its own)."""
    simulator, state, action, demand = random_step(random_network(2, lost=True), 2)
    a, b = simulator.step(state, action, demand), simulator.step(4 * state, 4 * action, 4 * demand)
    assert torch.equal(4 * a[0], b[0])
    assert torch.equal(4 * a[1], b[1])


def test_projection_shrinks_by_one_factor_and_a_centre_ships_everything():
    network = load_setting("transshipment_backlogged", stores=3).network
    simulator = Simulator(network, dtype=torch.float64)
    state = simulator.initial(1)
    state[0, 0, 0] = 12.0
    got = simulator.project(state, torch.tensor([[1.0, 2.0, 3.0, 7.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([[2.0, 4, 6, 7]], dtype=torch.float64))
    held = replace(network, nodes=tuple(replace(n, holds=True) for n in network.nodes))
    simulator = Simulator(held, dtype=torch.float64)
    got = simulator.project(state, torch.tensor([[8.0, 16.0, -1.0, 7.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([[4.0, 8, 0, 7]], dtype=torch.float64))
    few = torch.tensor([[1.0, 2.0, 3.0, 7.0]], dtype=torch.float64)
    assert torch.equal(simulator.project(state, few), few)


def test_trusted_orders_make_a_supplier_negative_also_where_sales_are_lost():
    """Only unmet demand is lost: a debt of the warehouse stays, so that a policy at fault shows."""
    network = load_setting("one_warehouse_lost_demand").network
    simulator = Simulator(network)
    state = simulator.initial(1)
    state[0, :, 0] = 2.0
    after, _ = simulator.step(state, torch.tensor([[3.0, 0, 0, 0, 0, 0]]), torch.full((1, 5), 4.0))
    assert after[0, :, 0].tolist() == [-1.0, 0, 0, 0, 0, 0]


def test_infeasible_orders_are_refused_on_request():
    scenarios = load_setting("one_warehouse_lost_demand").resized(train=4, dev=2, test=2).draw("train")
    far = torch.full((4, 6), 3.0)
    with pytest.raises(
        PolicyError, match="'warehouse' is asked for 15 units more than it has on hand in scenario 0"
    ):
        rollout(lambda o: far, scenarios, feasibility="raise")
    with pytest.raises(PolicyError, match=r"order -1 on lane 'warehouse' -> 'store 3' in scenario 2"):
        rollout(
            lambda o: far.index_put((torch.tensor(2), torch.tensor(2)), torch.tensor(-1.0)),
            scenarios,
            feasibility="raise",
        )
    kept = rollout(lambda o: far, scenarios, feasibility="project", record=True)
    assert kept.stocks[:, :, 0, 0].min() >= 0
    trusted = rollout(lambda o: far, scenarios, record=True)
    assert trusted.stocks[:, :, 0, 0].min() < -10, (
        "trusted orders may make the stock negative: nothing is clipped"
    )


def test_lead_times_beyond_the_columns_are_refused():
    network = one_store(2, lost=True)
    for wrong in (0, 3):
        own = Parameters.of(network)._replace(lead_times=torch.tensor([[2], [wrong]]))
        with pytest.raises(ConfigError, match="lead times must be in 1 .. 2"):
            Simulator(network, own)


# The confirmed faults of the public code, one test each.


def test_fault_a_store_that_only_knows_the_second_warehouse_is_supplied_by_it():
    """Sparse adjacency: the column was the rank among a store's suppliers, so warehouse 1 paid for warehouse 2's goods."""
    network = load_setting("many_warehouses_lost_demand").network
    assert [e.source for e in network.edges if e.target == "store 1"] == ["warehouse 2"]
    simulator = Simulator(network)
    state = simulator.initial(1)
    state[0, :2, 0] = 50.0
    edge = [(e.source, e.target) for e in network.edges].index(("warehouse 2", "store 1"))
    action = torch.zeros(1, len(network.edges))
    action[0, edge] = 7.0
    after, _ = simulator.step(state, action, torch.zeros(1, 10))
    assert after[0, :2, 0].tolist() == [50.0, 43.0]
    assert after[0, 2].tolist() == [0, 7, 0, 0, 0, 0]  # lead time 2: the second column
    assert after[0, 3:].abs().sum().item() == 0, "no other row is written to"


def test_fault_stock_under_way_cannot_be_shipped():
    """The published allocator summed the whole pipeline row; on hand is column 0 alone."""
    network = load_setting("one_warehouse_lost_demand").network
    simulator = Simulator(network)
    state = simulator.initial(1)
    state[0, 0] = torch.tensor([4.0, 30.0, 20.0])
    wish = torch.full((1, 6), 10.0)
    assert simulator.shipped(simulator.project(state, wish)).item() == pytest.approx(4.0)
    with pytest.raises(PolicyError, match="46 units more"):
        simulator.check(state, wish)


def test_fault_a_rollout_is_not_detached_from_the_state():
    """The serial policy's input was detached: the path through the state was missing from its gradient.

    A linear policy a = w x_0 at one store, L = 1, T = 2, backlogged, x = (1), d = 0, h = 1: costs 1 and 1 + w,
    then x = 1 + w, so a third period costs 1 + w + w (1 + w); the derivative of the sum is 2 + 2w + ... by hand below.
    """
    simulator = Simulator(one_store(1, lost=False))
    w = torch.tensor(0.5, requires_grad=True)
    state, costs = torch.ones(1, 1, 1), []
    for _ in range(3):
        state, cost = simulator.step(state, w * state[..., 0], torch.zeros(1, 1))
        costs.append(cost.sum())
    (gradient,) = torch.autograd.grad(torch.stack(costs).sum(), w)
    # stock is (1 + w)^t, so the sum is 1 + (1 + w) + (1 + w)^2
    assert gradient.item() == pytest.approx(1 + 2 * 1.5)


def test_fault_one_column_works():
    """All lead times 1: the published update read a second column and crashed."""
    simulator = Simulator(one_store(1, lost=True))
    assert simulator.shape == (1, 1)
    state, cost = simulator.step(torch.tensor([[[3.0]]]), torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    assert (state.item(), cost.item()) == (4.0, 2.0)


def test_fault_a_lane_without_lead_time_is_refused_not_written_into_the_neighbour():
    with pytest.raises(ConfigError, match=r"lane 'outside' -> 's': lead_time must be 1 or more, got 0"):
        one_store(0, lost=True)

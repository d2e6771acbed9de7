"""Capacities, yields, prices, transit costs, owed orders: hand-worked periods of or-gym's chains, and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from offrl.envs.inventory.extended import ExtendedSimulator, simulator_of
from offrl.envs.inventory.network import Simulator
from offrl.envs.inventory.scenarios import evaluate, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError


def chain(backlog: bool = True):
    network = load_setting("or_gym_inv_management", backlog=backlog).network
    simulator = simulator_of(network, dtype=torch.float64)
    return simulator, simulator.start(simulator.initial(1))


def play(simulator, state, orders, demand):
    """Orders to the retailer, distributor, manufacturer, as or-gym lists them; our edges begin with the most upstream."""
    names = [("distributor", "retailer"), ("manufacturer", "distributor"), (OUTSIDE, "manufacturer")]
    edges = [(e.source, e.target) for e in simulator.network.edges]
    action = torch.zeros(1, 3, dtype=torch.float64)
    for name, order in zip(names, orders, strict=True):
        action[0, edges.index(name)] = order
    state, cost = simulator.step(state, action, torch.tensor([[float(demand)]], dtype=torch.float64))
    return state, -cost.sum().item()


def on_hand(simulator, state) -> dict[str, float]:
    return {n.name: state.stock[0, i, 0].item() for i, n in enumerate(simulator.network.nodes)}


def test_first_periods_of_the_chain_by_hand():
    """t = 0: all order 20, demand 20. Sales 2*20; 0.5*20 for raw material; holding 0.15*80 + 0.10*80 + 0.05*180 = 29.

    So the profit is 40 - 10 - 29 = 1 (what stages pay each other cancels). t = 1: orders 130, 0, 0, demand 90: the lane
    carries 100, the distributor has 80, so 50 are owed at 0.075; sales 80, 10 wait at 0.10; nothing else is on hand but 180
    at 0.05: 160 - 3.75 - 1 - 9 = 146.25.
    t = 2: nothing ordered, but 50 are owed and the distributor has nothing: 0.075*50 again, and 10 + 20 customers wait.
    """
    simulator, state = chain()
    state, profit = play(simulator, state, (20, 20, 20), 20)
    assert profit == pytest.approx(1.0)
    assert on_hand(simulator, state) == {"manufacturer": 180, "distributor": 80, "retailer": 80}
    state, profit = play(simulator, state, (130, 0, 0), 90)
    assert profit == pytest.approx(160 - 3.75 - 1 - 9)
    state, profit = play(simulator, state, (0, 0, 0), 20)
    assert profit == pytest.approx(-3.75 - 0.1 * 30 - 9)
    # t = 3: the 20 of t = 0 arrive before demand: sold to those who wait; then the 20 of the distributor at its fifth period
    state, profit = play(simulator, state, (0, 0, 0), 0)
    assert profit == pytest.approx(2 * 20 - 3.75 - 0.1 * 10 - 9)


def test_without_backlog_orders_and_customers_are_gone():
    simulator, state = chain(backlog=False)
    state, _ = play(simulator, state, (130, 0, 0), 120)
    assert (state.owed.sum().item(), state.backlog.sum().item()) == (0, 0)
    _, profit = play(simulator, state, (0, 0, 0), 5)
    # nothing on hand at the retailer, 0 at the distributor, 200 at the manufacturer; 5 customers lost
    assert profit == pytest.approx(-0.1 * 5 - 0.05 * 200)


def plain_chain(backlog, orders, demands):
    """or-gym's rules in plain loops: profits of each period, undiscounted."""
    cap, times, hold, fee = (100, 90, 80), (3, 5, 10), (0.15, 0.10, 0.05), (0.075, 0.05, 0.025)
    stock, owed, waiting, sent, profits = [100.0, 100.0, 200.0], [0.0] * 3, 0.0, [], []
    for t, (order, demand) in enumerate(zip(orders, demands, strict=True)):
        wanted = [a + b for a, b in zip(order, owed, strict=True)]
        above = [stock[1], stock[2], np.inf]
        now = [min(w, c, x) for w, c, x in zip(wanted, cap, above, strict=True)]
        sent.append(now)
        for i in range(3):
            stock[i] += sent[t - times[i]][i] if t >= times[i] else 0
            stock[i] -= now[i - 1] if i else 0
        sold = min(stock[0], demand + waiting)
        stock[0] -= sold
        missed = demand + waiting - sold
        unfilled = [w - n for w, n in zip(wanted, now, strict=True)]
        profit = 2 * sold - 0.5 * now[2] - 0.1 * missed
        profit -= sum(h * x for h, x in zip(hold, stock, strict=True)) + sum(
            f * u for f, u in zip(fee, unfilled, strict=True)
        )
        profits.append(profit)
        owed, waiting = (unfilled, missed) if backlog else ([0.0] * 3, 0.0)
    return profits


@pytest.mark.parametrize("backlog", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_chain_agrees_with_plain_loops(backlog, seed):
    rng = np.random.default_rng(seed)
    orders, demands = rng.integers(0, 60, (30, 3)), rng.poisson(20, 30)
    simulator, state = chain(backlog)
    got = []
    for order, demand in zip(orders, demands, strict=True):
        state, profit = play(simulator, state, order, demand)
        got.append(profit)
    np.testing.assert_allclose(got, plain_chain(backlog, orders, demands), rtol=1e-9)


def test_the_network_by_hand():
    """t = 0: 10 on each lane, demand 20.

    Sales 40. Raw material: 10 * (0.15 + 0.05 + 0.07 + 0.20) = 4.7; operating 0.010*20 + 0.015*10 + 0.012*20 = 0.59.
    On hand at the end: retailer 80, distributors 100 and 70; plants 400 - 20 + 10, 350 - 10 (lead times 1 and 2),
    380 - 20 + 10, as raw material of lead time 0 is there at once. Under way: 10 on each lane with a lead time.
    """
    network = load_setting("or_gym_network_management").network
    simulator = simulator_of(network, dtype=torch.float64)
    state = simulator.start(simulator.initial(1))
    action = torch.full((1, len(network.edges)), 10.0, dtype=torch.float64)
    state, cost = simulator.step(state, action, torch.tensor([[20.0]], dtype=torch.float64))
    holding = 0.03 * 80 + 0.02 * 100 + 0.015 * 70 + 0.012 * 390 + 0.013 * 340 + 0.011 * 370
    transit = 10 * (0.010 + 0.015 + 0.008 + 0.006 + 0.005 + 0.007 + 0.004 + 0.005 + 0.002)
    assert -cost.sum().item() == pytest.approx(40 - 4.7 - 0.59 - holding - transit)
    # t = 1: nothing is ordered; the first lane from raw material to plant 5 has delivered
    state, cost = simulator.step(state, 0 * action, torch.tensor([[0.0]], dtype=torch.float64))
    holding += 0.013 * 10
    transit -= 10 * 0.005
    assert cost.sum().item() == pytest.approx(holding + transit)


def test_what_stages_pay_each_other_cancels():
    network = load_setting("or_gym_inv_management").network
    free = replace(network, edges=tuple(replace(e, price=0.0) for e in network.edges))
    a, b = (simulator_of(n, dtype=torch.float64) for n in (network, free))
    action, demand = (
        torch.full((1, 3), 15.0, dtype=torch.float64),
        torch.full((1, 1), 20.0, dtype=torch.float64),
    )
    cost_a, cost_b = (s.step(s.start(s.initial(1)), action, demand)[1] for s in (a, b))
    assert not torch.equal(cost_a, cost_b)
    assert cost_a.sum().item() == pytest.approx(cost_b.sum().item())


def plant(**node) -> Simulator:
    network = Network(
        name="plant",
        nodes=(
            Node(name="p", kind="warehouse", initial=50.0, **node),
            Node(name="a", kind="store"),
            Node(name="b", kind="store"),
        ),
        edges=(
            Edge(source="p", target="a", lead_time=2),
            Edge(source="p", target="b", lead_time=1),
            Edge(source=OUTSIDE, target="p", lead_time=1),
        ),
        lost_sales=True,
    )
    return simulator_of(network, dtype=torch.float64)


def test_yield_and_capacity_are_shared_by_the_lanes():
    """Yield 0.8: 50 units of stock make 40; asked for 60 + 20 they become 30 + 10. Capacity 20 halves that."""
    action = torch.tensor([[60.0, 20.0, 0.0]], dtype=torch.float64)
    simulator = plant(yield_=0.8)
    state = simulator.start(simulator.initial(1))
    torch.testing.assert_close(
        simulator.project(state.stock, action)[0, :2], torch.tensor([30.0, 10.0], dtype=torch.float64)
    )
    after, _ = simulator.step(state, action, torch.zeros(1, 2, dtype=torch.float64))
    assert after.stock[0, 0, 0].item() == pytest.approx(0, abs=1e-9)
    assert after.stock[0, 1].tolist() == pytest.approx([0, 30])
    simulator = plant(yield_=0.8, capacity=20.0)
    after, _ = simulator.step(state, action, torch.zeros(1, 2, dtype=torch.float64))
    assert after.stock[0, 0, 0].item() == pytest.approx(25)


def test_without_extras_it_is_the_plain_simulator():
    """An extended simulator of a plain network takes the same steps."""
    network = load_setting("one_warehouse_lost_demand").network
    for net in (network, replace(network, lost_sales=False), replace(network, profit=True)):
        plain, extended = Simulator(net, dtype=torch.float64), ExtendedSimulator(net, dtype=torch.float64)
        g = torch.Generator().manual_seed(0)
        stock = torch.rand(4, 6, 3, generator=g, dtype=torch.float64) * 20
        a, b = stock, extended.start(stock)
        for _ in range(10):
            action = plain.project(a, torch.rand(4, 6, generator=g, dtype=torch.float64) * 9)
            demand = torch.rand(4, 5, generator=g, dtype=torch.float64) * 9
            a, cost_a = plain.step(a, action, demand)
            b, cost_b = extended.step(b, action, demand)
            torch.testing.assert_close(a, b.stock, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(cost_a, cost_b, rtol=1e-9, atol=1e-9)
    assert not network.extended
    assert load_setting("or_gym_inv_management").network.extended
    with pytest.raises(ConfigError, match="has capacities, prices or owed orders"):
        Simulator(load_setting("or_gym_inv_management").network)


def test_gradients_flow_through_what_is_owed():
    simulator, state = chain()
    actions = (
        40 * torch.rand(8, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).requires_grad_()

    def total(actions):
        s, costs = state, []
        for action in actions:
            s, cost = simulator.step(s, action, torch.full((1, 1), 33.3, dtype=torch.float64))
            costs.append(cost.sum())
        return torch.stack(costs).sum()

    assert torch.autograd.gradcheck(total, (actions,), rtol=1e-4, atol=1e-7)


def test_profit_of_an_episode_is_discounted():
    setting = load_setting("or_gym_inv_management").resized(test=3)
    drawn = setting.draw("test")
    policy = lambda o: torch.full((3, 3), 20.0)  # noqa: E731
    costs = rollout(policy, drawn).costs.sum(-1)
    each = evaluate(policy, drawn) * 30
    power = 0.97 ** torch.arange(30)
    torch.testing.assert_close(each.float(), (power[:, None] * costs).sum(0), rtol=1e-5, atol=1e-3)
    assert rollout(policy, drawn).mean(setting.network).item() == pytest.approx(
        each.mean().item() / 30, rel=1e-5
    )

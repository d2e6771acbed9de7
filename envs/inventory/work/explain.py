"""The nearest policy that an ERP system can hold: min and max, or one level, of every item and place.

A policy is followed on training paths. S is the mean of what a node orders up to; s is the position that best parts the
periods in which it orders from those in which it does not, days on which nobody may order left out. What a store
wants counts, not what its warehouse can send.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.envs.inventory.policies import InventoryPolicy
from offrl.envs.inventory.rules import RuledSimulator
from offrl.envs.inventory.scenarios import Observation, Scenarios, guarded
from offrl.envs.inventory.spec import Network

Array = NDArray[np.float64]
PLENTY = 1e9
SOME = 0.5
"""Orders of fewer units count as none."""
SHARES = ("mlp_serial", "mlp_network")
"""Policies that order shares of their supplier's stock: what they order is all that they want."""


def nearest(policy: InventoryPolicy, scenarios: Scenarios, kind: str) -> Tensor:
    """(N, 2): s and S of every node, whole units.

    Args:
        policy: one seed.
        scenarios: training paths.
        kind: ``sS``, or ``base-stock``: s = S, which orders whenever the position is below.
    """
    position, wish = _followed(policy, scenarios)
    orders = (wish > SOME) & ~np.isnan(position)
    count = orders.sum(1)
    total = np.where(orders, position + wish, 0.0).sum(1)
    level = np.where(count > 0, total / np.maximum(count, 1), 0.0).round()
    low = level if kind == "base-stock" else np.minimum(np.floor(_threshold(position, orders)), level)
    return torch.from_numpy(np.stack([np.where(count > 0, low, 0.0), level], 1)).float()


def _threshold(position: Array, orders: NDArray[np.bool_]) -> Array:
    """(N,): the position of each row that parts orders from none with fewest mistakes; NaN columns are left out."""
    place = np.argsort(position, axis=1, kind="stable")
    sorted_position = np.take_along_axis(position, place, 1)
    ordered = np.take_along_axis(orders, place, 1)
    known = ~np.isnan(sorted_position)
    no, yes = (~ordered & known).cumsum(1), (ordered & known).cumsum(1)
    wrong = np.where(known, no + yes[:, -1:] - yes, np.iinfo(np.int64).max)  # s at this position
    best = wrong.argmin(1)
    rows = np.arange(len(position))
    here, after = (
        sorted_position[rows, best],
        sorted_position[rows, np.minimum(best + 1, position.shape[1] - 1)],
    )
    found: Array = np.where(np.isnan(after), here, (here + after) / 2)
    return found


def _tiers(network: Network) -> list[tuple[list[int], list[int]]]:
    """Nodes upstream of stores by the lanes of the longest way to them, and the lanes on which they send."""
    hops = [0] * len(network.nodes)
    inside = list(zip(network.sources[: network.internal], network.targets, strict=False))
    for _ in network.nodes:
        for source, target in inside:
            hops[target] = max(hops[target], hops[source] + 1)
    found = []
    for tier in sorted(set(hops[: network.upstream])):
        nodes = [n for n in range(network.upstream) if hops[n] == tier]
        found.append((nodes, [e for e, (source, _) in enumerate(inside) if source in nodes]))
    return found


def _wanted(policy: InventoryPolicy, seen: Observation, free: Observation) -> Tensor:
    """What is ordered of suppliers with plenty; a net's answer is that to the stock there is."""
    if isinstance(policy, InventoryPolicy):
        return policy.orders(policy.logits(seen), free)
    wanted: Tensor = policy(free)
    return wanted


@torch.no_grad()
def _followed(policy: InventoryPolicy, scenarios: Scenarios) -> tuple[Array, Array]:
    """Positions and wishes (N, T * B) of every node; NaN where nobody may order."""
    simulator, network = scenarios.simulator(), scenarios.network
    tiers = [] if getattr(policy, "name", "") in SHARES else _tiers(network)
    state = simulator.start(scenarios.initial)
    positions, wishes = [], []
    for t in range(scenarios.periods):
        stock = simulator.stock(state)
        seen = scenarios.observe(stock, t)
        orders = policy(seen)
        wish = orders.clone()
        for nodes, lanes in tiers:  # one after the other, as what a node orders depends on its own stock
            free = stock.clone()
            free[:, nodes, 0] = PLENTY
            wish[:, lanes] = _wanted(policy, seen, seen._replace(stock=free))[:, lanes]
        position, wanted = stock.sum(-1), simulator.received(wish).sum(-1)
        if isinstance(simulator, RuledSimulator):
            closed = simulator.received(simulator.open(t)[None]).sum(-1) == 0
            position = torch.where(closed, torch.nan, position)
        positions.append(position.double().numpy())
        wishes.append(wanted.double().numpy())
        state, _ = simulator.step(state, guarded(simulator, stock, orders, "project"), scenarios.demands[t])
    shape = (-1, len(network.nodes))
    return np.stack(positions).reshape(shape).T.copy(), np.stack(wishes).reshape(shape).T.copy()

"""Today's orders of a policy, as rows of a table."""

from datetime import date, timedelta
from typing import Any

import torch
from torch import Tensor

from offrl.envs.inventory.extended import ExtendedSimulator, simulator_of
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import InventoryPolicy, rounded
from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.spec import OUTSIDE, Network
from offrl.envs.inventory.work.company import LENGTH, Company
from offrl.envs.inventory.work.planning import fitted, levels_in_use, min_max

HEAD = ("item", "from", "to", "order", "min_max_order", "on_hand", "under_way", "runs_out", "warning")
MOST = 4.0
"""Positions above this many times the highest level are outside what training saw."""


def today(company: Company, item: int, network: Network) -> Tensor:
    """(1, N, K): on hand, and what is under way in the column of its date."""
    places = [name for name, _ in company.places]
    stock = torch.zeros(1, len(network.nodes), network.width)
    for n, node in enumerate(network.nodes):
        place = places.index(node.name)
        stock[0, n, 0] = float(company.on_hand[item, place])
        column = min(max(int(company.due[item, place]), 0), network.width - 1)
        stock[0, n, column] += float(company.on_order[item, place])
    return stock


def recommend(company: Company, item: int, policy: InventoryPolicy) -> list[tuple[Any, ...]]:
    """One row a lane: what to order, what min/max would, when the node runs out at mean demand without the order."""
    network = company.network(item)
    stock, period = today(company, item, network), company.sales.shape[2]
    simulator = simulator_of(network)
    seen = Observation(stock, 0, None, None, Parameters.of(network))
    with torch.no_grad():
        wishes = rounded(policy, network)(seen)
        levels = levels_in_use(company, item, network)
        rule = min_max(network, levels)(seen)
        if isinstance(simulator, ExtendedSimulator):
            orders, usual = (simulator.filled(stock, wish, period) for wish in (wishes, rule))
        else:
            orders, usual = simulator.project(stock, wishes), simulator.project(stock, rule)
    out = _runs_out(company, item, network, stock)
    rows: list[tuple[Any, ...]] = [HEAD]
    for e, edge in enumerate(network.edges):
        n = network.targets[e]
        position = float(stock[0, n].sum())
        warning = f"stock {position:g} is far above any level: not seen in training"
        far = position > MOST * float(levels[n, 1])
        rows.append((
            company.items[item].name, edge.source.removeprefix(f"{OUTSIDE} "), edge.target,
            round(float(orders[0, e]), 2), round(float(usual[0, e]), 2), float(stock[0, n, 0]),
            float(stock[0, n, 1:].sum()), out[n], warning if far else None,
        ))  # fmt: skip
    return rows


def _runs_out(company: Company, item: int, network: Network, stock: Tensor) -> list[date | None]:
    """First day of the period in which mean demand exceeds what is on hand and due; None beyond a year."""
    fit = fitted(company, item)
    start, step = company.sales.shape[2], timedelta(days=LENGTH[company.period])
    stores, found = list(fit.history.stores), []
    behind = _behind(network)
    factor = fit.later(0, start, 400)
    for n in range(len(network.nodes)):
        rate = sum(float(fit.means[0, stores.index(name)]) for name in behind[n])
        left, day = 0.0, None
        for t in range(400):
            left += float(stock[0, n, t]) if t < network.width else 0.0
            left -= rate * float(factor[t])
            if left < 0:
                day = company.first + step * (start + t)
                break
        found.append(day)
    return found


def _behind(network: Network) -> list[set[str]]:
    """Names of the stores that each node serves."""
    served = [{node.name} if node.kind == "store" else set() for node in network.nodes]
    for _ in network.nodes:
        for source, target in zip(network.sources, network.targets, strict=True):
            if source < len(network.nodes):
                served[source] |= served[target]
    return served

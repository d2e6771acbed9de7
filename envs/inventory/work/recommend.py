"""Today's orders of a policy, as rows of a table."""

from datetime import date, timedelta
from itertools import zip_longest
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.envs.inventory.extended import ExtendedSimulator, simulator_of
from offrl.envs.inventory.levels import Textbook
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import InventoryPolicy, rounded
from offrl.envs.inventory.scenarios import Observation, Policy
from offrl.envs.inventory.work.company import LENGTH
from offrl.envs.inventory.work.planning import (
    Plan,
    first_lanes,
    levels_in_use,
    min_max,
    today,
    whole_units,
)

HEAD = (
    "item", "from", "to", "order", "min_max_order", "base_stock_order", "base_stock", "on_hand", "under_way",
    "runs_out", "warning",
)  # fmt: skip
MOST = 4.0
"""Positions above this many times the highest level are outside what training saw."""
AHEAD = 400
"""Periods to look for the date on which stock runs out."""


def recommend(plan: Plan, policy: InventoryPolicy) -> list[tuple[Any, ...]]:
    """One row a lane: what to order, what min/max and a textbook base-stock level would, when the node runs out at mean
    demand without the order.
    """
    network, stock, period = plan.network, today(plan), plan.periods
    simulator = simulator_of(plan.carried)
    known = simulator.stock(simulator.start(stock))  # no dates of what is under way where deliveries vary
    seen = Observation(known, period, None, None, Parameters.of(network))
    levels, book = levels_in_use(plan, needed=False), base_stock(plan)
    with torch.no_grad():
        rules: list[Policy] = [
            policy,
            min_max(network, levels),
            min_max(network, book[:, None].expand(-1, 2)),
        ]
        wishes = [(rounded(rule, network) if plan.whole else rule)(seen) for rule in rules]
        if isinstance(simulator, ExtendedSimulator):
            sent = [simulator.filled(stock, wish, period) for wish in wishes]
        else:
            sent = [simulator.project(stock, wish) for wish in wishes]
    out, first, blind = runs_out(plan), set(first_lanes(network)), blind_spots(plan, policy)
    rows: list[tuple[Any, ...]] = [HEAD]
    for e, n in enumerate(network.targets):
        item, place = plan.label(n)
        at = (plan.items[plan.nodes[n][0]], plan.nodes[n][1])
        position, level = float(stock[0, n].sum()), float(levels[n, 1])
        far = position > MOST * (float(book[n]) if isnan(level) else level)
        order, rule, textbook = (round(float(own[0, e]), 2) for own in sent)
        rows.append((
            item, plan.source(e), place, order, None if isnan(level) else rule, textbook,
            _amount(book[n], plan, n) if e in first else None, round(float(plan.company.on_hand[at]), 2),
            round(float(plan.company.on_order[at]), 2), out[n],
            blind[n] or (f"stock {position:g} is far above any level: not seen in training" if far else None),
        ))  # fmt: skip
    return rows


def _amount(level: Tensor, plan: Plan, node: int) -> float:
    """A level as people read it: whole for an item that is sold so."""
    whole = whole_units(plan.company, plan.items[plan.nodes[node][0]])
    return round(float(level)) if whole else round(float(level), 2)


def base_stock(plan: Plan) -> Tensor:
    """(N,): order-up-to levels for today by the textbook: mean of the periods to cover, and z of their spread."""
    level = Textbook(plan.network, plan.facts).level
    return level[plan.periods % len(level)]


def blind_spots(plan: Plan, policy: Policy) -> list[str | None]:
    """A warning for each node whose demand, or a part of it, is not known: the item was too new there."""
    network, facts = plan.network, getattr(policy, "facts", None)
    fitted, trained = plan.means[network.upstream :], facts.means if facts else ()
    new = [0.0 in pair for pair in zip_longest(fitted, trained)]
    if not any(new):
        return [None] * len(plan.nodes)
    unknown, stores = network.behind([float(x) for x in new]), network.behind([1.0] * network.stores)
    until = "no sales on the dates that were fitted"
    return [
        None if not some else f"{until}: its demand is not known, order by hand" if some == every
        else f"{some:g} of its {every:g} stores have {until}: their demand is not counted"
        for some, every in zip(unknown, stores, strict=True)
    ]  # fmt: skip


def runs_out(plan: Plan) -> list[date | None]:
    """First day of the period in which mean demand exceeds what is on hand and due; None: not within 400 periods."""
    company, step = plan.company, timedelta(days=LENGTH[plan.company.period])
    season = {k: np.cumsum(plan.fit.later(k, plan.periods, AHEAD)) for k, _ in plan.sold}
    come = np.zeros((len(plan.nodes), AHEAD))
    for n, (k, place) in enumerate(plan.nodes):
        at = (plan.items[k], place)
        come[n, 0] = company.on_hand[at]
        come[n, min(int(company.due[at]), AHEAD - 1)] += company.on_order[at]
    found: list[date | None] = []
    for n, (k, _) in enumerate(plan.nodes):
        short = np.flatnonzero(come[n].cumsum() - plan.means[n] * season[k] < 0)
        found.append(plan.company.first + step * (plan.periods + int(short[0])) if len(short) else None)
    return found

"""Today's orders of a policy, as rows of a table."""

from datetime import date, timedelta
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
    simulator = simulator_of(network)
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
    out, first = runs_out(plan, stock), set(first_lanes(network))
    rows: list[tuple[Any, ...]] = [HEAD]
    for e, n in enumerate(network.targets):
        item, place = plan.label(n)
        position, level = float(stock[0, n].sum()), float(levels[n, 1])
        far = position > MOST * (float(book[n]) if isnan(level) else level)
        order, rule, textbook = (round(float(own[0, e]), 2) for own in sent)
        rows.append((
            item, plan.source(e), place, order, None if isnan(level) else rule, textbook,
            _amount(book[n], plan, n) if e in first else None, round(float(stock[0, n, 0]), 2),
            round(float(stock[0, n, 1:].sum()), 2), out[n],
            f"stock {position:g} is far above any level: not seen in training" if far else None,
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


def runs_out(plan: Plan, stock: Tensor) -> list[date | None]:
    """First day of the period in which mean demand exceeds what is on hand and due; None: not within 400 periods."""
    step, width = timedelta(days=LENGTH[plan.company.period]), plan.network.width
    season = {k: np.cumsum(plan.fit.later(k, plan.periods, AHEAD)) for k, _ in plan.sold}
    come = np.zeros((len(plan.nodes), AHEAD))
    come[:, :width] = stock[0].double().numpy()[:, :AHEAD]
    found: list[date | None] = []
    for n, (k, _) in enumerate(plan.nodes):
        short = np.flatnonzero(come[n].cumsum() - plan.means[n] * season[k] < 0)
        found.append(plan.company.first + step * (plan.periods + int(short[0])) if len(short) else None)
    return found

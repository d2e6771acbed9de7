"""One location, backlogged whole-number demand, a fixed cost K an order: an (s, S) policy is optimal.

    C(y)     = h E(y - X)^+ + p E(X - y)^+, X the demand of L + 1 periods
    m(j)     = expected number of periods spent j below S between two orders: m(0) = 1 / (1 - P(D = 0)),
               m(j) = sum_{1 <= d <= j} P(d) m(j - d) / (1 - P(D = 0))
    c(s, S)  = (K + sum_{j < S - s} m(j) C(S - j)) / sum_{j < S - s} m(j)

When the inventory position is s or less, orders raise it to S.

Source: Scarf 1960, Iglehart 1963; the search is Zheng & Federgruen 1991.
"""

from dataclasses import dataclass

import numpy as np

from offrl.envs.inventory.solvers.base_stock import base_stock_costs
from offrl.envs.inventory.solvers.demand import Array, Demand
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """The optimal policy and its cost per period, exact but for rounding."""

    reorder_point: int
    """s, items."""
    level: int
    """S, items."""
    cost: float


def fixed_cost(demand: Demand, lead_time: int, holding: float, penalty: float, fixed: float) -> FixedCost:
    """The optimal (s, S) policy.

    Args:
        demand: of one period, whole numbers.
        lead_time: L, periods, 0 or more.
        holding: h, cost per item left at the end of a period.
        penalty: p, cost per item backlogged then.
        fixed: K, cost of an order of any size, 0 or more.

    Raises:
        ConfigError: continuous demand, or an impossible cost.
    """
    if demand.continuous:
        raise ConfigError(f"(s, S) policies are solved for whole-number demand, not {demand.name}")
    if not 0 <= fixed < np.inf:
        raise ConfigError(f"the fixed cost of an order must be 0 or more, got {fixed:g}")
    _, curve = base_stock_costs(demand, lead_time, holding, penalty)
    search = _Search(demand, curve, holding, penalty, fixed)
    at = best = int(np.argmin(curve))
    low = at - 1
    while search.cost(low, best) > search.stage(low):
        low -= 1
    cost = search.cost(low, best)
    at = best + 1
    while search.stage(at) <= cost:
        if search.cost(low, at) < cost:
            best = at
            while search.cost(low, best) <= search.stage(low + 1):
                low += 1
            cost = search.cost(low, best)
        at += 1
    return FixedCost(reorder_point=low, level=best, cost=cost)


class _Search:
    """Costs of (s, S), with the renewal numbers m grown as needed."""

    def __init__(self, demand: Demand, curve: Array, h: float, p: float, fixed: float) -> None:
        self.pmf, self.curve, self.h, self.p, self.fixed = demand.pmf, curve, h, p, fixed
        self.visits = np.array([1 / (1 - self.pmf[0])])

    def stage(self, position: int) -> float:
        """C, continued by its straight lines below zero and above the largest demand."""
        last = len(self.curve) - 1
        inside = min(max(position, 0), last)
        return float(self.curve[inside] + self.h * max(0, position - last) - self.p * min(0, position))

    def cost(self, s: int, level: int) -> float:
        """c(s, S) for S > s."""
        while len(self.visits) < level - s:
            longest = min(len(self.visits), len(self.pmf) - 1)
            come = self.pmf[1 : longest + 1] @ self.visits[::-1][:longest]
            self.visits = np.append(self.visits, come / (1 - self.pmf[0]))
        visits = self.visits[: level - s]
        stages = np.array([self.stage(level - j) for j in range(level - s)])
        return float((self.fixed + visits @ stages) / visits.sum())

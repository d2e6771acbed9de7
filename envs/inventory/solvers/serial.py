"""Stages in series, backlogged demand at the last one: the optimal policy is echelon base-stock.

Stage 1 orders from outside, stage N serves the customers; H_j is local holding, h_j = H_j - H_{j-1} the echelon rate,
D_k the demand of k periods, mu its mean a period.

    G_N(y) = h_N (y - mu L_N) + (p + H_N) E(D_{L_N + 1} - y)^+
    G_j(y) = h_j (y - mu L_j) + E G_{j+1}(min(S_{j+1}, y - D_{L_j}))           S_j = argmin G_j
    C*     = G_1(S_1) - H_N mu - sum_{j<N} H_j mu L_{j+1}

The last terms take out the holding cost of stock on its way, which is never charged here. Stage j orders up to S_j,
counted in its echelon (everything on hand at or on the way to j or further down, less the backlog), as far as stage
j - 1 has stock.

Source: Clark & Scarf 1960, Chen & Zheng 1994. For y <= 0 every G_j is a straight line, demand being non-negative: the
grid from 0 upwards with that line below it is exact, and only the grid's step is an approximation.
"""

from dataclasses import dataclass

import numpy as np

from offrl.envs.inventory.solvers.base_stock import check_costs
from offrl.envs.inventory.solvers.demand import Array, Demand, convolved, grid
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Serial:
    """The optimal policy and its cost per period."""

    levels: tuple[float, ...]
    """Echelon base-stock levels, items, most upstream stage first; infinite where stock costs no more further down."""
    cost: float
    lower: float
    upper: float
    """The optimal cost lies between these two; they are equal for whole-number demand, but for rounding."""

    @property
    def local_levels(self) -> tuple[float, ...]:
        """Local base-stock levels of the same policy: S_j less S_{j+1}, levels above an upstream one lowered to it."""
        levels = np.minimum.accumulate(self.levels)
        return tuple((levels - np.append(levels[1:], 0.0)).tolist())


def serial(demand: Demand, lead_times: list[int], holdings: list[float], penalty: float) -> Serial:
    """The optimal echelon base-stock levels and cost.

    Args:
        demand: of one period, at the last stage.
        lead_times: L_j, periods, most upstream stage first.
        holdings: H_j, local holding cost per item and period, in the same order; never falling.
        penalty: p, cost per item backlogged at the end of a period.

    Raises:
        ConfigError: lengths differ, costs are not positive or fall downstream, or a lead time is negative.
    """
    _check(lead_times, holdings, penalty)
    levels, cost = _recursion(demand, demand.pmf, lead_times, holdings, penalty)
    steepest = (penalty + holdings[-1]) * (sum(lead_times) + 1)  # cost per item by which demand is shifted
    _, most = _recursion(demand, demand.spread, lead_times, holdings, penalty)
    upper = most + steepest * demand.tail
    lower = cost - steepest * float(np.abs(demand.offset).sum())
    return Serial(levels=levels, cost=min(cost, upper), lower=lower, upper=upper)


def _recursion(
    demand: Demand, pmf: Array, lead_times: list[int], holdings: list[float], penalty: float
) -> tuple[tuple[float, ...], float]:
    """Levels and cost, with the demand's probabilities taken from ``pmf``."""
    step, mean = demand.step, demand.mean
    points = grid(step, (len(pmf) - 1) * (sum(lead_times) + 1) + 1)
    rates = np.diff(holdings, prepend=0.0)
    short = _missing(pmf, lead_times[-1] + 1, step, len(points))
    costs = rates[-1] * (points - mean * lead_times[-1]) + (penalty + holdings[-1]) * short
    slope = rates[-1] - penalty - holdings[-1]  # below zero
    levels: list[float] = []
    for j in range(len(lead_times) - 1, -1, -1):
        at = int(np.argmin(costs))
        if rates[j] <= 0:
            at = len(points) - 1
            levels.append(np.inf)
        else:
            levels.append(float(points[at]))
        if j == 0:
            break
        below = costs[np.minimum(np.arange(len(points)), at)]
        lead_demand = convolved((pmf, lead_times[j - 1]))
        inside = convolved((below, 1), (lead_demand, 1))[: len(points)]
        beyond = 1 - np.cumsum(lead_demand)
        beyond = np.append(beyond, np.zeros(max(0, len(points) - len(beyond))))[: len(points)]
        outside = beyond * below[0] - slope * _missing(pmf, lead_times[j - 1], step, len(points))
        costs = rates[j - 1] * (points - mean * lead_times[j - 1]) + inside + outside
        slope += rates[j - 1]
    pipeline = sum(h * mean * lead for h, lead in zip(holdings, lead_times[1:], strict=False))
    return tuple(reversed(levels)), float(costs[at] - holdings[-1] * mean - pipeline)


def _missing(pmf: Array, periods: int, step: float, length: int) -> Array:
    """E(D - y)^+ for y on the grid of ``length`` points, D the demand of ``periods``."""
    above = 1 - np.cumsum(convolved((pmf, periods)))
    short = step * (above[::-1].cumsum()[::-1])
    return np.append(short, np.zeros(max(0, length - len(short))))[:length]


def _check(lead_times: list[int], holdings: list[float], penalty: float) -> None:
    if not lead_times or len(lead_times) != len(holdings):
        raise ConfigError(
            f"every stage needs a lead time and a holding cost: {len(lead_times)} lead times, "
            f"{len(holdings)} holding costs"
        )
    for lead_time, holding in zip(lead_times, holdings, strict=True):
        check_costs(lead_time, holding, penalty)
    if (np.diff(holdings) < 0).any():
        raise ConfigError(
            f"holding costs must not fall towards the customer (most upstream first), got {holdings}"
        )

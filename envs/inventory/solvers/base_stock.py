"""One location, backlogged demand: a base-stock policy is optimal, its level a newsvendor quantile.

    X     = demand of L + 1 periods
    C(S)  = h E(S - X)^+ + p E(X - S)^+          S* = F_X^{-1}(p / (p + h))

Orders raise the inventory position (on hand + on order - backlog) to S*.

Source: Scarf 1960, Karlin 1958; sums of demands by FFT. For continuous demand the optimum lies in [lower, upper], from
the convex order (see ``demand``): with R the rounded demand and f the cost, convexity gives
E f(sum X) >= E f(sum R) + (L + 1) E[f'(sum R) offset], which is again a convolution.
"""

from dataclasses import dataclass

import numpy as np

from offrl.envs.inventory.solvers.demand import Array, Demand, convolved, grid
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BaseStock:
    """The optimal policy and its cost per period."""

    level: float
    """S*, items: order up to it."""
    cost: float
    lower: float
    upper: float
    """The optimal cost lies between these two; they are equal for whole-number demand, but for rounding."""


def base_stock(demand: Demand, lead_time: int, holding: float, penalty: float) -> BaseStock:
    """The optimal base-stock level and cost.

    Args:
        demand: of one period.
        lead_time: L, periods, 0 or more.
        holding: h, cost per item left at the end of a period.
        penalty: p, cost per item backlogged then.

    Raises:
        ConfigError: a cost is not positive, or the lead time negative.
    """
    check_costs(lead_time, holding, penalty)
    periods, h, p = lead_time + 1, holding, penalty
    curve, cdf = _costs(demand, demand.pmf, periods, h, p)
    k = int(np.searchsorted(cdf, p / (p + h)))
    k = min(k, len(cdf) - 1)
    cost, level = float(curve[k]), k * demand.step
    if not demand.continuous:
        upper = cost + max(h, p) * periods * demand.tail
        return BaseStock(level=level, cost=cost, lower=cost - h * periods * demand.tail, upper=upper)
    below = cdf[k - 1] if k else 0.0  # the rounded demand's steps lie half a cell beside the grid
    level = max(0.0, (k - 0.5 + (p / (p + h) - below) / (cdf[k] - below)) * demand.step)
    moved = np.cumsum(convolved((demand.offset, 1), (demand.pmf, lead_time)))  # E[offset; sum R <= S]
    shift = periods * (p * moved[-1] - (h + p) * moved)
    shift = np.minimum(shift, np.append(0.0, shift[:-1]))  # S may lie on either side of its grid point
    spread, _ = _costs(demand, demand.spread, periods, h, p)
    lower = float((curve + shift).min())
    upper = float(spread.min()) + max(h, p) * periods * demand.tail
    # the estimate misses the bracket where rounding moves the mean, as it does where much demand is close to 0
    return BaseStock(level=level, cost=min(max(cost, lower), upper), lower=lower, upper=upper)


def base_stock_costs(demand: Demand, lead_time: int, holding: float, penalty: float) -> tuple[Array, Array]:
    """All levels on the demand's grid, items, and the cost per period of each."""
    check_costs(lead_time, holding, penalty)
    curve, _ = _costs(demand, demand.pmf, lead_time + 1, holding, penalty)
    return grid(demand.step, len(curve)), curve


def _costs(demand: Demand, pmf: Array, periods: int, h: float, p: float) -> tuple[Array, Array]:
    """C at every grid point, and the distribution function of the demand of ``periods``."""
    total = convolved((pmf, periods))
    cdf = np.cumsum(total)
    left = np.append(0.0, demand.step * np.cumsum(cdf[:-1]))  # E(S - X)^+
    values = grid(demand.step, len(total))
    return np.asarray(h * left + p * (left + values @ total - values)), cdf


def check_costs(lead_time: int, holding: float, penalty: float) -> None:
    """Refuse what no problem here allows."""
    if lead_time < 0:
        raise ConfigError(f"lead_time must be 0 periods or more, got {lead_time}")
    for name, value in (("holding", holding), ("penalty", penalty)):
        if not 0 < value < np.inf:
            raise ConfigError(f"{name} must be a positive cost per item and period, got {value:g}")

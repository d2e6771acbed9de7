"""Known demand, a fixed cost an order, no shortage: which periods to order in.

    cost(t) = min over j <= t of  cost(j - 1) + K_j + c_j (d_j + ... + d_t) + sum_{i = j..t} h_i (d_{i+1} + ... + d_t)

An order of period j comes before the demand of j and covers j to t; h_i is paid on what is left after the demand of i.

Source: Wagner & Whitin 1958.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offrl.errors import ConfigError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The cheapest plan."""

    orders: Array
    """(T,), units before the demand of each period."""
    cost: float


def wagner_whitin(
    demand: Sequence[float], holding: float | Sequence[float], fixed: float | Sequence[float],
    purchase: float | Sequence[float] = 0.0,
) -> Plan:  # fmt: skip
    """The cheapest plan that meets all demand in time.

    Args:
        demand: (T,), units, 0 or more.
        holding: h, per unit left after a period; one number or T.
        fixed: K, per order.
        purchase: c, per unit.

    Raises:
        ConfigError: no periods, or a negative or not finite number.
    """
    d = np.asarray(demand, dtype=np.float64)
    if d.ndim != 1 or not len(d):
        raise ConfigError("demand must be a list of one period or more")
    h, K, c = (np.broadcast_to(np.asarray(x, dtype=np.float64), d.shape) for x in (holding, fixed, purchase))
    for name, values in (("demand", d), ("holding", h), ("fixed", K), ("purchase", c)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ConfigError(f"{name} must be 0 or more and finite in every period")
    periods = len(d)
    best, before = np.zeros(periods + 1), np.zeros(periods + 1, dtype=np.int64)
    for t in range(periods):
        carried = np.concatenate([np.cumsum(h[:t][::-1])[::-1], [0.0]])  # from j to t, of a unit bought in j
        per_unit = np.cumsum(d[: t + 1][::-1])[::-1]
        stored = np.array([d[j : t + 1] @ (carried[j] - carried[j : t + 1]) for j in range(t + 1)])
        buys = np.where(per_unit > 0, K[: t + 1], 0.0)
        total = best[: t + 1] + buys + c[: t + 1] * per_unit + stored
        before[t + 1] = int(total.argmin())
        best[t + 1] = total[before[t + 1]]
    orders, end = np.zeros(periods), periods
    while end:
        start = int(before[end])
        orders[start], end = d[start:end].sum(), start
    return Plan(orders=orders, cost=float(best[periods]))

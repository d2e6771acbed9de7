"""One centre without stock, many stores, backlogged: the lower bound of free rebalancing, and a policy near it.

Each period the centre orders from outside (lead time Lw) and shares what arrives among the stores (lead time Ls). If
a store could also be *given less than nothing*, the best split would put all stores at the same number of standard
deviations, and the system would be one location. With jointly normal demand that is a closed form:

    V  = Lw 1'Sigma 1 + (Ls + 1) (sum_i sd_i)^2          z = Phi^{-1}(p / (p + h))
    bound = (h + p) sqrt(V) phi(z)                       S* = (Lw + Ls + 1) sum_i mu_i + z sqrt(V)

Source: Federgruen & Zipkin 1984. Demand must not be clipped at zero; holding and penalty are the same at all stores.
The companion policy orders up to S* and equalizes as far as shipments of at least zero allow.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from offrl.envs.inventory.solvers.base_stock import check_costs
from offrl.envs.inventory.solvers.demand import Array
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Warehouse:
    """The bound and the companion policy's system level."""

    bound: float
    """No policy costs less, per period, all stores together."""
    level: float
    """S*, items: order up to it, counting everything in the system less the backlog."""
    stores: int

    @property
    def bound_per_store(self) -> float:
        """The bound divided by the number of stores, as results are reported."""
        return self.bound / self.stores


def warehouse(
    means: Array, stds: Array, correlation: float, centre_lead_time: int, store_lead_time: int, holding: float,
    penalty: float,
) -> Warehouse:  # fmt: skip
    """The bound, for stores whose demands have one pairwise correlation.

    Args:
        means: mean demand a period of each store, (S,).
        stds: standard deviations, (S,).
        correlation: of any two stores' demands in the same period.
        centre_lead_time: Lw, periods from an order until its goods can be shared.
        store_lead_time: Ls, periods from sharing until they serve demand.
        holding: h, per item left at a store at the end of a period.
        penalty: p, per item backlogged there.

    Raises:
        ConfigError: shapes differ, a parameter is impossible.
    """
    means, stds = np.asarray(means, dtype=np.float64), np.asarray(stds, dtype=np.float64)
    if means.shape != stds.shape or means.ndim != 1 or not len(means):
        raise ConfigError(f"every store needs a mean and a std: {means.size} means, {stds.size} stds")
    if not (np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()):
        raise ConfigError("means must be finite and stds positive")
    least = -1 / (len(means) - 1) if len(means) > 1 else -1.0
    if not least <= correlation <= 1:
        raise ConfigError(
            f"correlation of {len(means)} stores must be in [{least:g}, 1], got {correlation:g}"
        )
    check_costs(centre_lead_time, holding, penalty)
    check_costs(store_lead_time, holding, penalty)
    together = (1 - correlation) * (stds**2).sum() + correlation * stds.sum() ** 2
    deviation = np.sqrt(centre_lead_time * together + (store_lead_time + 1) * stds.sum() ** 2)
    z = stats.norm.ppf(penalty / (penalty + holding))
    return Warehouse(
        bound=float((holding + penalty) * deviation * stats.norm.pdf(z)),
        level=float((centre_lead_time + store_lead_time + 1) * means.sum() + z * deviation),
        stores=len(means),
    )


def equalizing_shipments(
    positions: Array, available: Array, means: Array, stds: Array, store_lead_time: int
) -> Array:
    """Share everything that the centre has, so that the stores' standardized positions are as equal as can be.

    Args:
        positions: inventory position of each store before the shipment, (B, S).
        available: items at the centre, (B,); all of it is shipped.
        means: mean demand a period of each store, (S,).
        stds: standard deviations, (S,).
        store_lead_time: Ls.

    Returns:
        Shipments, (B, S), at least 0, that add up to ``available``: store i gets (target_i(z) - position_i)^+ with
        target_i(z) = (Ls + 1) mu_i + z sqrt(Ls + 1) sd_i and the one z that uses everything.
    """
    scale = np.sqrt(store_lead_time + 1) * stds
    standing = (positions - (store_lead_time + 1) * means) / scale
    order = np.argsort(standing, axis=1)
    ordered = np.take_along_axis(standing, order, axis=1)
    scales = scale[order]
    width = np.cumsum(scales, axis=1)
    needed = width * ordered - np.cumsum(scales * ordered, axis=1)  # to lift the first k stores to the k-th
    lifted = (needed <= available[:, None]).sum(axis=1, keepdims=True) - 1
    z = np.take_along_axis(ordered, lifted, axis=1) + (
        available[:, None] - np.take_along_axis(needed, lifted, axis=1)
    ) / np.take_along_axis(width, lifted, axis=1)
    return np.asarray(np.maximum(z - standing, 0.0) * scale)

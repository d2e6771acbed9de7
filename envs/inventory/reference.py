"""What is known to be best: the optimal policy of a setting and its cost, or a lower bound.

    one store, backlog                 base-stock level by convolution
    one store, lost sales, Poisson     dynamic program
    a chain, backlog                   Clark and Scarf's echelon levels
    one centre that cannot hold        Federgruen and Zipkin's bound (no policy)

Comparisons are paired: a policy and the optimal one meet the same demand, and the mean difference is added to
the exact cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offrl.envs.inventory.classical import OrderTable
from offrl.envs.inventory.demand import Normal, Poisson
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy, make_policy
from offrl.envs.inventory.protocol import AnySetting, Setting
from offrl.errors import ConfigError

TINY = 1e-4
"""Units of a stage's own stock where the optimum is to keep none."""


@dataclass(frozen=True)
class Reference:
    """The best cost per store and period, or a bound of it."""

    cost: float
    name: str
    policy: InventoryPolicy | None = None
    """Optimal; None where only a bound is known."""


@dataclass(frozen=True)
class Gap:
    """How far a policy is from the reference."""

    cost: float
    """Of the policy, with the paths' own luck taken out where there is an optimal policy to pair with."""
    gap: float
    """(cost - reference) / reference."""
    standard_error: float | None  # None for one scenario
    """Of the gap, over scenarios."""
    reference: Reference


def reference(setting: AnySetting) -> Reference | None:
    """The best that is known exactly, None where theory has nothing."""
    try:
        return _known(setting)
    except ConfigError:  # no solver takes free stock, free shortage or stock that gets cheaper downstream
        return None


def _known(setting: AnySetting) -> Reference | None:
    """Raises ConfigError where a solver refuses the numbers."""
    if not isinstance(setting, Setting) or setting.network.profit or setting.network.extended:
        return None
    network, demand = setting.network, setting.demand
    if network.discount != 1 or any(edge.cost for edge in network.edges):
        return None
    if not isinstance(demand, Normal | Poisson) or set(demand.season) - {1.0}:
        return None
    chain = len(network.edges) == len(network.nodes) and network.stores == 1
    if chain and all(node.holds for node in network.nodes) and (isinstance(demand, Poisson) or demand.clip):
        if len(network.nodes) == 1:
            return _one_store(setting)
        return _serial(setting) if not network.lost_sales else None
    star = network.upstream == 1 and network.internal == network.stores == len(network.edges) - 1
    if star and not network.nodes[0].holds and not network.lost_sales:
        return _centre(setting)
    return None


def compare(costs: Tensor, optimal: Tensor | None, best: Reference) -> Gap:
    """The gap of a policy, paired where there is an optimal policy.

    Args:
        costs: (n,), per store and period.
        optimal: (n,) of the optimal policy, or None.
        best: what is known.
    """
    differences = costs - (best.cost if optimal is None else optimal)
    error, difference = standard_error(differences), float(differences.mean())
    relative = None if error is None else error / best.cost
    return Gap(best.cost + difference, difference / best.cost, relative, best)


def standard_error(costs: Tensor) -> float | None:
    """Of the mean over scenarios, (n,); None for one scenario."""
    return float(costs.std() / len(costs) ** 0.5) if len(costs) > 1 else None


def shown(error: float | None, digits: int = 4, factor: float = 1.0) -> str:
    """A standard error times ``factor``; a dash where there is none."""
    return "-" if error is None else f"{factor * error:.{digits}f}"


def _made(name: str, setting: Setting, **options: object) -> InventoryPolicy:
    means = setting.demand.means
    stds = getattr(setting.demand, "stds", tuple(mean**0.5 for mean in means))
    facts = DemandFacts(means=means, stds=stds)
    return make_policy(name, setting.network, facts, [torch.Generator()], **options)


def _solver_demand(setting: Setting) -> str:
    demand = setting.demand
    if isinstance(demand, Poisson):
        return f"poisson:{demand.means[0]:.12g}"
    assert isinstance(demand, Normal)
    return f"normal:{demand.means[0]:.12g},{demand.stds[0]:.12g}"


def _one_store(setting: Setting) -> Reference | None:
    from offrl.envs.inventory.solvers.base_stock import base_stock
    from offrl.envs.inventory.solvers.demand import parse_demand

    store, edge = setting.network.nodes[0], setting.network.edges[0]
    if not setting.network.lost_sales:
        demand = parse_demand(_solver_demand(setting))
        found = base_stock(demand, edge.lead_time, store.holding_cost, store.underage_cost)
        policy = _made("base_stock", setting, levels=(found.level,))
        return Reference(found.cost, f"optimum, base-stock at {found.level:.2f}", policy)
    if not isinstance(setting.demand, Poisson):
        return None
    table = _made("optimal", setting)
    assert isinstance(table, OrderTable)
    return Reference(table.table.cost, "optimum by dynamic programming", table)


def _serial(setting: Setting) -> Reference:
    from offrl.envs.inventory.solvers.demand import parse_demand
    from offrl.envs.inventory.solvers.serial import serial

    network = setting.network
    order = [e for e, source in enumerate(network.sources) if source == len(network.nodes)]
    while len(order) < len(network.edges):
        order.append(next(e for e, s in enumerate(network.sources) if s == network.targets[order[-1]]))
    stages = [network.targets[e] for e in order]
    found = serial(
        parse_demand(_solver_demand(setting)),
        [network.edges[e].lead_time for e in order],
        [network.nodes[n].holding_cost for n in stages],
        network.nodes[stages[-1]].underage_cost,
    )
    local = np.maximum(found.local_levels, TINY)  # of the same policy, whose levels need not fall downstream
    by_node = dict(zip(stages, np.cumsum(local[::-1])[::-1], strict=True))
    levels = tuple(by_node[n] for n in range(len(network.nodes)))
    policy = _made("echelon_base_stock", setting, levels=levels)
    shown = ", ".join(f"{level:.2f}" for level in found.levels)
    return Reference(found.cost, f"optimum, echelon levels {shown}", policy)


def _centre(setting: Setting) -> Reference | None:
    from offrl.envs.inventory.solvers.warehouse import warehouse

    network, demand = setting.network, setting.demand
    stores, times = network.nodes[1:], set(network.lead_times[: network.internal])
    if not isinstance(demand, Normal) or demand.clip or len(times) != 1:
        return None
    costs = {(store.holding_cost, store.underage_cost) for store in stores}
    if len(costs) != 1:
        return None
    (holding, penalty), outside = costs.pop(), network.edges[-1].lead_time
    found = warehouse(
        np.array(demand.means),
        np.array(demand.stds),
        demand.correlation,
        outside,
        times.pop(),
        holding,
        penalty,
    )
    return Reference(found.bound_per_store, "lower bound of Federgruen and Zipkin")

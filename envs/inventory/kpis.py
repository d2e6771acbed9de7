"""What an operations manager asks of a recorded rollout: service, stock, variability of orders, where the money went.

Periods before ``ignore`` are left out everywhere. Per store or node, means over scenarios; units of product, or shares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offrl.envs.inventory.extended import ExtendedSimulator
from offrl.envs.inventory.network import Simulator
from offrl.envs.inventory.scenarios import Rollout, Scenarios
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KPIs:
    """Tensors, float64. S stores, N nodes."""

    fill_rate: Tensor
    """(S,) share of demand served from stock at once; NaN where nothing was demanded."""
    cycle_service: Tensor
    """(S,) share of periods without a unit short."""
    lost_units: Tensor
    """(S,) units per period that were lost; 0 with backlog."""
    waiting_units: Tensor
    """(S,) mean units that customers wait for after a period; 0 with lost sales."""
    on_hand: Tensor
    """(N,) mean units on hand after a period's demand and shipments."""
    pipeline: Tensor
    """(N,) mean units under way to the node before a period."""
    bullwhip: Tensor
    """(N,) variance over periods of what a node orders, over that of what customers behind it demand in all."""
    cost: Tensor
    """(N,) mean cost per period."""
    holding: Tensor
    """(N,) its part for what is on hand."""
    underage: Tensor
    """(N,) its part for what is short; in profit mode minus the margin on sales."""
    procurement: Tensor
    """(N,) the rest: procurement, and what extended networks charge."""

    def rows(self, scenarios: Scenarios) -> list[tuple[str, ...]]:
        """A table as text: one row a node."""
        network = scenarios.network
        head = (
            "node",
            "fill rate",
            "no stock-out",
            "on hand",
            "pipeline",
            "bullwhip",
            "cost",
            "holding",
            "underage",
            "other",
        )
        table: list[tuple[str, ...]] = [head]
        for i, node in enumerate(network.nodes):
            s = i - network.upstream
            service = (self.fill_rate[s], self.cycle_service[s]) if s >= 0 else (None, None)
            rest = (
                self.on_hand,
                self.pipeline,
                self.bullwhip,
                self.cost,
                self.holding,
                self.underage,
                self.procurement,
            )
            numbers = (*service, *(values[i] for values in rest))
            table.append((node.name, *("-" if x is None else f"{float(x):.4g}" for x in numbers)))
        return table


@torch.no_grad()
def kpis(result: Rollout, scenarios: Scenarios, ignore: int = 0) -> KPIs:
    """KPIs of a recorded rollout.

    Args:
        result: of ``rollout(..., record=True)``.
        scenarios: those that were rolled out.
        ignore: warm-up periods to leave out.

    Raises:
        ConfigError: the rollout was not recorded, or no period is left.
    """
    periods = len(result.costs)
    if not len(result.actions):
        raise ConfigError("KPIs need a recorded rollout: pass record=True")
    if not 0 <= ignore < periods:
        raise ConfigError(f"ignore must be in [0, {periods}), got {ignore}")
    network, U = scenarios.network, scenarios.network.upstream
    simulator, result = scenarios.simulator(), Rollout(*(value.detach() for value in result))
    stocks, sent = result.stocks[ignore:-1].double(), orders_sent(result, simulator)[ignore:].double()
    start = ignore + scenarios.history
    demand = scenarios.demands[start : start + periods - ignore].double()
    before = stocks[..., 0]
    if any(edge.lead_time == 0 and network.slot(edge) < 0 for edge in network.edges):
        before = before + torch.stack([simulator.at_once(a) for a in sent])
    ordered = torch.stack([simulator.received(a).sum(-1) for a in sent])
    shipped = torch.stack([simulator.shipped(a) for a in sent])
    if network.extended:
        shipped = shipped / torch.tensor([n.yield_ for n in network.nodes[:U]]).double()
    left = before - torch.cat([shipped, demand], -1)
    over, short = left.clamp(min=0), (-left[..., U:]).clamp(min=0)
    if network.ships_before_receiving:  # what arrived in the period is on hand at its end
        over = torch.cat([result.stocks[ignore + 1 :, :, :U, 0].double().clamp(min=0), over[..., U:]], -1)
    at_once = torch.minimum(before[..., U:].clamp(min=0), demand.clamp(min=0))
    holding = over * scenarios.parameters.holding.double()
    margin = -torch.minimum(before[..., U:], demand) if network.profit else short
    underage = torch.cat(
        [torch.zeros_like(shipped), scenarios.parameters.underage.double()[..., U:] * margin], -1
    )
    cost = result.costs[ignore:].double()
    lost = network.lost_sales

    def mean(values: Tensor) -> Tensor:
        return values.mean((0, 1))

    return KPIs(
        fill_rate=at_once.sum((0, 1)) / demand.clamp(min=0).sum((0, 1)),
        cycle_service=mean((short <= 1e-6).double()),
        lost_units=mean(short) if lost else torch.zeros(network.stores, dtype=torch.float64),
        waiting_units=torch.zeros(network.stores, dtype=torch.float64) if lost else mean(short),
        on_hand=mean(over),
        pipeline=mean(stocks[..., 1:].sum(-1)),
        bullwhip=_bullwhip(ordered, demand, scenarios),
        cost=mean(cost),
        holding=mean(holding),
        underage=mean(underage),
        procurement=mean(cost - holding - underage),
    )


def orders_sent(result: Rollout, simulator: Simulator) -> Tensor:
    """(T, B, E) what was sent: the orders, unless the network fills them as far as it can."""
    network = simulator.network
    if not network.extended:
        return result.actions
    owed, sent = torch.zeros_like(result.actions[0]), []
    assert isinstance(simulator, ExtendedSimulator)
    for t, (stock, action) in enumerate(zip(result.stocks[:-1], result.actions, strict=True)):
        wanted = action.clamp(min=0) + owed
        sent.append(simulator.filled(stock, wanted, t))
        owed = wanted - sent[-1] if network.owes_orders else owed
    return torch.stack(sent)


def _bullwhip(ordered: Tensor, demand: Tensor, scenarios: Scenarios) -> Tensor:
    """Var(orders) / Var(demand behind), variances over periods, averaged over scenarios."""
    network, U = scenarios.network, scenarios.network.upstream
    behind = torch.zeros(len(network.nodes), network.stores, dtype=torch.float64, device=demand.device)
    behind[U:] = torch.eye(network.stores, dtype=torch.float64)
    for _ in range(U + 1):  # as often as the longest path: who supplies whom
        for source, target in zip(network.sources[: network.internal], network.targets, strict=False):
            behind[source] = torch.maximum(behind[source], behind[target])
    if len(demand) < 2:
        return torch.full((len(network.nodes),), torch.nan, dtype=torch.float64)
    return ordered.var(0).mean(0) / (demand @ behind.T).var(0).mean(0)

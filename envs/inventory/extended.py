"""Networks with more than stock and lead times: capacities, yields, prices, transit costs, orders that are owed.

An order is filled as far as it can be: no lane carries more than its capacity, no node sends more than its capacity or
uses up more than its stock, and where several lanes want more than there is, all shrink by one factor. With
``owes_orders`` the rest is added to the next order.

    sent_e   = fill(a_e + owed_e)                          used_n = sum of what n sends / yield_n
    cost_n   = h_n on hand at the end + p_n short + o_n used_n - price_n sales_n
               + sum over lanes into n of ((c_e + price_e) sent_e + transit_e under way_e + penalty_e unfilled_e)
               - sum over lanes out of n of price_e sent_e

Source: InvManagement and NetworkManagement of or-gym (hubbs5/or-gym, arXiv:2008.06319).
Departures: orders are real numbers; a node's capacity and stock are shared by its lanes, as or-gym's description has it
(its code lets every lane take all of both).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from offrl.envs.inventory.network import Parameters, Simulator, _Move, apply
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError


class State(NamedTuple):
    """What is known before a period."""

    stock: Tensor
    """(B, N, K), units."""
    owed: Tensor
    """(B, E), units of earlier orders still to be filled."""
    backlog: Tensor
    """(B, S), units that customers wait for; contained, negative, in the stock."""
    dues: Tensor
    """(B, N, K), money for goods under way: column k falls due in k periods."""


class ExtendedSimulator(Simulator):
    """The simulator of networks whose ``extended`` is true. Its states are :class:`State`."""

    def _set(self, parameters: Parameters) -> None:
        super()._set(parameters)
        network, U = self.network, self.network.upstream
        nodes, edges = network.nodes[:U], network.edges
        if self.parameters.lead_times.ndim > 1 and any(edge.transit_cost for edge in edges):
            raise ConfigError("transit costs need lead times that all scenarios share")

        def row(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=self.dtype, device=self.device)

        self._lane_capacity = row([edge.capacity for edge in edges])
        self._price = row([edge.price for edge in edges])
        self._penalty = row(list(network.order_penalty) or [0.0] * len(edges))
        self._capacity, self._yield = row([n.capacity for n in nodes]), row([n.yield_ for n in nodes])
        self._operating = row([n.operating_cost for n in nodes])
        self._retail = row([n.price for n in network.nodes[U:]])
        due = torch.arange(self.shape[1], device=self.device) < self.parameters.lead_times[..., None]
        rates = row([edge.transit_cost for edge in edges])[:, None] * due.to(self.dtype)
        self._dues = (
            torch.cat([rates, rates.new_zeros(1, self.shape[1])])[self._received] if due.ndim == 2 else rates
        )

    def start(self, stock: Tensor) -> State:
        """Nothing is owed and nothing is due."""
        zeros = stock.new_zeros(len(stock), len(self.network.edges))
        backlog = (-stock[:, self.network.upstream :, 0]).clamp(min=0)
        return State(stock, zeros, backlog, torch.zeros_like(stock))

    def stock(self, state: State) -> Tensor:
        """The stock (B, N, K)."""
        return state.stock

    def project(self, stock: Tensor, action: Tensor) -> Tensor:
        """What of the orders is filled, (B, E)."""
        wanted = torch.minimum(action.clamp(min=0), self._lane_capacity)
        U, internal = self.network.upstream, self.network.internal
        if not U:
            return wanted
        most = torch.minimum(stock[:, :U, 0].clamp(min=0) * self._yield, self._capacity)
        scale = most / (self.shipped(wanted) + 1e-10)
        scale = torch.where(self._holds, scale.clamp(max=1), scale)
        return torch.cat([wanted[:, :internal] * scale[:, self._sources], wanted[:, internal:]], 1)

    def step(self, state: State, action: Tensor, demand: Tensor) -> tuple[State, Tensor]:  # type: ignore[override]
        """As :meth:`Simulator.step`; ``action`` are orders, which are filled as far as possible."""
        wanted = action.clamp(min=0) + state.owed
        return self.carried(state, wanted, self.filled(state.stock, wanted, 0), demand)

    def filled(self, stock: Tensor, wanted: Tensor, period: int) -> Tensor:
        """The orders (B, E) that are carried out in a period, of those wanted."""
        return self.project(stock, wanted)

    def carried(
        self, state: State, wanted: Tensor, sent: Tensor, demand: Tensor, shares: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """One period with the orders ``sent``, of those ``wanted``; ``shares`` (B, E, K): how they arrive."""
        network, U, stock, later = self.network, self.network.upstream, state.stock, sent
        used = self.shipped(sent) / self._yield
        if self._now is not None:
            stock, later = self.delivered(stock, sent)
        left = stock[..., 0] - torch.cat([used, demand], 1)
        over = left.clamp(min=0)
        kept = over[:, U:] if network.lost_sales else left[:, U:]
        after = torch.cat([left[:, :U], kept], 1)
        if shares is None:
            moved = apply(_Move, stock, after, later, self._slots, self._layers)
        else:
            moved = self.arriving(stock, after, later, shares)
        dues = state.dues + (self.received(sent).unsqueeze(-1) * self._dues).sum(-2)
        held = (
            torch.cat([moved[:, :U, 0].clamp(min=0), over[:, U:]], 1)
            if network.ships_before_receiving
            else over
        )
        short = (over - left)[:, U:]
        cost = self._money(stock, held, short, sent, used, wanted - sent) + dues[..., 0]
        served = demand - short if network.lost_sales else demand + state.backlog - short
        cost = torch.cat([cost[:, :U], cost[:, U:] - self._retail * served], 1)
        later = torch.cat([dues[..., 1:], torch.zeros_like(dues[..., :1])], -1)
        owed = wanted - sent if network.owes_orders else torch.zeros_like(sent)
        backlog = torch.zeros_like(short) if network.lost_sales else short
        return State(moved, owed, backlog, later), cost

    def arriving(self, stock: Tensor, after: Tensor, sent: Tensor, shares: Tensor) -> Tensor:
        """The next stock, (B, N, K), where each order arrives in parts."""
        parts = (sent.unsqueeze(-1) * shares).transpose(1, 2)  # (B, K, E)
        come = self.received(parts.flatten(0, 1)).sum(-1).unflatten(0, parts.shape[:2]).transpose(1, 2)
        first = stock[..., 1:2] if self.shape[1] > 1 else torch.zeros_like(stock)
        rest = [stock[..., 2:], torch.zeros_like(first)] if self.shape[1] > 1 else []
        moved: Tensor = torch.cat([after.unsqueeze(-1) + first, *rest], -1) + come
        return moved

    def _money(
        self, stock: Tensor, held: Tensor, short: Tensor, sent: Tensor, used: Tensor, unfilled: Tensor
    ) -> Tensor:
        """Cost of each node but for goods under way and sales at a price."""
        p, U = self.parameters, self.network.upstream
        missed = held[:, U:] - stock[:, U:, 0] if self.network.profit else short
        paid = (p.edge_cost + self._price) * sent + self._penalty * unfilled
        cost = p.holding * held + self.received(paid).sum(-1)
        above = self._operating * used - self.shipped(self._price * sent)
        return cost + torch.cat([above, p.underage[..., U:] * missed], 1)


def simulator_of(
    network: Network,
    parameters: Parameters | None = None,
    deliveries: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Simulator:
    """The simulator that a network needs; ``deliveries`` as in ``Scenarios``."""
    if network.ruled:
        from offrl.envs.inventory.rules import RuledSimulator

        return RuledSimulator(network, parameters, deliveries, device=device, dtype=dtype)
    kind = ExtendedSimulator if network.extended else Simulator
    return kind(network, parameters, device=device, dtype=dtype)

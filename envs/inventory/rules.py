"""Ordering rules as companies have them: the simulator's order step makes any wish an order that keeps all of them.

A wish w >= 0 of lane e becomes an order in this sequence, each step on the result of the one before:

    closed day            0
    pack u, least m       the nearest multiple of u; below m: m if it is at least m / 2, else 0
    capacity              at most the lane's
    supplier              where a node is asked for more than it has or may send, all its shipments shrink by one factor
    pack, least           down to a multiple of u, and to 0 below m; what that leaves with the supplier goes to the
                          largest remainders, one pack (or m) each, then to all of the orders that miss most
    trucks                lanes that share a truck shrink by one factor until sum of size a <= its limit; packs likewise
    budget B              orders from outside likewise until sum of c a + K [a > 0] <= B
    cost                  c a + K [a > 0]

Deliveries that vary: an order of period t draws one of its lane's ``receipts``, shares by period of arrival, so that it
may come late, in parts, and after a later order. Policies then see what is under way in the last column: the
sum is known, the dates are not.

Gradients pass all steps of rounding as if these were the identity (straight-through); steps that shrink are exact.
Fixed costs and least orders jump, which no pathwise gradient sees: ``advice`` says which estimator to use.

Source: standard practice of order processing; for straight-through, arXiv:1308.3432.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.extended import ExtendedSimulator, State
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.spec import Network

EPS = 1e-6  # what float32 may lack to the next whole pack


class RuledState(NamedTuple):
    """What is known before a period."""

    inner: State
    period: int
    """t, from 0: for order days and deliveries."""


class RuledSimulator(ExtendedSimulator):
    """The simulator of networks whose ``ruled`` is true. Its states are :class:`RuledState`.

    ``deliveries`` (T, B, E) int64 says which of its lane's receipts the order of a period gets; None: the first.
    """

    def __init__(
        self,
        network: Network,
        parameters: Parameters | None = None,
        deliveries: Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(network, parameters, device=device, dtype=dtype)
        self.deliveries = deliveries
        edges = network.edges

        def row(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._pack, self._fixed = row([e.pack for e in edges]), row([e.fixed_cost for e in edges])
        self._least = row([_least(e.min_order, e.pack) for e in edges])
        whole = [
            e.pack * math.floor(e.capacity / e.pack + 1e-9) if _finite(e.pack, e.capacity) else e.capacity
            for e in edges
        ]
        self._lane_capacity = row(whole)
        index = {name: k for k, (name, _) in enumerate(network.trucks)}
        self._truck = torch.tensor([index.get(e.truck, len(index)) for e in edges], device=device)
        self._room, self._size = row([limit for _, limit in network.trucks]), row([e.size for e in edges])
        outside = torch.arange(len(edges), device=device) >= network.internal
        senders = [min(source, network.upstream) for source in network.sources]
        self._sender = torch.tensor(senders, device=device)
        self._paid, self._purse = (~outside).long(), row([network.budget])
        self._varies = any(e.receipts for e in edges)
        self._days = [e.calendar or (1,) for e in edges]
        self._shares = self._library() if self._varies else None

    def _library(self) -> Tensor:
        """(E, most receipts of a lane, K); a lane without has one, all after its lead time."""
        network, width = self.network, self.shape[1]
        ways = []
        for edge in network.edges:
            one_hot = tuple(float(k == network.slot(edge)) for k in range(width))
            ways.append([(*r, *(0.0,) * (width - len(r))) for r in edge.receipts] or [one_hot])
        most = max(map(len, ways))
        full = [own + own[:1] * (most - len(own)) for own in ways]
        return torch.tensor(full, dtype=self.dtype, device=self.device)

    def start(self, stock: Tensor) -> RuledState:  # type: ignore[override]
        """Period 0."""
        return RuledState(super().start(stock), 0)

    def stock(self, state: RuledState) -> Tensor:  # type: ignore[override]
        """The stock (B, N, K) as a policy sees it."""
        stock = state.inner.stock
        if not self._varies or self.shape[1] == 1:
            return stock
        under_way = stock[..., 1:].sum(-1, keepdim=True)
        return torch.cat([stock[..., :1], torch.zeros_like(stock[..., 1:-1]), under_way], -1)

    def open(self, period: int) -> Tensor:
        """(E,) 1 on lanes where orders are placed in a period, else 0."""
        days = [days[period % len(days)] for days in self._days]
        return torch.tensor(days, dtype=self.dtype, device=self.device)

    def filled(self, stock: Tensor, wanted: Tensor, period: int) -> Tensor:
        """Orders (B, E) that keep every rule, from wishes."""
        asked = self._sized(wanted.clamp(min=0) * self.open(period), down=False)
        orders = self._shared_out(stock, asked)
        if self.network.trucks:
            orders = self._within(orders, self._size, torch.zeros_like(self._size), self._truck, self._room)
        if self.network.budget < math.inf:
            price = self.parameters.edge_cost + self._price
            orders = self._within(orders, price, self._fixed, self._paid, self._purse)
        return orders

    def _shared_out(self, stock: Tensor, asked: Tensor) -> Tensor:
        """Orders (B, E) of whole packs that lanes carry and suppliers have."""
        shares, upstream = self.project(stock, asked), self.network.upstream
        if not upstream:
            return self._sized(shares, down=True)
        has = torch.minimum(stock[:, :upstream, 0].clamp(min=0) * self._yield, self._capacity)
        most, one = torch.minimum(asked, self._lane_capacity), torch.ones_like(self._size)
        return self._packed(shares, most, one, torch.zeros_like(one), self._sender, has)

    def _sized(self, orders: Tensor, *, down: bool) -> Tensor:
        """Packs and least orders; straight-through."""
        asked, some = orders.detach(), torch.zeros_like(orders)
        packs = asked / self._pack.where(self._pack > 0, 1.0)
        whole = (packs * (1 + EPS) + EPS).floor() if down else packs.round()
        sized = torch.where(self._pack > 0, whole * self._pack, asked)
        if not down:
            raised = torch.maximum(sized, self._least)
            sized = torch.where((self._least > 0) & (asked >= self._least / 2), raised, sized)
        sized = torch.where(sized >= self._least * (1 - EPS), sized, some)
        return orders + (sized - asked)

    def _within(self, orders: Tensor, weight: Tensor, fixed: Tensor, group: Tensor, limits: Tensor) -> Tensor:
        """Orders of which each group's sum of ``weight a + fixed [a > 0]`` is within its limit.

        Args:
            orders: (B, E), which keep all other rules.
            weight: (E,) or (B, E), per unit.
            fixed: (E,), per order.
            group: (E,), number of a lane's group; that of limits is in none.
            limits: (G,).
        """
        fees = _sums(fixed * (orders.detach() > 0), group, len(limits))
        factor = (limits - fees).clamp(min=0) / (_sums(weight * orders, group, len(limits)) + 1e-10)
        factor = F.pad(factor.clamp(max=1), (0, 1), value=1.0)[:, group]
        if not bool((factor < 1).any()):
            return orders
        return self._packed(orders * factor, orders, weight, fixed, group, limits)

    def _packed(
        self, shares: Tensor, orders: Tensor, weight: Tensor, fixed: Tensor, group: Tensor, limits: Tensor
    ) -> Tensor:
        """Shares (B, E) of ``orders``, down to whole packs.

        What that leaves of each group's limit, (G,) or (B, G), goes to the largest remainders, one pack more (or the
        least order) each; and what that leaves, to all of an order that misses the largest part of it.
        """
        less = self._sized(shares, down=True)
        with torch.no_grad():
            unit = torch.where(less > 0, self._pack, torch.maximum(self._pack, self._least))
            rest = (shares - less) * (unit > 0)
            rest = rest * (rest > EPS * (shares + unit))
            more = self._fitting(less, unit * (rest > 0), rest / (unit + 1e-10), weight, fixed, group, limits)
            missing = (orders - less - more).clamp(min=0)
            more += self._fitting(
                less + more, missing, missing / (orders + 1e-10), weight, fixed, group, limits
            )
        return less + more

    def _fitting(
        self, orders: Tensor, more: Tensor, loss: Tensor, weight: Tensor, fixed: Tensor, group: Tensor, limits: Tensor
    ) -> Tensor:  # fmt: skip
        """Of ``more`` to add to orders, (B, E), what each group's limit has room for, the largest ``loss`` first."""
        if not bool((more > 0).any()):
            return more
        count = limits.shape[-1]
        need = (weight * more + fixed * ((orders <= 0) & (more > 0))).double()
        spent = _sums((weight * orders + fixed * (orders > 0)).double(), group, count)
        room = F.pad(limits * (1 + EPS) - spent, (0, 1))  # none for lanes in no group, which lack nothing
        rank = (2 * group - loss).argsort(dim=1, stable=True)
        wanted, own = _sums(need, group, count), group[rank]
        before = F.pad(wanted.cumsum(1) - wanted, (0, 1)).gather(1, own)
        fits = need.gather(1, rank).cumsum(1) - before <= room.gather(1, own)
        return more * torch.zeros_like(more).scatter(1, rank, fits.to(more.dtype))

    def step(self, state: RuledState, action: Tensor, demand: Tensor) -> tuple[RuledState, Tensor]:  # type: ignore[override]
        """As :meth:`Simulator.step`; ``action`` are wishes."""
        inner, period = state
        wanted = action.clamp(min=0) + inner.owed
        sent = self.filled(inner.stock, wanted, period)
        after, cost = self.carried(inner, wanted, sent, demand, self._arrival(period, len(sent)))
        if bool((self._fixed != 0).any()):
            cost = cost + self.received(self._fixed * (sent.detach() > 0)).sum(-1)
        return RuledState(after, period + 1), cost

    def _arrival(self, period: int, batch: int) -> Tensor | None:
        """(B, E, K) shares of this period's orders by column."""
        if self._shares is None:
            return None
        if self.deliveries is None:
            return self._shares[:, 0].expand(batch, -1, -1)
        edges = torch.arange(len(self._shares), device=self.device)
        return self._shares[edges, self.deliveries[period]]


def _sums(values: Tensor, group: Tensor, count: int) -> Tensor:
    """(B, E) -> (B, G): sums of each group of lanes."""
    return values.new_zeros(len(values), count + 1).index_add(1, group, values)[:, :count]


def _least(min_order: float, pack: float) -> float:
    return pack * math.ceil(min_order / pack - 1e-9) if pack else min_order


def _finite(pack: float, capacity: float) -> bool:
    return pack > 0 and capacity < math.inf


def advice(network: Network) -> tuple[str, str]:
    """The estimator to train with on a network, and why."""
    jumps = [e for e in network.edges if e.fixed_cost or e.min_order]
    if jumps:
        lane = f"{jumps[0].source} -> {jumps[0].target}"
        what = "a fixed cost" if jumps[0].fixed_cost else "a least order"
        return "rloo", (
            f"lane {lane} has {what}: the cost jumps where an order begins, which pathwise gradients do not see, so "
            "that orders are sampled and compared on the same demand (score function)"
        )
    packs = [e for e in network.edges if e.pack]
    if packs:
        lane = f"{packs[0].source} -> {packs[0].target}"
        return "pathwise", (
            f"lane {lane} has packs: gradients pass the rounding straight through, with a bias of about half a pack"
        )
    return "pathwise", "the cost is continuous in the orders: pathwise gradients are exact"

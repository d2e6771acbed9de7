"""The one simulator: any network of :mod:`offrl.envs.inventory.spec`, batched, pure, differentiable.

One period, for the demand d of the period and the orders a on all edges, given at once:

    out_n   = sum of the orders that n ships (upstream), or d_n (store)
    y_n     = x_n0 - out_n
    cost_n  = h_n max(y_n, 0) + p_n max(-y_n, 0) + sum_e c_e a_e        (edges e into n)
              profit mode, at stores: h_n max(y_n, 0) - p_n min(x_n0, d_n) + sum_e c_e a_e
    y_n     = max(y_n, 0) at stores whose unmet demand is lost
    x'_n0   = y_n + x_n1,  x'_nk = x_n(k+1);  then x'_n(L_e - 1) += a_e for every edge e into n

Column 0 is on hand at the start of a period, column k arrives in k periods. So the order of period t meets the
demand of t + L, the protection interval is L + 1 periods, and nothing under way is charged. Costs are to be minimised,
in every mode.

Source: arXiv:2306.11246 and its official code (MatiasAlvo/Neural_inventory_control, commit 4d77c14).
Departures: edges are indexed, so that a lane that does not exist has no entry and cannot receive an order; lead times
may differ by scenario; one column (all lead times 1) works; the state is never changed in place. With
``same_period`` a lane of lead time 0 adds to x_n0 of its store before the demand of the same period.
"""

import copy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError, PolicyError


class Parameters(NamedTuple):
    """Numbers that may differ by scenario: each either shared or with a leading axis of scenarios."""

    holding: Tensor
    """h, (N,) or (B, N)."""
    underage: Tensor
    """p, (N,) or (B, N); 0 upstream."""
    edge_cost: Tensor
    """c, (E,) or (B, E)."""
    lead_times: Tensor
    """L, (E,) or (B, E), int64."""

    def rows(self, index: Tensor) -> "Parameters":
        """Those of some scenarios; shared ones stay shared."""
        return Parameters(*(value if value.ndim == 1 else value[index] for value in self))

    @classmethod
    def of(cls, network: Network, dtype: torch.dtype = torch.float32) -> "Parameters":
        """The network's own numbers, shared by all scenarios."""
        return cls(
            torch.tensor([node.holding_cost for node in network.nodes], dtype=dtype),
            torch.tensor([node.underage_cost for node in network.nodes], dtype=dtype),
            torch.tensor([edge.cost for edge in network.edges], dtype=dtype),
            torch.tensor(network.lead_times),
        )


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    """``function.apply``, which torch leaves without types."""
    output: Tensor = function.apply(*inputs)
    return output


class _ByNode(torch.autograd.Function):
    """(B, E) values -> (B, N, D) by a table of edges whose entry E means 0.

    Every edge stands in the table at most once, so that the gradient is a look-up as well: nothing is accumulated,
    unlike in indexing's own gradient, and a second run gives the same bits on every device.
    """

    @staticmethod
    def forward(values: Tensor, table: Tensor, position: Tensor) -> Tensor:
        return F.pad(values, (0, 1))[:, table]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.position = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return F.pad(gradient.flatten(1), (0, 1))[:, ctx.position], None, None


class _Move(torch.autograd.Function):
    """The next state from the old one, what demand left of column 0, and the orders.

    ``slots`` (B or 1, E) is where each order goes in the flattened state, ``layers`` the edges in groups of which no
    two have the same target: within a group no two orders meet, so that no sum depends on the order of threads.
    """

    @staticmethod
    def forward(
        state: Tensor, after: Tensor, action: Tensor, slots: Tensor, layers: tuple[Tensor, ...]
    ) -> Tensor:
        moved = torch.zeros_like(state, memory_format=torch.contiguous_format)
        moved[..., :-1] = state[..., 1:]
        moved[..., 0] += after
        flat, batch = moved.flatten(1), len(state)
        for edges in layers:
            flat.scatter_add_(1, slots[:, edges].expand(batch, -1), action[:, edges])
        return moved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.slots = inputs[3]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (gradient,) = gradients
        of_action = gradient.flatten(1).gather(1, ctx.slots.expand(len(gradient), -1))
        return F.pad(gradient[..., :-1], (1, 0)), gradient[..., 0], of_action, None, None


def _position(table: Tensor, edges: int) -> Tensor:
    """Where each edge stands in the flattened table; its length for an edge that does not."""
    flat = table.flatten()
    position = torch.full((edges + 1,), len(flat), dtype=torch.int64, device=table.device)
    position[flat] = torch.arange(len(flat), device=table.device)
    return position[:edges]


class Simulator:
    """Steps a batch of scenarios of one network; shapes N nodes, E edges, S stores, K columns, orders of ``Network``.

    Args:
        network: what is simulated.
        parameters: costs and lead times by scenario; default: the network's own.
        device: where the tensors live.
        dtype: float32; float64 for tests.
    """

    def __init__(
        self,
        network: Network,
        parameters: Parameters | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if network.extended and type(self) is Simulator:
            raise ConfigError(
                f"{network.name!r} has capacities, prices or owed orders: use extended.simulator_of"
            )
        self.network, self.dtype, self.device = network, dtype, torch.device(device)
        self.shape = (len(network.nodes), network.width)
        self._sent = self._table(network.sources, network.upstream)
        self._received = self._table(network.targets, len(network.nodes))
        self._sent_at = _position(self._sent, len(network.edges))
        self._received_at = _position(self._received, len(network.edges))
        holds = [node.holds for node in network.nodes[: network.upstream]]
        self._holds = torch.tensor(holds, dtype=torch.bool, device=self.device)
        self._sources = torch.tensor(
            network.sources[: network.internal], dtype=torch.int64, device=self.device
        )
        groups = [row[row < len(network.edges)] for row in self._received.T]
        self._layers = tuple(groups)
        self._plain_in = self._received[:, 0].tolist() == list(range(len(network.edges)))
        self._plain_in = self._plain_in and self._received.shape[1] == 1
        self._single_out = network.upstream == 1 and network.sources.count(0) == network.internal
        self._set(parameters if parameters is not None else Parameters.of(network, dtype))

    def _table(self, ends: tuple[int, ...], rows: int) -> Tensor:
        """Edges by node, (rows, most edges of a node), filled up with E: the column of zeros."""
        lists: list[list[int]] = [[] for _ in range(rows)]
        for edge, node in enumerate(ends):
            if node < rows:
                lists[node].append(edge)
        most = max((len(edges) for edges in lists), default=0)
        full = [edges + [len(ends)] * (most - len(edges)) for edges in lists]
        return torch.tensor(full, dtype=torch.int64, device=self.device).reshape(rows, most)

    def _set(self, parameters: Parameters) -> None:
        width = self.shape[1]
        times, network = parameters.lead_times.to(self.device), self.network
        own = torch.tensor([e.lead_time - network.slot(e) for e in network.edges], device=self.device)
        now = [edge.lead_time == 0 and network.slot(edge) < 0 for edge in network.edges]
        self._now = torch.tensor(now, dtype=self.dtype, device=self.device) if any(now) else None
        columns = times - own  # the slot that an order joins
        if any(now):
            columns = (
                columns + torch.tensor(now, device=self.device).long()
            )  # joins the stock before the demand
        if int(columns.min()) < 0 or int(columns.max()) >= width:
            raise ConfigError(
                f"lead times must be in 1 .. {width} (the columns of the state), "
                f"got {int(times.min())} .. {int(times.max())}"
            )
        cast = [value.to(self.device, self.dtype) for value in parameters[:3]]
        self.parameters = Parameters(cast[0], cast[1], cast[2], times)
        self._costly = bool((cast[2] != 0).any())
        targets = torch.tensor(network.targets, device=self.device)
        self._slots = (targets * width + columns).reshape(-1, len(self.network.edges))
        self._last_slot = (
            self._now is None and self._plain_in and times.ndim == 1 and bool((columns == width - 1).all())
        )

    def on(self, parameters: Parameters) -> Self:
        """The same simulator with the parameters of other scenarios."""
        other = copy.copy(self)
        other._set(parameters)
        return other

    def start(self, stock: Tensor) -> Any:
        """The state that begins with a stock (B, N, K): here the stock itself."""
        return stock

    def stock(self, state: Any) -> Tensor:
        """The stock (B, N, K) of a state: here the state itself."""
        stock: Tensor = state
        return stock

    def initial(self, batch: int) -> Tensor:
        """(B, N, K) with the network's initial stock on hand and nothing under way."""
        state = torch.zeros(batch, *self.shape, dtype=self.dtype, device=self.device)
        state[:, :, 0] = torch.tensor([node.initial for node in self.network.nodes], dtype=self.dtype)
        return state

    def shipped(self, action: Tensor) -> Tensor:
        """(B, E) orders -> (B, U) what each upstream node sends."""
        if self._single_out:
            return action[:, : self.network.internal].sum(1, keepdim=True)
        sent = apply(_ByNode, action, self._sent, self._sent_at)
        return sent.squeeze(-1) if sent.shape[-1] == 1 else sent.sum(-1)

    def received(self, values: Tensor) -> Tensor:
        """(B, E) -> (B, N, D): values of the edges into each node, zeros beside."""
        if self._plain_in:
            return values.unsqueeze(-1)
        return apply(_ByNode, values, self._received, self._received_at)

    def step(self, state: Tensor, action: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """One period, without side effects.

        Args:
            state: (B, N, K), units; column 0 on hand, column k arrives in k periods.
            action: (B, E), units ordered on each edge, not negative. It must be feasible: nothing is clipped here, see
                :meth:`project` and :meth:`check`.
            demand: (B, S), units.

        Returns:
            The next state, and the cost of each node, (B, N), money of this period.
        """
        upstream, later = self.network.upstream, action
        outflow = torch.cat([self.shipped(action), demand], 1) if upstream else demand
        if self._now is not None:
            state, later = self.delivered(state, action)
        on_hand = state[..., 0]
        left = on_hand - outflow
        over = left.clamp(min=0)
        cost = self._cost(on_hand, left, over, action)
        after = left
        if self.network.lost_sales:
            after = torch.cat([left[:, :upstream], over[:, upstream:]], 1) if upstream else over
        if self._last_slot and self.shape[1] > 1:
            first = (after + state[..., 1]).unsqueeze(-1)
            return torch.cat([first, state[..., 2:], action.unsqueeze(-1)], -1), cost
        moved = apply(_Move, state, after, later, self._slots, self._layers)
        return moved, cost

    def delivered(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The stock (B, N, K) with what comes at once, by lanes of lead time 0, and the orders that come later."""
        assert self._now is not None
        first = state[..., :1] + self.at_once(action).unsqueeze(-1)
        return torch.cat([first, state[..., 1:]], -1), action * (1 - self._now)

    def at_once(self, action: Tensor) -> Tensor:
        """(B, N) what lanes of lead time 0 bring before the demand of the same period."""
        return self.received(action if self._now is None else action * self._now).sum(-1)

    def _cost(self, on_hand: Tensor, left: Tensor, over: Tensor, action: Tensor) -> Tensor:
        p = self.parameters
        if self.network.profit:
            cost = torch.addcmul(p.holding * over, p.underage, over - on_hand)
        else:
            cost = torch.addcmul(p.holding * over, p.underage, over - left)
        if self._costly:
            cost = cost + self.received(p.edge_cost * action).sum(-1)
        return cost

    def project(self, state: Tensor, action: Tensor) -> Tensor:
        """``action`` made feasible: negative orders become 0, and where a node is asked for more than it has on hand,
        all its shipments shrink by one factor. A centre that cannot hold ships all it has.
        """
        network = self.network
        action = action.clamp(min=0)
        if not network.upstream:
            return action
        on_hand = state[:, : network.upstream, 0].clamp(min=0)
        scale = on_hand / (self.shipped(action) + 1e-10)
        scale = torch.where(self._holds, scale.clamp(max=1), scale)
        inside = action[:, : network.internal] * scale[:, self._sources]
        return torch.cat([inside, action[:, network.internal :]], 1)

    def check(self, state: Tensor, action: Tensor, tolerance: float = 1e-4) -> None:
        """Refuse orders that cannot be shipped.

        Raises:
            PolicyError: a negative or not finite order, or a node asked for more than it has on hand; names both.
        """
        action, state = action.detach(), state.detach()
        if not bool((action >= 0).all()):  # also true for NaN
            row, edge = torch.nonzero(~(action >= 0))[0].tolist()
            lane = self.network.edges[edge]
            raise PolicyError(
                f"order {action[row, edge].item():.6g} on lane {lane.source!r} -> {lane.target!r} in scenario {row}; "
                "orders must be 0 or more"
            )
        excess = self.shipped(action) - state[:, : self.network.upstream, 0].clamp(min=0)
        if excess.numel() and float(excess.max()) > tolerance * (1 + float(action.max())):
            row, node = divmod(int(excess.argmax()), self.network.upstream)
            raise PolicyError(
                f"{self.network.nodes[node].name!r} is asked for {float(excess[row, node]):.6g} units more than it has "
                f"on hand in scenario {row}; pass feasibility='project' to shrink such orders"
            )

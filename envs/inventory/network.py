"""The one simulator: any network of :mod:`offrl.envs.inventory.spec`, batched, pure, differentiable.

One period, for the demand d of the period and the orders a on all edges, given at once:

    out_n   = sum of the orders that n ships (upstream), or d_n (store)
    y_n     = x_n0 - out_n
    cost_n  = h_n max(y_n, 0) + p_n max(-y_n, 0) + sum_e c_e a_e      profit mode: h_n max(y_n, 0) - p_n min(x_n0, d_n) + ...
    y_n     = max(y_n, 0) at stores whose unmet demand is lost
    x'_n0   = y_n + x_n1,  x'_nk = x_n(k+1);  then x'_n(L_e - 1) += a_e for every edge e into n

Column 0 is on hand at the start of a period, column k arrives in k periods. So the order of period t meets the demand of
t + L, the protection interval is L + 1 periods, and nothing under way is charged. Costs are to be minimised, in every mode.

Source: arXiv:2306.11246 and its official code (MatiasAlvo/Neural_inventory_control, commit 4d77c14).
Departures: edges are indexed, so that a lane that does not exist has no entry and cannot receive an order; lead times may
differ by scenario; one column (all lead times 1) works; the state is never changed in place.
"""

import copy
from typing import NamedTuple, Self

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
        self.network, self.dtype, self.device = network, dtype, torch.device(device)
        self.shape = (len(network.nodes), network.width)
        self._sent = self._table(network.sources, network.upstream)
        self._received = self._table(network.targets, len(network.nodes))
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
        times = parameters.lead_times.to(self.device)
        if times.numel() and (int(times.min()) < 1 or int(times.max()) > width):
            raise ConfigError(
                f"lead times must be in 1 .. {width} (the columns of the state), got {int(times.min())} .. {int(times.max())}"
            )
        cast = [value.to(self.device, self.dtype) for value in parameters[:3]]
        self.parameters = Parameters(cast[0], cast[1], cast[2], times)
        self._costly = bool((cast[2] != 0).any())
        slots = F.one_hot(F.pad(times - 1, (0, 1)), width).to(self.dtype)  # the added edge carries zeros
        self._slots = slots[..., self._received, :]  # (N, D, K) or (B, N, D, K)
        self._last_slot = self._plain_in and times.ndim == 1 and bool((times == width).all())

    def on(self, parameters: Parameters) -> Self:
        """The same simulator with the parameters of other scenarios."""
        other = copy.copy(self)
        other._set(parameters)
        return other

    def initial(self, batch: int) -> Tensor:
        """(B, N, K) with the network's initial stock on hand and nothing under way."""
        state = torch.zeros(batch, *self.shape, dtype=self.dtype, device=self.device)
        state[:, :, 0] = torch.tensor([node.initial for node in self.network.nodes], dtype=self.dtype)
        return state

    def shipped(self, action: Tensor) -> Tensor:
        """(B, E) orders -> (B, U) what each upstream node sends."""
        if self._single_out:
            return action[:, : self.network.internal].sum(1, keepdim=True)
        return F.pad(action, (0, 1))[:, self._sent].sum(-1)

    def received(self, values: Tensor) -> Tensor:
        """(B, E) -> (B, N, D): values of the edges into each node, zeros beside."""
        return values.unsqueeze(-1) if self._plain_in else F.pad(values, (0, 1))[:, self._received]

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
        upstream = self.network.upstream
        outflow = torch.cat([self.shipped(action), demand], 1) if upstream else demand
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
        return self._move(state, after, action), cost

    def _cost(self, on_hand: Tensor, left: Tensor, over: Tensor, action: Tensor) -> Tensor:
        p = self.parameters
        if self.network.profit:
            cost = torch.addcmul(p.holding * over, p.underage, over - on_hand)
        else:
            cost = torch.addcmul(p.holding * over, p.underage, over - left)
        if self._costly:
            cost = cost + self.received(p.edge_cost * action).sum(-1)
        return cost

    def _move(self, state: Tensor, after: Tensor, action: Tensor) -> Tensor:
        """The pipelines one column on, with the new orders in their slots."""
        arriving = self.received(action)
        shifted = after.unsqueeze(-1)
        if self.shape[1] > 1:
            first = (after + state[..., 1]).unsqueeze(-1)
            shifted = torch.cat([first, state[..., 2:], torch.zeros_like(first)], -1)
        if self._received.shape[1] == 1:
            return torch.addcmul(shifted, arriving, self._slots[..., 0, :])
        return shifted + (arriving.unsqueeze(-1) * self._slots).sum(-2)

    def project(self, state: Tensor, action: Tensor) -> Tensor:
        """The nearest thing to ``action`` that can be shipped: negative orders become 0, and where a node is asked for more
        than it has on hand, all its shipments shrink by one factor. A centre that cannot hold ships all it has.
        """
        network = self.network
        action = action.clamp(min=0)
        if not network.upstream:
            return action
        on_hand = state[:, : network.upstream, 0].clamp(min=0)
        scale = on_hand / (self.shipped(action) + 1e-10)
        holds = torch.tensor([node.holds for node in network.nodes[: network.upstream]], device=self.device)
        scale = torch.where(holds, scale.clamp(max=1), scale)
        sources = torch.tensor(network.sources[: network.internal], device=self.device)
        inside = action[:, : network.internal] * scale[:, sources]
        return torch.cat([inside, action[:, network.internal :]], 1)

    def check(self, state: Tensor, action: Tensor, tolerance: float = 1e-4) -> None:
        """Refuse orders that cannot be shipped.

        Raises:
            PolicyError: a negative or not finite order, or a node asked for more than it has on hand; names both.
        """
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
                f"{self.network.nodes[node].name!r} is asked for {float(excess[row, node]):.6g} units more than it has on hand "
                f"in scenario {row}; pass feasibility='project' to shrink such orders"
            )

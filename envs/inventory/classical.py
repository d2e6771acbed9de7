"""Classical policies, trainable or fixed: base-stock and its kin, and an oracle.

    IP_n              sum of the columns of node n: on hand (backorders count negative) and on the way
    base_stock        q_n = (S_n - IP_n)^+
    capped            q_n = min((S_n - IP_n)^+, r_n)
    echelon           q_n = (S_n - EP_n)^+,  EP_n = IP of n and of all nodes that it supplies,
                      S_n = v_n + the levels of those
    constant order    q_n = r_n
    (s, S)            q_n = (S_n - IP_n) [IP_n <= s_n]

Levels are softplus of a free number (softplus(u + 10) for v), so that they start where some orders are
placed: a policy that orders nothing has no gradient. Wishes pass through the proportional layer, which is
min(q, stock) where a supplier has one lane. Every node must have one supplier.

Source: arXiv:2306.11246 and its official code; Clark & Scarf 1960; Xin 2021 (capped); Zipkin 2008 (Myopic-2).
Departures: one level a node where the official code has one number for the single store; echelon levels on trees.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.scenarios import Observation, Scenarios
from offrl.envs.inventory.shipping import Shipping
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError

START = 10.0  # units, of a level or cap before training


def inverse_softplus(values: Tensor) -> Tensor:
    """The u with softplus(u) = value, for values above 0."""
    return values + torch.log(-torch.expm1(-values))


def mean_demand(network: Network, facts: DemandFacts) -> Tensor:
    """Mean demand behind each node, (N,): of a store itself, upstream of those that it supplies; at least 0.01."""
    return torch.tensor(network.behind(facts.means)).clamp(min=0.01)


def _given(**options: Any) -> dict[str, Any]:
    """Options for the policy's file; ``normalize`` only where it is on, as files had none before."""
    return {key: value for key, value in options.items() if key != "normalize" or value}


class OnePerNode(InventoryPolicy):
    """One wish a node, sent to its only supplier."""

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], **options: Any
    ) -> None:
        super().__init__(network, facts, generators, **options)
        if len(network.edges) != len(network.nodes):
            raise ConfigError(
                f"policy {self.name} needs one supplier for each node; {network.name} has {len(network.edges)} lanes "
                f"for {len(network.nodes)} nodes"
            )
        self.shipping = Shipping(network, self.device)
        served = mean_demand(network, facts) if options.get("normalize") else torch.ones(len(network.nodes))
        self.register_buffer("unit", served.to(self.device), persistent=False)
        self.register_buffer("targets", torch.tensor(network.targets, device=self.device), persistent=False)

    targets: Tensor
    unit: Tensor
    """(N,), what levels are counted in: 1, or with ``normalize`` the mean demand behind a node."""

    def cover(self, more: float) -> Tensor:
        """Levels to start from with ``normalize``, (N,): lead time, one period and ``more`` of mean demand."""
        times = torch.zeros(len(self.network.nodes))
        times[list(self.network.targets)] = torch.tensor(self.network.lead_times, dtype=torch.float32)
        return times + 1 + more

    def free(self, start: Tensor) -> nn.Parameter:
        """The free numbers of all seeds whose softplus is ``start``, (S, N)."""
        return nn.Parameter(inverse_softplus(start).to(self.device).repeat(self.copies, 1))

    def values(self, option: str, start: float | Tensor = START) -> nn.Parameter:
        """Free numbers from an option: one value a node, one for all, or ``start``."""
        given = self.options.get(option)
        given = start if given is None else given
        values = self.counted(option, given).expand(len(self.network.nodes))
        if self.options.get(option) is not None:
            values = values / self.unit.cpu()
        if not bool((values > 0).all()):
            raise ConfigError(f"policy {self.name}: {option} must be above 0, got {given}")
        return self.free(values.clone())

    def counted(self, option: str, given: Any, least: int = 1) -> Tensor:
        """Numbers of an option: one a node, or ``least`` of them for all."""
        values, nodes = torch.as_tensor(given, dtype=torch.float32), len(self.network.nodes)
        if values.numel() not in (least, nodes):
            raise ConfigError(
                f"policy {self.name}: {option} has {values.numel()} numbers for {nodes} nodes; give one a node"
            )
        return values

    def ship(self, wishes: Tensor, seen: Observation) -> Tensor:
        """Wishes of the nodes, (B, N) >= 0 -> orders (B, E)."""
        desired = wishes[:, self.targets]
        return self.shipping.proportional(seen.stock[:, : self.network.upstream, 0], desired)


class BaseStock(OnePerNode):
    """Order up to a level; optimal for one store with backlog."""

    name = "base_stock"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], levels: Any = None,
        normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, **_given(levels=levels, normalize=normalize))
        self.level = self.values("levels", self.cover(1) if normalize else START)

    def logits(self, seen: Observation) -> Tensor:
        """Levels before softplus, (B, N)."""
        return self.by_seed(self.level, seen)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """(S - IP)^+."""
        level = F.softplus(logits) * self.unit
        return self.ship((level - seen.stock.sum(-1)).clamp(min=0), seen)


class CappedBaseStock(OnePerNode):
    """Order up to a level, at most a cap; strong with lost sales."""

    name = "capped_base_stock"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        levels: Any = None, caps: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, levels=levels, caps=caps)
        self.level, self.cap = self.values("levels"), self.values("caps")

    def logits(self, seen: Observation) -> Tensor:
        """Levels, then caps, before softplus, (B, 2 N)."""
        return self.by_seed(torch.cat([self.level, self.cap], 1), seen)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Min((S - IP)^+, r)."""
        level, cap = F.softplus(logits).chunk(2, 1)
        return self.ship(torch.minimum((level - seen.stock.sum(-1)).clamp(min=0), cap), seen)


class EchelonBaseStock(OnePerNode):
    """Order up to a level of the stock at a node and downstream of it; optimal for serial systems with backlog.

    ``levels`` may be given; above each node's level must be the sum of those of the nodes that it supplies.
    """

    name = "echelon_base_stock"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], levels: Any = None
    ) -> None:
        super().__init__(network, facts, generators, levels=levels)
        self.register_buffer("below", self._below(network).to(self.device), persistent=False)
        steps = torch.full((len(network.nodes),), START)
        if levels is not None:
            own = self.counted("levels", levels, len(network.nodes)).reshape(-1)
            steps = torch.linalg.solve(self.below, own.to(self.device))
            if not bool((steps > 0).all()):
                raise ConfigError(
                    f"policy {self.name}: each level must exceed those of the nodes below it, got {levels}"
                )
        else:
            steps = F.softplus(steps)
        self.step = self.free(steps)

    below: Tensor
    """(N, N): 1 where the column's node is the row's or is downstream of it."""

    @staticmethod
    def _below(network: Network) -> Tensor:
        below = torch.eye(len(network.nodes))
        edges = [
            (s, t) for s, t in zip(network.sources, network.targets, strict=True) if s < len(network.nodes)
        ]
        for _ in network.nodes:
            for source, target in edges:
                below[source] = torch.maximum(below[source], below[target])
        return below

    def logits(self, seen: Observation) -> Tensor:
        """Steps between levels before softplus, (B, N)."""
        return self.by_seed(self.step, seen)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """(S - EP)^+."""
        gap = F.softplus(logits) - seen.stock.sum(
            -1
        )  # of the sums below, the difference of levels and positions
        return self.ship((gap @ self.below.T).clamp(min=0), seen)


class ConstantOrder(OnePerNode):
    """The same order every period."""

    name = "constant_order"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], amounts: Any = None
    ) -> None:
        super().__init__(network, facts, generators, amounts=amounts)
        self.amount = self.values("amounts", START / 4)

    def logits(self, seen: Observation) -> Tensor:
        """Amounts before softplus, (B, N)."""
        return self.by_seed(self.amount, seen)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """R."""
        return self.ship(F.softplus(logits), seen)


class MinMax(OnePerNode):
    """(s, S): order up to S when the position is at or below s.

    The rule jumps at s, which pathwise gradients cannot see: training is biased. The gradient with respect to
    s is that of a logistic step one unit wide, in the backward pass only; that with respect to S is the one
    between jumps.
    """

    name = "s_S"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        reorder_points: Any = None, levels: Any = None, normalize: bool = False,
    ) -> None:  # fmt: skip
        options = _given(reorder_points=reorder_points, levels=levels, normalize=normalize)
        super().__init__(network, facts, generators, **options)
        self.point = self.values("reorder_points", self.cover(0) if normalize else START / 2)
        self.level = self.values("levels", self.cover(2) if normalize else START)
        if not bool((self.point <= self.level).all()):
            raise ConfigError(f"policy {self.name}: no reorder point may exceed its level")

    def logits(self, seen: Observation) -> Tensor:
        """s, then S, before softplus, (B, 2 N)."""
        return self.by_seed(torch.cat([self.point, self.level], 1), seen)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """(S - IP) where IP <= s."""
        point, level = (F.softplus(half) * self.unit for half in logits.chunk(2, 1))
        position = seen.stock.sum(-1)
        soft = (point - position.detach()).sigmoid()
        now = (position <= point).to(soft.dtype) + soft - soft.detach()
        return self.ship((level - position).clamp(min=0) * now, seen)


class JustInTime(InventoryPolicy):
    """Order what will be sold when it arrives: an oracle, made from the scenarios that it will be judged on.

    A node upstream orders for the stores that it supplies, each through the lane of shortest way; it may ship
    what it does not have yet in the first periods. No parameters. Negative demand counts as none.
    """

    name, admissible, trainable = "just_in_time", False, False

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        scenarios: Scenarios | None = None,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators)
        if scenarios is None:
            raise ConfigError("just_in_time reads the future: it is made by just_in_time(scenarios)")
        if len(network.edges) > 1 and scenarios.parameters.lead_times.ndim > 1:
            raise ConfigError("just_in_time needs lead times that all scenarios share, except for one store")
        self.scenarios = scenarios
        self.ways = self._ways(network)

    @staticmethod
    def _ways(network: Network) -> list[list[tuple[int, int]]]:
        """For each edge, the stores that it serves and the periods from its order to their sale."""
        ways: list[list[tuple[int, int]]] = [[] for _ in network.edges]
        for store in range(network.upstream, len(network.nodes)):
            place, done = store, 0
            while place < len(network.nodes):
                lanes = [e for e, target in enumerate(network.targets) if target == place]
                edge = min(lanes, key=lambda e: network.edges[e].lead_time)
                done += network.edges[edge].lead_time
                ways[edge].append((store - network.upstream, done))
                place = network.sources[edge]
        return ways

    def logits(self, seen: Observation) -> Tensor:
        """The orders, (B, E)."""
        demands, last = self.scenarios.demands, len(self.scenarios.demands) - 1
        times, now = seen.parameters.lead_times, seen.period + self.scenarios.history
        if times.ndim > 1:
            at = (now + times[:, 0]).clamp(max=last)
            return demands[at, torch.arange(len(at)), :].clamp(min=0)
        columns = []
        for stores in self.ways:
            columns.append(demands.new_zeros(demands.shape[1]))
            for store, ahead in stores:
                columns[-1] = columns[-1] + demands[min(now + ahead, last), :, store].clamp(min=0)
        return torch.stack(columns, 1)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """As they are."""
        return logits


def just_in_time(scenarios: Scenarios) -> JustInTime:
    """The oracle for these scenarios."""
    facts = DemandFacts(means=(), stds=())
    return JustInTime(scenarios.network, facts, [torch.Generator()], scenarios=scenarios)


class OrderTable(InventoryPolicy):
    """Orders by state from a dynamic program, for one store with lost sales and whole-number Poisson demand.

    ``kind`` is ``optimal`` or ``myopic_2``. The table is computed when it is first asked.
    """

    name, trainable = "optimal", False
    kind = "optimal"

    def __init__(self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator]) -> None:
        super().__init__(network, facts, generators)
        if len(network.edges) != 1 or not network.lost_sales or network.profit:
            raise ConfigError(f"policy {self.name} is for one store with lost sales, in cost mode")
        if abs(facts.stds[0] ** 2 - facts.means[0]) > 1e-6:
            raise ConfigError(f"policy {self.name} is for Poisson demand")
        if not facts.stationary or network.edges[0].receipts:
            raise ConfigError(
                f"policy {self.name} is for demand without a season and deliveries that do not vary"
            )

    @cached_property
    def table(self) -> Any:
        """The solver's ``Optimum``, or one with the orders of Myopic-2."""
        from offrl.envs.inventory.solvers.demand import parse_demand
        from offrl.envs.inventory.solvers.lost_sales import LostSales, Optimum, optimum
        from offrl.envs.inventory.solvers.lost_sales_policies import myopic_orders

        store, edge = self.network.nodes[0], self.network.edges[0]
        problem = LostSales(
            demand=parse_demand(f"poisson:{self.facts.means[0]:.12g}"), lead_time=edge.lead_time,
            holding=store.holding_cost, penalty=store.underage_cost,
        )  # fmt: skip
        if self.kind == "optimal":
            return optimum(problem)
        return Optimum(
            name=self.kind, lower=0.0, upper=0.0, orders=myopic_orders(problem, 2), top=problem.most,
            lead_time=edge.lead_time, step=1.0, sweeps=0,
        )  # fmt: skip

    def logits(self, seen: Observation) -> Tensor:
        """The orders, (B, 1)."""
        pipeline = seen.stock[:, 0, : self.network.edges[0].lead_time]
        orders = self.table.order(np.asarray(pipeline.detach().cpu(), dtype=np.float64))
        return torch.as_tensor(orders, dtype=seen.stock.dtype, device=seen.stock.device)[:, None]

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """As they are."""
        return logits


class Myopic2(OrderTable):
    """Minimizes the cost of the first two periods that an order changes."""

    name = kind = "myopic_2"

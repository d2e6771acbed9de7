"""What a supply network is: nodes, lanes between them, costs; checked when it is built.

Units: stock and orders in units of product, lead times in whole periods, costs in money per unit (holding: per unit and
period).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from offrl.errors import ConfigError

OUTSIDE = "outside"
"""The supplier without limit: the source of lanes that enter the network. A second one is called ``outside NAME``."""
KINDS = ("echelon", "warehouse", "store")
"""Upstream to downstream; only stores meet customers. Nodes are kept in this order."""

Kind = Literal["echelon", "warehouse", "store"]


def from_outside(source: str) -> bool:
    """Whether a lane with this source enters the network."""
    return source == OUTSIDE or source.startswith(f"{OUTSIDE} ")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A place that holds stock."""

    name: str
    kind: Kind
    holding_cost: float = 0.0
    """h, per unit left at the end of a period."""
    underage_cost: float = 0.0
    """p, stores only: per unit short; in profit mode the revenue per unit sold."""
    holds: bool = True
    """False: a transshipment centre, whose policy ships all that is on hand."""
    capacity: float = math.inf
    """Most units that the node sends in a period (production nodes)."""
    yield_: float = 1.0
    """Units sent per unit of stock used up, in (0, 1] (production nodes)."""
    operating_cost: float = 0.0
    """Per unit of stock used up (production nodes)."""
    price: float = 0.0
    """Stores: revenue per unit sold, on top of the underage cost."""
    initial: float = 0.0
    """On hand before the first period, where the scenarios do not draw it."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A lane: what its target orders from its source."""

    source: str
    target: str
    lead_time: int
    """L: the order of period t meets the demand of period t + L."""
    cost: float = 0.0
    """Procurement, per unit ordered."""
    transit_cost: float = 0.0
    """Per unit and period under way."""
    price: float = 0.0
    """What the target pays its source for a unit; in the sum over nodes it cancels, unless the source is outside."""
    capacity: float = math.inf
    """Most units in a period."""
    fixed_cost: float = 0.0
    """Per order of any size."""
    min_order: float = 0.0
    """Least units of an order that is placed."""
    pack: float = 0.0
    """Orders are multiples of this; 0: any amount."""
    calendar: tuple[int, ...] = ()
    """1 for periods in which orders are placed and 0 for others, over and over; empty: always."""
    receipts: tuple[tuple[float, ...], ...] = ()
    """Ways in which an order may arrive, all as likely: the shares that come after 1, 2, ... periods; empty: all of it
    after ``lead_time``."""
    truck: str = ""
    """Name of a limit of ``Network.trucks`` that it shares with other lanes."""
    size: float = 1.0
    """Of a unit, in what the truck's limit counts."""

    @property
    def ruled(self) -> bool:
        """Whether orders on it are more than wishes: rules of size and day, fixed costs, deliveries that vary."""
        return bool(self.fixed_cost or self.min_order or self.pack or self.calendar or self.receipts)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A directed network without cycles. Nodes are sorted echelons, warehouses, stores; edges by source, then target,
    and those from outside last, by target. All tensors of the package follow these two orders.

    Raises:
        ConfigError: a rule is broken; the message names the node or lane.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    lost_sales: bool
    """True: unmet demand is lost; False: it waits as negative stock."""
    profit: bool = False
    """True: a store's cost is holding minus underage_cost (a margin) times sales."""
    width: int = 0
    """Columns K of the state; 0: the longest lead time."""
    ships_before_receiving: bool = False
    """True (or-gym): a node ships from what it held before this period's deliveries, pays holding on them too, and a
    lead time of 0 is possible to a node that ships."""
    owes_orders: bool = False
    """True (or-gym): the part of an order that was not filled is added to the next one."""
    order_penalty: tuple[float, ...] = ()
    """Per unit of an order that was not filled, one value an edge; empty: none."""
    discount: float = 1.0
    same_period: bool = False
    """True: a lead time of 0 is possible into a store: order, delivery, then demand."""
    budget: float = math.inf
    """Most money in a period for orders from outside, fixed costs included."""
    trucks: tuple[tuple[str, float], ...] = ()
    """Limits that lanes share: name, and most of size times units in a period over all lanes that name it."""
    widths: tuple[int, ...] = field(default=(), repr=False)
    """Columns in use by node; empty: the longest lead time of the nodes of that kind."""

    def __post_init__(self) -> None:
        order = sorted(self.nodes, key=lambda node: KINDS.index(node.kind) if node.kind in KINDS else 0)
        object.__setattr__(self, "nodes", tuple(order))
        place = {node.name: i for i, node in enumerate(order)}
        check(self)
        edges = sorted(self.edges, key=lambda e: (place.get(e.source, len(order)), place[e.target], e.source))
        object.__setattr__(self, "edges", tuple(edges))
        longest = max(max(self.slot(edge) + 1, *map(len, edge.receipts), 0) for edge in edges)
        object.__setattr__(self, "width", max(self.width, longest, *self.widths, 1))
        if not self.widths:
            kinds = {node.name: node.kind for node in order}
            widest = {
                k: max((max(self.slot(e) + 1, 1) for e in edges if kinds[e.target] == k), default=1)
                for k in KINDS
            }
            object.__setattr__(self, "widths", tuple(widest[node.kind] for node in order))

    def slot(self, edge: Edge) -> int:
        """The column that an order joins: L - 1, or L at a node that ships before it receives.

        -1: on hand before the demand of the same period.
        """
        return edge.lead_time - (0 if self._late(edge.target) else 1)

    def _late(self, name: str) -> bool:
        return self.ships_before_receiving and any(edge.source == name for edge in self.edges)

    @cached_property
    def stores(self) -> int:
        """S; stores are the last S nodes."""
        return sum(node.kind == "store" for node in self.nodes)

    @cached_property
    def upstream(self) -> int:
        """Number of nodes that are not stores: the first ones."""
        return len(self.nodes) - self.stores

    @cached_property
    def internal(self) -> int:
        """Number of edges between nodes: the first ones; the others come from outside."""
        return sum(not from_outside(edge.source) for edge in self.edges)

    @cached_property
    def place(self) -> dict[str, int]:
        """Index of each node."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Source of each edge, N for outside."""
        return tuple(self.place.get(edge.source, len(self.nodes)) for edge in self.edges)

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Target of each edge."""
        return tuple(self.place[edge.target] for edge in self.edges)

    def behind(self, stores: Sequence[float]) -> list[float]:
        """Sums over the stores that each node serves, once for every way to them; a store's own value for itself."""
        lanes: dict[int, list[int]] = {}
        for source, target in zip(self.sources[: self.internal], self.targets, strict=False):
            lanes.setdefault(source, []).append(target)
        known = dict(enumerate(stores, self.upstream))

        def of(node: int) -> float:
            if node not in known:
                known[node] = sum(of(target) for target in lanes.get(node, ()))
            return known[node]

        return [of(node) for node in range(len(self.nodes))]

    @property
    def lead_times(self) -> tuple[int, ...]:
        """L of each edge."""
        return tuple(edge.lead_time for edge in self.edges)

    @property
    def extended(self) -> bool:
        """Whether anything beyond holding, underage and procurement costs happens here."""
        plain = all(
            n.capacity == math.inf and n.yield_ == 1 and n.operating_cost == 0 and n.price == 0
            for n in self.nodes
        )
        free = all(e.transit_cost == 0 and e.price == 0 and e.capacity == math.inf for e in self.edges)
        orders = self.owes_orders or bool(self.order_penalty)
        return not (plain and free) or orders or self.ships_before_receiving or self.ruled

    @property
    def ruled(self) -> bool:
        """Whether orders must keep rules of size, day or budget, cost something each, or arrive as deliveries vary."""
        return self.budget < math.inf or bool(self.trucks) or any(edge.ruled for edge in self.edges)


def check(network: Network) -> None:
    """Every rule that a network must keep.

    Raises:
        ConfigError: the first one that is broken.
    """
    _check_nodes(network)
    _check_edges(network)
    _check_paths(network)
    if not 0 < network.discount <= 1:
        raise ConfigError(f"discount must be in (0, 1], got {network.discount}")
    if not network.budget > 0:
        raise ConfigError(f"budget must be above 0, got {network.budget}")
    limits = dict(network.trucks)
    for name, limit in limits.items():
        if not limit > 0:
            raise ConfigError(f"truck {name!r}: its limit must be above 0, got {limit}")
    for edge in network.edges:
        if edge.truck and edge.truck not in limits:
            raise ConfigError(
                f"lane {edge.source!r} -> {edge.target!r}: no truck is called {edge.truck!r}; "
                f"there are {', '.join(limits) or 'none'}"
            )
    if network.order_penalty and len(network.order_penalty) != len(network.edges):
        raise ConfigError(
            f"order_penalty has {len(network.order_penalty)} values for {len(network.edges)} lanes"
        )
    for edge, penalty in zip(network.edges, network.order_penalty, strict=False):
        _amount(penalty, f"lane {edge.source!r} -> {edge.target!r}: penalty")


def _check_nodes(network: Network) -> None:
    seen: set[str] = set()
    for node in network.nodes:
        where = f"node {node.name!r}"
        if node.name in seen:
            raise ConfigError(f"{where} appears twice; names must differ")
        if from_outside(node.name):
            raise ConfigError(
                f"{where}: this name is kept for the supplier without limit; choose another name"
            )
        if node.kind not in KINDS:
            raise ConfigError(f"{where}: kind must be one of {', '.join(KINDS)}, got {node.kind!r}")
        seen.add(node.name)
        for name in ("holding_cost", "underage_cost", "operating_cost", "price", "initial"):
            _amount(getattr(node, name), f"{where}: {name}")
        if not node.capacity > 0:
            raise ConfigError(f"{where}: capacity must be above 0, got {node.capacity}")
        if not 0 < node.yield_ <= 1:
            raise ConfigError(f"{where}: yield must be in (0, 1], got {node.yield_}")
        if node.underage_cost and node.kind != "store":
            raise ConfigError(
                f"{where}: underage_cost is for stores, this is a {node.kind} that no customer sees"
            )
    if not any(node.kind == "store" for node in network.nodes):
        raise ConfigError("the network has no store: give at least one node of kind 'store'")


def _amount(value: float, what: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{what} must be a finite number, got {value!r}")
    if value < 0:
        raise ConfigError(f"{what} must not be negative, got {value}")


def _check_edges(network: Network) -> None:
    kinds = {node.name: node.kind for node in network.nodes}
    seen: set[tuple[str, str]] = set()
    for edge in network.edges:
        where = f"lane {edge.source!r} -> {edge.target!r}"
        for name in (edge.source, edge.target):
            if name not in kinds and not (name == edge.source and from_outside(name)):
                raise ConfigError(f"{where}: no node is called {name!r}; there are {', '.join(kinds)}")
        if edge.source == edge.target:
            raise ConfigError(f"{where}: a node cannot supply itself")
        if (edge.source, edge.target) in seen:
            raise ConfigError(f"{where} appears twice; merge the two or give one another source")
        seen.add((edge.source, edge.target))
        if kinds.get(edge.source) == "store":
            raise ConfigError(
                f"{where}: a store only sells; make {edge.source!r} a warehouse with a store behind it"
            )
        _check_lead_time(network, edge, where)
        _amount(edge.cost, f"{where}: cost")
        _amount(edge.transit_cost, f"{where}: transit_cost")
        _amount(edge.price, f"{where}: price")
        if not edge.capacity > 0:
            raise ConfigError(f"{where}: capacity must be above 0, got {edge.capacity}")
        _check_rules(edge, where)


def _check_rules(edge: Edge, where: str) -> None:
    for name in ("fixed_cost", "min_order", "pack", "size"):
        _amount(getattr(edge, name), f"{where}: {name}")
    least = (
        max(edge.pack * math.ceil(edge.min_order / edge.pack - 1e-9), edge.pack)
        if edge.pack
        else edge.min_order
    )
    if least > edge.capacity:
        raise ConfigError(
            f"{where}: the smallest order is {least:g} but capacity is {edge.capacity:g}, so that none is possible"
        )
    if edge.calendar and (set(edge.calendar) - {0, 1} or not any(edge.calendar)):
        raise ConfigError(f"{where}: calendar must be of 0 and 1, with a 1 at least, got {edge.calendar}")
    for shares in edge.receipts:
        if not shares or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ConfigError(
                f"{where}: the shares of a delivery must be 0 or more and sum to 1, got {shares}"
            )


def _check_lead_time(network: Network, edge: Edge, where: str) -> None:
    if not isinstance(edge.lead_time, int) or isinstance(edge.lead_time, bool):
        raise ConfigError(f"{where}: lead_time must be a whole number of periods, got {edge.lead_time!r}")
    if edge.lead_time < 0:
        raise ConfigError(f"{where}: lead_time must not be negative, got {edge.lead_time}")
    if network.slot(edge) < 0 and network.same_period:
        if any(other.source == edge.target for other in network.edges):
            raise ConfigError(
                f"{where}: lead_time 0 is for stores; what {edge.target!r} orders now it can ship next period: give 1"
            )
    elif network.slot(edge) < 0:
        raise ConfigError(
            f"{where}: lead_time must be 1 or more, got 0: lead time 1 already meets the next period's demand"
        )


def _check_paths(network: Network) -> None:
    """No cycles; every node is supplied, from outside in the end; every node upstream supplies somebody."""
    suppliers: dict[str, list[str]] = {node.name: [] for node in network.nodes}
    for edge in network.edges:
        suppliers[edge.target].append(edge.source)
    done = {edge.source for edge in network.edges if from_outside(edge.source)}
    for start in suppliers:
        _follow(start, suppliers, done, [])
    shipping = {edge.source for edge in network.edges}
    for node in network.nodes:
        if not suppliers[node.name]:
            raise ConfigError(
                f"{node.kind} {node.name!r} cannot be reached: no lane leads to it; "
                "add one, for instance from 'outside'"
            )
        if node.kind != "store" and node.name not in shipping:
            raise ConfigError(f"{node.kind} {node.name!r} supplies nobody; add a lane from it or remove it")


def _follow(node: str, suppliers: dict[str, list[str]], done: set[str], path: list[str]) -> None:
    if node in path:
        circle = [*path[path.index(node) :], node]
        raise ConfigError(f"the lanes form a cycle: {' <- '.join(circle)}")
    if node not in done:
        for supplier in suppliers[node]:
            _follow(supplier, suppliers, done, [*path, node])
        done.add(node)

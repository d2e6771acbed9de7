"""A graph network as policy: one shared model for every topology and number of nodes.

    v_i = f_n(x_i)                       e_ij = f_e([v_i, v_j, L_ij])
    R times:   in_i = sum_j e_ji / sqrt(indegree_i),  out_i = sum_j e_ij / sqrt(outdegree_i)
               v_i <- v_i + g_n([v_i, in_i, out_i]);  then  e_ij <- e_ij + g_e([e_ij, v_i, v_j])
    q_ij = softplus(h(e_ij));  from outside a = q;  else a = q min(1, I_i / sum_k q_ik), the self-loop in the sum

x: pipeline (padded), then holding cost; upstream the mean cost of lanes in, where there are costs; at stores underage
cost and mean and spread of demand, or past demand and days from Christmas. Supplier and customers are zeros and relay
nothing.
f, g, h are ELU perceptrons, the outputs of f and g ELU too, the same at all nodes and edges unless ``typed``.

With ``echelon``, all of it in units of the demand D that reaches a node, and wishes start from what a lane's target
lacks (l of :mod:`positions`, 0 on self-loops), so that the first policy holds its stock near its targets:

    q_ij = D_j softplus_5(l_ij / D_j + h(e_ij)),   softplus_5(z) = log(1 + exp(5 z)) / 5

The published start orders the same whatever the stock; on a chain, training then reaches gradient norms of 1e4.

Back-ends, equal to rounding: ``static`` (blocks by node and edge, stacked products; no further library), ``union`` (one
big graph of all scenarios) and ``hetero`` (tables by kind of node and lane), the last two on torch-geometric.

Source: arXiv:2306.11246; neural_networks.py of MatiasAlvo/Neural_inventory_control at commit 4d77c14.
Departures: orders are by lane, so that a lane that does not exist gets nothing (the official code books by rank);
lead times are each scenario's own; lanes to customers are not scored, which changes no order; ``echelon`` is ours.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offrl.envs.inventory.graph import Graph, Sum
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.positions import Positions
from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.shipping import Shipping
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError, MissingExtraError
from offrl.nn.elu_mlp import EluMLP, elu_mlp

BACKENDS = ("static", "union", "hetero")
ALL = "all"
SHARP = 5.0  # of the softplus with ``echelon``: an order of one mean demand is on its straight part
IN_CACHE = 12288  # edges times scenarios, each 32 to 96 numbers: 1.5 to 5 MB


class Nets(nn.ModuleDict):
    """One perceptron a kind, or one for all; S seeds each."""

    def __init__(
        self, kinds: Sequence[str], sizes: Sequence[int], generators: Sequence[torch.Generator], **more: Any
    ) -> None:
        names = sorted(set(kinds))
        super().__init__({name: EluMLP(sizes, generators, **more) for name in names})
        self.places = [names.index(kind) for kind in kinds]
        self.last = bool(more.get("last"))

    def forward(self, x: Tensor) -> Tensor:
        """(rows * S, in, b) -> (rows * S, out, b), for the first rows."""
        nets: list[Any] = list(self.values())
        copies = nets[0].layers[0].shape[0]
        rows = len(x) // copies
        params = []
        for layer in range(len(nets[0].layers)):
            if len(nets) == 1:
                stacked = nets[0].layers[layer].expand(rows, -1, -1, -1)
            else:
                every = torch.stack([net.layers[layer] for net in nets])
                stacked = every[self.places[:rows]]
            params.append(stacked.reshape(-1, *stacked.shape[2:]))
        return elu_mlp(x, params, last=self.last)

    def of(self, kind: str, seed: int) -> list[Tensor]:
        """[W_0 (out, in), b_0 (out,), ...] of one perceptron."""
        net: Any = self[kind if kind in self else ALL]
        return [p[seed].squeeze(-1) if k % 2 else p[seed] for k, p in enumerate(net.layers)]


class GNN(InventoryPolicy):
    """The graph policy.

    Args:
        network, facts, generators: as for all policies.
        hidden: widths of the perceptrons; the last one is that of the embeddings.
        rounds: R; 0: as many as the longest way from the first node to a store has lanes.
        typed: a perceptron of its own for every kind of node and of edge.
        backend: how it is computed.
        echelon: units of each node's own demand, and wishes that start from what the lane's target lacks.
    """

    name = "gnn"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (32, 32), rounds: int = 0, typed: bool = False, backend: str = "static",
        echelon: bool = False,
    ) -> None:  # fmt: skip
        self.graph = graph = Graph(network)
        rounds = rounds or max(graph.depth, 1)
        super().__init__(
            network, facts, generators, hidden=hidden, rounds=rounds, typed=typed, backend=backend, echelon=echelon
        )  # fmt: skip
        if backend not in BACKENDS:
            raise ConfigError(f"policy gnn: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if rounds < 1 or not hidden or any(size < 1 for size in hidden):
            raise ConfigError(f"policy gnn: rounds and hidden must be 1 or more, got {rounds} and {hidden}")
        self.rounds = rounds
        self.positions = Positions(network, facts.means, self.device) if echelon else None
        self.shipping = Shipping(network, self.device)
        self.costly = any(edge.cost for edge in network.edges)
        self.static = 2 + ((facts.history + facts.calendar) if facts.history else 2)
        self._nets(hidden, generators, typed, 0.0 if echelon else 5.0)
        keeps = [node.holds for node in network.nodes[: network.upstream]]
        self.keeps = [sum(keeps[:n]) if own else sum(keeps) for n, own in enumerate(keeps)]
        self.receivers = torch.tensor(graph.targets[: graph.scored], device=self.device)
        self.sums: dict[Any, tuple[Sum, Sum, Sum]] = {}
        self.indices: dict[Any, Any] = {}

    def _nets(
        self, hidden: Sequence[int], generators: Sequence[torch.Generator], typed: bool, bias: float
    ) -> None:
        h, graph = hidden[-1], self.graph
        nodes = graph.node_kinds if typed else (ALL,) * graph.nodes
        edges = graph.kinds if typed else (ALL,) * graph.edges

        def sizes(features: int) -> tuple[int, ...]:
            return (features, *hidden, h)

        self.node_start = Nets(nodes, sizes(self.network.width + self.static), generators, last=True)
        self.edge_start = Nets(edges, sizes(2 * h + 1), generators, last=True)
        self.node_round = Nets(nodes, sizes(3 * h), generators, last=True)
        self.edge_round = Nets(edges, sizes(3 * h), generators, last=True)
        self.score = Nets(edges[: graph.scored], (h, *hidden, 1), generators, bias=bias)

    def moved(self, network: Network, facts: DemandFacts) -> "GNN":
        """The same weights on another network, of any number of nodes and lanes; one seed.

        Raises:
            ConfigError: the networks' nodes have different features.
        """
        made = GNN(network, facts, [torch.Generator(self.device)], **self.options)
        made.to(next(self.parameters()).dtype)
        try:
            made.load_state_dict(self.state_dict())
        except RuntimeError:
            raise ConfigError(
                f"gnn of {self.network.name} does not fit {network.name}: nodes of {self.network.width} columns and "
                f"{self.static} other features, against {network.width} and {made.static}, or other kinds of node"
            ) from None
        return made

    def logits(self, seen: Observation) -> Tensor:
        """H(e) before softplus: of all lanes, then of the self-loops, (B, E + U)."""
        x, times = self.features(seen), self.lead_times(seen)
        if self.options["backend"] == "static":
            parts = self._parts(x)
            many = zip(x.chunk(parts, -1), times.chunk(parts, -1), strict=True)
            found = [self._static(some, own).unflatten(0, (self.copies, -1)) for some, own in many]
            scored = torch.cat(found, 1).flatten(0, 1)
        else:
            run = _union if self.options["backend"] == "union" else _hetero
            x, times = x.permute(1, 3, 0, 2), times.permute(1, 3, 0, 2)  # (S, b, nodes or edges, features)
            scored = torch.cat([run(self, x[seed], times[seed], seed) for seed in range(self.copies)])
        if self.positions is None:
            return scored
        demands = self.positions.demands(seen)
        start = self.positions.lacking(seen, demands) / demands[..., self.receivers[: self.graph.lanes]]
        return scored + F.pad(start, (0, scored.shape[1] - start.shape[1]))

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Softplus, then proportional shares of what is on hand."""
        if self.positions is None:
            wishes = F.softplus(logits)
        else:
            wishes = F.softplus(logits, SHARP) * self.positions.demands(seen)[..., self.receivers]
        lanes, keep = self.graph.lanes, None
        if wishes.shape[1] > lanes:
            keep = wishes[:, lanes:]
            if keep.shape[1] < self.network.upstream:
                keep = F.pad(keep, (0, 1))[:, self.keeps]
        return self.shipping.proportional(seen.stock[:, : self.network.upstream, 0], wishes[:, :lanes], keep)

    def features(self, seen: Observation) -> Tensor:
        """X of all nodes, (N, S, F, b) with b rows a seed."""
        stock, p, first = self.split(seen.stock).permute(2, 0, 3, 1), seen.parameters, self.network.upstream
        units = None
        if self.positions is not None:
            units = self._by_row(self.positions.demands(seen))[:, :, None]
            stock = stock / units
        nodes, seeds, _, rows = stock.shape
        static = stock.new_zeros(nodes, seeds, self.static, rows)
        static[:, :, 0] = self._by_row(p.holding)
        if self.costly and first:
            for node in range(first):
                lanes = [e for e, target in enumerate(self.network.targets) if target == node]
                static[node, :, 1] = self._by_row(p.edge_cost[..., lanes]).mean(0)
        static[first:, :, 1] = self._by_row(p.underage[..., first:])
        if not self.facts.history:
            known = torch.tensor([self.facts.means, self.facts.stds], dtype=stock.dtype, device=stock.device)
            known = known.T[:, None, :, None]
            static[first:, :, 2:] = known if units is None else known / units[first:]
            return torch.cat([stock, static], 2)
        if seen.past_demand is None:
            raise ConfigError(f"policy gnn was made for {self.facts.history} periods of past demand")
        past = self.split(seen.past_demand).permute(2, 0, 3, 1)
        static[first:, :, 2 : 2 + self.facts.history] = past if units is None else past / units[first:]
        if self.facts.calendar:
            static[first:, :, -1] = (seen.days_from_christmas or 0.0) / (1.0 if units is None else 100.0)
        return torch.cat([stock, static], 2)

    def lead_times(self, seen: Observation) -> Tensor:
        """L of all edges, (edges, S, 1, b); 0 for self-loops and lanes to customers."""
        times = self._by_row(seen.parameters.lead_times).to(seen.stock.dtype)
        times = F.pad(times, (0, 0, 0, 0, 0, self.graph.edges - self.graph.lanes))
        return times[:, :, None].expand(-1, self.copies, -1, len(seen.stock) // self.copies)

    def _by_row(self, values: Tensor) -> Tensor:
        """(Z,) or (B, Z) -> (Z, 1, 1) or (Z, S, b)."""
        return values[:, None, None] if values.ndim == 1 else self.split(values).permute(2, 0, 1)

    def _parts(self, x: Tensor) -> int:
        """In how many parts scenarios are computed: without gradient in such as fit a CPU's cache, else in one."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return 1
        rows = max(IN_CACHE * torch.get_num_threads() // (self.graph.edges * self.copies), 1)
        return -(-x.shape[-1] // rows)

    def _static(self, x: Tensor, times: Tensor) -> Tensor:
        """Rows are (node or edge, seed), columns are scenarios: all products and sums are of whole blocks."""
        all_ends, ends, meetings = self._sums(x)
        v = self.node_start(x.flatten(0, 1))
        e = self.edge_start(torch.cat([all_ends(v), times.flatten(0, 1)], 1))
        for left in reversed(range(self.rounds)):
            v = v + self.node_round(torch.cat([v, meetings(e)], 1))
            e, to = (e, all_ends) if left else (e[: self.graph.scored * self.copies], ends)
            e = e + self.edge_round(torch.cat([e, to(v)], 1))
        out: Tensor = self.score(e).view(self.graph.scored, self.copies, -1)
        return out.permute(1, 2, 0).reshape(-1, self.graph.scored)

    def _sums(self, like: Tensor) -> tuple[Sum, Sum, Sum]:
        """Ends of all edges and of the scored ones, and what meets at nodes; kept by seeds, type and device."""
        key = (self.copies, like.dtype, like.device)
        if key not in self.sums:
            g, s = self.graph, self.copies
            self.sums[key] = (
                Sum(g.ends(g.edges), 2 * g.edges, g.nodes, s, 2, like),
                Sum(g.ends(g.scored), 2 * g.scored, g.nodes, s, 2, like),
                Sum(g.meetings(), 2 * g.nodes, g.edges, s, 2, like),
            )
        return self.sums[key]


@cache
def _passing() -> Any:
    """Message passing of both other back-ends: an edge's message is itself, and sums meet at its target."""
    try:
        from torch_geometric.nn import MessagePassing
    except ImportError:
        raise MissingExtraError("torch-geometric", "graph") from None

    class Passing(MessagePassing):  # type: ignore[misc]
        def forward(self, edges: Tensor, edge_index: Tensor, size: tuple[int, int]) -> Tensor:
            met: Tensor = self.propagate(edge_index, edges=edges, size=size)
            return met

        def message(self, edges: Tensor) -> Tensor:
            return edges

    return Passing(aggr="sum")


def _rowwise(params: Sequence[Tensor], x: Tensor, last: bool = True) -> Tensor:
    """A perceptron on rows (..., in)."""
    for k in range(0, len(params), 2):
        x = F.linear(x, params[k], params[k + 1])
        x = F.elu(x) if last or k + 2 < len(params) else x
    return x


def _by_kind(nets: Nets, kinds: Sequence[str], x: Tensor, seed: int, last: bool = True) -> Tensor:
    """(b, rows, in) -> (b, rows, out), rows of each kind through its own perceptron."""
    parts: list[Tensor] = [x] * len(kinds)
    for kind in set(kinds):
        rows = [row for row, own in enumerate(kinds) if own == kind]
        out = _rowwise(nets.of(kind, seed), x[:, rows], last)
        for place, row in enumerate(rows):
            parts[row] = out[:, place]
    return torch.stack(parts, 1)


def _degrees(graph: Graph, like: Tensor) -> tuple[Tensor, Tensor]:
    """1 / sqrt(degree) in and out, (N, 1)."""
    both = torch.tensor([graph.degrees_in, graph.degrees_out], dtype=like.dtype, device=like.device) ** -0.5
    return both[0, :, None], both[1, :, None]


def _union(policy: GNN, x: Tensor, times: Tensor, seed: int) -> Tensor:
    """One graph of all scenarios; all virtual ends are its last node. One seed: (b, N, F) -> (b, scored)."""
    g, rows, passing = policy.graph, len(x), _passing()
    key = ("union", rows, x.device)
    if key not in policy.indices:
        ends = torch.tensor([g.sources, g.targets], device=x.device)
        shift = g.nodes * torch.arange(rows, device=x.device)[:, None]
        policy.indices[key] = torch.where(
            ends[:, None] < g.nodes, ends[:, None] + shift, g.nodes * rows
        ).flatten(1)
    index, size = policy.indices[key], (g.nodes * rows + 1,) * 2
    weight_in, weight_out = _degrees(g, x)

    def at(v: Tensor, side: int) -> Tensor:
        return F.pad(v.flatten(0, 1), (0, 0, 0, 1))[index[side]].view(rows, g.edges, -1)

    def met(e: Tensor, way: Tensor, weight: Tensor) -> Tensor:
        arrived: Tensor = passing(e.flatten(0, 1), way, size)
        return arrived[:-1].view(rows, g.nodes, -1) * weight

    v = _by_kind(policy.node_start, g.node_kinds, x, seed)
    e = _by_kind(policy.edge_start, g.kinds, torch.cat([at(v, 0), at(v, 1), times], -1), seed)
    for _ in range(policy.rounds):
        into, out = met(e, index, weight_in), met(e, index.flip(0), weight_out)
        v = v + _by_kind(policy.node_round, g.node_kinds, torch.cat([v, into, out], -1), seed)
        e = e + _by_kind(policy.edge_round, g.kinds, torch.cat([e, at(v, 0), at(v, 1)], -1), seed)
    return _by_kind(policy.score, g.kinds[: g.scored], e[:, : g.scored], seed, last=False).squeeze(-1)


def _hetero_data(graph: Graph, rows: int, device: torch.device) -> Any:
    """All scenarios as one HeteroData: ``place`` numbers the nodes and edges of one scenario as in ``graph``."""
    from torch_geometric.data import HeteroData

    data = HeteroData()
    kinds = [*graph.node_kinds]
    for kind in dict.fromkeys(kinds):
        data[kind].place = torch.tensor([n for n, own in enumerate(kinds) if own == kind], device=device)
    triples: dict[tuple[str, str, str], list[int]] = {}
    for edge, (s, t) in enumerate(zip(graph.sources, graph.targets, strict=True)):
        ends = ("supplier" if s == graph.nodes else kinds[s], "customer" if t == graph.nodes else kinds[t])
        relation = "self" if graph.kinds[edge] == "self" else "ships"
        triples.setdefault((ends[0], relation, ends[1]), []).append(edge)
    for (one, relation, two), edges in triples.items():
        sides = []
        for end, ends_of in ((one, graph.sources), (two, graph.targets)):
            if end in ("supplier", "customer"):
                sides.append(torch.zeros(rows * len(edges), dtype=torch.int64, device=device))
                continue
            places = data[end].place.tolist()
            own = torch.tensor([places.index(ends_of[e]) for e in edges], device=device)
            sides.append((own + len(places) * torch.arange(rows, device=device)[:, None]).flatten())
        data[one, relation, two].edge_index = torch.stack(sides)
        data[one, relation, two].place = torch.tensor(edges, device=device)
    return data


def _hetero(policy: GNN, x: Tensor, times: Tensor, seed: int) -> Tensor:
    """A table for every kind of node and of edge. One seed: (b, N, F) -> (b, scored)."""
    g, rows, passing = policy.graph, len(x), _passing()
    key = ("hetero", rows, x.device)
    if key not in policy.indices:
        policy.indices[key] = _hetero_data(g, rows, x.device)
    data, weights = policy.indices[key], _degrees(g, x)
    kind_of = {triple: g.kinds[int(data[triple].place[0])] for triple in data.edge_types}
    virtual = x.new_zeros(1, policy.options["hidden"][-1])
    real = [kind for kind in data.node_types if kind not in ("supplier", "customer")]

    def ends(v: dict[str, Tensor], triple: tuple[str, str, str]) -> list[Tensor]:
        return [v[triple[2 * side]][data[triple].edge_index[side]] for side in (0, 1)]

    def meet(e: dict[Any, Tensor], kind: str, side: int) -> Tensor:
        places = data[kind].place
        total = x.new_zeros(rows * len(places), virtual.shape[1])
        for triple in (t for t in data.edge_types if t[2 * side] == kind):
            index = data[triple].edge_index if side else data[triple].edge_index.flip(0)
            total = total + passing(e[triple], index, (int(index[0].max()) + 1, len(total)))
        return total * weights[0 if side else 1][places].repeat(rows, 1)

    v = {k: _rowwise(policy.node_start.of(k, seed), x[:, data[k].place].flatten(0, 1)) for k in real}
    v |= {"supplier": virtual, "customer": virtual}
    e = {}
    for t in data.edge_types:
        first = [*ends(v, t), times[:, data[t].place].flatten(0, 1)]
        e[t] = _rowwise(policy.edge_start.of(kind_of[t], seed), torch.cat(first, -1))
    for _ in range(policy.rounds):
        met = {k: torch.cat([v[k], meet(e, k, 1), meet(e, k, 0)], -1) for k in real}
        v |= {k: v[k] + _rowwise(policy.node_round.of(k, seed), met[k]) for k in real}
        for t, kind in kind_of.items():
            e[t] = e[t] + _rowwise(policy.edge_round.of(kind, seed), torch.cat([e[t], *ends(v, t)], -1))
    out: list[Tensor] = [virtual] * g.scored
    for t, kind in kind_of.items():
        if kind == "demand":
            continue
        scored = _rowwise(policy.score.of(kind, seed), e[t], last=False).view(rows, -1)
        for place, edge in enumerate(data[t].place.tolist()):
            out[edge] = scored[:, place]
    return torch.stack(out, 1)

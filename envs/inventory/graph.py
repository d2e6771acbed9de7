"""The graph that a graph policy sees, and weighted sums along its edges.

Nodes are the network's. Edges, in this order: lanes between nodes, lanes from outside, a self-loop on every node that
supplies another and may hold (what it keeps), a lane from every store to its customers. The first three kinds are
scored, the last is not.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.spec import Network


class Graph:
    """Edges of one network; end N is virtual (supplier, customer): it holds nothing and passes nothing on."""

    def __init__(self, network: Network) -> None:
        nodes = len(network.nodes)
        keeps = [n for n in range(network.upstream) if network.nodes[n].holds]
        stores = list(range(network.upstream, nodes))
        inside, outside = network.internal, len(network.edges) - network.internal
        self.nodes, self.lanes = nodes, len(network.edges)
        self.sources = (*network.sources, *keeps, *stores)
        self.targets = (*network.targets, *keeps, *(nodes for _ in stores))
        self.kinds = (
            ("ships",) * inside + ("supply",) * outside + ("self",) * len(keeps) + ("demand",) * len(stores)
        )
        self.edges, self.scored = len(self.sources), len(self.sources) - len(stores)
        self.node_kinds = tuple(node.kind for node in network.nodes)
        self.degrees_in = [max(self.targets.count(n), 1) for n in range(nodes)]
        self.degrees_out = [max(self.sources.count(n), 1) for n in range(nodes)]
        self.depth = _depth(network)

    def ends(self, edges: int) -> list[tuple[int, int, float]]:
        """Entries of the sum that gives edge e the rows 2e (its source) and 2e + 1 (its target)."""
        pairs = [(self.sources[e], 2 * e) for e in range(edges)]
        pairs += [(self.targets[e], 2 * e + 1) for e in range(edges)]
        return [(row, node, 1.0) for node, row in pairs if node < self.nodes]

    def meetings(self) -> list[tuple[int, int, float]]:
        """Entries of the sum that gives node n the rows 2n (edges in) and 2n + 1 (edges out), over sqrt(degree)."""
        n = self.nodes
        into = [(2 * t, e, self.degrees_in[t] ** -0.5) for e, t in enumerate(self.targets) if t < n]
        return into + [
            (2 * s + 1, e, self.degrees_out[s] ** -0.5) for e, s in enumerate(self.sources) if s < n
        ]


def _depth(network: Network) -> int:
    """Lanes on the longest way from the first node to a store: as many rounds let the first order see the store."""
    hops = [0] * len(network.nodes)
    for _ in network.nodes:
        for s, t in zip(network.sources[: network.internal], network.targets, strict=False):
            hops[t] = max(hops[t], hops[s] + 1)
    return max(hops)


class Bag(NamedTuple):
    """A sparse matrix by rows."""

    columns: Tensor
    offsets: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int, float]], rows: int, like: Tensor) -> "Bag":
        """From (row, column, weight); ``like`` gives device and dtype."""
        order = sorted(entries)
        counts = torch.bincount(torch.tensor([row for row, _, _ in order]), minlength=rows)
        weights = None
        if any(w != 1.0 for *_, w in order):
            weights = torch.tensor([w for *_, w in order], dtype=like.dtype, device=like.device)
        columns = torch.tensor([column for _, column, _ in order], device=like.device)
        return cls(columns, (counts.cumsum(0) - counts).to(like.device), weights)

    def __call__(self, x: Tensor) -> Tensor:
        """(columns, D) -> (rows, D)."""
        return F.embedding_bag(self.columns, x, self.offsets, mode="sum", per_sample_weights=self.weights)


class Sum:
    """y = M x for rows of blocks, with its gradient M^T; one kernel each way.

    Args:
        entries: (row, column, weight) of M for one seed.
        rows, columns: of M, whose parts are there ``copies`` times (seeds).
        sides: that many rows stay neighbours.
        like: gives device and dtype.
    """

    def __init__(
        self, entries: Iterable[tuple[int, int, float]], rows: int, columns: int, copies: int, sides: int, like: Tensor
    ) -> None:  # fmt: skip
        own = [
            ((row // sides * copies + s) * sides + row % sides, column * copies + s, w)
            for row, column, w in entries
            for s in range(copies)
        ]
        self.sides = sides
        self.there = Bag.of(own, rows * copies, like)
        self.back = Bag.of([(c, r, w) for r, c, w in own], columns * copies, like)

    def __call__(self, x: Tensor) -> Tensor:
        """(columns * S, H, b) -> (rows / sides * S, sides * H, b)."""
        out: Tensor = _Sum.apply(x.flatten(1), self)  # type: ignore[no-untyped-call]
        return out.view(-1, self.sides * x.shape[1], x.shape[2])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: Sum) -> Tensor:
        ctx.pair = pair
        return pair.there(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pair: Sum = ctx.pair
        return pair.back(grad.contiguous()), None

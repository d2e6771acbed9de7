"""Levels from features: one small net sets the order-up-to levels of any number of items and places.

    D_n(t)     expected demand of the periods that an order of period t must cover: lead time and the wait for the next
               order day, the season included
    z_n        normal quantile of p / (p + h) at stores, of 1/2 upstream
    s_n(t)     D_n(t) exp(a) + (z_n + b) sigma_n sqrt(periods covered),      (a, b) = net(features of n at t)
    Q_n        0 where orders cost nothing by themselves; else a multiple of sqrt(2 K d / h), chosen per item among
               ``MULTIPLES`` on training paths before the net is trained
    order      s_n - IP_n + Q_n where IP_n <= s_n

Features are kind of node, demand and its spread over the mean, periods covered, costs, pack and Q over demand, and the
season: what an item is called is not among them, so that thousands of items share a few hundred weights. The order
jumps at s where Q > 0; gradients see a logistic step one mean period wide there, and Q gets none.

Source: newsvendor levels and Wilson's order size are textbook matter (Silver, Pyke & Thomas, ch. 5-7); gradients
as in arXiv:2306.11246.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.classical import OnePerNode, mean_demand
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.scenarios import Observation, Scenarios, rollout
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError
from offrl.nn.elu_mlp import EluMLP

MULTIPLES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
PATHS = 8
"""Training paths on which the multiples are compared."""


class Textbook:
    """Figures of every node from its demand, costs and lanes, (N,) float32 each unless stated.

    Args:
        network: the first lane into each node counts.
        facts: of the demand.
    """

    def __init__(self, network: Network, facts: DemandFacts) -> None:
        lanes = dict(
            reversed(list(zip(network.targets, network.edges, strict=True)))
        )  # the first of each node
        into = [lanes[n] for n in range(len(network.nodes))]
        every = [len(lane.calendar) / sum(lane.calendar) if lane.calendar else 1.0 for lane in into]
        self.mean = mean_demand(network, facts)
        self.std = torch.tensor(network.behind([std**2 for std in facts.stds])).sqrt()
        self.cover = torch.tensor([lane.lead_time + wait for lane, wait in zip(into, every, strict=True)])
        self.holding = torch.tensor([node.holding_cost for node in network.nodes]).clamp(min=1e-9)
        upstream = torch.arange(len(network.nodes)) < network.upstream
        short = torch.tensor([node.underage_cost for node in network.nodes])
        self.ratio = torch.where(upstream, 0.5, short / (short + self.holding)).clamp(1e-3, 1 - 1e-4)
        self.z = torch.from_numpy(ndtri(self.ratio.double().numpy())).float()
        self.fixed = torch.tensor([lane.fixed_cost for lane in into])
        self.batch = (2 * self.fixed * self.mean / self.holding).sqrt()
        self.pack = torch.tensor([max(lane.pack, lane.min_order) for lane in into])
        self.ahead = self._ahead(network, facts)

    def _ahead(self, network: Network, facts: DemandFacts) -> Tensor:
        """(P, N): expected demand of the periods that an order of each period of a season must cover."""
        own = facts.season or ((1.0,),) * network.stores
        periods = math.lcm(*{len(season) for season in own})
        rate = np.array([np.resize(season, periods) for season in own]) * np.array(facts.means)[:, None]
        of_node = np.array([network.behind(column) for column in rate.T])
        most = int(self.cover.ceil().max())
        turns = -(-(periods + most) // periods)
        total = np.concatenate([np.zeros((1, of_node.shape[1])), np.tile(of_node, (turns, 1)).cumsum(0)])
        cover, start = self.cover.numpy(), np.arange(periods)[:, None]
        whole, nodes = np.floor(cover).astype(int), np.arange(len(cover))
        sums = total[start + whole, nodes] - total[start, nodes]
        part = (cover - whole) * (total[start + whole + 1, nodes] - total[start + whole, nodes])
        return torch.from_numpy(sums + part).float().clamp(min=1e-3)

    @property
    def level(self) -> Tensor:
        """(P, N): order-up-to levels of a base-stock policy."""
        return (self.ahead + self.z * self.std * self.cover.sqrt()).clamp(min=0)


class ItemLevels(OnePerNode):
    """One net for the levels of all items and places."""

    name = "item_levels"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (32, 32),
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, hidden=hidden)
        if any(size < 1 for size in hidden):
            raise ConfigError(f"policy {self.name}: hidden must be sizes of 1 or more, got {hidden}")
        self.book = book = Textbook(network, facts)
        for name in ("mean", "std", "cover", "z", "batch", "ahead"):
            self.register_buffer(f"book_{name}", getattr(book, name).to(self.device), persistent=False)
        self.register_buffer("features", self._features(network, book).to(self.device), persistent=False)
        self.register_buffer("multiple", torch.ones(len(network.nodes), device=self.device))
        self.net = EluMLP((self.features.shape[1], *hidden, 2), generators, bias=0.0)
        with torch.no_grad():
            self.net.layers[-2].mul_(0.1)  # begins near the textbook's levels

    features: Tensor
    """(P, F, N)."""
    multiple: Tensor
    """(N,), of the textbook's order size."""
    book_mean: Tensor
    book_std: Tensor
    book_cover: Tensor
    book_z: Tensor
    book_batch: Tensor
    book_ahead: Tensor

    @staticmethod
    def _features(network: Network, book: Textbook) -> Tensor:
        store = (torch.arange(len(book.mean)) >= network.upstream).float()
        usual = book.ahead.mean(0)
        fixed = [
            store, book.mean.log() / 3, (book.std / book.mean).clamp(max=5), book.cover.log(), book.z,
            (book.pack / book.mean).log1p(), (book.batch / book.mean).log1p(), (book.holding * book.mean).log() / 5,
        ]  # fmt: skip
        season = (book.ahead / usual).log()
        swing = season.abs().amax(0)
        still = torch.stack([*fixed, swing]).expand(len(season), -1, -1)
        return torch.cat([still, season[:, None]], 1)

    def prepare(self, scenarios: Scenarios) -> None:
        """Choose each item's order size: the multiple under which its own nodes cost least at the textbook's levels,
        which are those of every seed.
        """
        some = torch.nonzero(self.book_batch > 0).flatten()
        if not len(some):
            return
        own = scenarios.rows(torch.arange(min(PATHS, len(scenarios)), device=self.device))

        def textbook(seen: Observation) -> Tensor:
            return self.orders(seen.stock.new_zeros(len(seen.stock), 2 * len(self.network.nodes)), seen)

        item = self._items().to(self.device)
        costs = []
        with torch.no_grad():
            for multiple in MULTIPLES:
                self.multiple.fill_(multiple)
                by_node = rollout(textbook, own, feasibility="project").costs.sum((0, 1))
                costs.append(by_node.new_zeros(int(item.max()) + 1).index_add(0, item, by_node))
            best = torch.tensor(MULTIPLES, device=self.device)[torch.stack(costs).argmin(0)]
            self.multiple.copy_(best[item])

    def _items(self) -> Tensor:
        """(N,): number of the part of the network that a node is in; parts have no lane between them."""
        group = list(range(len(self.network.nodes)))

        def root(node: int) -> int:
            while group[node] != node:
                group[node] = group[group[node]]
                node = group[node]
            return node

        for source, target in zip(
            self.network.sources[: self.network.internal], self.network.targets, strict=False
        ):
            group[root(target)] = root(source)
        roots = torch.tensor([root(n) for n in range(len(group))])
        numbers: Tensor = torch.unique(roots, return_inverse=True)[1]
        return numbers

    def logits(self, seen: Observation) -> Tensor:
        """A, then b, (B, 2 N)."""
        phase = seen.period % len(self.features)
        found: Tensor = self.net(self.features[phase].expand(self.copies, -1, -1))  # (S, 2, N)
        return self.by_seed(found.flatten(1), seen)

    def levels(self, logits: Tensor, period: int) -> Tensor:
        """S_n of a period, (B, N), units."""
        scale, more = logits.chunk(2, 1)
        ahead = self.book_ahead[period % len(self.book_ahead)]
        safety = (self.book_z + more) * self.book_std * self.book_cover.sqrt()
        unit = self.book_mean
        level: Tensor = F.softplus((ahead * scale.clamp(-3, 3).exp() + safety) / unit, 8.0) * unit
        return level

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Up to s + Q at or below s."""
        level, size = self.levels(logits, seen.period), self.multiple * self.book_batch
        position = seen.stock.sum(-1)
        soft = ((level - position.detach()) / self.book_mean).sigmoid()
        now = (position <= level).to(soft.dtype) + (soft - soft.detach()) * (size > 0)
        return self.ship((level + size - position).clamp(min=0) * now, seen)


def describe(policy: InventoryPolicy) -> str:
    """What was chosen before training, in a line; empty for other policies."""
    if not isinstance(policy, ItemLevels) or not bool((policy.book_batch > 0).any()):
        return ""
    chosen = policy.multiple[policy.book_batch > 0]
    counts = ", ".join(f"{m:g}: {int((chosen == m).sum())}" for m in MULTIPLES if bool((chosen == m).any()))
    return f"order sizes as multiples of Wilson's, nodes by multiple: {counts}"

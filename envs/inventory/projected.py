"""The projected inventory level policy for one store with lost sales and Poisson demand.

    I_0 = x_0,  I_k = (I_(k-1) - D)^+ + x_k,  k = 1 .. L        x_L = 0: what the new order will join
    q = (U - E[I_L])^+

An order raises what is expected on hand when it arrives to the level U. Unlike a base-stock level this counts the sales
that will be lost on the way; where none are lost, it is base-stock with S = U + L E[D].

Source: van Jaarsveld & Arts, "Projected inventory-level policies for lost sales inventory systems" (its title and
definition; the paper could not be read).
Departures: a stock between two whole numbers counts as the mix of both with its mean, so that U can be trained.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.classical import OnePerNode
from offrl.envs.inventory.policies import DemandFacts
from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError


class ProjectedLevel(OnePerNode):
    """Raises the expected stock at arrival to a level."""

    name = "projected_level"
    after_demand: Tensor
    counts: Tensor

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], levels: Any = None
    ) -> None:
        super().__init__(network, facts, generators, levels=levels)
        if len(network.edges) != 1 or not network.lost_sales:
            raise ConfigError(f"policy {self.name} is for one store with lost sales")
        mean = facts.means[0]
        if not mean > 0 or abs(facts.stds[0] ** 2 - mean) > 1e-6:
            raise ConfigError(f"policy {self.name} is for Poisson demand with a mean above 0")
        if not facts.stationary or network.edges[0].receipts:
            raise ConfigError(
                f"policy {self.name} is for demand without a season and deliveries that do not vary"
            )
        self.level, self.lead_time = self.values("levels"), network.lead_times[0]
        most = int(2 * (mean * (self.lead_time + 1) + 10 * (mean * (self.lead_time + 1)) ** 0.5)) + 1
        counts = torch.arange(most + 1.0, device=self.device)
        chances = (counts * math.log(mean) - mean - (counts + 1).lgamma()).exp()
        gone = (counts[:, None] - counts).long()  # from i to j the demand is i - j; to 0 it is i or more
        after = torch.where(gone >= 0, chances[gone.clamp(min=0)], 0.0)
        after[:, 0] = 1 - after[:, 1:].sum(1)
        self.register_buffer("after_demand", after, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def projected(self, stock: Tensor) -> Tensor:
        """E[I_L] for (B, K) columns of the store, (B,); a stock beyond any demand counts as the largest known."""
        most = len(self.counts) - 1
        own = (1 - (stock[:, :1].clamp(0, most) - self.counts).abs()).clamp(min=0)
        for k in range(1, self.lead_time + 1):
            own = own @ self.after_demand
            if k < self.lead_time:
                own = self._raised(own, stock[:, k])
        return own @ self.counts

    def _raised(self, own: Tensor, arrival: Tensor) -> Tensor:
        """The chances (B, M + 1) after an arrival (B,), what exceeds M at M."""
        low = arrival.detach().floor()
        place = (self.counts.long() - low.long()[:, None]).clamp(min=-1)
        padded = F.pad(own, (2, 0))  # columns -2 and -1 hold nothing
        share = (arrival - low)[:, None]
        moved = (1 - share) * padded.gather(1, place + 2) + share * padded.gather(1, place + 1)
        rest = 1 - moved.sum(1, keepdim=True)
        return torch.cat([moved[:, :-1], moved[:, -1:] + rest], 1)

    def logits(self, seen: Observation) -> Tensor:
        """U - E[I_L], (B, 1)."""
        level = F.softplus(self.by_seed(self.level, seen))
        return level - self.projected(seen.stock[:, 0])[:, None]

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Cut at 0."""
        return self.ship(logits.clamp(min=0), seen)

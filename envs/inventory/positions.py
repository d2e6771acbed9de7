"""Echelon positions, and what the target of each lane lacks.

    D_n     mean demand that reaches node n: a store's own, upstream sum_j s_j D_j over the nodes j that n supplies
    EP_n    IP_n + sum_j s_j EP_j, IP_n the stock of n, on hand and on the way        s_j = 1 / suppliers of j
    C_n     D_n at a store, upstream sum_j s_j (L_e D_j + C_j) over its lanes e to nodes j: demand from arrival to sale
    l_e     s_j (L_e D_j + C_j - EP_j) for lane e into j

On a chain, orders of exactly l_e are Clark and Scarf's echelon base-stock policy without safety stock.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError

LEAST = 0.05  # of the mean demand: a node's demand is not taken for less, whatever was sold lately


class Positions:
    """Of one network.

    Args:
        network: N nodes, E lanes, S stores, U others.
        means: of the stores' demand; a mean over the past demand takes its place in observations that have one.
        device: where the tensors live.
    """

    def __init__(
        self, network: Network, means: tuple[float, ...], device: torch.device | str = "cpu"
    ) -> None:
        if not all(mean > 0 for mean in means):
            raise ConfigError(f"echelon positions need demand with a mean above 0, got {min(means):g}")
        nodes, self.upstream = len(network.nodes), network.upstream
        suppliers = [network.targets.count(node) for node in range(nodes)]
        self.targets = torch.tensor(network.targets, device=device)
        share = 1.0 / torch.tensor(suppliers, dtype=torch.float64)[self.targets.cpu()]
        sends = torch.zeros(nodes, nodes, dtype=torch.float64)  # s_j from each node to those it supplies
        lanes = torch.zeros(
            len(network.edges), nodes, dtype=torch.float64
        )  # s_j from each lane to its source
        for edge in range(network.internal):
            source, target = network.sources[edge], network.targets[edge]
            sends[source, target] = lanes[edge, source] = 1 / suppliers[target]
        below = torch.linalg.inv(torch.eye(nodes, dtype=torch.float64) - sends)
        ahead = lanes @ below.T  # by lane and node: the lane's part in what leaves the node or those below it
        along = torch.eye(len(lanes), dtype=torch.float64) + ahead[:, list(network.targets)]
        own = torch.tensor(means, dtype=torch.float64)
        self.exact = Maps(
            own, below[:, self.upstream :].T, below[list(network.targets)].T * share, along * share
        )
        self.maps: dict[torch.dtype, Maps] = {}
        self.device = device

    def _maps(self, dtype: torch.dtype) -> "Maps":
        if dtype not in self.maps:
            self.maps[dtype] = Maps(*(x.to(self.device, dtype) for x in self.exact))
        return self.maps[dtype]

    def demands(self, seen: Observation) -> Tensor:
        """D, (N,), or (B, N) where past demand is seen."""
        m = self._maps(seen.stock.dtype)
        if seen.past_demand is None:
            return m.means @ m.reach
        return torch.maximum(seen.past_demand.mean(-1), LEAST * m.means) @ m.reach

    def lacking(self, seen: Observation, demands: Tensor) -> Tensor:
        """l, units, (B, E)."""
        m = self._maps(demands.dtype)
        pipeline = seen.parameters.lead_times.to(demands.dtype) * demands[..., self.targets]
        level = pipeline @ m.along + demands[..., self.upstream :] @ m.below[self.upstream :]
        return level - seen.stock.sum(-1) @ m.below


class Maps(NamedTuple):
    """The matrices in one dtype."""

    means: Tensor
    reach: Tensor
    """(S, N): of a store's demand, what reaches each node."""
    below: Tensor
    """(N, E): of a node's stock, what counts for each lane."""
    along: Tensor
    """(E, E): of a lane's L D, what counts for each lane."""

"""Feasibility layers: from what a policy wishes to orders that the suppliers can ship.

    proportional   a_e = q_e min(1, I / (sum q + 1e-10))        sum over the lanes of e's supplier; I its stock on hand
                   a_e = q_e I / (sum q + 1e-10)                where the supplier may not hold: all is shipped
    softmax        a_e = I softmax([z, 1])_e                    the 1 is what stays; absent where nothing may
    sigmoid        a_e = I sigmoid(z_e), or bound sigmoid(z_e) on lanes from outside

Source: arXiv:2306.11246 (feasibility enforcement) and its official code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.spec import Network

TINY = 1e-10


class Shipping:
    """The layers for one network: E_i lanes between nodes, U upstream nodes, B scenarios."""

    def __init__(self, network: Network, device: torch.device | str = "cpu") -> None:
        self.internal, self.upstream = network.internal, network.upstream
        sources = network.sources[: self.internal]
        self.sources = torch.tensor(sources, dtype=torch.int64, device=device)
        self.single = self.upstream == 1
        self.holds = torch.tensor([n.holds for n in network.nodes[: self.upstream]], device=device)
        self.all_hold = bool(self.holds.all())
        lanes: list[list[int]] = [[] for _ in range(self.upstream)]
        for edge, node in enumerate(sources):
            lanes[node].append(edge)
        most = max((len(x) for x in lanes), default=0)
        full = [x + [self.internal] * (most - len(x)) for x in lanes]
        self.lanes = torch.tensor(full, dtype=torch.int64, device=device).reshape(self.upstream, most)
        place = {edge: node * most + i for node, x in enumerate(lanes) for i, edge in enumerate(x)}
        self.place = torch.tensor([place[e] for e in range(self.internal)], dtype=torch.int64, device=device)

    def totals(self, values: Tensor) -> Tensor:
        """Sums over the lanes of each supplier, (B, E_i) -> (B, U)."""
        return values.sum(1, keepdim=True) if self.single else F.pad(values, (0, 1))[:, self.lanes].sum(-1)

    def spread(self, values: Tensor) -> Tensor:
        """Each supplier's value on its lanes, (B, U) -> (B, E_i); one supplier: (B, 1)."""
        return values if self.single else values[:, self.sources]

    def proportional(self, on_hand: Tensor, desired: Tensor, keep: Tensor | None = None) -> Tensor:
        """Shrink wishes that exceed the stock; lanes from outside pass unchanged.

        Args:
            on_hand: (B, U), of the upstream nodes.
            desired: q >= 0, (B, E) or (B, E_i).
            keep: wish to keep stock, (B, U), which competes inside the sum.
        """
        if not self.internal:
            return desired
        inside = desired[:, : self.internal]
        least = torch.full_like(on_hand[:1], TINY)
        if not self.all_hold:  # equal shares where nobody asks for stock that may not stay
            inside = inside + self.spread(least.where(~self.holds, 0.0))
            least = least.where(self.holds, 0.0)
        total = self.totals(inside)
        if keep is not None:
            total = total + keep
        scale = on_hand.clamp(min=0) / (total + least)
        capped = scale.clamp(max=1)
        scale = capped if self.all_hold else torch.where(self.holds, capped, scale)
        shipped = inside * self.spread(scale)
        rest = desired[:, self.internal :]
        return torch.cat([shipped, rest], 1) if rest.shape[1] else shipped

    def softmax(self, on_hand: Tensor, logits: Tensor) -> Tensor:
        """Share out the stock by a softmax, (B, E_i) logits -> (B, E_i) orders."""
        groups = F.pad(logits, (0, 1), value=-torch.inf)[:, self.lanes]  # (B, U, D)
        stays = torch.where(self.holds, 1.0, -torch.inf).to(logits.dtype)
        stays = stays[:, None].expand(len(logits), -1, 1)
        shares = torch.cat([groups, stays], -1).softmax(-1)[..., :-1]
        return (shares * on_hand.clamp(min=0).unsqueeze(-1)).flatten(1)[:, self.place]

    def sigmoid(self, on_hand: Tensor, logits: Tensor) -> Tensor:
        """A share of the stock a lane, for suppliers of one lane, (B, E_i) -> (B, E_i)."""
        return logits.sigmoid() * self.spread(on_hand.clamp(min=0))

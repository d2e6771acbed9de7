"""Turns of episodes: means over the tokens of each, and back to tokens.

B rows, T tokens, at most K turns a row. A token belongs to the turn that ``step_ids`` names, if it was chosen.
"""

import torch
from torch import Tensor


class Turns:
    """Which tokens make up which turn.

    Args:
        step_ids: (B, T) int64, -1 where nothing was chosen.
        mask: (B, T) bool.
    """

    def __init__(self, step_ids: Tensor, mask: Tensor) -> None:
        self.mask = mask & (step_ids >= 0)
        self.index = step_ids.clamp(min=0)
        self.shape = len(step_ids), int(self.index.max()) + 1
        self.sizes = self.sum(torch.ones(step_ids.shape, device=mask.device))
        """(B, K) tokens of each; 0: there is none."""
        self.present = self.sizes > 0

    def sum(self, x: Tensor) -> Tensor:
        """(B, T) -> (B, K)."""
        return x.new_zeros(self.shape).scatter_add(1, self.index, x.where(self.mask, 0.0))

    def mean(self, x: Tensor) -> Tensor:
        """(B, T) -> (B, K), 0 for a turn that is not there."""
        return self.sum(x) / self.sizes.clamp(min=1)

    def tokens(self, x: Tensor) -> Tensor:
        """A turn's value for each of its tokens, 0 elsewhere: (B, K) -> (B, T)."""
        return x.gather(1, self.index).where(self.mask, 0.0)

    def following(self, x: Tensor) -> Tensor:
        """The value of the next turn that is there, 0 after the last: (B, K) -> (B, K)."""
        places = torch.arange(x.shape[1], device=x.device).expand_as(x).where(self.present, x.shape[1])
        later = torch.nn.functional.pad(places[:, 1:], (0, 1), value=x.shape[1])
        later = later.flip(1).cummin(dim=1).values.flip(1)
        return torch.nn.functional.pad(x, (0, 1)).gather(1, later)

    def shares(self) -> Tensor:
        """1 / (turns of the row x tokens of the turn) at each token, so that their sum over a row is 1: (B, T)."""
        return self.tokens(1.0 / self.sizes.clamp(min=1) / self.present.sum(dim=1, keepdim=True).clamp(min=1))

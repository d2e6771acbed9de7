"""How likely a prompt is to be solved, from its own past: the mean of a Beta(1, 1) posterior whose counts decay.

At each visit the counts of successes and failures are multiplied by ``decay``, then the new ones are added.
"""

from typing import Any

import torch
from torch import Tensor

from offrl.llm.text import Prompts


class History:
    """Rates of the prompts of a pool.

    Args:
        size: of the pool.
        decay: what past responses weigh at the next visit.
    """

    def __init__(self, size: int, decay: float) -> None:
        self.decay = decay
        self.counts = torch.zeros(size, 2, dtype=torch.float64)

    def predict(self, prompts: Prompts, rows: Tensor) -> Tensor:
        """(N,) rates of pool rows, NaN where a prompt has no past."""
        right, wrong = self.counts[rows].unbind(dim=1)
        rates = (right + 1.0) / (right + wrong + 2.0)
        return rates.where(right + wrong > 0.0, torch.nan)

    def observe(self, prompts: Prompts, rows: Tensor, right: Tensor, tried: Tensor) -> None:
        """``right`` of ``tried`` responses to each of some pool rows succeeded; a row may come twice."""
        seen = torch.zeros(len(self.counts), dtype=torch.bool)
        seen[rows] = True
        self.counts = torch.where(seen[:, None], self.decay * self.counts, self.counts)
        self.counts.index_add_(0, rows, torch.stack([right, tried - right], dim=1).double())

    def state_dict(self) -> dict[str, Any]:
        """Counts."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.counts = state["counts"].cpu()

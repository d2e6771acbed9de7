"""Where batches come from: uniform sampling from a transition table that lives on the training device."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.data.batch import Batch


class Source(Protocol):
    """What the loop draws batches from; refreshed synthetic data and online replay have the same face."""

    def sample(self, generators: Sequence[torch.Generator]) -> Batch:
        """One batch; seed k draws from ``generators[k]`` only."""

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the generators that the next batch depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class UniformSource:
    """Uniform draws with replacement from N transitions, packed in one contiguous table.

    A batch is one ``index_select`` of rows ``[obs | action | reward | next obs | terminated (| next action)
    (| return-to-go)]``, then views: no copies per field, no host-device traffic.

    Args:
        observations: (N, O) float32, as the learner sees them.
        actions: (N, A) float32.
        rewards: (N,) float32, scaled and shifted.
        next_observations: (N, O) float32.
        terminated: (N,) float32, 0 or 1.
        next_actions: (N, A) float32, or None when the method does not need them.
        returns_to_go: (N,) float32, or None likewise.
        batch_size: B.
    """

    def __init__(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Tensor,
        terminated: Tensor,
        next_actions: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        *,
        batch_size: int,
    ) -> None:
        parts = [observations, actions, rewards[:, None], next_observations, terminated[:, None]]
        self.has_next_actions = next_actions is not None
        if next_actions is not None:
            parts.append(next_actions)
        if returns_to_go is not None:
            parts.append(returns_to_go[:, None])
        self.table = torch.cat(parts, dim=1).contiguous()
        self.widths = [p.shape[1] for p in parts]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.table)

    def sample(self, generators: Sequence[torch.Generator]) -> Batch:
        """A batch for each seed, (S, B, ...)."""
        shape, device = (1, self.batch_size), self.table.device
        draws = [torch.randint(len(self.table), shape, generator=g, device=device) for g in generators]
        rows = draws[0] if len(draws) == 1 else torch.cat(draws)
        picked = self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        o, a, r, n, d, *rest = picked.split(self.widths, dim=2)
        next_actions = rest.pop(0) if self.has_next_actions else None
        returns_to_go = rest[0][..., 0] if rest else None
        return Batch(o, a, r[..., 0], n, d[..., 0], rows, next_actions, returns_to_go)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draws depend on the generators only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

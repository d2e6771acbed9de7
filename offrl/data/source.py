"""Where batches come from: uniform sampling from a transition table that lives on the training device."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.data.batch import Batch


class Source(Protocol):
    """What the loop draws batches from.

    One whose rows come from an environment also has ``refresh(policy) -> metrics``, called before every update with a
    function that gives the current policy, and ``metrics``, the names of what it may return.
    """

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
        return self.pick(self.draw(generators))

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Uniform row numbers (S, B)."""
        shape, device = (1, self.batch_size), self.table.device
        draws = [torch.randint(len(self.table), shape, generator=g, device=device) for g in generators]
        return draws[0] if len(draws) == 1 else torch.cat(draws)

    def pick(self, rows: Tensor) -> Batch:
        """The batch of given rows (S, B, ...)."""
        picked = self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        o, a, r, n, d, *rest = picked.split(self.widths, dim=-1)
        next_actions = rest.pop(0) if self.has_next_actions else None
        returns_to_go = rest[0][..., 0] if rest else None
        return Batch(o, a, r[..., 0], n, d[..., 0], rows, next_actions, returns_to_go)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draws depend on the generators only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class MixedSource(UniformSource):
    """A share of each batch from rows appended later, the rest (and what does not divide) from those it begins with.

    Args:
        *fields: the positional arguments of ``UniformSource``: the N offline rows.
        batch_size: B.
        capacity: most rows that may be appended.
        share: of each batch that is appended rows.
    """

    def __init__(self, *fields: Any, batch_size: int, capacity: int, share: float = 0.5) -> None:
        super().__init__(*fields, batch_size=batch_size)
        self.offline, self.appended = len(self.table), 0
        self.picked = int(batch_size * share + 1e-9)  # appended rows in a batch
        self.table = torch.cat((self.table, self.table.new_zeros(capacity, self.table.shape[1])))

    def __len__(self) -> int:
        return self.offline

    def append(self, rows: Tensor) -> None:
        """Add rows (n, W) in the columns' order; they are numbered from N on."""
        end = self.offline + self.appended + len(rows)
        self.table[end - len(rows) : end] = rows.to(self.table.device)
        self.appended += len(rows)

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Row numbers (S, B): the offline ones come first."""
        online, device = self.picked, self.table.device
        draws = []
        for g in generators:
            old = torch.randint(self.offline, (1, self.batch_size - online), generator=g, device=device)
            new = torch.randint(self.appended, (1, online), generator=g, device=device)
            draws.append(torch.cat((old, new + self.offline), dim=1))
        return draws[0] if len(draws) == 1 else torch.cat(draws)

    def state_dict(self) -> dict[str, Any]:
        """The appended rows."""
        return {"appended": self.table[self.offline : self.offline + self.appended].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.appended = 0
        self.append(state["appended"])


class WindowSource(UniformSource):
    """Windows of consecutive steps, each starting at a row drawn uniformly: long episodes come more often.

    Args:
        *fields: the positional arguments of ``UniformSource``.
        episode: (N,), number of each row's episode; an episode's rows are consecutive and in order.
        length: L.
        batch_size: B, windows in a batch.
        starts: (M,) int64, the rows at which windows may begin; None is all of them. Or (M, L), all rows of each
            window: they may stand in for steps before an episode, and all of them count as valid.
        images: (N, P) bytes that batches hold besides, or None.
    """

    def __init__(
        self,
        *fields: Any,
        episode: Tensor,
        length: int,
        batch_size: int,
        starts: Tensor | None = None,
        images: Tensor | None = None,
    ) -> None:
        super().__init__(*fields, batch_size=batch_size)
        lengths = torch.unique_consecutive(episode, return_counts=True)[1]
        ends = lengths.cumsum(0)
        self.first = (ends - lengths).repeat_interleave(lengths)  # (N,), first row of each row's episode
        self.last = (ends - 1).repeat_interleave(lengths)
        self.offsets = torch.arange(length, device=episode.device)
        self.starts, self.images = starts, images

    def sample(self, generators: Sequence[torch.Generator]) -> Batch:
        """A batch of windows for each seed, (S, B, L, ...)."""
        if self.starts is not None and self.starts.dim() == 2:
            return self.pick(self.draw_starts(generators))
        starts = self.draw_starts(generators)[..., None]
        wanted, last = starts + self.offsets, self.last[starts]
        rows = torch.minimum(wanted, last)
        valid = (wanted <= last).float()
        return dataclasses.replace(self.pick(rows), steps=rows - self.first[starts], valid=valid)

    def pick(self, rows: Tensor) -> Batch:
        """The batch of given rows (S, B, L, ...)."""
        batch = super().pick(rows)
        return batch if self.images is None else dataclasses.replace(batch, images=self.images[rows])

    def draw_starts(self, generators: Sequence[torch.Generator]) -> Tensor:
        """First rows (S, B) of windows, or all their rows (S, B, L)."""
        if self.starts is None:
            return self.draw(generators)
        shape, device = (1, self.batch_size), self.starts.device
        draws = [torch.randint(len(self.starts), shape, generator=g, device=device) for g in generators]
        return self.starts[torch.cat(draws)]

"""Statistics of groups named by ids: rows may come in any order, and groups may have any sizes."""

import torch
from torch import Tensor


class Groups:
    """Sums, means and the like over the groups of (B,) values, and back to rows. G groups, in order of their ids."""

    def __init__(self, ids: Tensor) -> None:
        """``ids``: (B,) int64, any numbers."""
        self.ids, self.index, self.size = torch.unique(ids, return_inverse=True, return_counts=True)

    def sum(self, x: Tensor) -> Tensor:
        """(B,) -> (G,)."""
        return self._checked(x).new_zeros(len(self.ids)).index_add(0, self.index, x)

    def mean(self, x: Tensor) -> Tensor:
        """(B,) -> (G,)."""
        return self.sum(x).div(self.size)

    def centered(self, x: Tensor) -> Tensor:
        """Values minus their group's mean, exactly 0 in a group of equal ones: (B,) -> (B,)."""
        shifted = x - self.rows(self.max(x))
        return shifted - self.rows(self.mean(shifted))

    def std(self, x: Tensor) -> Tensor:
        """Unbiased, 0 for a group of one: (B,) -> (G,)."""
        return self.sum(self.centered(x).square()).div((self.size - 1).clamp(min=1)).sqrt()

    def max(self, x: Tensor) -> Tensor:
        """(B,) -> (G,)."""
        start = self._checked(x).new_full((len(self.ids),), -torch.inf)
        return start.scatter_reduce(0, self.index, x, "amax")

    def logsumexp(self, x: Tensor) -> Tensor:
        """(B,) -> (G,); -inf where all of a group is."""
        top = self.max(x.detach())
        top = torch.where(top.isfinite(), top, 0.0)
        return top + self.sum((x - self.rows(top)).exp()).log()

    def others(self, x: Tensor) -> Tensor:
        """Sum over the other rows of a row's group, without taking its own from the group's: (B,) -> (B,)."""
        order = torch.argsort(self.index, stable=True)
        first = (self.size.cumsum(0) - self.size)[self.index[order]]
        place = torch.empty_like(order).scatter(
            0, order, torch.arange(len(order), device=order.device) - first
        )
        table = x.new_zeros(len(self.ids), int(self.size.max()) if len(x) else 0)
        table = table.index_put((self.index, place), x)
        return table[self.index].scatter(1, place[:, None], 0.0).sum(dim=1)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape != self.index.shape:
            raise ValueError(
                f"groups compare one value a row, {tuple(self.index.shape)}, got shape {tuple(x.shape)}"
            )
        return x

    def rows(self, x: Tensor) -> Tensor:
        """A group's value for each of its rows: (G, ...) -> (B, ...)."""
        return x[self.index]


def whole_groups(group_ids: Tensor, max_rows: int) -> list[Tensor]:
    """Row indices of micro-batches that never split a group, for losses that couple its rows.

    Args:
        group_ids: (B,) int64.
        max_rows: of one micro-batch.
    """
    order = torch.argsort(group_ids, stable=True)
    sizes: list[int] = torch.unique(group_ids, return_counts=True)[1].tolist()
    if sizes and max(sizes) > max_rows:
        raise ValueError(f"a group of {max(sizes)} rows does not fit into micro-batches of {max_rows}")
    parts: list[int] = []
    for size in sizes:
        if parts and parts[-1] + size <= max_rows:
            parts[-1] += size
        else:
            parts.append(size)
    return list(order.split(parts))


def solved_gate(
    rewards: Tensor, group_ids: Tensor, demo: Tensor, *, gate: int, threshold: float = 0.5
) -> Tensor:
    """Which rows to learn from: a group's samples if more than ``gate`` of them succeed, else its demonstrations.

    Args:
        rewards: (B,) outcomes; those of demonstrations are not looked at.
        group_ids: (B,).
        demo: (B,) bool.
        gate: -1 never takes demonstrations; the size of the groups always.
        threshold: a sample succeeds above it.

    Returns:
        (B,) bool.

    Source: HPT, arXiv:2509.04419, algorithm 1.
    """
    groups = Groups(group_ids)
    solved = groups.sum(((rewards > threshold) & ~demo).float())
    return (groups.rows(solved) > gate) ^ demo

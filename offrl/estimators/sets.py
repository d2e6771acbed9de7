"""Advantages of sets: rollouts from one state are scored n at a time, by their mean reward times their diversity.

    f(S) = mean of R over S x (number of different classes in S) / n

Every member of a set gets the set's advantage f(S) - mean f. Its expectation over the sets that a rollout is in is the
projection of the U-statistic over all sets, one number a rollout, and of less variance.

Source: arXiv:2509.25424.
"""

from itertools import combinations
from math import comb

import torch
from torch import Tensor

MOST = 5_000
"""Sets up to which all of them are enumerated."""


def all_sets(size: int, n: int) -> Tensor:
    """(C, n) all subsets of n of 0 .. size - 1."""
    return torch.tensor(list(combinations(range(size), n)), dtype=torch.int64).view(-1, n)


def random_sets(size: int, n: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, n) such subsets, each uniform."""
    return torch.rand(count, size, generator=generator).argsort(dim=1)[:, :n]


def polychromic(rewards: Tensor, classes: Tensor, sets: Tensor) -> Tensor:
    """Scores f of sets: (N,) in [0, 1], (N,) int64, (C, n) -> (C,)."""
    chosen = classes[sets].sort(dim=1).values
    different = 1 + (chosen[:, 1:] != chosen[:, :-1]).sum(dim=1)
    return rewards[sets].mean(dim=1) * different / sets.shape[1]


def shared(scores: Tensor, sets: Tensor, size: int) -> Tensor:
    """Each set's advantage at its members; over all sets they add up to ``projected``: (C,), (C, n) -> (N, C)."""
    inside = torch.zeros(len(sets), size, device=scores.device).scatter(1, sets, 1.0).to(scores)
    weight = size / (len(sets) * sets.shape[1])
    return (weight * inside * (scores - scores.mean())[:, None]).T


def projected(scores: Tensor, sets: Tensor, size: int) -> Tensor:
    """Mean f of the sets that a rollout is in minus that of all, 0 for one that is in none: (C,), (C, n) -> (N,)."""
    inside = torch.zeros(len(sets), size, device=scores.device).scatter(1, sets, 1.0).to(scores)
    times = inside.sum(dim=0)
    found = (inside * (scores - scores.mean())[:, None]).sum(dim=0) / times.clamp(min=1.0)
    return found.where(times > 0, 0.0)


def enumerable(size: int, n: int) -> bool:
    """Whether all sets are few."""
    return comb(size, n) <= MOST

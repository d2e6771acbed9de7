"""Knapsack RL: the same number of responses in all, more of them where they teach more.

    value(N, p) = [1 - p^N - (1 - p)^N] p (1 - p)^2      chance of unequal rewards, times what a success adds to p
    max sum_i value(N_i, p_i)    over    sum_i N_i = total,    low <= N_i <= high

The value is concave in N, so that the largest gains, one response at a time, are the exact optimum. Where nothing is
gained any more the rest goes to prompts that never succeeded, then to all, as evenly as bounds allow.

    failures(N, p) = N (1 - p) [1 - (1 - p)^(N - 1)]     expected failures where a response succeeds (V_0): not concave

Any table of values has its optimum from ``exact``, by dynamic programming over prompts and budget.

Source: arXiv:2509.25849; failures: arXiv:2602.03584. No code of the authors is known.
Departures: p is a posterior mean that decays (``history``), not the rate of the last visit alone, which at N = 2 knows
three values. Prompts never seen get the average number. Every prompt weighs the same in the loss, however many
responses it got: advantages are multiplied by the mean size of groups over that of their own (losses over whole
groups take their means as they do anyway: PACS, a mean over rows, weighs prompts by their responses). Posterior means
are never 0 or 1, so that with them every prompt has some value and nothing is left over.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def information(n: Floats, p: Floats) -> Floats:
    """Knapsack RL's value of n >= 1 responses; broadcasts."""
    value: Floats = (1.0 - p**n - (1.0 - p) ** n) * p * (1.0 - p) ** 2
    return value


def failures(n: Floats, p: Floats) -> Floats:
    """V_0's utility of n >= 1 responses; broadcasts."""
    value: Floats = n * (1.0 - p) * (1.0 - (1.0 - p) ** (n - 1.0))
    return value


def needed(p: float, alpha: float) -> float:
    """Responses that hold a success and a failure with probability ``alpha`` or more, from the likelier side alone."""
    return float(np.log(1.0 - alpha) / np.log(max(p, 1.0 - p)))


def allocate(p: Floats, total: int, low: int, high: int) -> Ints:
    """The optimum for ``information``: (M,) rates -> (M,) numbers whose sum is ``total``, if bounds allow that.

    Raises:
        ConfigError: rates that are no probabilities, or not 1 <= low <= high.
    """
    p = np.asarray(p, dtype=np.float64)
    if wrong := p[~((p >= 0.0) & (p <= 1.0))].tolist():
        raise ConfigError(f"rates must be within 0 and 1, got {wrong[0]}")
    if not 1 <= low <= high:
        raise ConfigError(f"bounds must be 1 <= low <= high, got low {low}, high {high}")
    n = np.arange(low, high, dtype=np.float64)[:, None]
    gains = (p**n * (1.0 - p) + (1.0 - p) ** n * p) * (p * (1.0 - p) ** 2)
    rest = max(total - low * len(p), 0)
    order = np.argsort(-gains, axis=None, kind="stable")[:rest]
    order = order[gains.ravel()[order] > 0.0]
    counts = low + np.bincount(order % len(p), minlength=len(p)).astype(np.int64)
    for who in (p == 0.0, np.ones_like(p, dtype=bool)):
        counts = spread(counts, who, total - int(counts.sum()), high)
    return counts


def even(group_ids: Tensor) -> Tensor:
    """What a row weighs so that all prompts weigh the same: mean size of a group over its own; (B,) -> (B,)."""
    groups = Groups(group_ids)
    return len(group_ids) / len(groups.size) / groups.rows(groups.size)


def spread(counts: Ints, who: NDArray[np.bool_], extra: int, high: int) -> Ints:
    """``extra`` more for some, the smallest first, none above ``high``."""
    counts = counts.copy()
    while extra > 0:
        (rows,) = np.nonzero(who & (counts < high))
        if len(rows) == 0:
            break
        lowest = rows[counts[rows] == counts[rows].min()][:extra]
        counts[lowest] += 1
        extra -= len(lowest)
    return counts


def exact(values: Floats, total: int, low: int) -> Ints:
    """The optimum for any values: (M, K), ``values[i, k]`` of ``low + k`` responses to prompt i -> (M,).

    Their sum is ``total``, or the nearest that bounds allow.
    """
    many, width = values.shape
    budget = min(max(total - low * many, 0), many * (width - 1))
    best = np.full(budget + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((many, budget + 1), dtype=np.int64)
    for i, row in enumerate(values):
        shifted = np.full((width, budget + 1), -np.inf)
        for k in range(min(width, budget + 1)):
            shifted[k, k:] = best[: budget + 1 - k] + row[k]
        taken[i] = shifted.argmax(axis=0)
        best = shifted.max(axis=0)
    counts = np.zeros(many, dtype=np.int64)
    for i in reversed(range(many)):
        counts[i] = taken[i, budget]
        budget -= counts[i]
    return low + counts

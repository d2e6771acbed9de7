"""Risk of episode returns R_1 .. R_n, and what an adjustment of a policy's actions does to it.

    VaR_q  = the ceil(q n)-th smallest return: the least R such that a share q of the returns is at most R
    CVaR_q = mean of the returns that are at most VaR_q

VaR takes the inverse of the empirical distribution function and no interpolation, so that it is a return that
happened and the tail of CVaR is never empty.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from offrl.data.neighbours import NeighbourIndex
from offrl.errors import ConfigError

Statistic = Callable[[np.ndarray], float]
REPEATS = 2000


def value_at_risk(returns: np.ndarray, q: float) -> float:
    """The return at level ``q`` in (0, 1] from below.

    Raises:
        ConfigError: no returns, or another q.
    """
    values = np.sort(np.asarray(returns, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0 or not 0.0 < q <= 1.0:
        raise ConfigError(
            f"a risk measure needs returns (n,) and a level in (0, 1], got {values.shape} and {q}"
        )
    return float(values[max(int(np.ceil(q * len(values) - 1e-9)), 1) - 1])  # 0.07 * 100 is 7.000000000000001


def conditional_value_at_risk(returns: np.ndarray, q: float) -> float:
    """Mean of the returns that are at most ``value_at_risk(returns, q)``."""
    bound, values = value_at_risk(returns, q), np.asarray(returns, dtype=np.float64)
    return float(values[values <= bound].mean())


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of n values by Student's t with n - 1 degrees of freedom; None for n = 1."""
    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    mean = float(values.mean())
    return mean - half, mean + half


def paired_interval(
    statistic: Statistic, base: np.ndarray, other: np.ndarray, *, seed: int = 0, repeats: int = REPEATS
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of statistic(other) - statistic(base), episodes drawn in pairs.

    Args:
        statistic: of returns (n,).
        base: returns (n,).
        other: returns (n,) of the same episodes.
        seed: of the resampling.
        repeats: resamples.

    Raises:
        ConfigError: the two have not equally many returns.
    """
    if base.shape != other.shape or base.ndim != 1:
        raise ConfigError(f"paired returns must be (n,) twice, got {base.shape} and {other.shape}")
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(base), size=(repeats, len(base)))
    found = [statistic(other[rows]) - statistic(base[rows]) for rows in picks]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def comparison(base: np.ndarray, other: np.ndarray, q: float = 0.1) -> dict[str, dict[str, object]]:
    """Mean, VaR and CVaR of two policies' returns on the same episodes, with their paired differences and intervals.

    The mean's interval is Student's t of the differences, the others' the paired bootstrap's; None for one episode.
    """
    statistics: dict[str, Statistic] = {
        "mean": lambda r: float(r.mean()),
        f"VaR_{q:g}": lambda r: value_at_risk(r, q),
        f"CVaR_{q:g}": lambda r: conditional_value_at_risk(r, q),
    }
    rows: dict[str, dict[str, object]] = {}
    for name, statistic in statistics.items():
        before, after = statistic(base), statistic(other)
        interval = mean_interval(other - base)
        if interval is not None and name != "mean":
            interval = paired_interval(statistic, base, other)
        rows[name] = {"base": before, "adjusted": after, "difference": after - before, "interval": interval}
    return rows


@dataclass(frozen=True)
class Shift:
    """What an adjustment does to actions at given states."""

    action_change: float  # mean ||a - a0||, in half-ranges of the box
    clipped: float  # share of adjusted action components at a bound
    clipped_before: float  # likewise of the base's
    distance_before: float  # mean squared distance of (s, a0) to the nearest row of the data
    distance_after: float  # of (s, a)


def measure_shift(index: NeighbourIndex, states: Tensor, base: Tensor, adjusted: Tensor) -> Shift:
    """Changes and distances to the data.

    Args:
        index: over standardized states and actions in half-ranges of the box, beta 1.
        states: standardized as the index's, (B, O).
        base: actions in half-ranges, (B, A).
        adjusted: likewise.
    """
    before, after = (
        index.nearest(torch.cat((states, a), dim=1))[0].square().mean().item() for a in (base, adjusted)
    )
    clipped = [float((a.abs() >= 1.0 - 1e-6).float().mean()) for a in (adjusted, base)]
    change = float((adjusted - base).norm(dim=1).mean())
    return Shift(change, clipped[0], clipped[1], before, after)

"""Croston's method and its kin: the demand rate of items that sell rarely.

    Croston     z <- z + a (x - z),  n <- n + a (gap - n)      where x > 0; rate = z / n
    SBA         the same times (1 - a / 2), which takes out its bias
    TSB         z as above, q <- q + b ([x > 0] - q) every period; rate = q z: dies away with the item

Source: Croston 1972; Syntetos & Boylan 2005; Teunter, Syntetos & Babai 2011.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def croston(x: Array, alpha: float = 0.1, *, unbiased: bool = True) -> float:
    """Units a period, from (T,) demand without NaN; ``unbiased``: SBA."""
    size, gap, since = float("nan"), float("nan"), 1.0
    for value in x:
        if value > 0:
            size = value if np.isnan(size) else size + alpha * (value - size)
            gap = since if np.isnan(gap) else gap + alpha * (since - gap)
            since = 1.0
        else:
            since += 1.0
    if np.isnan(size):
        return 0.0
    return float(size / gap * (1 - alpha / 2 if unbiased else 1.0))


def tsb(x: Array, alpha: float = 0.1, beta: float = 0.05) -> tuple[float, float]:
    """Probability of demand now and its size, from (T,) demand; NaN periods are passed over."""
    known = x[~np.isnan(x)]
    positive = known[known > 0]
    if not len(positive):
        return 0.0, 0.0
    size, active = float(positive[0]), len(positive) / len(known)
    for value in known:
        active += beta * (float(value > 0) - active)
        if value > 0:
            size += alpha * (float(value) - size)
    return float(active), float(size)

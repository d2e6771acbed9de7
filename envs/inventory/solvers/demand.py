"""Demand of one period as probabilities on a grid, with everything needed to bound the error of the grid.

A whole-number demand is itself on a grid of step 1. A continuous one, X, is replaced by two grid demands:

    rounded  R = the grid point nearest to X                            (the estimate)
    spread   W: X between k step and (k+1) step goes to either end, so that the mean stays

W is larger than X in the convex order, so every cost that is a minimum of expected convex functions is at least as
large under W: an upper bound. E[X | R] is smaller than X in that order, a lower bound; it differs from R by the
``offset`` of the cell. What lies beyond the last grid point counts as that point, which lowers the mean by ``tail``.

Source: convex order and stop-loss transforms are textbook matter (Shaked & Shanthikumar, Stochastic Orders, ch. 3).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from offrl.errors import ConfigError

Array = NDArray[np.float64]
CUT = 1e-17  # probability beyond the last grid point, at most
STEPS_PER_STD = 400  # of a continuous demand, where no step is given
KINDS = {  # name -> what follows the colon
    "poisson": "MEAN",
    "geometric": "MEAN",
    "negative_binomial": "MEAN,STD",
    "pmf": "P0,P1,...",
    "normal": "MEAN,STD",
    "gamma": "MEAN,STD",
}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Independent demand of one period; grid point k is ``k * step`` items."""

    name: str
    """As typed, e.g. ``poisson:5``."""
    step: float
    """Items between grid points."""
    pmf: Array
    """Probability of each grid point: the demand itself if it is whole-numbered, else rounded."""
    spread: Array
    """The same for the spread demand; equal to ``pmf`` for whole numbers."""
    offset: Array
    """E[X - R; R = k step], items: zero for whole numbers, but for the tail in the last one."""
    tail: float
    """E(X - last grid point)^+, items."""
    mean: float
    """E X, items, without any grid."""
    std: float
    """Standard deviation on the grid, items."""
    continuous: bool
    """Whether the grid is an approximation."""


def parse_demand(text: str, step: float | None = None) -> Demand:
    """A demand from its name, for instance ``poisson:5``; normal demand is clipped at zero.

    Args:
        text: ``poisson:MEAN``, ``geometric:MEAN`` (counted from 0), ``negative_binomial:MEAN,STD``, ``pmf:P0,P1,...``,
            ``normal:MEAN,STD`` (before clipping at 0) or ``gamma:MEAN,STD``.
        step: grid of a continuous demand in items; default: a 400th of its standard deviation.

    Raises:
        ConfigError: an unknown name, a wrong number of parameters, impossible ones.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        shapes = ", ".join(f"{name}:{what}" for name, what in KINDS.items())
        raise ConfigError(f"unknown demand {text!r}; known are {shapes}")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        raise ConfigError(f"demand {text!r} needs numbers: {kind}:{KINDS[kind]}") from None
    if kind != "pmf" and len(numbers) != KINDS[kind].count(",") + 1:
        raise ConfigError(f"demand {text!r} has {len(numbers)} parameters; it is {kind}:{KINDS[kind]}")
    if not all(np.isfinite(numbers)) or (kind != "pmf" and min(numbers) <= 0):
        raise ConfigError(f"demand {text!r}: parameters must be positive and finite")
    if kind in ("normal", "gamma"):
        return _continuous(text, kind, *numbers, step=step)
    if step not in (None, 1):
        raise ConfigError(f"demand {text!r} is whole-numbered: its grid step is 1, not {step:g}")
    if kind == "pmf":
        return from_pmf(np.array(numbers), text)
    return _whole(text, _whole_distribution(text, kind, numbers))


def from_pmf(pmf: Array, name: str = "pmf") -> Demand:
    """Whole-number demand with the given probabilities of 0, 1, 2, ...

    Raises:
        ConfigError: they are not probabilities, or demand is always zero.
    """
    if pmf.ndim != 1 or len(pmf) < 2 or (pmf < 0).any() or abs(pmf.sum() - 1) > 1e-9 or pmf[0] >= 1:
        raise ConfigError(f"demand {name!r} needs probabilities of 0, 1, 2, ... that add to 1")
    pmf = pmf / pmf.sum()
    values = grid(1.0, len(pmf))
    mean = float(values @ pmf)
    return Demand(
        name=name, step=1.0, pmf=pmf, spread=pmf, offset=np.zeros(len(pmf)), tail=0.0, mean=mean,
        std=_std(values, pmf), continuous=False,
    )  # fmt: skip


def _whole_distribution(text: str, kind: str, numbers: list[float]) -> Any:
    mean = numbers[0]
    if kind == "poisson":
        return stats.poisson(mean)
    if kind == "geometric":
        return stats.nbinom(1, 1 / (1 + mean))
    variance = numbers[1] ** 2
    if variance <= mean:
        raise ConfigError(
            f"demand {text!r}: a negative binomial's variance {variance:g} must exceed its mean {mean:g}; "
            f"use poisson:{mean:g}"
        )
    return stats.nbinom(mean**2 / (variance - mean), mean / variance)


def _whole(text: str, distribution: Any) -> Demand:
    last = 16
    while distribution.sf(last) > CUT:
        last *= 2
    last = int(np.argmax(distribution.sf(np.arange(last + 1)) <= CUT))
    values = np.arange(last + 1)
    pmf = distribution.pmf(values)
    pmf[-1] = distribution.sf(last - 1)
    tail = float(distribution.sf(np.arange(last, 4 * last + 100)).sum())
    offset = np.zeros(last + 1)
    offset[-1] = tail
    return Demand(
        name=text, step=1.0, pmf=pmf, spread=pmf, offset=offset, tail=tail, mean=float(distribution.mean()),
        std=float(distribution.std()), continuous=False,
    )  # fmt: skip


def _continuous(text: str, kind: str, mean: float, std: float, *, step: float | None) -> Demand:
    step = std / STEPS_PER_STD if step is None else step
    if not 0 < step <= std:
        raise ConfigError(
            f"the grid step must be positive and at most the standard deviation {std:g}, got {step:g}"
        )
    if kind == "normal":
        distribution = stats.norm(mean, std)

        def missing(x: Array) -> Array:
            u = (x - mean) / std
            return np.asarray(std * (stats.norm.pdf(u) - u * stats.norm.sf(u)))
    else:
        shape, scale = (mean / std) ** 2, std**2 / mean
        distribution, longer = stats.gamma(shape, scale=scale), stats.gamma(shape + 1, scale=scale)

        def missing(x: Array) -> Array:
            return np.asarray(mean * longer.sf(x) - x * distribution.sf(x))

    last = int(np.ceil(distribution.isf(CUT) / step))
    points = grid(step, last + 1)
    edges = np.maximum(points - step / 2, 0.0)  # lower edges of the cells; the last has no upper one
    above = distribution.sf(edges)
    above[0] = 1.0  # what lies below zero is clipped to it
    pmf = above - np.append(above[1:], 0.0)
    beyond = missing(edges)  # E(X - edge)^+
    lower = (edges - points) * above + beyond
    upper = np.append((edges[1:] - points[:-1]) * above[1:] + beyond[1:], 0.0)
    slopes = np.concatenate([[-1.0], np.diff(missing(points)) / step, [0.0]])
    return Demand(
        name=text, step=step, pmf=pmf, spread=np.maximum(np.diff(slopes), 0.0), offset=lower - upper,
        tail=float(missing(points[-1:])[0]), mean=float(missing(np.zeros(1))[0]), std=_std(points, pmf),
        continuous=True,
    )  # fmt: skip


def grid(step: float, points: int) -> Array:
    """0, step, 2 step, ..."""
    return np.asarray(step * np.arange(points), dtype=np.float64)


def _std(values: Array, pmf: Array) -> float:
    mean = values @ pmf
    return float(np.sqrt((values - mean) ** 2 @ pmf))


def convolved(*pmfs: tuple[Array, int]) -> Array:
    """Of the sum of independent demands, by FFT: each array counted as often as the number beside it.

    Nothing wraps around; rounding is about 1e-16 an entry.
    """
    length = 1 + sum((len(pmf) - 1) * times for pmf, times in pmfs)
    size = fft.next_fast_len(length, real=True)
    product = np.ones(size // 2 + 1, dtype=np.complex128)
    for pmf, times in pmfs:
        product *= fft.rfft(pmf, size) ** times
    return np.asarray(fft.irfft(product, size)[:length])

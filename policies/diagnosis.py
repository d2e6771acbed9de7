"""A hint at good weights of a composition without playing: how the policies' errors on demonstrations combine.

    u = A + rho eps                     a demonstrated chunk with noise, in the first policy's units
    e_i = (D_i(u, rho) - A) / rho       error of policy i, as an error of the predicted noise
    G_ij = E <e_i, e_j>                 over chunks, noise and the levels of the composition's grid
    w* = argmin w'Gw,  w_i >= 0, sum w_i = 1;  two policies: (G_22 - G_12) / (G_11 + G_22 - 2 G_12), cut to [0, 1]
    gain = min_i G_ii - w*'G w*

Nobody can predict A itself: the best possible D leaves an error, which adds the same number to every G_ij. It changes
neither w* nor the gain, only what share of the error the gain is. A gain needs G_12 < min(G_11, G_22): errors that are
not aligned. It bounds how far the composed score is from the true one; it does not promise success.

Source: GPC, arXiv:2510.01068, proposition 4.1.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.policies.composition import Composition


@torch.no_grad()
def error_products(
    composition: Composition,
    conditions: Sequence[Any],
    chunks: Tensor,
    generator: torch.Generator,
    levels: int = 10,
) -> np.ndarray:
    """G of each chunk, (L, B, n, n): means over the action entries that all policies cover.

    Args:
        composition: its policies are asked at the levels of its grid.
        conditions: one a policy, as its denoiser takes them.
        chunks: demonstrated actions (B, H, A) in the first policy's normalized units.
        generator: of the noise, the same for all policies.
        levels: at most so many of the grid, evenly spread; an infinite one is left out.

    Raises:
        ConfigError: a policy has weight 0, so that the composition does not ask it.
    """
    if not all(composition.asked):
        raise ConfigError("the errors of a policy of weight 0 are not known: leave --weights out")
    grid = [level for level in composition.grid[:-1] if np.isfinite(level.rho)]
    chosen = [
        grid[i] for i in np.unique(np.linspace(0, len(grid) - 1, min(levels, len(grid))).round().astype(int))
    ]
    shared = composition.cover.all(0)
    out = []

    def draw(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    for level in chosen:
        u = chunks + level.rho * draw(chunks)
        clean = composition.clean(u, level, conditions, draw)
        errors = (clean - chunks)[:, :, shared].flatten(2) / level.rho
        out.append(torch.einsum("ibk,jbk->bij", errors, errors) / errors.shape[2])
    return torch.stack(out).double().numpy()


def best_weights(products: np.ndarray) -> np.ndarray:
    """The weights on the simplex (n,) that make w'Gw smallest, for G (n, n).

    The minimum lies inside some face of the simplex: each face's stationary point is tried.
    """
    n, best, least = len(products), np.full(len(products), 1 / len(products)), np.inf
    for size in range(1, n + 1):
        for face in itertools.combinations(range(n), size):
            inner = products[np.ix_(face, face)]
            system = np.block([[inner, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            part = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0][:size]
            if (part < -1e-12).any() or abs(part.sum() - 1) > 1e-9:
                continue
            value = float(part @ inner @ part)
            if value < least - 1e-12 * abs(least if np.isfinite(least) else 1.0):
                least, best = value, np.zeros(n)
                best[list(face)] = part
    return best


@dataclass(frozen=True)
class Hint:
    """What the errors say: mean squared errors of the policies, of the best mixture, its weights and intervals."""

    errors: list[float]  # (n,) G_ii
    weights: list[float]  # (n,)
    mixture: float  # w'Gw
    gain: float
    gain_interval: tuple[float, float]
    weight_interval: list[tuple[float, float]]  # one a policy
    by_level: list[list[float]]  # weights at each level

    @property
    def share(self) -> float:
        """The gain as a share of the better policy's error."""
        return self.gain / min(self.errors)


def hint(products: np.ndarray, groups: np.ndarray, *, repeats: int = 500, seed: int = 0) -> Hint:
    """Weights and gain with 95 % bootstrap intervals over episodes.

    Args:
        products: (L, B, n, n), as from ``error_products``.
        groups: (B,) number of each chunk's episode: chunks of one are not independent.
        repeats: of the bootstrap.
        seed: of the bootstrap.
    """
    chunkwise = products.mean(0)
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), *chunkwise.shape[1:]))
    np.add.at(sums, index, chunkwise)
    counts = np.bincount(index).astype(np.float64)

    def solve(matrix: np.ndarray) -> tuple[np.ndarray, float]:
        w = best_weights(matrix)
        return w, float(np.diag(matrix).min() - w @ matrix @ w)

    rng, draws = np.random.default_rng(seed), []
    for _ in range(repeats):
        drawn = rng.integers(len(names), size=len(names))
        draws.append(solve(sums[drawn].sum(0) / counts[drawn].sum()))
    whole = chunkwise.mean(0)
    w, gain = solve(whole)
    tails = (2.5, 97.5)
    low, high = np.percentile([g for _, g in draws], tails)
    sides = np.percentile([d for d, _ in draws], tails, axis=0).T
    return Hint(
        errors=np.diag(whole).tolist(),
        weights=w.tolist(),
        mixture=float(w @ whole @ w),
        gain=gain,
        gain_interval=(float(low), float(high)),
        weight_interval=[(float(a), float(b)) for a, b in sides],
        by_level=[best_weights(level.mean(0)).tolist() for level in products],
    )

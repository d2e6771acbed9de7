"""Noise schedules, each seen from rho = sigma / alpha: what share of a sample is clean, what time a network is told.

    VP     alpha = 1 / sqrt(1 + rho^2)    time: the index t of the trained level, rho_t = sqrt((1 - abar_t) / abar_t)
    flow   alpha = 1 / (1 + rho)          time: s = rho / (1 + rho), or 1 - s
    VE     alpha = 1                      time: ln(rho) / 4, as EDM has it

Two models of different schedules are at the same noise level where rho agrees, never where the share of their steps
does: half-way down the cosine schedule of 100 steps is s = 0.51, three quarters are s = 0.72.

Source: cosine: arXiv:2102.09672; flow: arXiv:2210.02747; VE and its grid: arXiv:2206.00364, equation 5. The cosine
betas are those of diffusers' ``squaredcos_cap_v2``.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from offrl.diffusion.parameterization import Level


class Schedule(Protocol):
    """A Gaussian path x = alpha x0 + sigma eps; sigma is always alpha rho."""

    def alpha(self, rho: Level) -> Level:
        """Share of the clean sample at noise level ``rho``."""

    def time(self, rho: Level) -> Level:
        """What the network is told at noise level ``rho``."""


def cosine_betas(steps: int, largest: float = 0.999) -> Tensor:
    """``squaredcos_cap_v2``: min(1 - f((i + 1) / T) / f(i / T), largest), f(t) = cos^2((t + .008) / 1.008 pi / 2).

    Returns:
        (T,) float64.
    """
    f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    betas = [min(1 - f[i + 1] / f[i], largest) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def linear_betas(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Equally spaced betas (T,) float64; with the defaults a thousand steps reach pure noise, a hundred do not."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


class VP:
    """A variance-preserving path with T trained noise levels, alpha^2 + sigma^2 = 1.

    Args:
        betas: (T,), variance added in each step.

    Attributes:
        abar: (T,) float64, alpha^2 at each level.
        rho: (T,) float64, rising.
    """

    def __init__(self, betas: Tensor) -> None:
        self._set(torch.cumprod(1.0 - betas.double(), dim=0))

    def _set(self, abar: Tensor) -> None:
        self.abar = abar
        self.rho = ((1.0 - self.abar) / self.abar).sqrt()
        self._log = self.rho.log()
        self._found: dict[float, tuple[int, float]] = {}

    @classmethod
    def cosine(cls, steps: int = 100) -> "VP":
        """That of Diffusion Policy."""
        return cls(cosine_betas(steps))

    @classmethod
    def from_abar(cls, abar: Tensor) -> "VP":
        """That with alpha^2 (T,) float64 at its levels, to the bit."""
        made = cls.__new__(cls)
        made._set(abar)
        return made

    @classmethod
    def linear(cls, steps: int = 1000) -> "VP":
        """That of DDPM; with 100 steps it ends at rho 1.3 and is of no use."""
        return cls(linear_betas(steps))

    def alpha(self, rho: Level) -> Level:
        """1 / sqrt(1 + rho^2)."""
        return _root(1.0 + rho * rho) ** -1

    def time(self, rho: Level) -> Level:
        """The index of the trained level, between two of them interpolated in ln rho, clamped to 0 .. T - 1."""
        single = not isinstance(rho, Tensor)
        value = torch.as_tensor(rho, dtype=torch.float64, device=self._log.device).log()
        log = value.clamp(self._log[0], self._log[-1])
        right = torch.searchsorted(self._log, log).clamp(1, len(self._log) - 1)
        low, high = self._log[right - 1], self._log[right]
        index = (right - 1) + (log - low) / (high - low)
        return index.item() if single else index.to(torch.get_default_dtype())

    def nearest(self, rho: float) -> tuple[int, float]:
        """The trained level nearest in ln rho, and how far it is, |ln rho - ln rho_t|."""
        if rho not in self._found:  # a composition asks for the same few levels in every plan
            gaps = (self._log - math.log(rho)).abs()
            index = int(gaps.argmin())
            self._found[rho] = (index, float(gaps[index]))
        return self._found[rho]

    def grid(self, steps: int | None = None) -> list[float]:
        """Falling noise levels ending in 0: all trained ones, or ``steps`` of them, the noisiest among them.

        The spacing is the one called 'trailing' elsewhere; 'leading' begins below pure noise.
        """
        count = len(self.rho)
        steps = count if steps is None else steps
        if not 1 <= steps <= count:
            raise ValueError(f"steps must be in 1 .. {count}, the trained levels, got {steps}")
        chosen = [round(count - i * count / steps) - 1 for i in range(steps)]
        return [*self.rho[chosen].tolist(), 0.0]


@dataclass(frozen=True)
class Flow:
    """The straight path x = (1 - s) x0 + s eps of flow matching and rectified flow.

    Args:
        time_scale: the network is told this times s.
        reversed: it is told 1 - s instead.
    """

    time_scale: float = 1.0
    reversed: bool = False

    def alpha(self, rho: Level) -> Level:
        """1 - s = 1 / (1 + rho)."""
        return 1.0 / (1.0 + rho)

    def time(self, rho: Level) -> Level:
        """S = rho / (1 + rho), scaled."""
        s = rho / (1.0 + rho)
        return self.time_scale * (1.0 - s if self.reversed else s)

    def grid(self, steps: int, largest: float = 1.0) -> list[float]:
        """Noise levels of s = largest, ..., 1 / steps of it, 0, equally spaced; the first is inf for s = 1."""
        shares = [largest * (1 - i / steps) for i in range(steps)]
        return [*(math.inf if s >= 1 else s / (1 - s) for s in shares), 0.0]


@dataclass(frozen=True)
class VE:
    """x = x0 + rho eps, the path of EDM and of score models."""

    def alpha(self, rho: Level) -> Level:
        """1."""
        return torch.ones_like(rho) if isinstance(rho, Tensor) else 1.0

    def time(self, rho: Level) -> Level:
        """Ln(rho) / 4, EDM's c_noise."""
        return rho.log() / 4 if isinstance(rho, Tensor) else math.log(rho) / 4

    def grid(
        self, steps: int, smallest: float = 0.002, largest: float = 80.0, power: float = 7.0
    ) -> list[float]:
        """EDM's noise levels: (max^(1/p) + i / (N - 1) (min^(1/p) - max^(1/p)))^p for i < N, then 0."""
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        first, last = largest ** (1 / power), smallest ** (1 / power)
        levels = [(first + i / max(steps - 1, 1) * (last - first)) ** power for i in range(steps)]
        return [*levels, 0.0]


def _root(x: Level) -> Level:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)

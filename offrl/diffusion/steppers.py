"""From noise to samples: the ODE and SDE steps that serve every schedule, Euler and Heun.

    u = x / alpha = x0 + rho eps,   D(u, rho) = E[x0 | u]

    ODE     u' = D + (rho' / rho) (u - D)                             DDIM with eta = 0; Euler of flow matching
    SDE     u' = D + (rho' / rho)^2 (u - D) + rho' sqrt(1 - (rho' / rho)^2) z       DDPM, its 'fixed small' variance
    Heun    the ODE step with the mean of the slopes at both ends
    end     rho' = 0 gives u' = D

Source: arXiv:2206.00364, algorithms 1 and 2; DDIM: arXiv:2010.02502; DDPM: arXiv:2006.11239.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offrl.diffusion.parameterization import Kind, to_x0
from offrl.diffusion.schedules import Schedule

Denoise = Callable[[Tensor, float], Tensor]  # (u, rho) -> D
Noise = Callable[[Tensor], Tensor]  # standard normal draws shaped as its argument
Guide = Callable[[Tensor, float, int], Tensor]  # (u, rho, number of the step) -> u, before the step


def denoiser(
    network: Callable[[Tensor, float], Tensor], kind: Kind, schedule: Schedule, sigma_data: float = 1.0
) -> Denoise:
    """D(u, rho) of a network that is told x = alpha u and its schedule's time.

    Args:
        network: (x, time) -> output.
        kind: what the output is.
        schedule: of the network.
        sigma_data: of EDM networks, whose input is scaled by c_in besides.
    """

    def denoise(u: Tensor, rho: float) -> Tensor:
        alpha, time = schedule.alpha(rho), schedule.time(rho)
        x = alpha * u
        c_in = (rho * rho + sigma_data**2) ** -0.5 if kind == "edm" else 1.0
        return to_x0(kind, network(c_in * x, float(time)), x, alpha, alpha * rho, sigma_data)

    return denoise


def ode_step(u: Tensor, x0: Tensor, rho: float, rho_next: float) -> Tensor:
    """One Euler step of the probability-flow ODE from ``rho`` to ``rho_next``.

    Args:
        u: the noisy sample; at ``rho`` = inf the pure noise, which is what u / rho tends to.
        x0: D(u, rho), or what stands for it, e.g. clipped.
        rho: noise level of ``u``.
        rho_next: where to.
    """
    if math.isinf(rho):
        return x0 + rho_next * u
    return x0 + (rho_next / rho) * (u - x0)


def sde_step(u: Tensor, x0: Tensor, rho: float, rho_next: float, noise: Tensor) -> Tensor:
    """One draw from the Gaussian posterior of u at ``rho_next`` given u and x0; ``noise`` is standard normal."""
    ratio = (rho_next / rho) ** 2
    return x0 + ratio * (u - x0) + rho_next * math.sqrt(max(1.0 - ratio, 0.0)) * noise


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity: before a step at a level in [low, high] noise is added, up to level (1 + gamma) rho."""

    amount: float = 80.0
    low: float = 0.05
    high: float = 50.0
    noise_scale: float = 1.003

    def gamma(self, rho: float, steps: int) -> float:
        """Relative rise of the noise level at one of ``steps`` levels."""
        inside = self.low <= rho <= self.high
        return min(self.amount / steps, math.sqrt(2.0) - 1.0) if inside else 0.0


def sample(
    denoise: Denoise,
    u: Tensor,
    grid: Sequence[float],
    *,
    kind: Literal["ode", "sde"] = "ode",
    heun: bool = False,
    churn: Churn | None = None,
    noise: Noise = torch.randn_like,
    guide: Guide | None = None,
    legacy_euler_base: bool = False,
) -> Tensor:
    """Samples from noise: the last of ``trajectory``, whose arguments these are."""
    out = u
    for out in trajectory(  # noqa: B007 - the last one is wanted
        denoise,
        u,
        grid,
        kind=kind,
        heun=heun,
        churn=churn,
        noise=noise,
        guide=guide,
        legacy_euler_base=legacy_euler_base,
    ):
        pass
    return out


def trajectory(
    denoise: Denoise,
    u: Tensor,
    grid: Sequence[float],
    *,
    kind: Literal["ode", "sde"] = "ode",
    heun: bool = False,
    churn: Churn | None = None,
    noise: Noise = torch.randn_like,
    guide: Guide | None = None,
    legacy_euler_base: bool = False,
) -> Iterator[Tensor]:
    """Samples after each step down ``grid``.

    Args:
        denoise: D(u, rho).
        u: draws at the first level, usually ``grid[0]`` times standard normal ones; those themselves if it is inf.
        grid: falling noise levels; the last is usually 0.
        kind: ``sde`` draws from the posterior in each step.
        heun: correct each ODE step by the slope at its end (not the last one, to 0).
        churn: noise added before ODE steps; None adds none.
        noise: where draws come from.
        guide: moves u before each step (and before the churn).
        legacy_euler_base: begin the Euler step at the sample before the churn, as the official code of
            policy-guided diffusion does; without Heun it collapses.

    Yields:
        u at ``grid[1]``, ``grid[2]``, ...
    """
    steps = len(grid) - 1
    for index, (rho, rho_next) in enumerate(itertools.pairwise(grid)):
        if guide is not None:
            u = guide(u, rho, index)
        if kind == "sde":
            u = sde_step(u, denoise(u, rho), rho, rho_next, noise(u))
            yield u
            continue
        base, high = u, rho
        gamma = 0.0 if churn is None else churn.gamma(rho, steps)
        if churn is not None and gamma > 0:
            high = rho * (1.0 + gamma)
            u = u + math.sqrt(high**2 - rho**2) * churn.noise_scale * noise(u)
        x0 = denoise(u, high)
        if legacy_euler_base and gamma > 0:
            euler = base + (rho_next - high) * (u - x0) / high
        else:
            euler = ode_step(u, x0, high, rho_next)
        if heun and rho_next > 0:
            slopes = (u - x0) / high + (euler - denoise(euler, rho_next)) / rho_next
            euler = u + (rho_next - high) / 2 * slopes
        u = euler
        yield u

"""EDM: preconditioning, the loss, the draw of noise levels.

    c_skip = sd^2 / (rho^2 + sd^2)     c_out = rho sd / sqrt(rho^2 + sd^2)
    c_in   = 1 / sqrt(rho^2 + sd^2)    c_noise = ln(rho) / 4
    D(u, rho) = c_skip u + c_out F(c_in u, c_noise)
    L = E (rho^2 + sd^2) / (rho sd)^2 |D(x0 + rho n, rho) - x0|^2 = E |F - (x0 - c_skip u) / c_out|^2
    ln rho ~ N(-1.2, 1.2^2)

sd, the standard deviation of the data, is 1 here for standardized data.

Source: arXiv:2206.00364, table 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offrl.diffusion.parameterization import expand

Network = Callable[[Tensor, Tensor], Tensor]  # (input (S, B, ...), c_noise (S, B)) -> as the input


def denoise(network: Network, u: Tensor, rho: Tensor, sigma_data: float = 1.0) -> Tensor:
    """D(u, rho) of a preconditioned network.

    Args:
        network: F.
        u: noisy samples (S, B, ...).
        rho: their noise levels (S, B).
        sigma_data: sd.
    """
    level = expand(rho, u)
    root = (level.square() + sigma_data**2).sqrt()
    output = network(u / root, rho.log() / 4)
    return u * (sigma_data / root).square() + (level * sigma_data / root) * output


def loss(network: Network, x0: Tensor, rho: Tensor, noise: Tensor, sigma_data: float = 1.0) -> Tensor:
    """The weighted denoising error of each seed, (S,).

    Args:
        network: F.
        x0: clean samples (S, B, ...).
        rho: a noise level for each, (S, B).
        noise: standard normal, as ``x0``.
        sigma_data: sd.
    """
    level = expand(rho, x0)
    u = x0 + level * noise
    root = (level.square() + sigma_data**2).sqrt()
    c_skip, c_out = (sigma_data / root).square(), level * sigma_data / root
    error = network(u / root, rho.log() / 4) - (x0 - c_skip * u) / c_out
    return error.square().flatten(1).mean(dim=1)


def draw_levels(
    batch: int, generators: Sequence[torch.Generator], mean: float = -1.2, std: float = 1.2
) -> Tensor:
    """Noise levels (S, B), log-normal; seed k's come from ``generators[k]`` alone."""
    draws = [torch.randn((1, batch), generator=g, device=g.device) for g in generators]
    return (mean + std * torch.cat(draws)).exp()

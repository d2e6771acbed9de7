"""Flow matching along straight lines: training pairs, and samples by Euler steps."""

from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(noise: Tensor, data: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = (1 - t) z + t a and the velocity a - z that carries z to a in unit time.

    Args:
        noise: z, (..., A).
        data: a, (..., A).
        times: t in [0, 1], (..., 1).

    Source: rectified flow, arXiv:2209.03003, equation 1.
    """
    return torch.lerp(noise, data, times), data - noise


def euler_flow(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Where dx/dt = v(x, t) leads from x = noise at time 0 until time 1, in ``steps`` equal Euler steps.

    Args:
        velocity: v of x (..., A) and t (..., 1).
        noise: (..., A).
        steps: 1 or more.
    """
    x = noise
    for i in range(steps):
        x = x + velocity(x, torch.full_like(x[..., :1], i / steps)) / steps
    return x

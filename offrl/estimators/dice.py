"""The DICE side: conjugates of f-divergences over visitation ratios, and what becomes of a Bellman residual.

    ratio        w*(y) = argmax_{w >= 0}  y w - f(w)
    conjugate    f*(y) = y w*(y) - f(w*(y)),  its derivative is w*(y)

    pearson      f(w) = (w - 1)^2     w* = max(0, y / 2 + 1)    f* = y + y^2 / 4, and -1 below y = -2
    reverse_kl   f(w) = w log w       w* = exp(y - 1)           f* = exp(y - 1)

Source: O-DICE, arXiv:2402.00348; the non-negative ratio as in OptiDICE, arXiv:2106.10783.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["pearson", "reverse_kl"]


def ratio(residual: Tensor, divergence: Divergence) -> Tensor:
    """w*(y), the optimal visitation ratio d / d_D at a Bellman residual y; any shape."""
    if divergence == "pearson":
        return (0.5 * residual + 1.0).clamp(min=0.0)
    return (residual - 1.0).exp()


def conjugate(residual: Tensor, divergence: Divergence) -> Tensor:
    """f*(y); any shape."""
    if divergence == "pearson":
        return ratio(residual, divergence).square() - 1.0
    return (residual - 1.0).exp()


def bellman_residual(
    rewards: Tensor, terminated: Tensor, values: Tensor, next_values: Tensor, discount: float
) -> Tensor:
    """E = r + discount (1 - terminated) V(s') - V(s) of every ensemble member, (S, E, B).

    Args:
        rewards: (S, B).
        terminated: (S, B), 0 or 1.
        values: V(s), (S, E, B), or (S, 1, B) for all members.
        next_values: V(s'), (S, E, B) or (S, 1, B).
        discount: per step.
    """
    return rewards[:, None] + discount * (1.0 - terminated)[:, None] * next_values - values


def density_ratio_loss(above: Tensor, below: Tensor) -> Tensor:
    """Logistic regression of samples of p against samples of q, (S, B) logits each: (S,).

    mean softplus(-logit_p) + mean softplus(logit_q); the best logit is log p(x) / q(x).

    Source: density-ratio trick, as in SMODICE, arXiv:2202.02433, section 4.
    """
    return F.softplus(-above).mean(dim=1) + F.softplus(below).mean(dim=1)

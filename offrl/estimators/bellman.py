"""Bellman-side losses shared by many methods. Shapes: S seeds, E ensemble members, B batch, A action dims."""

from torch import Tensor


def td_target(rewards: Tensor, terminated: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """R + discount (1 - terminated) V(s'), the one-step target; every argument (..., B).

    Only ``terminated`` stops the bootstrap: a time-limit cut must arrive here as 0.
    """
    return rewards + discount * (1.0 - terminated) * next_values


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """sum_j mean_B (Q_j - y)^2 for ``q`` (S, E, B) and a constant ``target`` (S, B); returns (S,)."""
    return (q - target.detach()[:, None]).square().mean(dim=2).sum(dim=1)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """mean_B |expectile - 1[u < 0]| u^2 for u (..., B); its minimizer over a constant is the expectile.

    Source: IQL, arXiv:2110.06169, section 4.
    """
    weight = (expectile - (difference < 0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean(dim=-1)

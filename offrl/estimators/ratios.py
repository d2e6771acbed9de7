"""Denominators: pi_theta over the policy that the gradient is weighted with, as a factor without gradient.

In the unified form (pi_theta / pi_ref) A grad log pi_theta a method chooses pi_ref; these functions return the
whole factor, (B, T), or (B, 1) where a row has one. Exponents are clamped to +-20.

Source: the unified view, arXiv:2509.04419.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from offrl.estimators.aggregation import sequence_mean, sequence_sum

LIMIT = 20.0
Level = Literal["token", "sequence", "geometric"]


def ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), the exponent within +-20; any shape."""
    return log_ratio.clamp(-LIMIT, LIMIT).exp()


def current(log_probs: Tensor) -> Tensor:
    """pi_ref = pi_theta: 1. REINFORCE, supervised fine-tuning."""
    return torch.ones_like(log_probs)


def one(log_probs: Tensor) -> Tensor:
    """pi_ref = 1: pi_theta itself. Demonstrations whose sampling policy is unknown (LUFFY, arXiv:2504.14945)."""
    return log_probs.exp()


def old(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """pi_theta / pi_old of every step. PPO, arXiv:1707.06347; GRPO and most of its kin."""
    return ratio(log_probs - old_log_probs)


def rollout(log_probs: Tensor, rollout_log_probs: Tensor, *, cap: float = 5.0) -> Tensor:
    """min(pi_theta / mu, cap), mu being what sampled. MiniRL, arXiv:2512.01374."""
    return ratio(log_probs - rollout_log_probs).clamp(max=cap)


def truncated(
    log_probs: Tensor, old_log_probs: Tensor, *, high: float = 0.28, low: float | None = None
) -> Tensor:
    """pi_theta / pi_old cut to at most 1 + high, and to at least 1 - low: clipped steps keep a gradient.

    trl's ``epsilon_high`` e is high = e - 1; verl also sets the floor.

    Source: CISPO, arXiv:2506.13585.
    """
    return ratio(log_probs - old_log_probs).clamp(None if low is None else 1.0 - low, 1.0 + high)


def sequence(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(mean over the row of log pi_theta / pi_old), (B, 1). GSPO, arXiv:2507.18071."""
    return ratio(sequence_mean(log_probs - old_log_probs, mask)[:, None])


def sequence_product(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """pi_theta(y) / pi_old(y) of the whole row, (B, 1): exact, and of a variance that grows with its length."""
    return ratio(sequence_sum(log_probs - old_log_probs, mask)[:, None])


def geometric(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    low: float = 0.4,
    high: float = 0.4,
) -> Tensor:
    """Geometric mean over the row of clipped ratios, (B, 1); ``low`` and ``high`` bound log-ratios.

    Each step's log-ratio is cut where the clipped surrogate would be flat: above ``high`` for A > 0, below
    -``low`` for A < 0. Mask ``log_clip`` takes the cut steps' own gradient away.

    Source: GMPO, arXiv:2507.20673.
    """
    log_ratio = log_probs - old_log_probs
    sign = advantages.sign()
    cut = torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-low, high)) * sign
    return ratio(sequence_mean(cut, mask)[:, None])


def mismatch_ratio(
    old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor | None, level: Level
) -> Tensor:
    """pi_old / mu, how far training and sampling disagree: of steps (B, T), or of rows (B, 1).

    A ``sequence`` is a product over the row, ``geometric`` its length-normalised version.
    """
    log_ratio = old_log_probs - rollout_log_probs
    if level == "token":
        return ratio(log_ratio)
    total = sequence_sum if level == "sequence" else sequence_mean
    return ratio(total(log_ratio, mask)[:, None])


DENOMINATORS: dict[str, Callable[..., Tensor]] = {
    "current": current,
    "one": one,
    "old": old,
    "rollout": rollout,
    "truncated": truncated,
    "sequence": sequence,
    "sequence_product": sequence_product,
    "geometric": geometric,
}

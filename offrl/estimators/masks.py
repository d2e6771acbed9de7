"""Stabilisation masks: which steps keep their gradient. Boolean, (B, T) or (B, 1); several multiply.

A clipped surrogate min(r A, clip(r) A) has the gradient of r A where these masks are true, and none elsewhere.
They look at the *unclipped* ratio and at the sign of A. Means still divide by all chosen steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from offrl.estimators.aggregation import sequence_mean
from offrl.estimators.ratios import Level, mismatch_ratio
from offrl.estimators.ratios import ratio as exp_ratio


def ppo_clip(ratio: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """False where A > 0 and ratio > 1 + high, or A < 0 and ratio < 1 - low.

    Works on the ratio of the denominator: with ``sequence`` it is GSPO's clip.

    Args:
        ratio: (B, T) or (B, 1).
        advantages: (B, T) or (B, 1).
        low: epsilon below 1.
        high: epsilon above 1; more than ``low`` is DAPO's "clip-higher".

    Source: PPO, arXiv:1707.06347; DAPO, arXiv:2503.14476.
    """
    return torch.where(advantages > 0, ratio <= 1.0 + high, (ratio >= 1.0 - low) | (advantages == 0))


def dual_clip(ratio: Tensor, advantages: Tensor, *, limit: float = 3.0) -> Tensor:
    """False where A < 0 and ratio > limit; beside ``ppo_clip``. Source: arXiv:1912.09729."""
    return (advantages >= 0) | (ratio <= limit)


def ppo_bound(ratio: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """The ratio that the clipped surrogate multiplies A with; its *value* where ``ppo_clip`` is False."""
    return torch.where(advantages > 0, ratio.clamp(max=1.0 + high), ratio.clamp(min=1.0 - low))


def dual_bound(ratio: Tensor, advantages: Tensor, *, limit: float = 3.0) -> Tensor:
    """Likewise for ``dual_clip``."""
    return torch.where(advantages < 0, ratio.clamp(max=limit), ratio)


def decoupled_clip(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.27
) -> Tensor:
    """``ppo_clip`` of pi_theta / pi_old whatever the denominator is. Source: MiniRL, arXiv:2512.01374."""
    return ppo_clip(exp_ratio(log_probs - old_log_probs), advantages, low=low, high=high)


def sequence_clip(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    low: float = 3e-4,
    high: float = 4e-4,
) -> Tensor:
    """``ppo_clip`` of the length-normalised ratio of the row, whatever the denominator is.

    Source: GSPO, arXiv:2507.18071.
    """
    rows = exp_ratio(sequence_mean(log_probs - old_log_probs, mask))[:, None]
    return ppo_clip(rows, advantages, low=low, high=high)


def log_clip(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float = 0.4, high: float = 0.4
) -> Tensor:
    """False where A > 0 and log-ratio > high, or A < 0 and log-ratio < -low. With denominator ``geometric``."""
    log_ratio = log_probs - old_log_probs
    return torch.where(advantages > 0, log_ratio <= high, (log_ratio >= -low) | (advantages == 0))


def log_bound(ratio: Tensor, *, low: float = 0.4, high: float = 0.4) -> Tensor:
    """Likewise for ``log_clip``: the ratio of denominator ``geometric``, in which the bounds are already."""
    return ratio


def icepop(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    mask: Tensor | None = None,
    *,
    low: float = 0.5,
    high: float = 5.0,
    level: Level = "token",
) -> Tensor:
    """True where low <= pi_old / mu <= high, of steps or of whole rows; usually with shaping ``mismatch``.

    Source: IcePop, in arXiv:2510.18855 and OpenRLHF; levels as in verl's rollout correction.
    """
    rho = mismatch_ratio(old_log_probs, rollout_log_probs, mask, level)
    return (rho >= low) & (rho <= high)


def stale_rows(
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    limit: float = 0.5,
) -> Tensor:
    """False for steps with A < 0 in rows whose mean log(mu / pi_theta) is above ``limit``.

    Source: DeepSeek-V3.2, arXiv:2512.02556; trl's ``off_policy_mask_threshold``.
    """
    drift = sequence_mean(rollout_log_probs - log_probs, mask)[:, None]
    return (advantages >= 0) | (drift <= limit)


MASKS: dict[str, Callable[..., Tensor]] = {
    "ppo_clip": ppo_clip,
    "clip_higher": partial(ppo_clip, low=0.2, high=0.28),
    "dual_clip": dual_clip,
    "decoupled_clip": decoupled_clip,
    "sequence_clip": sequence_clip,
    "log_clip": log_clip,
    "icepop": icepop,
    "stale_rows": stale_rows,
}

BOUNDS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    ppo_clip: ppo_bound,
    dual_clip: dual_bound,
    log_clip: log_bound,
}
"""Masks of surrogates that are constant, not zero, where the mask is False."""

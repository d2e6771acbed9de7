"""Factors on the likelihood gradient besides ratio and mask: (B, T) or (B, 1), without gradient; several multiply."""

from collections.abc import Callable

import torch
from torch import Tensor

from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.ratios import Level, mismatch_ratio


def mismatch(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    mask: Tensor | None = None,
    *,
    cap: float | None = 2.0,
    level: Level = "token",
) -> Tensor:
    """min(pi_old / mu, cap): truncated importance weights of the sampling engine's policy.

    With mask ``icepop`` and no cap, steps outside its band are dropped instead.

    Source: TIS as in verl, trl and OpenRLHF.
    """
    rho = mismatch_ratio(old_log_probs, rollout_log_probs, mask, level)
    return rho if cap is None else rho.clamp(max=cap)


def luffy(log_probs: Tensor, *, gamma: float = 0.1) -> Tensor:
    """f'(p) of f(p) = p / (p + gamma); with denominator ``one`` the weight is p gamma / (p + gamma)^2.

    Largest, 1/4, at p = gamma: likely tokens have nothing to learn, hopeless ones are left alone.

    Source: LUFFY, arXiv:2504.14945.
    """
    return gamma / (log_probs.exp() + gamma).square()


def sapo(ratio: Tensor, advantages: Tensor, *, positive: float = 1.0, negative: float = 1.05) -> Tensor:
    """4 s (1 - s), s = sigmoid(tau (ratio - 1)): the derivative of the soft gate (4 / tau) s; 1 at ratio 1.

    Args:
        ratio: (B, T).
        advantages: (B, T) or (B, 1).
        positive: tau where A > 0.
        negative: tau elsewhere.

    Source: SAPO, arXiv:2511.20347.
    """
    gate = (_choose(advantages > 0, positive, negative, ratio) * (ratio - 1.0)).sigmoid()
    return 4.0 * gate * (1.0 - gate)


def vespo(
    ratio: Tensor,
    advantages: Tensor,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Tensor:
    """w^(k-1) exp(c (1 - w)); with denominator ``sequence_product`` the weight is w^k exp(c (1 - w)).

    Args:
        ratio: w of the row, (B, 1).
        advantages: (B, 1).
        positive: (k, c) where A >= 0.
        negative: (k, c) elsewhere.

    Source: VESPO, arXiv:2602.10693, in the form of trl.
    """
    good = advantages >= 0
    power = _choose(good, positive[0], negative[0], ratio)
    decay = _choose(good, positive[1], negative[1], ratio)
    return ratio.pow(power - 1.0) * (decay * (1.0 - ratio)).exp()


def length(log_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Length of the row, (B, 1): undoes the 1 / L of row means. Source: LUSPO, as in trl."""
    return sequence_sum(torch.ones_like(log_probs), mask)[:, None]


SHAPINGS: dict[str, Callable[..., Tensor]] = {
    "mismatch": mismatch,
    "luffy": luffy,
    "sapo": sapo,
    "vespo": vespo,
    "length": length,
}


def _choose(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    return condition.to(like.dtype) * (yes - no) + no

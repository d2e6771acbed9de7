"""Terms beside the policy gradient, one value a step to be aggregated like it: KL estimates, entropy, value loss.

KL estimates of one sample a ~ pi, with d = log pi(a) - log ref(a):

    k1  d                    unbiased; its gradient grad log pi is zero on average: useless in a loss
    k2  d^2 / 2              biased; its gradient d grad log pi is that of KL(pi || ref)
    k3  exp(-d) - 1 + d      unbiased, never negative; its gradient is that of KL(ref || pi)

``k1+`` and ``k3+`` have the value of k1 and k3 and the gradient of k2, the true one for samples of pi; names as in
volcengine/verl. ``weighted_kl`` has value and gradient of KL(pi || ref) from samples of an older policy.
Exact KLs take the direction from the order of their arguments.

Source: J. Schulman, "Approximating KL divergence"; gradients: arXiv:2506.09477.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from offrl.estimators.ratios import LIMIT
from offrl.estimators.ratios import ratio as exp_ratio


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """d; any shape."""
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """d^2 / 2; any shape."""
    return 0.5 * (log_probs - ref_log_probs).square()


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """exp(-d) - 1 + d, any shape; constant below d = -20, where d alone would push pi further down."""
    d = (log_probs - ref_log_probs).clamp(min=-LIMIT)
    return (-d).exp() - 1.0 + d


def k1_plus(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Value of k1, gradient of k2."""
    return _value_and_gradient(k1, log_probs, ref_log_probs)


def k3_plus(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Value of k3, gradient of k2."""
    return _value_and_gradient(k3, log_probs, ref_log_probs)


def weighted_kl(log_probs: Tensor, ref_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """(pi / pi_old) k3, differentiated through both: unbiased for KL(pi || ref) and its gradient off policy.

    Source: DeepSeek-V3.2, arXiv:2512.02556.
    """
    return exp_ratio(log_probs - old_log_probs) * k3(log_probs, ref_log_probs)


def negative_entropy(entropy: Tensor) -> Tensor:
    """-H, so that a positive coefficient rewards entropy; any shape."""
    return -entropy


def value_loss(predicted_values: Tensor, returns: Tensor) -> Tensor:
    """(V - target)^2, without a half; any shape."""
    return (predicted_values - returns).square()


def clipped_value_loss(
    predicted_values: Tensor, returns: Tensor, values: Tensor, *, clip: float = 0.2
) -> Tensor:
    """max((V - target)^2, (V_old + clip(V - V_old, +-clip) - target)^2); any shape.

    Source: PPO's code; whether it helps is open (arXiv:2006.05990).
    """
    near = values + (predicted_values - values).clamp(-clip, clip)
    return torch.maximum((predicted_values - returns).square(), (near - returns).square())


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std) || N(other_mean, other_std)), diagonal, summed over the last axis: (..., A) -> (...)."""
    shift = ((mean - other_mean) * (-other_log_std).exp()).square()
    spread = 2.0 * (log_std - other_log_std)
    return 0.5 * (spread.exp() + shift - 1.0 - spread).sum(dim=-1)


def categorical_kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other_logits)); (..., V) -> (...). Logits of -inf are impossible in both."""
    log_p, log_q = logits.log_softmax(dim=-1), other_logits.log_softmax(dim=-1)
    possible = log_p > -torch.inf
    return (log_p.exp() * (log_p - log_q).where(possible, 0.0)).sum(dim=-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of a diagonal Gaussian, nats: (..., A) -> (...)."""
    return (log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum(dim=-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits), nats: (..., V) -> (...)."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.where(log_p > -torch.inf, 0.0)).sum(dim=-1)


def adapted(coefficient: float, kl: float, target: float, share: float, limit: float = 0.2) -> float:
    """Next KL coefficient: times 1 + clip(kl / target - 1, +-limit) share.

    Args:
        coefficient: the current one.
        kl: measured.
        target: wanted.
        share: steps since the last call over the horizon.
        limit: of the relative error.

    Source: arXiv:1909.08593, section 2.2.
    """
    return coefficient * (1.0 + min(max(kl / target - 1.0, -limit), limit) * share)


REGULARIZERS: dict[str, Callable[..., Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k1+": k1_plus,
    "k3+": k3_plus,
    "weighted_kl": weighted_kl,
    "negative_entropy": negative_entropy,
    "value_loss": value_loss,
    "clipped_value_loss": clipped_value_loss,
}


def _value_and_gradient(
    value: Callable[[Tensor, Tensor], Tensor], log_probs: Tensor, ref_log_probs: Tensor
) -> Tensor:
    """Straight through: ``value`` seen, k2 differentiated."""
    square = k2(log_probs, ref_log_probs)
    return square - square.detach() + value(log_probs, ref_log_probs).detach()

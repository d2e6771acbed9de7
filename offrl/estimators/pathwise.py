"""Actor losses that differentiate through the critic (deterministic policy gradient) and their companions."""

import math
from typing import Literal

from torch import Tensor

LEAST_DENSITY, LARGEST_LOG_DENSITY = 1e-6, 60.0
TsallisMode = Literal["per_dim", "joint"]


def normalized_q_loss(q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """-lambda mean Q with lambda = alpha / mean |Q|, lambda a constant for the gradient.

    The gradient does not change when Q is multiplied by a positive constant, so ``alpha`` means the same
    on every reward scale.

    Args:
        q: Q(s, pi(s)), (S, B).
        alpha: weight of the Q term, >= 0.

    Returns:
        The loss (S,) and lambda (S,).

    Source: TD3+BC, arXiv:2106.06860, section 5; |Q| is taken at pi(s), as in sfujim/TD3_BC.
    """
    scale = alpha / q.detach().abs().mean(dim=-1)
    return -scale * q.mean(dim=-1), scale


def squared_distance(policy_actions: Tensor, actions: Tensor) -> Tensor:
    """Mean over batch *and* action dims of (pi - a)^2, ``actions`` constant: (S, B, A), (S, B, A) -> (S,)."""
    return (policy_actions - actions.detach()).square().mean(dim=(-2, -1))


def tsallis_log(log_probs: Tensor, q: float, mode: TsallisMode = "per_dim") -> Tensor:
    """log_q p = (p^(q-1) - 1) / (q - 1), from log p of every action dimension: (..., A) -> (...); q = 1: log p.

    Args:
        log_probs: nats; below log 1e-6 they count as that (q other than 1), without gradient.
        q: in [1, 2].
        mode: per_dim sums log_q of each dimension; joint takes log_q of the whole density. They differ for q > 1.

    Source: MDPO, arXiv:2005.09814; the sum over dimensions and the least density are its code's.
    """
    if q == 1.0:
        return log_probs.sum(dim=-1)
    if mode == "joint":
        log_probs = log_probs.sum(dim=-1, keepdim=True)
    within = log_probs.clamp(math.log(LEAST_DENSITY), LARGEST_LOG_DENSITY)
    return (((q - 1.0) * within).expm1() / (q - 1.0)).sum(dim=-1)


def mirror_descent_loss(
    log_q: Tensor, old_log_q: Tensor, q_values: Tensor, *, kl: float, entropy: float, q: float = 1.0
) -> Tensor:
    """Mean of c log_q pi + q (lambda - c) log_q pi_k - Q: one soft mirror-descent step, differentiated through actions.

    Its exact solution in a state, for q = 1, is pi_k^(1 - lambda / c) exp(Q / c), normalised; with lambda = c it is
    SAC's.

    Args:
        log_q: ``tsallis_log`` of pi(a | s), a ~ pi, (..., B).
        old_log_q: that of the policy before, pi_k, at the same a, (..., B).
        q_values: Q(s, a), (..., B).
        kl: c, one over the step size.
        entropy: lambda, the temperature.
        q: index of the logarithm.

    Returns:
        (...).

    Source: MDPO, arXiv:2005.09814, and its code.
    """
    return (kl * log_q + q * (entropy - kl) * old_log_q - q_values).mean(dim=-1)

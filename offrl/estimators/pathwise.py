"""Actor losses that differentiate through the critic (deterministic policy gradient) and their companions."""

from torch import Tensor


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

"""Weighted log-likelihood losses: BC, AWAC, IQL and the supervised side of language-scale methods."""

import math

from torch import Tensor


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log N(a; mean, diag(exp(log_std)^2)) summed over action dims, nats: (..., A) -> (...)."""
    z = (actions - mean) * (-log_std).exp()
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def advantage_weights(advantages: Tensor, temperature: float, limit: float) -> Tensor:
    """min(exp(temperature * A), limit), constants for the gradient; any shape.

    Source: AWR-type weights as in IQL, arXiv:2110.06169, equation 7; limit 100 in the official code.
    """
    return (advantages.detach() * temperature).exp().clamp(max=limit)


def weighted_likelihood_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """mean_B -w log pi(a | s), ``weights`` constant: (S, B), (S, B) -> (S,)."""
    return -(weights.detach() * log_probs).mean(dim=-1)


def standard_normal_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, exp(log_std)^2) || N(0, 1)) of every dimension apart, nats; any shape."""
    return 0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0) - log_std

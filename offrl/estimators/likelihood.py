"""Log-likelihoods and their weighted losses: BC, AWAC, IQL, SAC and the supervised side of language-scale methods."""

import math

import torch.nn.functional as F
from torch import Tensor


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log N(a; mean, diag(exp(log_std)^2)) summed over action dims, nats: (..., A) -> (...)."""
    z = (actions - mean) * (-log_std).exp()
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """``a = tanh(u)``, ``u = mean + exp(log_std) noise``, and log pi(a) in nats; differentiable in both moments.

    The density is taken from the noise and from u, never from a: log(1 - tanh(u)^2) = 2 (log 2 - u -
    softplus(-2 u)) is exact where tanh(u) rounds to 1, and a tiny std divides nothing.

    Args:
        mean: of u, (..., A).
        log_std: of u, (..., A).
        noise: standard normal draws, (..., A).

    Returns:
        Actions in [-1, 1], (..., A), and log pi (...), summed over action dims.

    Source: SAC, arXiv:1812.05905, appendix C.
    """
    u = mean + log_std.exp() * noise
    return u.tanh(), tanh_gaussian_log_probs(log_std, noise, u).sum(dim=-1)


def tanh_gaussian_log_probs(log_std: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """Log-density of ``tanh(u)``, ``u = mean + exp(log_std) z``, of every action dimension apart, nats.

    Args:
        log_std: of u, (..., A).
        z: u in standard units, (..., A).
        u: before the tanh, (..., A).

    Returns:
        (..., A).
    """
    log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)) - log_slope


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

"""f-divergences between a policy and a target that is known up to its normalizer: gradients, estimates, targets.

    D_f(pi || p) = E_p[f(pi / p)]         grad D_f = E_pi[f'(pi / p) grad log pi]

so that -f' is a reward for policy gradients, with L = log pi - log p:

    kl             KL(p || pi)                        f' = -exp(-L)
    reverse_kl     KL(pi || p)                        L + 1
    tv             total variation                    sign(L) / 2
    js             KL(pi || m) + KL(p || m), m = (pi + p) / 2      log 2 - log(1 + exp(-L))
    chi2           E_pi[(p / pi - 1)^2]               1 - exp(-2 L)
    reverse_chi2   E_p[(pi / p - 1)^2]                2 (exp(L) - 1)

L is cut at +-20. Outcomes that the target excludes have L = inf: kl, tv and js reward them with 0, -1/2 and -log 2, the
others with what the cut leaves: -21, -1, and an enormous punishment by reverse_chi2.

Source: f-DPG, arXiv:2302.08215; moments: arXiv:2012.11635.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from offrl.estimators.ratios import LIMIT, ratio

DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda x: -ratio(-x),
    "reverse_kl": lambda x: x + 1.0,
    "tv": lambda x: 0.5 * x.sign(),
    "js": lambda x: math.log(2.0) - torch.nn.functional.softplus(-x),
    "chi2": lambda x: 1.0 - ratio(-x).square(),
    "reverse_chi2": lambda x: 2.0 * (ratio(x) - 1.0),
}
"""f'(exp(L)) as functions of L; any shape."""


def pseudo_rewards(log_pi: Tensor, log_p: Tensor, divergence: str) -> Tensor:
    """-f'(pi / p); any shape.

    Args:
        log_pi: of the current policy, whole outcomes.
        log_p: of the normalized target; -inf where it excludes an outcome.
        divergence: a name of ``DIVERGENCES``.
    """
    return -DIVERGENCES[divergence]((log_pi - log_p).clamp(-LIMIT, LIMIT))


def kl_estimate(log_pi: Tensor, log_q: Tensor, log_target: Tensor, log_z: Tensor) -> Tensor:
    """KL(p || pi) from draws of q, all (B,): mean of w (log p - log pi), w = p / q, by the estimate of Z."""
    log_p = log_target - log_z
    w = ratio(log_p - log_q)
    return (w * (log_p - log_pi).where(w > math.exp(-LIMIT), 0.0)).mean()


def tv_estimate(log_pi: Tensor, log_q: Tensor, log_target: Tensor, log_z: Tensor) -> Tensor:
    """Total variation from draws of q, all (B,): half the mean of |pi / q - p / q|."""
    return 0.5 * (ratio(log_pi - log_q) - ratio(log_target - log_z - log_q)).abs().mean()


def fit_moments(
    features: Tensor,
    wanted: Tensor,
    log_weights: Tensor | None = None,
    *,
    steps: int = 5000,
    tolerance: float = 1e-5,
) -> Tensor:
    """Coefficients lambda with which a(x) exp(lambda . phi(x)) has the wanted mean features; (K,).

    Newton's steps on log Z(lambda) - lambda . wanted, which is convex, damped so that each goes down.

    Args:
        features: phi of draws, (N, K).
        wanted: (K,).
        log_weights: log a / q of draws from another policy q than a, (N,); None: they are from a.
        steps: at most.
        tolerance: of the largest error, at which it stops, in parts of the feature's range.

    Raises:
        ValueError: no coefficients were found.
    """
    start = torch.zeros_like(features[:, 0]) if log_weights is None else log_weights
    low, high = features.amin(dim=0), features.amax(dim=0)
    size = (high - low).where(high > low, 1.0)
    phi, goal = (features - low) / size, (wanted - low) / size
    found = torch.zeros_like(wanted)
    for _ in range(steps):
        p = (start + phi @ found).softmax(dim=0)
        mean = p @ phi
        error = goal - mean
        if error.abs().max() < tolerance:
            return found / size
        apart = phi - mean
        move = torch.linalg.pinv((p[:, None] * apart).T @ apart, hermitian=True) @ error
        found = found + move / (1.0 + move.norm())
    raise ValueError(f"no coefficients give means of {', '.join(f'{x:g}' for x in wanted.tolist())}")

"""How much each token drives the entropy down: its part of the covariance of log-probability and advantage.

For a softmax over actions, a step of size eta along the natural gradient changes the entropy by -eta Cov(log pi, A),
along the plain gradient by -eta Cov(log pi, pi A), up to eta^2, with a drawn from pi.

Source: arXiv:2505.22617.
"""

import torch
from torch import Tensor

from offrl.estimators.aggregation import masked_sum


def covariances(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """(log pi - mean)(A - mean) of each chosen token, 0 elsewhere; their mean is the covariance.

    Args:
        log_probs: (B, T).
        advantages: (B,) or (B, T).
        mask: (B, T) bool.
    """
    advantages = (advantages if advantages.dim() == 2 else advantages[:, None]).expand(mask.shape)
    tokens = mask.sum().clamp(min=1)
    centred = [x - masked_sum(x, mask) / tokens for x in (log_probs, advantages)]
    return (centred[0] * centred[1]).where(mask, 0.0)


def largest(values: Tensor, among: Tensor, number: int) -> Tensor:
    """True at the ``number`` largest values where ``among`` is, at all of these if there are fewer; any shape."""
    number = min(number, int(among.sum()))
    flat = values.masked_fill(~among, -torch.inf).flatten()
    picked = torch.zeros_like(flat, dtype=torch.bool)
    picked[flat.topk(number).indices] = True
    return picked.view(values.shape)

"""Losses of ensembles of critics. Shapes: S seeds, E ensemble members, B batch, A action dims, J sampled actions."""

import torch
from torch import Tensor


def gradient_similarity(gradients: Tensor) -> Tensor:
    """mean_B sum_{i != j} cos(g_i, g_j) / (E - 1): E where all members agree, 0 where they are orthogonal.

    Computed as ``|sum_i u_i|^2 - sum_i |u_i|^2`` over unit vectors u: linear in E, no E x E matrix.

    Args:
        gradients: dQ_i / da at one action, (S, E, B, A), E >= 2; a gradient of 0 has no direction and counts 0.

    Returns:
        (S,), at least -E / (E - 1).

    Source: EDAC, arXiv:2110.01548, equation 5.
    """
    units = gradients / (torch.linalg.vector_norm(gradients, dim=3, keepdim=True) + 1e-10)
    pairs: Tensor = units.sum(dim=1).square().sum(dim=2) - units.square().sum(dim=(1, 3))
    return pairs.mean(dim=1) / (gradients.shape[1] - 1)


def conservative_gap(samples: Tensor, q_data: Tensor, temperature: float) -> Tensor:
    """T log sum_j exp(x_j / T) - Q(s, a): how far a soft maximum over actions lies above the data's action.

    Args:
        samples: x_j, (S, E, J, B): Q(s, a_j), minus the log-density that a_j was drawn from if the sum is to
            estimate an integral over actions.
        q_data: Q(s, a) of the data, (S, E, B).
        temperature: T > 0.

    Returns:
        (S, E, B).

    Source: CQL, arXiv:2006.04779, equation 4 and appendix F.
    """
    return temperature * torch.logsumexp(samples / temperature, dim=2) - q_data

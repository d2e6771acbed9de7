"""Gradient surgery: gradients of several losses as flat vectors, one of which gives way to another.

Stacked parameters carry S seeds side by side (leading axis S * E, seed-major), so a gradient becomes S flat vectors of
all P parameters of a seed: every layer, weight, bias and ensemble member together. A projection layer by layer
would be another method.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_SQUARE = 1e-10  # of the vector that is projected on: below it the projection fades out


def flatten(gradients: Sequence[Tensor], seeds: int) -> Tensor:
    """Gradients of stacked parameters, (S * E, ...) each, as (S, P)."""
    return torch.cat([g.reshape(seeds, -1) for g in gradients], dim=1)


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``: (S, P) in the shapes of ``like``."""
    parts = flat.split([p.numel() // len(flat) for p in like], dim=1)
    return [part.reshape(p.shape) for part, p in zip(parts, like, strict=True)]


def project_out(vector: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The component of ``vector`` that is orthogonal to ``direction``, each seed by itself.

    ``v - c d`` with ``c = <v, d> / max(<d, d>, 1e-10)``; a vanishing direction leaves the vector whole.

    Args:
        vector: v, (S, P).
        direction: d, (S, P).

    Returns:
        The component (S, P) and the coefficient c (S,).

    Source: O-DICE, arXiv:2402.00348; the same projection as in PCGrad, arXiv:2001.06782, there only under conflict.
    """
    square = direction.square().sum(dim=1).clamp(min=SMALLEST_SQUARE)
    coefficient = (vector * direction).sum(dim=1) / square
    return vector - coefficient[:, None] * direction, coefficient

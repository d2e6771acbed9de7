"""Directions for stochastic ascent from noisy gradients, and steps along them; pure functions.

    momentum   d = (1 - eta) d' + eta g(theta)
    transport  d = (1 - eta) d' + eta g(theta~),       theta~ = theta + (1 - eta)/eta (theta - theta')
    HARPG      d = (1 - eta)(d' + v) + eta g(theta),   v estimates grad J(theta) - grad J(theta')
    STORM      d = g(theta) + (1 - eta)(d' - w g(theta'))

Primes mark the iteration before. Parameters and directions are vectors (..., D), whose leading axes are independent
runs, or dicts of tensors, which are one vector together.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree", Tensor, dict[str, Tensor])
Weight = float | Tensor  # a number, or one a run that broadcasts against (..., D)


def momentum(direction: Tree, gradient: Tree, eta: Weight) -> Tree:
    """(1 - eta) d' + eta g: a moving average, eta in (0, 1].

    For N-MPG ``gradient`` is taken at theta, for N-PG-IGT at ``transported(theta, ...)``.
    """
    return _each(lambda d, g: (1 - eta) * d + eta * g, direction, gradient)


def transported(theta: Tree, previous: Tree, eta: Weight) -> Tree:
    """Theta + (1 - eta)/eta (theta - theta'): where implicit gradient transport samples and differentiates.

    With a constant Hessian, the moving average of gradients taken there is the gradient at theta exactly.

    Source: N-PG-IGT, arXiv:2302.01734; Cutkosky and Mehta, arXiv:2002.03305.
    """
    return _each(lambda x, before: x + ((1 - eta) / eta) * (x - before), theta, previous)


def interpolated(theta: Tree, previous: Tree, share: Weight) -> Tree:
    """Share theta + (1 - share) theta': where HARPG takes its Hessian-vector product, share ~ U[0, 1]."""
    return _each(lambda x, before: share * x + (1 - share) * before, theta, previous)


def difference(theta: Tree, previous: Tree) -> Tree:
    """Theta - theta': what HARPG multiplies the Hessian with."""
    return _each(lambda x, before: x - before, theta, previous)


def harpg(direction: Tree, gradient: Tree, correction: Tree, eta: Weight) -> Tree:
    """(1 - eta)(d' + v) + eta g, with the Hessian-vector product v as ``correction``.

    Source: arXiv:2302.01734.
    """
    return _each(lambda d, g, v: (1 - eta) * (d + v) + eta * g, direction, gradient, correction)


def storm(direction: Tree, gradient: Tree, before: Tree, eta: Weight) -> Tree:
    """G + (1 - eta)(d' - b), with b = w g(theta'), the importance-weighted gradient of the same draws, as ``before``.

    Source: STORM-PG, arXiv:2003.04302.
    """
    return _each(lambda d, g, b: g + (1 - eta) * (d - b), direction, gradient, before)


def step(theta: Tree, direction: Tree, size: Weight) -> Tree:
    """Theta + size d."""
    return _each(lambda x, d: x + size * d, theta, direction)


def normalized_step(theta: Tree, direction: Tree, size: Weight) -> Tree:
    """Theta + size d / |d|, with the norm of the whole vector; no step where d = 0."""
    length = norm(direction)
    scale = torch.where(length > 0, size / length, torch.zeros_like(length))
    if not isinstance(direction, dict):
        scale = scale.unsqueeze(-1)
    return step(theta, direction, scale)


def norm(vector: Tree) -> Tensor:
    """Euclidean norm over D (...,), or over all tensors of a dict ()."""
    if isinstance(vector, dict):
        return torch.stack([value.square().sum() for value in vector.values()]).sum().sqrt()
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1)
    return length


def _each(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    first = trees[0]
    if isinstance(first, dict):
        return {name: function(*(tree[name] for tree in trees)) for name in first}
    return function(*trees)

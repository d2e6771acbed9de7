"""Loss, gradients and auxiliary values in one call, the same code eager and compiled."""

from collections.abc import Callable

import torch
from torch import Tensor

from offrl.nn.mlp import Params

Loss = Callable[[Params], tuple[Tensor, dict[str, Tensor]]]


def gradients(loss: Loss, params: Params) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Gradients of ``loss(params)`` for exactly ``params``, and the loss's auxiliary values, detached.

    Args:
        loss: maps parameters to (scalar, auxiliary tensors). Per-seed losses are *summed* into the scalar,
            never averaged, so that each seed's gradient is its own.
        params: tensors that require gradients.
    """
    if torch.compiler.is_compiling():
        grads, (_, aux) = torch.func.grad_and_value(loss, has_aux=True)(params)
        return tuple(grads), aux
    value, aux = loss(params)
    return torch.autograd.grad(value, params), {name: x.detach() for name, x in aux.items()}

"""Loss, gradients and auxiliary values in one call, the same code eager and compiled."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from offrl.nn.mlp import Params

Function = TypeVar("Function", bound=Callable[..., Any])
Loss = Callable[[Params], tuple[Tensor, dict[str, Tensor]]]


def gradients(loss: Loss, params: Params) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Gradients of ``loss(params)`` for exactly ``params``, and the loss's auxiliary values, detached.

    Args:
        loss: maps parameters to (scalar, auxiliary tensors). Per-seed losses are *summed* into the scalar,
            never averaged, so that each seed's gradient is its own.
        params: tensors that require gradients.
    """
    value, aux = loss(params)
    return torch.autograd.grad(value, params), {name: x.detach() for name, x in aux.items()}


def compiled(function: Function) -> Function:
    """``torch.compile`` of a function that calls ``gradients``: one graph, fixed shapes."""
    torch._dynamo.config.trace_autograd_ops = True
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=False))

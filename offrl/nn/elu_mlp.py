"""Stacked multi-layer perceptrons with ELU, columns as samples: one network a seed, one batched product a layer.

    h = elu(W h + b), h (S, width, B);   last layer linear;   parameters W (S, out, in), b (S, out, 1)

Widths of 16 to 512 against thousands of samples: kept as columns, every product is wide, which runs about a quarter
faster than rows. The gradient is written by hand: one autograd node a network, in place, from the hidden values alone
(elu' = min(1, elu + 1)).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EluMLP(nn.Module):
    """S networks of one shape, torch's own default initialization.

    Args:
        sizes: layer widths, input first, e.g. ``(4, 32, 32, 1)``.
        generators: one a seed; each draws its own network.
        bias: start value of the last layer's bias; None keeps the default draw.
        last: also pass the outputs through ELU (encoders of graph networks).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        *,
        bias: float | None = None,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.last = tuple(sizes), last
        parts = [_drawn(self.sizes, generator, bias) for generator in generators]
        self.layers = nn.ParameterList(torch.stack(p) for p in zip(*parts, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(S, in, B) -> (S, out, B)."""
        return elu_mlp(x, list(self.layers), last=self.last)


def elu_mlp(x: Tensor, params: Sequence[Tensor], *, last: bool = False) -> Tensor:
    """G networks given by ``[W_0, b_0, ...]``: (G, in, B) -> (G, out, B)."""
    out: Tensor = _EluMLP.apply(x, last, *params)  # type: ignore[no-untyped-call]
    return out


def _drawn(sizes: tuple[int, ...], generator: torch.Generator, bias: float | None) -> list[Tensor]:
    params = []
    for fan_in, fan_out in pairwise(sizes):
        for shape in ((fan_out, fan_in), (fan_out, 1)):
            u = torch.rand(shape, generator=generator, device=generator.device)
            params.append((2 * u - 1) * fan_in**-0.5)
    if bias is not None:
        params[-1].fill_(bias)
    return params


class _EluMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, last: bool, *params: Tensor) -> Tensor:
        values = [x]
        for i in range(0, len(params), 2):
            x = torch.baddbmm(params[i + 1], params[i], x)
            if last or i + 2 < len(params):
                x = F.elu_(x)
            values.append(x)
        ctx.last = last
        ctx.save_for_backward(*values, *params[::2])
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_wanted, _, *wanted = ctx.needs_input_grad
        layers = len(wanted) // 2
        saved = ctx.saved_tensors  # asked once: under checkpointing a second time would compute them again
        values, weights = saved[: layers + 1], saved[layers + 1 :]
        grads: list[Tensor | None] = []
        for i in range(layers - 1, -1, -1):
            if i + 1 < layers:
                torch.ops.aten.elu_backward.grad_input(grad, 1, 1, 1, True, values[i + 1], grad_input=grad)
            elif ctx.last:
                grad = torch.ops.aten.elu_backward(grad, 1, 1, 1, True, values[i + 1])
            grads.append(grad.sum(2, keepdim=True) if wanted[2 * i + 1] else None)
            grads.append(torch.bmm(grad, values[i].transpose(1, 2)) if wanted[2 * i] else None)
            if i or x_wanted:
                grad = torch.bmm(weights[i].transpose(1, 2), grad)
        return (grad if x_wanted else None, None, *grads[::-1])

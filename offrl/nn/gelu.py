"""Stacked multi-layer perceptrons with GELU activations, plain or with layer normalization.

    plain         h = gelu(h W + b)
    layer_norm    h = norm(gelu(h W + b))        norm(x) = gain (x - mean) / sqrt(var + 1e-6) + shift

gelu is the tanh approximation, written as x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the same function to
rounding, and in eager mode more than twice as fast as PyTorch's own, whose tanh is slow on a CPU. Parameters are those
of ``offrl.nn.mlp``, with layer normalization those of ``offrl.nn.normed``.

Source: GELU, arXiv:1606.08415, section 2; activation, order and epsilon as in the networks of seohongpark/fql.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.nn.mlp import Params, init_mlp
from offrl.nn.normed import init_normed, linear_part

SLOPE, CUBE = 2.0 * math.sqrt(2.0 / math.pi), 0.044715  # 2 u = SLOPE (x + CUBE x^3)


def init_gelu(
    sizes: Sequence[int], copies: int, generators: Sequence[torch.Generator], *, layer_norm: bool = False
) -> Params:
    """Fresh parameters: weights U(-b, b) with b = sqrt(6 / (in + out)), biases 0, gains 1, shifts 0.

    Args:
        sizes: layer widths, input first.
        copies: networks per seed (E).
        generators: one per seed (S).
        layer_norm: with gains and shifts.

    Returns:
        Parameters with leading axis G = S * E, requiring gradients.

    Source: Glorot & Bengio 2010, equation 16.
    """
    params = (init_normed if layer_norm else init_mlp)(sizes, copies, generators)
    linear = linear_part(params) if layer_norm else params
    with torch.no_grad():
        for fan_in, fan_out, weight, bias in zip(sizes, sizes[1:], linear[::2], linear[1::2], strict=False):
            weight.mul_(math.sqrt(6.0 * fan_in / (fan_in + fan_out)))  # drawn from +-1 / sqrt(in)
            bias.zero_()
    return params


def gelu_mlp(params: Params, x: Tensor, *, layer_norm: bool = False) -> Tensor:
    """Outputs of G networks, (G, out, B).

    Args:
        params: as from ``init_gelu``.
        x: inputs (G, B, in), or (S, B, in) shared by the E = G / S members of each seed.
        layer_norm: whether ``params`` have gains and shifts.
    """
    copies = params[0].shape[0] // x.shape[0]
    h = x[:, None].expand(-1, copies, -1, -1).flatten(0, 1) if copies > 1 else x
    linear = linear_part(params) if layer_norm else params
    norms = params[len(linear) :]
    for i in range(0, len(linear) - 2, 2):
        h = gelu(torch.baddbmm(linear[i + 1], h, linear[i]))
        if layer_norm:
            h = torch.addcmul(norms[i + 1], norms[i], F.layer_norm(h, h.shape[-1:], eps=1e-6))
    return torch.baddbmm(linear[-1], linear[-2], h.transpose(1, 2)).to(x.dtype)  # not so under autocast


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, elementwise; once differentiable."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    out: Tensor = _GELU.apply(x)  # type: ignore[no-untyped-call]
    return out


class _GELU(torch.autograd.Function):
    """The eager node on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = x * x
        torch.addcmul(x, x, gate, value=CUBE, out=gate).mul_(SLOPE).sigmoid_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, gate)
            return x * gate
        return gate.mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = (x * x).mul_(3.0 * CUBE * SLOPE).add_(SLOPE).mul_(x)  # x d(2 u)/dx
        gradient: Tensor = torch.ops.aten.sigmoid_backward(slope, gate).add_(gate).mul_(grad_out)
        return gradient

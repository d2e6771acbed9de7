"""Stacked multi-layer perceptrons with layer normalization in their hidden layers; plain autograd.

    before_relu    h = relu(norm(h W + b))
    after_relu     h = norm(relu(h W + b))        norm(x) = gain (x - mean) / sqrt(var + 1e-5) + shift

Mean and variance run over the layer's width, for each sample and network apart. Parameters are those of
``offrl.nn.mlp`` and then gain and shift, both (G, 1, width), of each hidden layer:
``[W_0, b_0, ..., W_L, b_L, gain_0, shift_0, ..., gain_{L-1}, shift_{L-1}]``.

Source: layer normalization, arXiv:1607.06450, section 3.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.nn.mlp import Params, init_mlp

Order = Literal["before_relu", "after_relu"]


def init_normed(sizes: Sequence[int], copies: int, generators: Sequence[torch.Generator]) -> Params:
    """Fresh parameters: linear layers as ``init_mlp`` draws them, every gain 1 and every shift 0.

    Args:
        sizes: layer widths, input first, e.g. ``(14, 256, 256, 256, 1)``.
        copies: networks per seed (E).
        generators: one per seed (S).

    Returns:
        Parameters with leading axis G = S * E, requiring gradients.
    """
    linear = init_mlp(sizes, copies, generators)
    norms = []
    for bias in linear[1:-2:2]:
        norms += [torch.ones_like(bias, requires_grad=True), torch.zeros_like(bias, requires_grad=True)]
    return [*linear, *norms]


def linear_part(params: Params) -> Params:
    """Weights and biases alone, in the layout of ``offrl.nn.mlp``."""
    return params[: len(params) // 2 + 1]


def normed_mlp(params: Params, x: Tensor, order: Order) -> Tensor:
    """Outputs of G networks, (G, out, B).

    Args:
        params: as from ``init_normed``.
        x: inputs (G, B, in), or (S, B, in) shared by the E = G / S members of each seed.
        order: whether a hidden layer is normalized before or after its relu.
    """
    copies = params[0].shape[0] // x.shape[0]
    h = x[:, None].expand(-1, copies, -1, -1).flatten(0, 1) if copies > 1 else x
    linear = linear_part(params)
    norms = params[len(linear) :]
    for i in range(0, len(norms), 2):
        h = torch.baddbmm(linear[i + 1], h, linear[i])
        h = h.relu() if order == "after_relu" else h
        h = torch.addcmul(norms[i + 1], norms[i], F.layer_norm(h, h.shape[-1:]))
        h = h.relu() if order == "before_relu" else h
    return torch.baddbmm(linear[-1], linear[-2], h.transpose(1, 2)).to(x.dtype)  # not so under autocast

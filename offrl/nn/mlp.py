"""Stacked multi-layer perceptrons: G networks of one shape in one set of tensors, one batched product a layer.

G counts every network that trains side by side: S seeds x E ensemble members, seed-major (twin critics are
E = 2). Parameters are a flat list ``[W_0, b_0, ..., W_L, b_L]``:

    hidden layers   W (G, in, out), b (G, 1, out)      h   = relu(h W + b)
    output layer    W (G, out, in), b (G, out, 1)      out = W h^T + b, kept as (G, out, B)

The output layer is stored the other way round because its products are narrow (1 to 30 columns), where
``W h^T`` runs several times faster than ``h W``; a critic's values then come out as (G, 1, B) for free.

The gradient is written by hand (one autograd node a network): it computes the wanted gradients only, works in
place, and uses its hidden-layer buffers again. It can be taken once a forward pass.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Params = list[Tensor]


def init_mlp(sizes: Sequence[int], copies: int, generators: Sequence[torch.Generator]) -> Params:
    """Fresh parameters with torch's own default for linear layers: U(-1/sqrt(in), 1/sqrt(in)).

    Args:
        sizes: layer widths, input first, e.g. ``(11, 256, 256, 3)``.
        copies: networks per seed (E).
        generators: one per seed (S); each seed draws from its own, so that adding seeds changes none.

    Returns:
        ``[W_0, b_0, ...]`` with leading axis G = S * E, on the generators' device, requiring gradients.
    """
    if len(sizes) < 3:
        raise ValueError(f"an MLP needs at least one hidden layer, got sizes {tuple(sizes)}")
    per_seed = []
    for generator in generators:
        params: Params = []
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            last = layer == len(sizes) - 2
            shapes = ((fan_out, fan_in), (fan_out, 1)) if last else ((fan_in, fan_out), (1, fan_out))
            for shape in shapes:
                u = torch.rand((copies, *shape), generator=generator, device=generator.device)
                params.append((2.0 * u - 1.0) * fan_in**-0.5)
        per_seed.append(params)
    return [torch.cat(parts).requires_grad_() for parts in zip(*per_seed, strict=True)]


def mlp(params: Params, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
    """Outputs of G networks, (G, out, B).

    Args:
        params: as from ``init_mlp``.
        x: inputs (G, B, in), or (S, B, in) shared by the E = G / S members of each seed.
        masks: dropout masks, one (G, B, hidden) a hidden layer, holding 0 or 1 / (1 - rate).
    """
    copies = params[0].shape[0] // x.shape[0]
    if copies > 1:
        x = x[:, None].expand(-1, copies, -1, -1).flatten(0, 1)
    if torch.compiler.is_compiling():
        return _plain_forward(params, x, masks)
    out: Tensor = _MLP.apply(x, masks, *params)  # type: ignore[no-untyped-call]
    return out


def member(params: Params, index: int, members: int) -> Params:
    """Views of one ensemble member of every seed: (S * E, ...) -> (S, ...)."""
    return [p.view(-1, members, *p.shape[1:])[:, index] for p in params]


def detached(params: Params) -> Params:
    """The same tensors, constant for the gradient."""
    return [p.detach() for p in params]


def unstack(params: Params, index: int) -> list[tuple[Tensor, Tensor]]:
    """Network ``index`` as (weight (out, in), bias (out,)) pairs in ``torch.nn.Linear`` layout, detached copies."""
    pairs = []
    for layer in range(len(params) // 2):
        weight, bias = params[2 * layer][index].detach(), params[2 * layer + 1][index].detach()
        last = 2 * layer + 2 == len(params)
        pairs.append(((weight if last else weight.T).clone().contiguous(), bias.flatten().clone()))
    return pairs


def _plain_forward(params: Sequence[Tensor], x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
    h = x
    for i in range(0, len(params) - 2, 2):
        h = torch.baddbmm(params[i + 1], h, params[i]).relu()
        h = h if masks is None else h * masks[i // 2]
    return torch.baddbmm(params[-1], params[-2], h.transpose(1, 2))


class _Buffers:
    """Hidden-layer buffers that are used again: on a CPU fresh memory costs up to a third of a training step.

    A buffer belongs to the call that took it until that call gives it back, so none is ever shared.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``bmm(a, b)`` in a buffer; on other devices than the CPU the allocator already does this well."""
        if a.device.type != "cpu":
            return torch.bmm(a, b)
        shape = torch.Size((a.shape[0], a.shape[1], b.shape[2]))
        free = self._free.setdefault((shape, a.dtype), [])
        return torch.bmm(a, b, out=free.pop() if free else torch.empty(shape, dtype=a.dtype))

    def give(self, buffer: Tensor) -> None:
        """Return a buffer that nothing uses any more."""
        if buffer.device.type == "cpu" and not buffer.is_inference():
            self._free.setdefault((buffer.shape, buffer.dtype), []).append(buffer)


_buffers = _Buffers()


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, masks: Sequence[Tensor] | None, *params: Tensor) -> Tensor:
        train = any(ctx.needs_input_grad)
        activations = [x]
        for i in range(0, len(params) - 2, 2):
            h = _buffers.product(activations[-1], params[i]).add_(params[i + 1]).relu_()
            activations.append(h if masks is None else h.mul_(masks[i // 2]))
            if not train and i:
                _buffers.give(activations[-2])
        out = torch.baddbmm(params[-1], params[-2], activations[-1].transpose(1, 2))
        if train:
            ctx.activations, ctx.weights, ctx.masks = activations, params[::2], masks
        else:
            _buffers.give(activations[-1])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        activations, weights, masks = ctx.activations, ctx.weights, ctx.masks
        if activations is None:  # its buffers are in use elsewhere
            raise RuntimeError("the gradient of a network can be taken once a forward pass: call mlp again")
        ctx.activations = None
        layers = len(weights)
        want = ctx.needs_input_grad  # of x, masks, W_0, b_0, ..., W_L, b_L
        grads: list[Tensor | None] = [None] * len(want)
        if want[2 * layers]:
            grads[2 * layers] = torch.bmm(grad_out, activations[-1])
            grads[2 * layers + 1] = grad_out.sum(2, keepdim=True)
        flow = _buffers.product(grad_out.transpose(1, 2), weights[-1])
        for layer in range(layers - 2, -1, -1):
            if masks is not None:
                flow.mul_(masks[layer])
            hidden = activations[layer + 1]  # 0 exactly where relu (or the mask) cut
            torch.ops.aten.threshold_backward.grad_input(flow, hidden, 0, grad_input=flow)
            _buffers.give(hidden)
            if want[2 * layer + 2]:
                grads[2 * layer + 2] = torch.bmm(activations[layer].transpose(1, 2), flow)
                grads[2 * layer + 3] = flow.sum(1, keepdim=True)
            if layer:
                following = _buffers.product(flow, weights[layer].transpose(1, 2))
                _buffers.give(flow)
                flow = following
            elif want[0]:
                grads[0] = torch.bmm(flow, weights[0].transpose(1, 2))
        _buffers.give(flow)
        return tuple(grads)

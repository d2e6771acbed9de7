"""Stacked multi-layer perceptrons: G networks of one shape in one set of tensors, one batched product a layer.

G counts every network that trains side by side: S seeds x E ensemble members, seed-major (twin critics are
E = 2). Parameters are a flat list ``[W_0, b_0, ..., W_L, b_L]``:

    hidden layers   W (G, in, out), b (G, 1, out)      h   = relu(h W + b)
    output layer    W (G, out, in), b (G, out, 1)      out = W h^T + b, kept as (G, out, B)

The output layer is stored the other way round because its products are narrow (1 to 30 columns), where
``W h^T`` runs several times faster than ``h W``; a critic's values then come out as (G, 1, B) for free.

The gradient is written by hand (one autograd node a network): it computes the wanted gradients only and works in
place. Compiled code takes both passes as single operations, because generated loops for narrow products are slow.
Under ``torch.autocast`` to bfloat16 the products and hidden layers are bfloat16; parameters, outputs and gradients
stay float32.
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


@torch.no_grad()
def small_outputs_(params: Params, bound: float) -> None:
    """Make fresh parameters those of EDAC, in place: hidden biases 0.1, output layer and its bias U(-bound, bound).

    Args:
        params: as from ``init_mlp``: its output layer is uniform already and is scaled.
        bound: of the output layer.

    Source: the official code of EDAC, arXiv:2110.01548; ReBRAC's takes it over.
    """
    for bias in params[1:-2:2]:
        bias.fill_(0.1)
    for p in params[-2:]:
        p.mul_(bound * params[-2].shape[2] ** 0.5)


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
    masks = [] if masks is None else list(masks)
    if torch.compiler.is_compiling():
        compiled: Tensor = _mlp_forward(x, params, masks, _half(x))[-1]
        return compiled
    out: Tensor = _MLP.apply(x, masks, _half(x), *params)  # type: ignore[no-untyped-call]
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


def _half(x: Tensor) -> bool:
    """Whether autocast asks for bfloat16."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def _forward(x: Tensor, params: Sequence[Tensor], masks: Sequence[Tensor], half: bool) -> list[Tensor]:
    """Hidden layers' values, in bfloat16 if ``half``, then the output."""
    if half:
        x, params = x.bfloat16(), [p.bfloat16() for p in params]
    values = []
    for i in range(0, len(params) - 2, 2):
        x = torch.baddbmm(params[i + 1], x, params[i]).relu_()
        values.append(x.mul_(masks[i // 2]) if masks else x)
    out = torch.baddbmm(params[-1], params[-2], x.transpose(1, 2))
    return [*values, out.float() if half else out]


def _backward(
    grad_out: Tensor,
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    want: Sequence[bool],
) -> list[Tensor]:
    """The wanted gradients among those of x, W_0, b_0, ..., W_L, b_L, in this order.

    ``activations``: x, then the hidden layers' values, which are 0 exactly where relu (or the mask) cut.
    """
    last, half = len(weights) - 1, activations[-1].dtype == torch.bfloat16
    if half:
        grad_out, weights = grad_out.bfloat16(), [w.bfloat16() for w in weights]
        activations = [activations[0].bfloat16(), *activations[1:]]
    grads: list[Tensor] = []  # from the last to the first
    if want[2 + 2 * last]:
        grads.append(grad_out.sum(2, keepdim=True))
    if want[1 + 2 * last]:
        grads.append(torch.bmm(grad_out, activations[-1]))
    flow = torch.bmm(grad_out.transpose(1, 2), weights[-1])
    for layer in range(last - 1, -1, -1):
        if masks:
            flow.mul_(masks[layer])
        torch.ops.aten.threshold_backward.grad_input(flow, activations[layer + 1], 0, grad_input=flow)
        if want[2 + 2 * layer]:
            grads.append(flow.sum(1, keepdim=True))
        if want[1 + 2 * layer]:
            grads.append(torch.bmm(activations[layer].transpose(1, 2), flow))
        if layer or want[0]:
            flow = torch.bmm(flow, weights[layer].transpose(1, 2))
    grads = grads[::-1] if not want[0] else [flow, *grads[::-1]]
    return [g.float() for g in grads] if half else grads


class _MLP(torch.autograd.Function):
    """The eager node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, masks: list[Tensor], half: bool, *params: Tensor) -> Tensor:
        *hidden, out = _forward(x, params, masks, half)
        ctx.activations, ctx.weights, ctx.masks = [x, *hidden], params[::2], masks
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, _, _, *params = ctx.needs_input_grad
        grads = iter(_backward(grad_out, ctx.activations, ctx.weights, ctx.masks, [x, *params]))
        return next(grads) if x else None, None, None, *(next(grads) if p else None for p in params)


@torch.library.custom_op("offrl::mlp_forward", mutates_args=())
def _mlp_forward(x: Tensor, params: list[Tensor], masks: list[Tensor], half: bool) -> list[Tensor]:
    return _forward(x, params, masks, half)


@_mlp_forward.register_fake
def _(x: Tensor, params: list[Tensor], masks: list[Tensor], half: bool) -> list[Tensor]:
    (copies, batch), dtype = x.shape[:2], torch.bfloat16 if half else x.dtype
    hidden = [x.new_empty(copies, batch, bias.shape[2], dtype=dtype) for bias in params[1:-2:2]]
    return [*hidden, x.new_empty(copies, params[-2].shape[1], batch)]


@torch.library.custom_op("offrl::mlp_backward", mutates_args=())
def _mlp_backward(
    grad_out: Tensor, activations: list[Tensor], weights: list[Tensor], masks: list[Tensor], want: list[bool]
) -> list[Tensor]:
    return _backward(grad_out, activations, weights, masks, want)


@_mlp_backward.register_fake
def _(
    grad_out: Tensor, activations: list[Tensor], weights: list[Tensor], masks: list[Tensor], want: list[bool]
) -> list[Tensor]:
    shapes = [activations[0].shape]
    for weight in weights[:-1]:
        shapes += [weight.shape, torch.Size((weight.shape[0], 1, weight.shape[2]))]
    shapes += [weights[-1].shape, torch.Size((*weights[-1].shape[:2], 1))]
    return [grad_out.new_empty(shape) for shape, wanted in zip(shapes, want, strict=True) if wanted]


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[Tensor], bool], output: list[Tensor]) -> None:
    x, params, masks, _ = inputs
    ctx.counts = (len(output), len(params) // 2)
    ctx.save_for_backward(x, *output[:-1], *params[::2], *masks)


def _gradient(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, list[Tensor | None], list[None], None]:
    saved, (layers, weights) = ctx.saved_tensors, ctx.counts
    activations, rest = list(saved[:layers]), list(saved[layers:])
    x, params, masks, _ = ctx.needs_input_grad
    want = [bool(x), *(bool(p) for p in params)]
    found = iter(_mlp_backward(grads[-1], activations, rest[:weights], rest[weights:], want))
    of_x = next(found) if x else None
    return of_x, [next(found) if p else None for p in params], [None] * len(masks), None


_mlp_forward.register_autograd(_gradient, setup_context=_save)

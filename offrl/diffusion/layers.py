"""Layers of stacked denoisers: S networks side by side, channels last, parameters taken from a flat list in order."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.nn.mlp import Params

Shape = tuple[str, tuple[int, ...]]  # what to draw ('lecun FAN_IN', 'one' or 'zero'), and its shape


def draw(shapes: Sequence[Shape], generators: Sequence[torch.Generator]) -> Params:
    """Fresh parameters (S, ...) that require gradients: weights N(0, 1 / fan_in), the rest 0 or 1.

    Args:
        shapes: of one network, in order.
        generators: one per seed (S).
    """
    return [
        torch.stack([_draw(kind, shape, g) for g in generators]).requires_grad_() for kind, shape in shapes
    ]


def _draw(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if kind in ("zero", "one"):
        return torch.full(shape, float(kind == "one"), device=generator.device)
    fan_in = int(kind.split()[1])
    return torch.randn(shape, generator=generator, device=generator.device) / math.sqrt(fan_in)


def linear_shapes(inputs: int, outputs: int) -> list[Shape]:
    """Weight (in, out) and bias (1, out)."""
    return [(f"lecun {inputs}", (inputs, outputs)), ("zero", (1, outputs))]


def conv_shapes(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    """Weight (kernel * in, out), tap by tap, and bias."""
    return linear_shapes(kernel * inputs, outputs)


def norm_shapes(channels: int) -> list[Shape]:
    """Scale and shift."""
    return [("one", (1, channels)), ("zero", (1, channels))]


def linear(x: Tensor, take: Iterator[Tensor]) -> Tensor:
    """(S, N, in) -> (S, N, out)."""
    weight = next(take)
    return torch.baddbmm(next(take), x, weight)


def conv(x: Tensor, kernel: int, take: Iterator[Tensor]) -> Tensor:
    """A convolution over time that keeps its length: (S, B, L, in) -> (S, B, L, out).

    An even kernel is padded on the right only, as TensorFlow's and JAX's 'SAME' do.
    """
    seeds, batch, length, _ = x.shape
    if kernel > 1:
        before = (kernel - 1) // 2
        padded = F.pad(x, (0, 0, before, kernel - 1 - before))
        x = torch.cat([padded[:, :, i : i + length] for i in range(kernel)], dim=3)
    return linear(x.reshape(seeds, batch * length, -1), take).view(seeds, batch, length, -1)


def group_norm(x: Tensor, groups: int, take: Iterator[Tensor]) -> Tensor:
    """Each time step's channels, in ``groups``, to mean 0 and variance 1, then scaled and shifted: (S, B, L, C).

    Statistics never reach over time (as in Flax on an unbatched array), unlike ``torch.nn.GroupNorm``.
    """
    parts = x.unflatten(3, (groups, -1))
    normed = F.layer_norm(parts, parts.shape[-1:], eps=1e-6).flatten(3)
    scale = next(take)
    return torch.addcmul(next(take)[:, None], normed, scale[:, None])


def sinusoid(level: Tensor, width: int) -> Tensor:
    """Sines, then cosines of ``level`` (S, B) at width / 2 frequencies 1 .. 1e-4: (S, B, width)."""
    half = width // 2
    exponents = torch.arange(half, device=level.device, dtype=level.dtype) / (half - 1)
    angles = level[..., None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def embed_level(level: Tensor, width: int, take: Iterator[Tensor]) -> Tensor:
    """Features (S, B, out) of noise levels (S, B): two layers on ``width`` sinusoids."""
    return linear(F.silu(linear(sinusoid(level, width), take)), take)

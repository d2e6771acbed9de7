"""Diffusion Policy's one-dimensional U-Net: a noisy chunk of actions, a time and what was observed in, a chunk out.

    g        [time features, condition],  time features = W mish(W sin/cos(time))
    block    h = mish(norm(conv5(x)));  [scale, shift] = W mish(g);  h = scale h + shift;  mish(norm(conv5(h))) + x
    down i   two blocks, then a convolution of stride 2 (not after the last)
    middle   two blocks
    up i     [h, skip], two blocks, then a transposed convolution of stride 2
    out      conv1(mish(norm(conv5(h))))

``+ x`` goes through a convolution of width 1 where the channels change. With B levels the time is halved B - 1 times.
Parameters have the names and shapes of LeRobot's module of the same network, so that its weights load unchanged;
those of the original code differ in ``blocks.0.block`` for ``conv1.block`` and the like.

Source: Diffusion Policy, arXiv:2303.04137; real-stanford/diffusion_policy, ``conditional_unet1d.py``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from offrl.diffusion.layers import sinusoid
from offrl.diffusion.transformer import DiffusionTransformer, transformer_start

LAST_GROUPS = 8


class _Sinusoid(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, time: Tensor) -> Tensor:
        return sinusoid(time, self.width)


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(inputs, outputs, kernel, groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.conv2 = _ConvNorm(outputs, outputs, kernel, groups)
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        scale, shift = self.cond_encoder(g)[..., None].chunk(2, dim=1)
        out: Tensor = self.conv2(scale * self.conv1(x) + shift) + self.residual_conv(x)
        return out


class ConditionalUNet(nn.Module):
    """Output of the network for each action of a chunk.

    Args:
        act_dim: A.
        condition_dim: C, numbers that describe what was observed.
        widths: channels of each level; multiples of ``groups``.
        step_embed: width of the time features; even, 4 or more.
        kernel: taps of the convolutions; odd.
        groups: of the norms; the last one always has eight, as in the original and in LeRobot.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        act_dim: int,
        condition_dim: int,
        widths: Sequence[int] = (256, 512, 1024),
        step_embed: int = 128,
        kernel: int = 5,
        groups: int = 8,
    ) -> None:
        super().__init__()
        if not widths or any(w < 1 or w % groups for w in widths):
            raise ValueError(f"widths must be multiples of {groups}, got {tuple(widths)}")
        if widths[0] % LAST_GROUPS:
            raise ValueError(f"the first of widths must be a multiple of {LAST_GROUPS}, got {widths[0]}")
        if step_embed < 4 or step_embed % 2 or kernel % 2 == 0:
            raise ValueError(f"step_embed must be even and 4 or more, kernel odd: {step_embed}, {kernel}")
        self.diffusion_step_encoder = nn.Sequential(
            _Sinusoid(step_embed),
            nn.Linear(step_embed, 4 * step_embed),
            nn.Mish(),
            nn.Linear(4 * step_embed, step_embed),
        )
        sizes, last = (step_embed + condition_dim, kernel, groups), len(widths) - 1

        def two(inputs: int, outputs: int) -> list[nn.Module]:
            return [_Residual(inputs, outputs, *sizes), _Residual(outputs, outputs, *sizes)]

        self.down_modules = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise((act_dim, *widths))):
            half = nn.Conv1d(b, b, 3, 2, 1) if i < last else nn.Identity()
            self.down_modules.append(nn.ModuleList([*two(a, b), half]))
        self.mid_modules = nn.ModuleList(two(widths[-1], widths[-1]))
        self.up_modules = nn.ModuleList()
        for above, b in reversed(list(pairwise(widths))):
            twice = nn.ConvTranspose1d(above, above, 4, 2, 1)
            self.up_modules.append(nn.ModuleList([*two(2 * b, above), twice]))
        out = nn.Conv1d(widths[0], act_dim, 1)
        self.final_conv = nn.Sequential(_ConvNorm(widths[0], widths[0], kernel, LAST_GROUPS), out)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Outputs (B, H, A).

        Args:
            x: noisy chunks (B, H, A); H a multiple of 2^(levels - 1).
            time: (B,), what the schedule calls it.
            condition: (B, C).
        """
        g = torch.cat((self.diffusion_step_encoder(time), condition), dim=1)
        h, skips = x.transpose(1, 2), []
        for stage in self.down_modules:
            first, second, half = cast(nn.ModuleList, stage)
            h = second(first(h, g), g)
            skips.append(h)
            h = half(h)
        for block in self.mid_modules:
            h = block(h, g)
        for stage in self.up_modules:
            first, second, twice = cast(nn.ModuleList, stage)
            h = torch.cat((h, skips.pop()), dim=1)
            h = twice(second(first(h, g), g))
        out: Tensor = self.final_conv(h).transpose(1, 2)
        return out


def init_weights(shapes: nn.Module, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Fresh parameters (S, ...) by name, requiring gradients: torch's own defaults for these layers.

    Convolutions over images without bias are drawn as ResNets are, N(0, 2 / fan_out); transformers as theirs.

    Args:
        shapes: the network; its values are not looked at.
        generators: one per seed (S).
    """
    fan_in = {}
    for name, module in shapes.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            fan_in[name] = module.weight[0].numel()
    named = dict(shapes.named_modules())
    attentive = tuple(
        f"{name}." if name else "" for name, m in named.items() if isinstance(m, DiffusionTransformer)
    )
    out = {}
    for name, value in shapes.named_parameters():
        layer, kind = name.rpartition(".")[::2]
        owner = named.get(layer)
        if attentive and name.startswith(attentive):
            drawn = torch.stack([transformer_start(name, value.shape, g) for g in generators])
            out[name] = drawn.requires_grad_()
        elif isinstance(owner, nn.Conv2d) and owner.bias is None:
            std = (2.0 / (owner.weight.numel() / owner.in_channels)) ** 0.5
            draws = [torch.randn(value.shape, generator=g, device=g.device) for g in generators]
            out[name] = (std * torch.stack(draws)).requires_grad_()
        elif layer in fan_in:
            bound = fan_in[layer] ** -0.5
            draws = [2 * torch.rand(value.shape, generator=g, device=g.device) - 1 for g in generators]
            out[name] = (torch.stack(draws) * bound).requires_grad_()
        else:  # a norm
            fill = torch.full((len(generators), *value.shape), float(kind == "weight"))
            out[name] = fill.to(generators[0].device).requires_grad_()
    return out

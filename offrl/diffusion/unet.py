"""The temporal U-Net of policy-guided diffusion: rows of a trajectory in, rows out, of any length.

    level   t = silu(W silu(W sin/cos(c_noise)))
    down i  h = relu(norm(conv3(h) + W t));  h = relu(norm(conv3(h))) = z_i;  then every second step's maximum
    up i    h = relu(norm(conv2(resize(h)) + W t));  h = [h, z_i];  twice h = relu(norm(conv3(h)))
    out     conv1(h)

Blocks have F, 2 F, 4 F, ... channels; the last block is not halved, so that B of them halve the time B - 1 times. The
norm looks at one time step at a time: this is what lets a model that was trained on 32 steps sample 129.

Source: arXiv:2404.06356, official code EmptyJackson/policy-guided-diffusion, ``models/diffusion.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.diffusion.layers import (
    Shape,
    conv,
    conv_shapes,
    draw,
    embed_level,
    group_norm,
    linear,
    linear_shapes,
    norm_shapes,
)
from offrl.nn.mlp import Params


@dataclass(frozen=True)
class UNet:
    """Sizes of the network, which is ``unet(params, x, level)``.

    Args:
        width: W, numbers in a row of a trajectory.
        features: F, channels of the first block; a multiple of 8 and of ``groups``, at least 4 times these.
        blocks: B.
        groups: of the norm; they divide F.
    """

    width: int
    features: int = 1024
    blocks: int = 3
    groups: int = 8

    def __post_init__(self) -> None:
        if self.features < 4 * self.groups or self.features % 8 or self.features % self.groups:
            raise ValueError(  # two channels a group are only told apart by their order
                f"features must be a multiple of 8 and of groups, 4 or more for each group, got {self.features}"
            )
        if self.blocks < 1:
            raise ValueError(f"blocks must be 1 or more, got {self.blocks}")

    @property
    def channels(self) -> list[int]:
        """Of each block."""
        return [self.features * 2**i for i in range(self.blocks)]

    def shapes(self) -> list[Shape]:
        """Kind and shape of each parameter of one network, in the order in which they are used."""
        f = self.features
        shapes = [*linear_shapes(f // 4, f), *linear_shapes(f, f)]
        for inputs, c in pairwise([self.width, *self.channels]):
            shapes += [*conv_shapes(inputs, c, 3), *linear_shapes(f, c), *norm_shapes(c)]
            shapes += [*conv_shapes(c, c, 3), *norm_shapes(c)]
        for c, above in pairwise(reversed(self.channels)):
            shapes += [*conv_shapes(c, above, 2), *linear_shapes(f, above), *norm_shapes(above)]
            shapes += [*conv_shapes(2 * above, above, 3), *norm_shapes(above)]
            shapes += [*conv_shapes(above, above, 3), *norm_shapes(above)]
        return [*shapes, *conv_shapes(f, self.width, 1)]

    def init(self, generators: Sequence[torch.Generator]) -> Params:
        """Fresh parameters (S, ...), requiring gradients."""
        return draw(self.shapes(), generators)

    def __call__(self, params: Params, x: Tensor, level: Tensor) -> Tensor:
        """F(x, level), (S, B, L, W).

        Args:
            params: as from ``init``.
            x: (S, B, L, W), L at least 2^(B - 1).
            level: c_noise, (S, B).
        """
        take, groups = iter(params), self.groups
        t = F.silu(embed_level(level, self.features // 4, take))
        skips = []
        for i in range(self.blocks):
            x = conv(_halve(x) if i else x, 3, take) + linear(t, take)[:, :, None]
            x = group_norm(x, groups, take).relu()
            x = group_norm(conv(x, 3, take), groups, take).relu()
            skips.append(x)
        for skip in reversed(skips[:-1]):
            x = conv(_resize(x, skip.shape[2]), 2, take) + linear(t, take)[:, :, None]
            x = torch.cat((group_norm(x, groups, take).relu(), skip), dim=3)
            for _ in range(2):
                x = group_norm(conv(x, 3, take), groups, take).relu()
        return conv(x, 1, take)


def _halve(x: Tensor) -> Tensor:
    """Maxima of pairs of time steps; an odd last step is dropped."""
    pairs = x[:, :, : x.shape[2] // 2 * 2].unflatten(2, (-1, 2))
    return torch.maximum(pairs[:, :, :, 0], pairs[:, :, :, 1])


def _resize(x: Tensor, length: int) -> Tensor:
    """The nearest time step at half-pixel centres, for each of ``length``."""
    now = x.shape[2]
    if length == 2 * now:
        return x.repeat_interleave(2, dim=2)
    nearest = [int((i + 0.5) * now / length) for i in range(length)]
    return x.index_select(2, torch.tensor(nearest, device=x.device))

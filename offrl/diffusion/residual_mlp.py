"""A denoiser of vectors: a residual multi-layer perceptron that may be told the noise level and a condition.

h = W_in [x, condition] + T(level);   each block h = h + W silu(h);   F = W_out silu(h)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.diffusion.layers import Shape, draw, embed_level, linear, linear_shapes
from offrl.nn.mlp import Params

SINUSOIDS = 32


@dataclass(frozen=True)
class ResidualMLP:
    """Sizes of the network, which is ``net(params, x, level)``.

    Args:
        inputs: numbers in ``x``, conditions included.
        outputs: numbers put out.
        hidden: width.
        blocks: residual blocks.
        levels: whether the network is told the noise level.
    """

    inputs: int
    outputs: int
    hidden: int = 256
    blocks: int = 3
    levels: bool = True

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.hidden, self.blocks) < 1:
            raise ValueError("inputs, outputs, hidden and blocks must be 1 or more")

    def shapes(self) -> list[Shape]:
        """Kind and shape of each parameter of one network, in the order in which they are used."""
        h = self.hidden
        shapes = [*linear_shapes(SINUSOIDS, h), *linear_shapes(h, h)] if self.levels else []
        shapes += [*linear_shapes(self.inputs, h), *linear_shapes(h, h) * self.blocks]
        return [*shapes, *linear_shapes(h, self.outputs)]

    def init(self, generators: Sequence[torch.Generator]) -> Params:
        """Fresh parameters (S, ...), requiring gradients."""
        return draw(self.shapes(), generators)

    def __call__(self, params: Params, x: Tensor, level: Tensor | None = None) -> Tensor:
        """F(x, level), (S, B, outputs).

        Args:
            params: as from ``init``.
            x: (S, B, inputs).
            level: c_noise, (S, B); None for a network that is not told.
        """
        take = iter(params)
        told = embed_level(level, SINUSOIDS, take) if self.levels and level is not None else 0.0
        h = linear(x, take) + told
        for _ in range(self.blocks):
            h = h + linear(F.silu(h), take)
        return linear(F.silu(h), take)

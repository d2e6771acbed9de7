"""Flow policy: chunks of actions cloned from demonstrations by flow matching.

    L = mean (net((1 - s) A + s eps, 100 s, o) - (eps - A))^2,   s ~ U(0, 1), eps ~ N(0, 1)

A are the H normalized actions of a window, o its first To normalized observations. A plan takes Euler steps from s = 1
to 0; the policy carries out Ta of its actions, then makes the next one (offrl.policies.chunk).

Source: flow matching, arXiv:2210.02747; network, windows and training of Diffusion Policy, arXiv:2303.04137.
Departures: none of the papers has exactly this policy; uniform s and ten Euler steps are the plain choice. Clean chunks
are clipped to the normalized range while sampling, as diffusion's are.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.policies.chunk import LEVELS, Family
from offrl.policies.learner import ChunkConfig, ChunkLearner, chunk_windows
from offrl.training.problem import Algorithm
from offrl.training.seeding import normal


@dataclass(frozen=True, kw_only=True)
class FlowPolicyConfig(ChunkConfig):
    """Settings of the flow policy; those of Diffusion Policy where they have a meaning here."""

    family: ClassVar[Family] = "flow"


PRESETS: dict[str, dict[str, Any]] = {"large": {"hidden": 256, "step_embed": 256, "batch_size": 256}}


class FlowPolicy(ChunkLearner):
    """Learner: one step of flow matching on windows an update."""

    def draw(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of noise s (S, B) and noise (S, B, H, A)."""
        shape, device = (1, chunks.shape[1]), chunks.device
        shares = [torch.rand(shape, generator=g, device=device) for g in self.noise]
        return torch.cat(shares), normal(chunks.shape[1:], self.noise)

    def example(self, chunks: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noisy chunk, its time, the velocity from clean to noise."""
        s = times[..., None, None]
        return (1.0 - s) * chunks + s * noise, float(LEVELS) * times, noise - chunks


ALGORITHM = Algorithm(
    FlowPolicyConfig,
    FlowPolicy,
    PRESETS,
    windows=True,
    images=True,
    starts=chunk_windows,
    own_rows=True,
    online="it clones demonstrations and has no notion of reward",
)

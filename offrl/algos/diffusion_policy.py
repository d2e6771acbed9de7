"""Diffusion Policy: chunks of actions cloned from demonstrations by denoising.

    L = mean (net(sqrt(abar_k) A + sqrt(1 - abar_k) eps, k, o) - eps)^2,   k ~ U{0 .. 99}, eps ~ N(0, 1)

A are the H normalized actions of a window, o its first To normalized observations, abar the cosine schedule of 100
levels. The policy carries out Ta actions of a plan, then makes the next one (offrl.policies.chunk).

Source: Chi et al., arXiv:2303.04137; official code real-stanford/diffusion_policy, low-dimensional U-Net.
Departures: by default the network has 64, 128 and 256 channels (4.5 M parameters for PushT, official 256, 512, 1024),
batches 64 windows (256), and a plan takes 10 steps of the ODE, noisiest level first (100 posterior steps): for CPUs;
preset 'official' is the published one, 'transformer' the published one of PushT's transformer, whose network is the
default size of ``--denoiser transformer``. The cosine of the step size ends with the run. Windows are drawn with
replacement, of all demonstrations: none is held out. Images keep a group norm and are cropped to 7/8 of their sides, as
published for PushT (96 to 84).
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.policies.chunk import LEVELS, SCHEDULES, Family
from offrl.policies.learner import ChunkConfig, ChunkLearner, chunk_windows
from offrl.training.problem import Algorithm, Problem
from offrl.training.seeding import normal


@dataclass(frozen=True, kw_only=True)
class DiffusionPolicyConfig(ChunkConfig):
    """Settings of Diffusion Policy; defaults are the official code's but for the sizes and the sampler."""

    stochastic: bool = False
    """Draw each sampling step from its posterior (DDPM) instead of following the ODE (DDIM)."""

    family: ClassVar[Family] = "diffusion"

    @property
    def acting(self) -> dict[str, Any]:
        """Arguments of ``ChunkPolicy``."""
        return super().acting | {"stochastic": self.stochastic}


PRESETS: dict[str, dict[str, Any]] = {
    "transformer": {
        "denoiser": "transformer",
        "weight_decay": 0.1,
        "warmup_steps": 1000,
        "batch_size": 256,
        "denoising_steps": 100,
        "stochastic": True,
    },
    "official": {
        "hidden": 256,
        "step_embed": 256,
        "batch_size": 256,
        "denoising_steps": 100,
        "stochastic": True,
    },
}


class DiffusionPolicy(ChunkLearner):
    """Learner: one denoising step on windows an update."""

    def __init__(self, problem: Problem, config: DiffusionPolicyConfig) -> None:
        super().__init__(problem, config)
        abar = SCHEDULES["diffusion"].abar.to(problem.device)  # type: ignore[union-attr]
        self.alphas, self.sigmas = abar.sqrt().float(), (1.0 - abar).sqrt().float()

    def draw(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Levels k (S, B) and noise (S, B, H, A)."""
        shape, device = (1, chunks.shape[1]), chunks.device
        levels = [torch.randint(LEVELS, shape, generator=g, device=device) for g in self.noise]
        return torch.cat(levels), normal(chunks.shape[1:], self.noise)

    def example(self, chunks: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noisy chunk, its level, the noise in it."""
        alpha, sigma = (t[times][..., None, None] for t in (self.alphas, self.sigmas))
        return alpha * chunks + sigma * noise, times.to(chunks.dtype), noise


ALGORITHM = Algorithm(
    DiffusionPolicyConfig,
    DiffusionPolicy,
    PRESETS,
    windows=True,
    images=True,
    starts=chunk_windows,
    own_rows=True,
    online="it clones demonstrations and has no notion of reward",
)

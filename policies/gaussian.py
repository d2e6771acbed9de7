"""Gaussian actors as plans of one step, so that they can be composed: their denoiser is known in closed form.

    D(u, rho) = m + s^2 / (s^2 + rho^2) (u - m)       of x ~ N(m(o), s(o)^2)

x is what the actor draws: for a squashed one the number before its tanh, so that a composition mixes laws on the whole
line and squashes once. The mixture of two (ODE) has the weighted geometric mean of their spreads. Acting
deterministically starts at zero noise and ends at the mixture's middle.

Source: Gaussian denoiser: arXiv:2206.00364, appendix B.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.nn.policy import DiagGaussianPolicy, Policy, SquashedGaussianPolicy
from offrl.policies.chunk import RecedingHorizon, drawer
from offrl.policies.composition import Denoiser


class GaussianPlan(RecedingHorizon):
    """A Gaussian actor whose plan is one action.

    Args:
        actor: a squashed Gaussian (SAC, TQC) or one that is clipped to the box (PPO, A2C, TRPO).

    Raises:
        PolicyError: another kind of policy.
    """

    kind: ClassVar[str] = "gaussian_plan"
    parents = ("actor",)
    draws = False
    horizon = n_obs = n_act = 1
    denoising_steps = 10
    clip_bound = None

    def __init__(self, actor: Policy) -> None:
        if not isinstance(actor, SquashedGaussianPolicy | DiagGaussianPolicy):
            raise PolicyError(f"a {actor.kind} policy is no Gaussian actor")
        super().__init__(actor.obs_dim, actor.act_dim, actor.action_low, actor.action_high)
        self.actor = actor
        self.squashed = isinstance(actor, SquashedGaussianPolicy)
        self.space = "actions before their tanh" if self.squashed else "actions"

    @classmethod
    def made_of(cls, parents: dict[str, Any], config: dict[str, Any]) -> "GaussianPlan":
        """Of the actor alone."""
        return cls(parents["actor"])

    def config(self) -> dict[str, Any]:
        """Nothing: all is the actor's."""
        return {}

    def encode(self, history: Tensor) -> Tensor:
        """Mean and spread (B, 2 A) for the last observation of (B, 1, O)."""
        mean, std = self.actor.moments(history[:, -1])
        return torch.cat((mean, std.expand_as(mean)), dim=1)

    def denoise(self, u: Tensor, rho: float, condition: Tensor) -> Tensor:
        """D(u, rho) (B, 1, A)."""
        mean, std = torch.chunk(condition[:, None], 2, dim=2)
        if math.isinf(rho):
            return mean.expand_as(u)
        square = std * std
        return mean + square / (square + rho * rho) * (u - mean)

    def denoiser(self) -> Denoiser:
        """The face for compositions."""
        return Denoiser(self.denoise, 1, 0, AffineNormalizer.identity(self.act_dim))

    def chunk(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """A draw (B, 1, A), or the mean from zero noise."""
        mean, std = torch.chunk(self.encode(history)[:, None], 2, dim=2)
        drawn: Tensor = mean + std * drawer(generator, zero)(mean)
        return drawn

    def to_actions(self, chunk: Tensor) -> Tensor:
        """Squashed or cut to the box."""
        return self.to_box(torch.tanh(chunk)) if self.squashed else self.clip(chunk)

    def plan(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """The action (B, 1, A)."""
        return self.to_actions(self.chunk(history, generator, zero=zero))

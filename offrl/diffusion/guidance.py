"""Pushes the actions of a sampled trajectory towards a target policy; nothing else in a row is moved by it.

    g       = grad over the action columns of sum_t log pi(tanh(.) | o_t), observations constant
    code    x_a += lambda_n g before step n,   lambda_n = coef ((1 - n / N) + wave sin(pi (n + 1) / N)), 0 at the last
    score   D += rho^2 coef g(D), differentiated through D: the score of the data plus coef times that of the policy

``code`` slides to the policy's mode: its push adds up over the steps (177.4 coef for 256 of them), with no regard to
the noise level. ``score`` adds densities, as the paper writes it; its guide sees D instead of x0, which is exact only
at low noise.

Source: arXiv:2404.06356, section 4; ``code`` is what its official code EmptyJackson/policy-guided-diffusion does.
Departure: a gradient is divided by its norm + 1e-8; there 1e-8 is added to the quotient, so that 0 / 0 is NaN.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from offrl.diffusion.steppers import Denoise, Guide
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import GaussianPolicy, Policy, SquashedGaussianPolicy, wrong_observations
from offrl.nn.random_policy import RandomPolicy

LogProb = Callable[[Tensor, Tensor], Tensor]  # (observations (N, O), actions before the tanh (N, A)) -> (N,)
EDGE = 1.0 - 1e-6
REFERENCE_STEPS = 256  # of the sampler that published coefficients are for


@dataclass(frozen=True)
class Guidance:
    """How strongly, and how, samples follow the target policy."""

    coef: float = 0.0
    mode: Literal["code", "score"] = "code"
    normalize: bool = False  # divide each trajectory's gradient by its norm
    denoised: bool = (
        False  # take the gradient at the denoised sample, not differentiated through the denoiser
    )
    wave: float = 0.3
    step_independent: bool = False  # scale by 256 / N, so that the whole push does not depend on N

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and math.isfinite(self.wave)):
            raise ConfigError(f"guidance must be finite numbers, got {self.coef} and {self.wave}")
        if self.mode not in ("code", "score"):
            raise ConfigError(f"the mode of guidance is 'code' or 'score', got {self.mode!r}")
        if self.mode == "score" and (self.normalize or self.denoised or self.step_independent):
            raise ConfigError(
                "mode 'score' adds the policy's own score: normalized, denoised and step-independent guidance are "
                "options of mode 'code'"
            )

    def strengths(self, steps: int) -> list[float]:
        """Lambda_n of each of ``steps`` steps in mode ``code``."""
        scale = self.coef * (REFERENCE_STEPS / steps if self.step_independent else 1.0)
        shape = [(1 - n / steps) + self.wave * math.sin(math.pi * (n + 1) / steps) for n in range(steps - 1)]
        return [*(scale * x for x in shape), 0.0]


def policy_log_prob(policy: Policy) -> LogProb:
    """Log pi of actions given before their tanh, in nats up to a constant.

    A deterministic policy counts as a Gaussian around it whose std is the box's half-range, and so does one that always
    draws, around the same draw for a row whenever it is asked; a squashed Gaussian is taken before its tanh, without
    the tanh's determinant; others are asked for their ``distribution``.
    """

    def log_prob(observations: Tensor, latent: Tensor) -> Tensor:
        if observations.shape[1] != policy.obs_dim or latent.shape[1] != policy.act_dim:
            raise PolicyError(wrong_observations(tuple(observations.shape), policy.obs_dim))
        with torch.no_grad():
            if isinstance(policy, GaussianPolicy | SquashedGaussianPolicy):
                mean, std = policy.moments(observations)
                law = Normal(mean, std.expand_as(mean), validate_args=False)
            elif isinstance(policy, RandomPolicy):
                raise PolicyError("a random policy guides nowhere: its density is constant")
            elif (distribution := getattr(policy, "distribution", None)) is not None:
                law = distribution(observations)
            else:
                draws = torch.Generator(observations.device).manual_seed(0)
                mean = policy.act(observations, deterministic=True, generator=draws)[0]
                law = Normal(mean, policy.half_range.expand_as(mean), validate_args=False)
        squashed = isinstance(policy, SquashedGaussianPolicy)
        inside = latent.tanh().clamp(-EDGE, EDGE)  # at the box's edge a squashed density is infinite
        densities: Tensor = law.log_prob(latent if squashed else policy.to_box(inside))
        return densities.flatten(1).sum(1) if densities.dim() > 1 else densities

    return log_prob


@dataclass(frozen=True)
class Target:
    """A policy as a function of standardized rows."""

    model: TrajectoryModel
    log_prob: LogProb

    def total(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Sum over steps of log pi: observations of ``rows`` (B, L, W), actions of ``columns`` (B, L, A) -> (B,)."""
        observations = self.model.observations_of(rows).flatten(0, 1)
        latent = self.model.latent_actions(columns).flatten(0, 1)
        return self.log_prob(observations, latent).view(rows.shape[:2]).sum(1)

    def gradient(self, rows: Tensor) -> Tensor:
        """G at ``rows`` (B, L, W), (B, L, A)."""
        with torch.enable_grad():
            columns = rows[..., self.model.action_columns].detach().requires_grad_()
            gradient: Tensor = torch.autograd.grad(self.total(rows, columns).sum(), columns)[0]
        return gradient


def unit_norm(gradient: Tensor) -> Tensor:
    """Each trajectory's gradient (B, L, A) over its norm; zero stays zero."""
    norms: Tensor = gradient.flatten(1).norm(dim=1)
    return gradient / (norms[:, None, None] + 1e-8)


def code_guide(target: Target, guidance: Guidance, steps: int, denoise: Denoise) -> Guide:
    """What mode ``code`` does before each step."""
    strengths, columns = guidance.strengths(steps), target.model.action_columns

    def guide(u: Tensor, rho: float, index: int) -> Tensor:
        if strengths[index] == 0.0:
            return u
        gradient = target.gradient(denoise(u, rho) if guidance.denoised else u)
        moved = u.clone()
        moved[..., columns] += strengths[index] * (unit_norm(gradient) if guidance.normalize else gradient)
        return moved

    return guide


def score_denoiser(target: Target, coef: float, denoise: Denoise) -> Denoise:
    """The denoiser whose score is that of the data plus ``coef`` times that of the policy at D."""
    columns = target.model.action_columns

    def guided(u: Tensor, rho: float) -> Tensor:
        with torch.enable_grad():
            x = u.detach().requires_grad_()
            d = denoise(x, rho)
            total = target.total(d, d[..., columns]).sum()
            gradient = torch.autograd.grad(total, x)[0]
        out = d.detach().clone()
        out[..., columns] += rho * rho * coef * gradient[..., columns]
        return out

    return guided

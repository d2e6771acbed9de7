"""Draws trajectories from a trajectory model, guided by a policy or not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offrl.diffusion.guidance import Guidance, Target, code_guide, policy_log_prob, score_denoiser
from offrl.diffusion.schedules import VE
from offrl.diffusion.steppers import Churn, Denoise, Guide, trajectory
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import ConfigError
from offrl.nn.policy import Policy


@dataclass(frozen=True)
class Sampler:
    """Steps of the sampler and their kind; defaults are those of the official code."""

    steps: int = 256
    heun: bool = True
    churn: float = 80.0  # 0 is the ODE
    legacy_euler_base: bool = False  # the official code's slip, for reproduction only
    allow_collapse: bool = False  # also without Heun, where it destroys the samples
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigError(f"steps must be 2 or more, got {self.steps}")
        if not 0.0 <= self.churn < math.inf:
            raise ConfigError(f"churn must be a finite number of 0 or more, got {self.churn}")
        if self.legacy_euler_base and self.churn > 0 and not self.heun and not self.allow_collapse:
            raise ConfigError(
                "the legacy Euler step with churn and without Heun collapses: samples of a standard normal have "
                "std 0.06; leave it out, add Heun or set churn to 0 (or insist with allow_collapse)"
            )


def sample_rows(
    model: TrajectoryModel,
    count: int,
    length: int,
    generator: torch.Generator,
    sampler: Sampler,
    policy: Policy | None = None,
) -> Tensor:
    """Standardized rows (count, length, W); ``decode`` of the model puts them in the environment's units.

    Args:
        model: what is drawn from.
        count: trajectories.
        length: steps of each; may differ from what the model was trained on.
        generator: of the noise, on the model's device.
        sampler: its settings.
        policy: the target, unless the guidance is 0.
    """
    out = torch.empty(0)
    for out in sample_steps(model, count, length, generator, sampler, policy):  # noqa: B007 - the last counts
        pass
    return out


@torch.no_grad()
def sample_steps(
    model: TrajectoryModel,
    count: int,
    length: int,
    generator: torch.Generator,
    sampler: Sampler,
    policy: Policy | None = None,
) -> Iterator[Tensor]:
    """``sample_rows``, giving the noisy rows after each step; the last are the sample."""
    width, grid = len(model.row_mean), VE().grid(sampler.steps)
    denoise, guide = _guided(model, policy, sampler)

    def noise(u: Tensor) -> Tensor:
        return torch.randn(u.shape, generator=generator, device=u.device)

    yield from trajectory(
        denoise,
        grid[0] * noise(model.row_mean.new_empty(count, length, width)),
        grid,
        heun=sampler.heun,
        churn=Churn(sampler.churn) if sampler.churn else None,
        noise=noise,
        guide=guide,
        legacy_euler_base=sampler.legacy_euler_base,
    )


def _guided(model: TrajectoryModel, policy: Policy | None, sampler: Sampler) -> tuple[Denoise, Guide | None]:
    if sampler.guidance.coef == 0.0:
        return model.denoise, None
    if policy is None:
        raise ConfigError("guidance needs a target policy")
    target = Target(model, policy_log_prob(policy))
    if sampler.guidance.mode == "score":
        return score_denoiser(target, sampler.guidance.coef, model.denoise), None
    return model.denoise, code_guide(target, sampler.guidance, sampler.steps, model.denoise)

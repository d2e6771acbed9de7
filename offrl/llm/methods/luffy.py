"""LUFFY: one demonstration beside the samples of each prompt; unlikely tokens of it are not drowned by likely ones.

    samples          min(r A, clip(r) A)
    demonstrations   f(pi) A,     f(p) = p / (p + gamma), so that grad log pi weighs p gamma / (p + gamma)^2 A
    loss = -mean over tokens,     A_i = (R_i - mean) / (std + 1e-6) over samples and demonstration of a prompt

Source: arXiv:2504.14945.
Departures: the demonstration is the task's own, correct one; the mean is over tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators import masks, ratios, shaping
from offrl.estimators.compose import Estimator, compose
from offrl.llm.method import ClipSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class LUFFYConfig(ClipSettings):
    """Settings of LUFFY."""

    gamma: float = 0.1
    """Probability at which a demonstration's token weighs most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0.0:
            raise ConfigError(f"gamma must be positive, got {self.gamma}: demonstrations teach nothing at 0")


def of_samples_or_one(log_probs: Tensor, old_log_probs: Tensor, demo: Tensor) -> Tensor:
    """Ratios: pi / pi_old of samples, pi of demonstrations; (B, T)."""
    return torch.where(demo[:, None], ratios.one(log_probs), ratios.old(log_probs, old_log_probs))


def clip_samples(ratio: Tensor, advantages: Tensor, demo: Tensor, *, low: float, high: float) -> Tensor:
    """PPO's mask, on samples alone; (B, T)."""
    return demo[:, None] | masks.ppo_clip(ratio, advantages, low=low, high=high)


def shape_demonstrations(log_probs: Tensor, demo: Tensor, *, gamma: float) -> Tensor:
    """f'(pi) on demonstrations, 1 on samples; (B, T)."""
    return torch.where(demo[:, None], shaping.luffy(log_probs, gamma=gamma), 1.0)


def estimator(settings: LUFFYConfig, length: int) -> Estimator:
    """The composition."""
    return compose(
        advantage="group_std",
        denominator=of_samples_or_one,
        mask=(clip_samples, {"low": settings.clip_low, "high": settings.clip_high}),
        shaping=(shape_demonstrations, {"gamma": settings.gamma}),
        regularizers=terms(settings),
    )


def facts(settings: LUFFYConfig, options: Any) -> dict[str, str]:
    """Demonstrations stand beside samples."""
    updates, demonstrations = options.reuse * options.minibatches, options.prompts // options.minibatches
    rows = f"{options.minibatch_rows} responses and {demonstrations} demonstrations"
    return {"updates per step": f"{updates} of {rows}"}


METHOD = Method(config=LUFFYConfig, estimator=estimator, data="both", grouped=True, facts=facts)

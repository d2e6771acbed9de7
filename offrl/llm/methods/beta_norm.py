"""BNPO (``beta_norm``): centred rewards over the density of a Beta distribution fitted to the groups' success rates.

    A_i = (R_i - p) / Beta(p; alpha, beta),     p the mean reward of the group, R in {0, 1}
    alpha = max(1, 1 + a/3), beta = max(1, 1 + b/3),     Beta(a, b) with the mean and variance of p over the batch
    loss = -mean_i sum_t min(r A, clip(r; low, high) A), at least c A where A < 0

alpha = beta = 1 is the mean-centred policy gradient, alpha = beta = 3/2 is GRPO times pi / 8. With ``decompose``, A is
the mean over the rewards of a task, each with parameters of its own.

Source: arXiv:2506.02864; changyi7231/BNPO.
Departures: not huggingface/trl's ``bnpo``, which names a mean over tokens. 1 / density is at most ``cap``, theirs 1e6.
Groups whose rates are all equal, for which there is no fit, have alpha = beta = 1. All rewards share one range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.advantages import each_reward
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.groups import Groups
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms


@dataclass(frozen=True, kw_only=True)
class BetaNormConfig(ClipSettings):
    """Settings of BNPO."""

    clip_high: float = 0.28
    """The ratio is held below 1 plus this."""
    dual_clip: float = 10.0
    """The ratio of tokens with a negative advantage is held below this."""
    cap: float = 20.0
    """The most that a centred reward is multiplied by."""
    low: float = 0.0
    """Smallest possible reward."""
    high: float = 1.0
    """Largest possible reward."""
    decompose: bool = False
    """Normalize each of the task's rewards apart, then take the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"low must be below high, got {self.low} and {self.high}")


def fitted(rates: Tensor) -> tuple[Tensor, Tensor]:
    """The normalizer's alpha and beta in float64, from success rates (G,)."""
    rates = rates.double()
    mean = rates.mean()
    variance = rates.var() if len(rates) > 1 else torch.zeros_like(mean)
    spread = variance > 1e-8
    k = mean * (1.0 - mean) / variance.where(spread, 1.0) - 1.0  # below 0 without a spread: both become 1
    return (1.0 + k * mean / 3.0).clamp(min=1.0), (1.0 + k * (1.0 - mean) / 3.0).clamp(min=1.0)


def reciprocal(rates: Tensor, alpha: Tensor, beta: Tensor, cap: float) -> Tensor:
    """min(1 / Beta(rate; alpha, beta), cap); (G,). Large parameters are differences that float32 does not hold."""
    alpha, beta, p = alpha.double(), beta.double(), rates.double()
    log_b = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    log_density = torch.xlogy(alpha - 1.0, p) + torch.xlogy(beta - 1.0, 1.0 - p) - log_b
    return (-log_density).exp().clamp(max=cap).to(rates)


def scaled(rewards: Tensor, low: float, high: float) -> Tensor:
    """Rewards from low .. high to 0 .. 1; ConfigError outside."""
    x = (rewards - low) / (high - low)
    if bool((x < -1e-6).any() | (x > 1.0 + 1e-6).any()):
        found = f"{float(rewards.min()):g} to {float(rewards.max()):g}"
        raise ConfigError(
            f"beta_norm: rewards of {found} are not in {low:g} to {high:g}; give --low and --high"
        )
    return x.clamp(0.0, 1.0)


def of_one(rewards: Tensor, group_ids: Tensor, *, low: float, high: float, cap: float) -> Tensor:
    """A of one reward; (B,), (B,) -> (B,)."""
    x, groups = scaled(rewards, low, high), Groups(group_ids)
    rates = groups.mean(x.double())
    return groups.centered(x) * groups.rows(reciprocal(rates, *fitted(rates), cap).to(x))


def beta_norm(rewards: Tensor, group_ids: Tensor, *, low: float, high: float, cap: float) -> Tensor:
    """A of the outcome; (B,)."""
    return of_one(rewards, group_ids, low=low, high=high, cap=cap)


def each_beta_norm(components: Tensor, group_ids: Tensor, *, low: float, high: float, cap: float) -> Tensor:
    """Mean over rewards of their A; (B, K), (B,) -> (B,)."""
    one: Callable[[Tensor], Tensor] = partial(of_one, group_ids=group_ids, low=low, high=high, cap=cap)
    return each_reward(components, one) / components.shape[1]


def estimator(settings: BetaNormConfig, length: int) -> Estimator:
    """The composition."""
    how = {"low": settings.low, "high": settings.high, "cap": settings.cap}
    return compose(
        advantage=(each_beta_norm if settings.decompose else beta_norm, how),
        mask=[clip(settings), ("dual_clip", {"limit": settings.dual_clip})],
        aggregation="seq-mean-token-sum",
        regularizers=terms(settings),
    )


class BetaNorm(Companion):
    """Reports the fit: means over rewards of alpha and beta, and the largest factor of a group that teaches."""

    metrics = ("alpha", "beta", "largest_factor")

    @staticmethod
    def watches(settings: BetaNormConfig) -> bool:
        """Always."""
        return True

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All of the batch."""
        s, groups = self.settings, Groups(batch.group_ids)
        columns = batch.components.unbind(dim=1) if s.decompose else [batch.rewards]
        alphas, betas, largest = [], [], []
        for x in (scaled(column, s.low, s.high) for column in columns):
            rates = groups.mean(x.double())
            alpha, beta = fitted(rates)
            alphas.append(alpha)
            betas.append(beta)
            largest.append(reciprocal(rates, alpha, beta, s.cap).where(groups.std(x) > 0, 0.0).max())
        means = {"alpha": torch.stack(alphas).mean(), "beta": torch.stack(betas).mean()}
        return batch, means | {"largest_factor": torch.stack(largest).max()}


METHOD = Method(config=BetaNormConfig, estimator=estimator, grouped=True, companion=BetaNorm)

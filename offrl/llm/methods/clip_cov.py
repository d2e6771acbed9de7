"""Clip-Cov: a few random tokens among those that drive the entropy down most lose their gradient.

    c_it = (log pi - mean)(A - mean), means over the tokens of the update
    loss = -mean over tokens of M min(r A, clip(r) A),     A as in GRPO
    M = 0 for max(1, floor(share x tokens)) random tokens with low < c < high that the clip leaves alone, else 1

Source: arXiv:2505.22617; PRIME-RL/Entropy-Mechanism-of-RL.
Departures: means and choice are over all tokens of an update, where the authors' code takes each micro-batch for
itself, so that --micro-batch changes nothing. Groups of equal rewards are kept; the authors sample others in their
place. The defaults are the authors', for models whose log-probabilities spread widely; with ``quantiles`` the band is
relative, which tiny models need (--quantiles --cov-low 0.95 --cov-high 0.999 --share 0.01).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.covariance import covariances, largest
from offrl.estimators.masks import ppo_clip
from offrl.estimators.ratios import ratio
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms


@dataclass(frozen=True, kw_only=True)
class ClipCovConfig(ClipSettings):
    """Settings of Clip-Cov."""

    clip_low: float = 1.0
    """The ratio is held above 1 minus this."""
    clip_high: float = 1.0
    """The ratio is held below 1 plus this."""
    share: float = 2e-4
    """Share of the tokens of an update that lose their gradient; at least one does."""
    cov_low: float = 1.0
    """They are drawn from those whose covariance is above this."""
    cov_high: float = 5.0
    """And below this."""
    quantiles: bool = False
    """cov_low and cov_high are quantiles of the covariances, between 0 and 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share must be above 0 and at most 1, got {self.share}")
        if not self.cov_low < self.cov_high:
            raise ConfigError(f"cov_low must be below cov_high, got {self.cov_low} and {self.cov_high}")
        if self.quantiles and not (self.cov_low >= 0.0 and self.cov_high <= 1.0):
            raise ConfigError(
                f"quantiles are between 0 and 1, got cov_low {self.cov_low} and cov_high {self.cov_high}"
            )


def unpicked(factors: Tensor) -> Tensor:
    """The mask; (B, T) bool."""
    return factors > 0


def estimator(settings: ClipCovConfig, length: int) -> Estimator:
    """The composition."""
    return compose(advantage="group_std", mask=[clip(settings), unpicked], regularizers=terms(settings))


def candidates(settings: ClipCovConfig, batch: TextRollouts, now: Tensor) -> Tensor:
    """Chosen, unclipped tokens with a covariance in the band; (B, T) bool."""
    assert batch.advantages is not None
    found = covariances(now, batch.advantages, batch.mask)
    low, high = settings.cov_low, settings.cov_high
    if settings.quantiles and batch.mask.any():
        ordered = found[batch.mask].sort().values
        low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (low, high))
    old = now if batch.old_log_probs is None else batch.old_log_probs  # in the only update of a batch
    bounds = {"low": settings.clip_low, "high": settings.clip_high}
    free = ppo_clip(ratio(now - old), batch.advantages[:, None], **bounds)
    return batch.mask & free & (found > low) & (found < high)


def pick(
    settings: ClipCovConfig, batch: TextRollouts, now: Tensor, generator: torch.Generator
) -> TextRollouts:
    """The batch with ``factors`` 0 at the tokens that lose their gradient."""
    draws = torch.rand(now.shape, generator=generator).to(now.device)
    number = max(1, int(settings.share * int(batch.mask.sum())))
    picked = largest(draws, candidates(settings, batch, now), number)
    return batch.replace(factors=(~picked).to(now.dtype))


class ClipCov(Companion):
    """Picks before every update."""

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """With ``factors``."""
        return pick(self.settings, batch, self.log_probs(batch), self.learner.streams["method"]), {}


METHOD = Method(config=ClipCovConfig, estimator=estimator, grouped=True, companion=ClipCov)

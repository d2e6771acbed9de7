"""KL-Cov: the tokens that drive the entropy down most are held near the policy that sampled them.

    c_it = (log pi - mean)(A - mean), means over the tokens of the update
    loss = -mean over tokens of [r A - penalty |log pi - log pi_old| at the max(1, floor(share x tokens)) largest c]

A as in GRPO, r not clipped. In the first update of a batch pi is pi_old, and the penalty has no gradient.

Source: arXiv:2505.22617; PRIME-RL/Entropy-Mechanism-of-RL, where the share is in percent.
Departures: means and choice are over all tokens of an update, where the authors' code takes each micro-batch for
itself. Groups of equal rewards are kept; the authors sample others in their place. Refused with one update a batch.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.covariance import covariances, largest
from offrl.llm.method import Companion, LossSettings, Method, TextRollouts, terms


@dataclass(frozen=True, kw_only=True)
class KLCovConfig(LossSettings):
    """Settings of KL-Cov."""

    share: float = 2e-3
    """Share of the tokens of an update that are held; at least one is."""
    penalty: float = 1.0
    """Coefficient of their log-ratio's size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share must be above 0 and at most 1, got {self.share}")
        if not self.penalty > 0.0:
            raise ConfigError(f"penalty must be positive, got {self.penalty}")


def held(log_probs: Tensor, old_log_probs: Tensor, factors: Tensor) -> Tensor:
    """|log pi - log pi_old| of the picked tokens; (B, T)."""
    return (log_probs - old_log_probs).abs() * factors


def estimator(settings: KLCovConfig, length: int) -> Estimator:
    """The composition."""
    return compose(advantage="group_std", regularizers=[*terms(settings), (held, settings.penalty)])


def pick(settings: KLCovConfig, batch: TextRollouts, now: Tensor) -> TextRollouts:
    """The batch with ``factors`` 1 at the tokens that are held."""
    assert batch.advantages is not None
    number = max(1, int(settings.share * int(batch.mask.sum())))
    picked = largest(covariances(now, batch.advantages, batch.mask), batch.mask, number)
    return batch.replace(factors=picked.to(now.dtype))


class KLCov(Companion):
    """Picks before every update."""

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """With ``factors``."""
        return pick(self.settings, batch, self.log_probs(batch)), {}


def unfit(settings: KLCovConfig, options: Any, task: Any) -> str | None:
    """One update a batch, in which the penalty does nothing."""
    apart = options.bypass and (options.delay > 0 or options.engine != "exact")
    if options.reuse * options.minibatches == 1 and not apart:
        return "with one update a batch its penalty has no effect: pass --minibatches or --reuse"
    return None


METHOD = Method(config=KLCovConfig, estimator=estimator, grouped=True, companion=KLCov, unfit=unfit)

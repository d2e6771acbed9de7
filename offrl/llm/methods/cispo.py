"""CISPO: ratios are cut and held constant, so that no token loses its gradient.

    loss = -mean over tokens of stopgrad(min(r, 1 + high)) A log pi,     A as in GRPO

Source: MiniMax-M1, arXiv:2506.13585.
Departures: 1 + high is volcengine/verl's bound, whose floor at 1 - low is ``floor``; huggingface/trl's epsilon_high is
the whole bound.
"""

from dataclasses import dataclass

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class CISPOConfig(LossSettings):
    """Settings of CISPO."""

    clip_high: float = 0.28
    """The weight is cut at 1 plus this."""
    floor: float | None = None
    """The weight is also held above 1 minus this; None: not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor is not None and not 0.0 <= self.floor < 1.0:
            raise ConfigError(f"floor must be from 0 to below 1, got {self.floor}")


def estimator(settings: CISPOConfig, length: int) -> Estimator:
    """The composition."""
    denominator = ("truncated", {"high": settings.clip_high, "low": settings.floor})
    return recipe("cispo", denominator=denominator, regularizers=terms(settings))


METHOD = Method(config=CISPOConfig, estimator=estimator, grouped=True)

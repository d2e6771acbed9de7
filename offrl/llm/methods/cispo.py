"""CISPO: ratios are cut and held constant, so that no token loses its gradient.

    loss = -mean over tokens of stopgrad(min(r, 1 + high)) A log pi,     A as in GRPO

Source: MiniMax-M1, arXiv:2506.13585.
Departures: 1 + high is volcengine/verl's bound, without its floor at 1 - low; huggingface/trl's
epsilon_high is the whole bound.
"""

from dataclasses import dataclass

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class CISPOConfig(LossSettings):
    """Settings of CISPO."""

    clip_high: float = 0.28
    """The weight is cut at 1 plus this."""


def estimator(settings: CISPOConfig, length: int) -> Estimator:
    """The composition."""
    denominator = ("truncated", {"high": settings.clip_high})
    return recipe("cispo", denominator=denominator, regularizers=terms(settings))


METHOD = Method(config=CISPOConfig, estimator=estimator, grouped=True)

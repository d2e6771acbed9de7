"""GMPO: the geometric mean of a response's token ratios, each clipped before it enters.

    g_i = exp(1/L_i sum_t clip(log r_it))            loss = -mean_i g_i A_i,     A as in GRPO

Source: arXiv:2507.20673.
Departures: none known.
"""

from dataclasses import dataclass

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class GMPOConfig(LossSettings):
    """Settings of GMPO."""

    clip: float = 0.4
    """Log-ratios are held within plus and minus this, on the side where the advantage would push further."""


def estimator(settings: GMPOConfig, length: int) -> Estimator:
    """The composition."""
    bounds = {"low": settings.clip, "high": settings.clip}
    return recipe(
        "gmpo", denominator=("geometric", bounds), mask=("log_clip", bounds), regularizers=terms(settings)
    )


METHOD = Method(config=GMPOConfig, estimator=estimator, grouped=True)

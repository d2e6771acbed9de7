"""GSPO: the ratio of whole responses, normalized by their length, is clipped and weighs each of their tokens.

    s_i = exp(1/L_i sum_t log(pi / pi_old))            loss = -mean_i min(s_i A_i, clip(s_i) A_i),     A as in GRPO

Source: arXiv:2507.18071.
Departures: none known.
"""

from dataclasses import dataclass

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms


@dataclass(frozen=True, kw_only=True)
class GSPOConfig(ClipSettings):
    """Settings of GSPO."""

    clip_low: float = 3e-4
    """The response's ratio is held above 1 minus this."""
    clip_high: float = 4e-4
    """The response's ratio is held below 1 plus this."""


def estimator(settings: GSPOConfig, length: int) -> Estimator:
    """The composition."""
    return recipe("gspo", mask=clip(settings), regularizers=terms(settings))


METHOD = Method(config=GSPOConfig, estimator=estimator, grouped=True)

"""SAPO: the clip is replaced by a soft gate on the ratio, stricter for tokens that did worse.

    loss = -mean_i 1/L_i sum_t (4 / tau) sigmoid(tau (r - 1)) A,     tau by the sign of A, A as in GRPO

Source: arXiv:2511.20347.
Departures: none known.
"""

from dataclasses import dataclass

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class SAPOConfig(LossSettings):
    """Settings of SAPO."""

    tau_positive: float = 1.0
    """Sharpness of the gate where the advantage is positive."""
    tau_negative: float = 1.05
    """Sharpness of the gate where it is negative."""


def estimator(settings: SAPOConfig, length: int) -> Estimator:
    """The composition."""
    gate = {"positive": settings.tau_positive, "negative": settings.tau_negative}
    return recipe("sapo", shaping=("sapo", gate), regularizers=terms(settings))


METHOD = Method(config=SAPOConfig, estimator=estimator, grouped=True)

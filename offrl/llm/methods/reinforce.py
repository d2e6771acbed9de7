"""REINFORCE: the log-probability of each response, times how much its reward exceeds the batch's mean.

    A_i = R_i - b            loss = -mean_i A_i sum_t log pi(a_it | s_it)

Source: R. Williams, "Simple statistical gradient-following algorithms" (1992); whole responses as single actions:
arXiv:2402.14740.
Departures: b is the mean reward of the batch, its own row included, or 0.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(LossSettings):
    """Settings of REINFORCE."""

    baseline: Literal["batch", "none"] = "batch"
    """What is subtracted from rewards."""


def batch_mean(rewards: Tensor) -> Tensor:
    """R minus the mean of the batch; (B,) -> (B,)."""
    return rewards - rewards.mean()


def estimator(settings: ReinforceConfig, length: int) -> Estimator:
    """The composition."""
    advantage = batch_mean if settings.baseline == "batch" else "outcome"
    return recipe("reinforce", advantage=advantage, regularizers=terms(settings, None))


METHOD = Method(config=ReinforceConfig, estimator=estimator, kl="reward")

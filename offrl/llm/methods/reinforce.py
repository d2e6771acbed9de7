"""REINFORCE: the log-probability of each response, times how much its reward exceeds the batch's mean.

    A_i = R_i - b            loss = -mean_i A_i sum_t log pi(a_it | s_it)

Source: R. Williams, "Simple statistical gradient-following algorithms" (1992); whole responses as single actions:
arXiv:2402.14740.
Departures: b is the mean reward of the batch, its own row included, or 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

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
    """R minus the mean of the batch, exactly 0 where all are equal; (B,) -> (B,)."""
    shifted = rewards - rewards.max()
    return shifted - shifted.mean()


def estimator(settings: ReinforceConfig, length: int) -> Estimator:
    """The composition."""
    advantage = batch_mean if settings.baseline == "batch" else "outcome"
    return recipe("reinforce", advantage=advantage, regularizers=terms(settings, None))


def unfit(settings: ReinforceConfig, options: Any, task: Any) -> str | None:
    """A batch of one, whose mean is its only reward."""
    if settings.baseline == "batch" and options.prompts * options.group == 1:
        return "baseline batch compares the responses of a batch, which has one: pass --prompts, or --baseline none"
    return None


METHOD = Method(config=ReinforceConfig, estimator=estimator, kl="reward", unfit=unfit)

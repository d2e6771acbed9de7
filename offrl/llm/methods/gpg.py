"""GPG: the plain policy gradient with group means, scaled up for groups that teach nothing.

    A_i = alpha (R_i - mean of the group),     alpha = rows / rows whose group has unequal rewards
    loss = -mean over tokens of A log pi

Source: arXiv:2504.02546.
Departures: where no group is unequal nothing is learnt. ``counts rewarded`` is volcengine/verl's alpha, rows over rows
with a reward other than 0.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from offrl.estimators.compose import Estimator, compose
from offrl.estimators.groups import Groups
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class GPGConfig(LossSettings):
    """Settings of GPG."""

    counts: Literal["unequal", "rewarded"] = "unequal"
    """Rows that alpha divides by: those of groups with unequal rewards, or those with a reward other than 0."""


def rescaled(advantages: Tensor, rewards: Tensor, group_ids: Tensor, *, counts: str) -> Tensor:
    """Advantages times rows over rows that count; (B,)."""
    groups = Groups(group_ids)
    teaching = (groups.rows(groups.std(rewards)) > 0 if counts == "unequal" else rewards != 0).sum()
    return advantages * (len(rewards) / teaching.clamp(min=1))


def estimator(settings: GPGConfig, length: int) -> Estimator:
    """The composition."""
    alpha = rescaled, {"counts": settings.counts}
    return compose(advantage=["group_mean", alpha], denominator="current", regularizers=terms(settings))


METHOD = Method(config=GPGConfig, estimator=estimator, grouped=True)

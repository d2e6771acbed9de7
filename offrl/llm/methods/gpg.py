"""GPG: the plain policy gradient with group means, scaled up for groups that teach nothing.

    A_i = alpha (R_i - mean of the group),     alpha = rows / rows whose group has unequal rewards
    loss = -mean over tokens of A log pi

Source: arXiv:2504.02546.
Departures: volcengine/verl counts rows with a reward other than 0 in alpha instead; alpha is 1 if no group is unequal.
"""

from torch import Tensor

from offrl.estimators.compose import Estimator, compose
from offrl.estimators.groups import Groups
from offrl.llm.method import LossSettings, Method, terms


def rescaled(advantages: Tensor, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Advantages times rows over rows of unequal groups; (B,)."""
    groups = Groups(group_ids)
    teaching = (groups.rows(groups.std(rewards)) > 0).sum()
    return advantages * (len(rewards) / teaching.clamp(min=1))


def estimator(settings: LossSettings, length: int) -> Estimator:
    """The composition."""
    return compose(advantage=["group_mean", rescaled], denominator="current", regularizers=terms(settings))


METHOD = Method(config=LossSettings, estimator=estimator, grouped=True)

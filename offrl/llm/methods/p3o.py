"""P3O: pairs of responses to one prompt; only the difference of their rewards counts.

    R_i = r_i - kl sum_t log(pi_old / ref)            rho_i = pi(y_i) / pi_old(y_i) of the whole response
    separate   -1/2 sum_i min(sg(rho_j)(R_i - R_j) rho_i, sg(clip(rho_j))(R_i - R_j) clip(rho_i)),     j the other
    joint      -1/2 min(sg(rho_1 rho_2)(R_1 - R_2) D, sg(clip(rho_1 rho_2))(R_1 - R_2) clip(D; -e, e))

D = log(rho_1 / rho_2), clip(x) is within 1 - e and 1 + e, sg holds constant. The loss of a group is the mean over all
of its pairs, which on policy is RLOO's. A reward that depends on the prompt alone changes nothing.

Source: arXiv:2310.00212. No code of the authors is known; the clipped forms are those of their public description.
Departures: groups may have more than two responses. Log-ratios of whole responses are cut at +-20.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.group_losses import GroupEstimator, group_loss
from offrl.estimators.groups import Groups
from offrl.estimators.ratios import LIMIT
from offrl.llm.method import LossSettings, Method, terms

Form = Literal["separate", "joint"]


@dataclass(frozen=True, kw_only=True)
class P3OConfig(LossSettings):
    """Settings of P3O."""

    clip: float = 0.2
    """e, of ratios around 1 and of the pair's log-odds around 0."""
    form: Form = "joint"
    """What is clipped: the ratio of each response, or the pair's log-odds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip > 0.0:
            raise ConfigError(f"clip must be positive, got {self.clip}")


def pairs(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    group_ids: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float,
    form: Form,
) -> Tensor:
    """The loss of each group, the mean over its pairs; (G,)."""
    log_rho = sequence_sum(log_probs - old_log_probs, mask).clamp(-LIMIT, LIMIT)
    gaps = rewards[:, None] - rewards
    if form == "separate":
        rho = log_rho.exp()
        near = rho.clamp(1.0 - clip, 1.0 + clip)
        free, held = rho[:, None] * rho.detach(), near[:, None] * near.detach()
    else:
        odds = log_rho[:, None] - log_rho
        product = (log_rho[:, None] + log_rho).detach().clamp(-LIMIT, LIMIT).exp()
        # each pair is met twice, as (1, 2) and as (2, 1)
        free, held = (
            0.5 * product * odds,
            0.5 * product.clamp(1.0 - clip, 1.0 + clip) * odds.clamp(-clip, clip),
        )
    values = torch.minimum(free * gaps, held * gaps)
    groups = Groups(group_ids)
    together = (groups.index[:, None] == groups.index).fill_diagonal_(False)
    total: Tensor = groups.sum(values.where(together, 0.0).sum(dim=1))
    return total.neg().div((groups.size * (groups.size - 1)).clamp(min=1))


def estimator(settings: P3OConfig, length: int) -> GroupEstimator:
    """The loss."""
    how = {"clip": settings.clip, "form": settings.form}
    return group_loss((pairs, how), regularizers=terms(settings, None))


METHOD = Method(config=P3OConfig, estimator=estimator, grouped=True, coupled=True, kl="reward")

"""REAL: the responses of a group are classified into rewarded and unrewarded ones; their log-ratio is the logit.

    s_i = 1/L_i sum_t log(pi / pi_old)
    loss of a group = log(1 + sum_{rewarded} exp(-s_i / tau)) + log(1 + sum_{others} exp(s_i / tau))
    loss = sum over groups with both kinds / number of all groups

No response weighs more than 1 / tau, and those on the right side of 0 fade, so that there is no clip. ``bce`` is the
mean over a group of single cross-entropies of s / tau; ``product`` compares the two kinds alone, by
log(1 + sum_{others} exp(s / tau) sum_{rewarded} exp(-s / tau)).

Source: arXiv:2602.05630; Red-RL/REAL.
Departures: rewarded means above the mean of the group, as in modelscope/ms-swift; with rewards 0 and 1 that is the
authors' reward of 1. All forms divide by the number of all groups; the authors' ``bce`` by the responses of groups with
both kinds.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_mean
from offrl.estimators.group_losses import GroupEstimator, group_loss
from offrl.estimators.groups import Groups
from offrl.llm.method import LossSettings, Method, terms

Form = Literal["anchored", "bce", "product"]


@dataclass(frozen=True, kw_only=True)
class REALConfig(LossSettings):
    """Settings of REAL."""

    tau: float = 0.5
    """Log-ratios are divided by it."""
    form: Form = "anchored"
    """How the kinds are told apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0.0:
            raise ConfigError(f"tau must be positive, got {self.tau}")


def real(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    group_ids: Tensor,
    mask: Tensor | None = None,
    *,
    tau: float,
    form: Form,
) -> Tensor:
    """The loss of each group, 0 for one with a single kind; (G,)."""
    logits = sequence_mean(log_probs - old_log_probs, mask) / tau
    groups = Groups(group_ids)
    good = groups.centered(rewards) > 0  # a group with a good response has another that is not
    both = groups.rows(groups.sum(good.to(logits.dtype))) > 0
    found = logits.new_zeros(len(groups.ids))
    if not both.any():
        return found + 0.0 * logits.sum()
    x, good, inner = logits[both], good[both], Groups(groups.index[both])
    if form == "bce":
        single = softplus(torch.where(good, -x, x))
        return found.index_add(0, inner.ids, inner.mean(single))
    bad_side = inner.logsumexp(x.masked_fill(good, -torch.inf))
    good_side = inner.logsumexp((-x).masked_fill(~good, -torch.inf))
    if form == "anchored":
        return found.index_add(0, inner.ids, softplus(good_side) + softplus(bad_side))
    return found.index_add(0, inner.ids, softplus(good_side + bad_side))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without torch's shortcut for large x; any shape."""
    return torch.logaddexp(x, torch.zeros_like(x))


def estimator(settings: REALConfig, length: int) -> GroupEstimator:
    """The loss."""
    how = {"tau": settings.tau, "form": settings.form}
    return group_loss((real, how), regularizers=terms(settings))


METHOD = Method(config=REALConfig, estimator=estimator, grouped=True, coupled=True)

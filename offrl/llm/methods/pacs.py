"""PACS: which responses are right is classified by how far the policy has raised them above the rest of their group.

    s_i = beta sum_t log(pi / pi_old)(o_it)        psi_i = s_i - mean_{j != i} s_j
    loss = mean_i w_i BCE(sigmoid(psi_i), R_i)     w_i = G / (2 responses with that label), 1 in a group of one label

The gradient runs through all s_j: that of a policy gradient with advantage beta (e_i - mean_{j != i} e_j),
e_i = w_i (R_i - sigmoid(psi_i)), which fades as labels and scores agree. This is the trust region: there is no clip.

Source: arXiv:2509.02522.
Departures: padding is masked; pi_old is the policy that the batch was sampled with, as in the published code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.group_losses import GroupEstimator, group_loss
from offrl.estimators.groups import Groups
from offrl.llm.method import LossSettings, Method, terms
from offrl.llm.text import Responses


@dataclass(frozen=True, kw_only=True)
class PACSConfig(LossSettings):
    """Settings of PACS."""

    beta: float = 1.0
    """Scale of the scores."""
    balance: bool = True
    """Right and wrong responses of a group weigh the same in all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0.0:
            raise ConfigError(f"beta must be positive, got {self.beta}")


def classification(
    log_probs: Tensor, old_log_probs: Tensor, rewards: Tensor, group_ids: Tensor, mask: Tensor,
    *, beta: float, balance: bool,
) -> Tensor:  # fmt: skip
    """Weighted cross-entropy of each row, differentiable in ``log_probs``; (B,)."""
    groups = Groups(group_ids)
    scores = beta * sequence_sum(log_probs - old_log_probs, mask)
    labels, size = rewards.to(scores), groups.rows(groups.size).to(scores)
    psi = groups.centered(scores) * (size / (size - 1.0).clamp(min=1.0))
    losses = F.binary_cross_entropy_with_logits(psi, labels, reduction="none")
    right = labels > 0.5
    alike = groups.rows(groups.sum(right.to(scores)))
    alike = torch.where(right, alike, size - alike)
    return losses * torch.where(alike < size, size / (2.0 * alike), 1.0) if balance else losses


def shaped(settings: PACSConfig, rewards: Tensor, responses: Responses, limits: Tensor) -> Tensor:
    """The rewards, which must be labels."""
    if len(outside := rewards[(rewards < 0.0) | (rewards > 1.0)]):
        raise ConfigError(f"pacs takes rewards as labels in [0, 1]; there is one of {float(outside[0]):.3g}")
    return rewards


def estimator(settings: PACSConfig, length: int) -> GroupEstimator:
    """The loss."""
    function = classification, {"beta": settings.beta, "balance": settings.balance}
    return group_loss(function, "rows", regularizers=terms(settings))


METHOD = Method(config=PACSConfig, estimator=estimator, grouped=True, coupled=True, shaped=shaped)

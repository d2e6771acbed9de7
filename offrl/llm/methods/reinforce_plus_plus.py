"""REINFORCE++: PPO's clipped surrogate without critic; returns are whitened over the whole batch.

    G_it = R_i - kl sum_{k >= t} log(pi_old / ref)       A = (G - mean) / std over all tokens of the batch
    loss = -mean over tokens of min(r A, clip(r) A)

With ``group_baseline`` R_i is first centred in its group.

Source: arXiv:2501.03262; volcengine/verl for the whitening of group-centred rewards.
Departures: none known.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms, too_small


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusConfig(ClipSettings):
    """Settings of REINFORCE++."""

    group_baseline: bool = False
    """Subtract the mean of the group first ("REINFORCE++-baseline")."""


def group_centred(advantages: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """Returns minus the mean outcome of the group; (B, T)."""
    groups = Groups(group_ids)
    first = mask.to(torch.int8).argmax(dim=1, keepdim=True)
    outcomes = advantages.gather(1, first)
    later = advantages - outcomes  # apart, so that a group of equal ones gets exactly 0
    return (later + groups.centered(outcomes[:, 0])[:, None]).where(mask, 0.0)


def estimator(settings: ReinforcePlusPlusConfig, length: int) -> Estimator:
    """The composition."""
    advantage = (
        ["returns_to_go", group_centred, "whiten"] if settings.group_baseline else ["returns_to_go", "whiten"]
    )
    return recipe("reinforce++", advantage=advantage, mask=clip(settings), regularizers=terms(settings, None))


def unfit(settings: ReinforcePlusPlusConfig, options: Any, task: Any) -> str | None:
    """Groups of one, whose mean is their only reward."""
    return too_small(options, "--group-baseline") if settings.group_baseline else None


METHOD = Method(config=ReinforcePlusPlusConfig, estimator=estimator, kl="step-reward", unfit=unfit)

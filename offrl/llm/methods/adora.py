"""ADORA: GRPO whose advantages weigh more for prompts that are useful now, as their rollouts tell.

    A'_i = w_q A_i                 w_q = (2, 1) if mode is amplify, (1, 0.1) if attenuate: (useful, not useful)
    length      longest right response > mean length of the wrong ones that were not cut
    difficulty  share of right responses <= hard

Source: arXiv:2602.10019.
Departures: whether the paper's amplification asks for one criterion or both could not be read; it is both unless
given. With an empty side the ``llm`` rule of the published code calls no right response useless and no wrong one
useful, its ``vlm`` rule the other way round. Weights by length bias the policy towards long right responses; weights by
difficulty only change what prompts count.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import unused
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms
from offrl.llm.text import EOS

WEIGHTS = {"amplify": (2.0, 1.0), "attenuate": (1.0, 0.1)}


@dataclass(frozen=True, kw_only=True)
class ADORAConfig(ClipSettings):
    """Settings of ADORA."""

    mode: Literal["amplify", "attenuate"] = "amplify"
    """Useful prompts weigh 2 and others 1, or 1 and 0.1."""
    criterion: Literal["both", "either", "length", "difficulty"] = "both"
    """What makes a prompt useful; the published code is attenuate by length."""
    empty: Literal["llm", "vlm"] = "llm"
    """Rule for prompts without right or without wrong responses."""
    correct: float = 0.5
    """A response is right if its reward is above this."""
    hard: float = 0.5
    """A prompt is difficult up to this share of right responses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion == "length":
            unused(self, "with criterion length", "hard")
        if self.criterion == "difficulty":
            unused(self, "with criterion difficulty", "empty")


def useful(
    rewards: Tensor, group_ids: Tensor, lengths: Tensor, cut: Tensor,
    *, criterion: str, empty: str, correct: float, hard: float,
) -> Tensor:  # fmt: skip
    """Which groups are; (G,) bool."""
    groups, right = Groups(group_ids), rewards > correct
    wrong = (~right & ~cut).to(lengths)
    longest = groups.max(lengths.where(right, -torch.inf))
    others, none = groups.sum(wrong * lengths) / groups.sum(wrong), groups.sum(wrong) == 0
    no_right = longest == -torch.inf
    longer = longest > others
    long = ~no_right & (none | longer) if empty == "llm" else no_right | (~none & longer)
    difficult = groups.mean(right.to(lengths)) <= hard
    return {"length": long, "difficulty": difficult, "both": long & difficult, "either": long | difficult}[
        criterion
    ]


def reweighted(
    advantages: Tensor, rewards: Tensor, group_ids: Tensor, lengths: Tensor, cut: Tensor,
    *, mode: str, criterion: str, empty: str, correct: float, hard: float,
) -> Tensor:  # fmt: skip
    """Advantages times the weight of their prompt; (B,)."""
    chosen = useful(
        rewards, group_ids, lengths, cut, criterion=criterion, empty=empty, correct=correct, hard=hard
    )
    high, low = WEIGHTS[mode]
    return advantages * torch.where(Groups(group_ids).rows(chosen), high, low)


def estimator(settings: ADORAConfig, length: int) -> Estimator:
    """The composition."""
    names = ("mode", "criterion", "empty", "correct", "hard")
    weights = reweighted, {name: getattr(settings, name) for name in names}
    return recipe("grpo", advantage=["group_std", weights], mask=clip(settings), regularizers=terms(settings))


def unfit(settings: ADORAConfig, options: Any, task: Any) -> str | None:
    """Criteria of length, where no response to a prompt is longer than another."""
    varies = hasattr(task, "environment") or bool(task.allowed[EOS])
    if settings.criterion in ("both", "length") and not varies:
        return f"responses to a prompt of {task.name} are all of one length: pass --criterion difficulty"
    return None


METHOD = Method(config=ADORAConfig, estimator=estimator, grouped=True, unfit=unfit)

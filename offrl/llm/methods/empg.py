"""EMPG: an episode's advantage counts more in turns of which the policy was sure, and sure next turns earn a bonus.

    H_it = mean entropy of the tokens of turn t,     h = (H - min) / (max - min + 1e-8) over all turns of the batch
    A_it = A_i exp(-k h_it) / mean exp(-k h) + zeta exp(-bonus_k h_i,t+1),     less its mean over all turns
    loss = that of GRPO or DAPO with A_it at each token of turn t

The last turn earns no bonus. The bonus does not telescope: it moves the optimum, and groups of equal rewards learn
from it (with base dapo they are sampled anew).

Source: arXiv:2509.09265.
Departures: no code of the authors is known. zeta is that of one re-implementation; entropies are those of training's
parameters before the first update. With base dapo the ratio's upper bound is ``clip_high`` as it is given, 0.2 by
default where DAPO has 0.28, and long responses are not punished.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.estimators.turns import Turns
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, samplings, terms

ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class EMPGConfig(ClipSettings):
    """Settings of EMPG."""

    base: Literal["grpo", "dapo"] = "grpo"
    """Whose loss; dapo also samples groups of equal rewards anew, up to four times."""
    k: float = 1.0
    """How fast the weight of a turn falls with its entropy; 0: all weigh 1."""
    bonus_k: float = 1.0
    """How fast the bonus falls with the next turn's entropy."""
    zeta: float = 0.05
    """Coefficient of the bonus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not min(self.k, self.bonus_k, self.zeta) >= 0.0:
            raise ConfigError(
                f"k, bonus_k and zeta must be 0 or more, got {self.k}, {self.bonus_k}, {self.zeta}"
            )


def modulated(
    advantages: Tensor,
    entropies: Tensor,
    step_ids: Tensor,
    mask: Tensor,
    *,
    k: float,
    bonus_k: float,
    zeta: float,
) -> Tensor:
    """A_it; (B,), (B, T), (B, T), (B, T) -> (B, T)."""
    turns = Turns(step_ids, mask)
    entropy, there = turns.mean(entropies), turns.present
    if not there.any():
        return torch.zeros_like(entropies)
    low, high = entropy[there].min(), entropy[there].max()
    scaled = (entropy - low) / (high - low + 1e-8)
    weight = (-k * scaled).exp()
    weight = weight / weight[there].mean()
    found = advantages[:, None] * weight + zeta * turns.following((-bonus_k * scaled).exp())
    return turns.tokens(found - found[there].mean())


class Sureness(Companion):
    """Measures entropies."""

    metrics = ("turn_entropy",)

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With entropies."""
        return batch.replace(entropies=self.entropies(batch))

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All; reports the mean over turns."""
        assert batch.entropies is not None
        assert batch.step_ids is not None
        turns = Turns(batch.step_ids, batch.mask)
        return batch, {"turn_entropy": turns.mean(batch.entropies).sum() / turns.present.sum().clamp(min=1)}


def keep(settings: EMPGConfig, rollouts: TextRollouts) -> Tensor:
    """With base dapo the rows of groups with unequal rewards, else all."""
    groups = Groups(rollouts.group_ids)
    unequal: Tensor = groups.rows(groups.std(rollouts.rewards)) > 0
    return unequal | (settings.base == "grpo")


def estimator(settings: EMPGConfig, length: int) -> Estimator:
    """The composition."""
    own = {"k": settings.k, "bonus_k": settings.bonus_k, "zeta": settings.zeta}
    return recipe(
        settings.base,
        advantage=["group_std", (modulated, own)],
        mask=clip(settings),
        regularizers=terms(settings),
    )


def rounds(settings: EMPGConfig) -> int:
    """How often at most it samples for one batch."""
    return ROUNDS if settings.base == "dapo" else 1


def facts(settings: EMPGConfig, options: Any) -> dict[str, str]:
    """How often it may sample for one batch."""
    return samplings(options, rounds(settings))


METHOD = Method(
    config=EMPGConfig, estimator=estimator, grouped=True, companion=Sureness, keep=keep, rounds=rounds, facts=facts
)  # fmt: skip

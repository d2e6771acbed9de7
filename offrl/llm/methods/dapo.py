"""DAPO: GRPO with a higher upper clip, a mean over tokens, and other groups in place of those with equal rewards.

    A_i = (R_i - mean) / (std + 1e-6) of the group            loss = -mean over tokens of min(r A, clip(r; low, high) A)
    R_i = outcome - min(1, max(0, L_i - (limit - overlong)) / overlong)

Source: arXiv:2503.14476.
Departures: after ``max_rounds`` samplings what there is is learnt from; ``overlong`` is 0 (no punishment) unless given.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, TextRollouts, clip, samplings, terms
from offrl.llm.text import Responses


@dataclass(frozen=True, kw_only=True)
class DAPOConfig(ClipSettings):
    """Settings of DAPO."""

    clip_high: float = 0.28
    """The ratio is held below 1 plus this."""
    max_rounds: int = 4
    """Samplings at most to fill a batch with groups of unequal rewards; 1 keeps all groups."""
    overlong: int = 0
    """Tokens before the limit over which the punishment grows from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rounds < 1 or self.overlong < 0:
            raise ConfigError(
                f"max_rounds must be 1 or more and overlong 0 or more, got {self.max_rounds} and {self.overlong}"
            )


def estimator(settings: DAPOConfig, length: int) -> Estimator:
    """The composition."""
    return recipe("dapo", mask=clip(settings), regularizers=terms(settings))


def shaped(settings: DAPOConfig, rewards: Tensor, responses: Responses, limits: Tensor) -> Tensor:
    """Rewards minus the punishment of long responses."""
    if settings.overlong == 0:
        return rewards
    beyond = responses.lengths - (limits - settings.overlong)
    return rewards - (beyond / settings.overlong).clamp(0.0, 1.0)


def keep(settings: DAPOConfig, rollouts: TextRollouts) -> Tensor:
    """Rows of groups with unequal rewards; all with one round."""
    groups = Groups(rollouts.group_ids)
    unequal: Tensor = groups.rows(groups.std(rollouts.rewards)) > 0
    return unequal | (settings.max_rounds == 1)


def facts(settings: DAPOConfig, options: Any) -> dict[str, str]:
    """How often it may sample for one batch."""
    return samplings(options, settings.max_rounds)


def unfit(settings: DAPOConfig, options: Any, task: Any) -> str | None:
    """A punishment that even the shortest response would get."""
    if settings.overlong > task.max_response:
        return f"overlong is {settings.overlong}, more than the {task.max_response} tokens of the longest response"
    return None


METHOD = Method(
    config=DAPOConfig, estimator=estimator, grouped=True, shaped=shaped, keep=keep,
    rounds=lambda settings: settings.max_rounds, facts=facts, unfit=unfit,
)  # fmt: skip

"""HPT: prompts that no rollout, or too few, solve are learnt from a demonstration; the others by policy gradient.

    solved > gate    1/G sum_i 1/T_max sum_t r A_i,    A_i = R_i - mean of the group's samples: Dr. GRPO without a clip
    solved <= gate   sft 1/L sum_t log pi of the demonstration
    loss = -mean over prompts

Source: arXiv:2509.04419.
Departures: both terms are means over prompts with a coefficient of their own, where the published code's depend on the
size of micro-batches. Only the hard switch; T_max is the task's longest response.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrl.errors import ConfigError, unused
from offrl.estimators import ratios
from offrl.estimators.aggregation import sequence_mean, sequence_sum
from offrl.estimators.group_losses import GroupEstimator, group_loss
from offrl.estimators.groups import Groups, solved_gate
from offrl.llm.method import LossSettings, Method, TextRollouts, terms


@dataclass(frozen=True, kw_only=True)
class HPTConfig(LossSettings):
    """Settings of HPT."""

    gate: int = 0
    """A prompt with more right samples than this is learnt from them, another from its demonstration; -1: never."""
    sft: float = 1.0
    """Coefficient of the demonstrations' term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate < -1 or not self.sft >= 0.0:
            raise ConfigError(f"gate must be -1 or more and sft 0 or more, got {self.gate} and {self.sft}")
        if self.gate == -1:
            unused(self, "with gate -1", "sft")


def shared(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """R minus the mean of its group, over the size of the group; (B,)."""
    groups = Groups(group_ids)
    return groups.centered(rewards) / groups.rows(groups.size)


def by_prompt(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, demo: Tensor,
    *, length: int, sft: float,
) -> Tensor:  # fmt: skip
    """What a row adds to its prompt's loss, differentiable in ``log_probs``; (B,)."""
    gains = advantages * sequence_sum(ratios.old(log_probs, old_log_probs), mask) / length
    return -gains.where(~demo, sft * sequence_mean(log_probs, mask))


def keep(settings: HPTConfig, rollouts: TextRollouts) -> Tensor:
    """Samples of the prompts above the gate, demonstrations of the others."""
    assert rollouts.success is not None
    return solved_gate(rollouts.success.float(), rollouts.group_ids, rollouts.demo, gate=settings.gate)


def facts(settings: HPTConfig, options: Any) -> dict[str, str]:
    """Demonstrations take the place of samples."""
    if settings.gate == -1:
        return {}
    updates, prompts = options.reuse * options.minibatches, options.prompts // options.minibatches
    rows = f"{prompts} (all from demonstrations) to {options.minibatch_rows}"
    return {"updates per step": f"{updates} of {rows} responses"}


def estimator(settings: HPTConfig, length: int) -> GroupEstimator:
    """The loss."""
    function = by_prompt, {"length": length, "sft": settings.sft}
    return group_loss(function, advantage=shared, regularizers=terms(settings))


METHOD = Method(config=HPTConfig, estimator=estimator, data="both", grouped=True, keep=keep, facts=facts)

"""What a method file gives to the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.estimators.compose import Estimator, Spec
from offrl.estimators.group_losses import GroupEstimator
from offrl.estimators.rollouts import Rollouts
from offrl.llm.text import Responses


@dataclass(frozen=True, kw_only=True)
class TextRollouts(Rollouts):
    """Sampled responses with their prompts, one a row; what the engine always knows is never None."""

    mask: Tensor
    rewards: Tensor
    group_ids: Tensor
    rollout_log_probs: Tensor
    demo: Tensor
    prompt_tokens: Tensor
    """(B, P), padded on the left."""
    prompt_mask: Tensor
    """(B, P) bool."""
    tokens: Tensor
    """(B, T), padded on the right."""
    limits: Tensor
    """(B,) tokens of the longest response allowed."""
    prompt_ids: Tensor
    """(B,) int64, equal for equal prompts, also across batches."""
    components: Tensor
    """(B, K) the rewards whose sum is the outcome, as the task gave them."""
    factors: Tensor | None = None
    """(B, T) what ``before_update`` decided about each token."""


@dataclass
class Memory:
    """What a method's hooks may use beside the batch; saved with the run."""

    kept: dict[str, Any]
    """Numbers, tensors and containers of them that outlive a batch."""
    generator: torch.Generator
    """The method's own random stream, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Terms that every method may add."""

    kl: float = 0.0
    """Coefficient of the KL to the model that training began with."""
    entropy: float = 0.0
    """Coefficient of the entropy bonus."""


@dataclass(frozen=True, kw_only=True)
class ClipSettings(LossSettings):
    """A clipped ratio."""

    clip_low: float = 0.2
    """The ratio is held above 1 minus this."""
    clip_high: float = 0.2
    """The ratio is held below 1 plus this."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: an estimator, and what it asks of the engine beside."""

    config: type
    """Its settings, a dataclass."""
    estimator: Callable[[Any, int], Estimator]
    """(settings, longest response) -> the composition."""
    data: Literal["rollouts", "demonstrations", "both"] = "rollouts"
    """What it learns from; both: one demonstration beside the samples of each prompt."""
    grouped: bool = False
    """It compares the responses of a group, so that groups of one teach nothing."""
    greedy_baseline: bool = False
    """It needs the reward of the greedy response."""
    kl: Literal["loss", "reward", "step-reward"] = "loss"
    """Where the KL goes: the loss, a row's reward, or the rewards of single tokens."""
    critic: bool = False
    """It learns values on the model's states."""
    shaped: Callable[[Any, Tensor, Responses, Tensor], Tensor] | None = None
    """(settings, rewards, responses, limits) -> rewards to learn from."""
    keep: Callable[[Any, TextRollouts], Tensor] | None = None
    """(settings, rollouts) -> (B,) bool, whole groups worth learning from; others are sampled in their place."""
    rounds: Callable[[Any], int] = lambda settings: 1
    """How often at most it samples for one batch."""
    reference: bool = False
    """It needs log-probabilities of the model that training began with."""
    memory: Callable[[Any], dict[str, Any]] = lambda settings: {}
    """(settings) -> what ``Memory.kept`` begins with."""
    before_batch: Callable[[Any, TextRollouts, Memory], TextRollouts] | None = None
    """(settings, rollouts, memory) -> the rollouts; once a batch, before its advantages."""
    before_update: Callable[[Any, TextRollouts, Tensor, Memory], TextRollouts] | None = None
    """(settings, rollouts of one update, their log-probabilities now (B, T), memory) -> the rollouts, with advantages or
    ``factors`` that depend on what the current policy says. Sees all micro-batches at once."""
    measures: tuple[str, ...] = ()
    """Names of what ``measured`` gives."""
    measured: Callable[[Any, TextRollouts, Memory], dict[str, Tensor]] | None = None
    """(settings, rollouts with advantages, memory) -> metrics; once a batch."""
    unfit: Callable[[Any, Any, Any], str | None] | None = None
    """(settings, options, task) -> why these do not go together, in one line, or None."""


def terms(settings: LossSettings, kl: str | None = "k3") -> list[tuple[Spec, float]]:
    """Regularizers with a coefficient: the KL by that estimate (None: it is in the reward), the entropy bonus."""
    found: list[tuple[Spec, float]] = [] if kl is None or settings.kl == 0.0 else [(kl, settings.kl)]
    return found + ([("negative_entropy", settings.entropy)] if settings.entropy != 0.0 else [])


def clip(settings: ClipSettings) -> tuple[str, dict[str, float]]:
    """PPO's mask."""
    return "ppo_clip", {"low": settings.clip_low, "high": settings.clip_high}


def coupled(loss: GroupEstimator, batch: TextRollouts, now: Tensor) -> Tensor:
    """Advantages that stand for a loss which couples the rows of a group: (B, T), for ``before_update``.

    With denominator ``current`` and aggregation ``seq-mean-token-sum`` their gradient is that of the loss over all rows of
    the update, however these are split afterwards.
    """
    return loss.weights(now, batch) * batch.mask.any(dim=1).sum()

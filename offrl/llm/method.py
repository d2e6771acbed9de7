"""What a method file gives to the engine."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator, Spec
from offrl.estimators.group_losses import GroupEstimator
from offrl.estimators.rollouts import Rollouts
from offrl.llm.text import Prompts, Responses


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
    success: Tensor | None = None
    """(B,) bool: what the task calls right."""
    sources: Tensor | None = None
    """(B,) int64, equal for rows with the same prompt tokens; None: those of a group have."""
    cut: Tensor | None = None
    """(B,) bool: stopped by its limit, not by an end."""
    answer_ids: Tensor | None = None
    """(B,) int64, equal for equal final answers, -1 without one; for methods that ask for them."""
    baseline_weights: Tensor | None = None
    """(B,) what a row weighs in the baseline of the others, for methods that measure it."""
    step_ids: Tensor | None = None
    """(B, T) int64, the turn of its episode that a chosen token belongs to, -1 elsewhere."""
    step_rewards: Tensor | None = None
    """(B, T) what an environment paid for each turn, at its last token; None: there is no environment."""
    entropies: Tensor | None = None
    """(B, T) of the policy before a batch's updates, for methods that measure them."""
    segments: Tensor | None = None
    """(B, T) int64, the context that each token stands in, -1 where it was dropped from it; None: there is one."""
    contexts: Tensor | None = None
    """(B, S, C) what each context begins with, padded on the left; the first is the prompt."""
    context_mask: Tensor | None = None
    """(B, S, C) bool."""
    corridor: Tensor | None = None
    """(B, 3) lowest and highest entropy that is left alone, and the weight of what holds the others (EPO)."""
    vines: Tensor | None = None
    """(B,) bool: rows that are compared in sets (Polychromic)."""
    set_advantages: Tensor | None = None
    """(B, K) of the K sets of such a row, 0 of those without it, or of all its sets in one (Polychromic)."""
    factors: Tensor | None = None
    """(B, T) what a companion decided about each token before an update."""
    prompt_routes: Tensor | None = None
    """(B, P, layers, k) int64, experts that prompt tokens must take (MiniRL)."""
    routes: Tensor | None = None
    """(B, T - 1, layers, k) int64, experts that tokens of the response must take when they are read."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Terms that every method may add."""

    kl: float = 0.0
    """Coefficient of the KL to the model that training began with."""
    entropy: float = 0.0
    """Coefficient of the entropy bonus."""

    def __post_init__(self) -> None:
        for name in ("kl", "kl_old", "value", "clip", "clip_low", "clip_high"):
            if not getattr(self, name, 0.0) >= 0.0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("noise", "lam"):
            if not 0.0 <= getattr(self, name, 0.0) <= 1.0:
                raise ConfigError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        for name in ("cap", "tau_positive", "tau_negative", "dual_clip"):
            if not getattr(self, name, 1.0) > 0.0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


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
    estimator: Callable[[Any, int], Estimator | GroupEstimator]
    """(settings, longest response) -> the composition."""
    data: Literal["rollouts", "demonstrations", "both"] = "rollouts"
    """What it learns from; both: one demonstration beside the samples of each prompt."""
    grouped: bool = False
    """It compares the responses of a group, under all settings, so that groups of one teach nothing."""
    greedy_baseline: bool = False
    """It needs the reward of the greedy response."""
    kl: Literal["loss", "reward", "step-reward"] = "loss"
    """Where the KL goes: the loss, a row's reward, or the rewards of single tokens."""
    critic: bool | Callable[[Any], bool] = False
    """It learns values on the model's states, always or under some settings."""
    shaped: Callable[[Any, Tensor, Responses, Tensor], Tensor] | None = None
    """(settings, rewards, responses, limits) -> rewards to learn from."""
    keep: Callable[[Any, TextRollouts], Tensor] | None = None
    """(settings, rollouts) -> (B,) bool, whole groups worth learning from; others are sampled in their place."""
    rounds: Callable[[Any], int] = lambda settings: 1
    """How often at most it samples for one batch."""
    coupled: bool = False
    """Its loss couples the responses of a group, so that a micro-batch must hold whole groups."""
    answers: bool = False
    """It compares final answers: the task must say which are equal."""
    reference: bool = False
    """It needs log-probabilities of the model that training began with."""
    unfit: Callable[[Any, Any, Any], str | None] | None = None
    """(settings, options, task) -> why these do not go together, in one line, or None."""
    companion: Callable[[Any, Any], "Companion"] | None = None
    """(settings, learner) -> what it does around its estimator."""
    beside: Callable[[Any, Any], int] = lambda settings, options: 0
    """(settings, options) -> responses of a step beside --group to each prompt."""
    facts: Callable[[Any, Any], dict[str, str]] = lambda settings, options: {}
    """(settings, options) -> lines of --dry-run that differ from those of other methods."""


class Companion:
    """What a method does around its estimator, with a state of its own; hooks change nothing unless overridden.

    Args:
        settings: of the method.
        learner: that it serves.
    """

    metrics: tuple[str, ...] = ()
    """Names of what its hooks report."""

    def __init__(self, settings: Any, learner: Any) -> None:
        self.settings, self.learner = settings, learner

    @staticmethod
    def watches(settings: Any) -> bool:
        """Whether it only reports under these settings, so that the method is the same without it."""
        return False

    def log_probs(self, batch: TextRollouts) -> Tensor:
        """What the current policy says of a batch, without gradient; (B, T)."""
        return torch.cat([scores.log_probs for _, scores in self.learner.scored(batch)])

    def entropies(self, batch: TextRollouts) -> Tensor:
        """Of the current policy at each token of a batch, without gradient; (B, T)."""
        parts = [scores.entropy for _, scores in self.learner.scored(batch, entropy=True)]
        return torch.cat([part for part in parts if part is not None])

    def sampled(self, sampler: Any, draw: Callable[[], Responses]) -> tuple[Responses, dict[str, Tensor]]:
        """The responses that ``draw`` gives, and further fields of their rows; ``sampler`` is what draws."""
        return draw(), {}

    def more(
        self, sampler: Any, prompts: Prompts, responses: Responses
    ) -> tuple[Prompts, Responses, Tensor, dict[str, Tensor]] | None:
        """Further prompts with their responses, numbers of their groups from 0, and fields of their rows.

        ``prompts`` and ``responses`` are those of the batch, row by row.
        """
        return None

    def scoring(self, batch: TextRollouts, policy: Any, first: Tensor) -> AbstractContextManager[None]:
        """Around each reading of a batch by a policy, whose prompts are those of the rows ``first``."""
        return nullcontext()

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With fields that its advantages read; once a batch, before them."""
        return batch

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """What of a batch is learnt from, its advantages known; once a batch."""
        return batch, {}

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """What of a minibatch is learnt from under the current parameters; before every update."""
        return batch, {}

    def pieces(self, batch: TextRollouts) -> list[Tensor]:
        """Rows of a minibatch whose gradients it wants to see apart; mostly one piece."""
        return [torch.arange(len(batch.tokens), device=batch.tokens.device)]

    def rate(self, gradients: list[list[Tensor]]) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Factor on the learning rate, from the pieces' gradients (that add up to the whole; [] for one piece)."""
        return 1.0, {}

    def state_dict(self) -> dict[str, Any]:
        """What its next step depends on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


def watches(method: Method, settings: Any) -> bool:
    """Whether the method's companion, if any, only reports."""
    watching = getattr(method.companion, "watches", None)
    return method.companion is None or (watching is not None and bool(watching(settings)))


def too_small(options: Any, what: str) -> str | None:
    """For ``unfit``: why groups of one do not go with ``what``, that compares the responses of a group, or None."""
    least = options.budget_low if options.allocator == "knapsack" else options.group
    if least < 2:
        return (
            f"{what} compares the responses of a group: --group must be 2 or more, and so must --budget-low"
        )
    return None


def samplings(options: Any, most: int) -> dict[str, str]:
    """For ``facts``: a method that samples up to ``most`` times, until all groups have unequal rewards."""
    if most == 1:
        return {}
    rollouts = options.prompts * options.group * options.steps
    again = f"1 to {most}, until {options.prompts} groups have unequal rewards"
    return {"samplings per step": again, "rollouts in all": f"{rollouts} to {most * rollouts}"}


def terms(settings: LossSettings, kl: str | None = "k3") -> list[tuple[Spec, float]]:
    """Regularizers with a coefficient: the KL by that estimate (None: it is in the reward), the entropy bonus."""
    found: list[tuple[Spec, float]] = [] if kl is None or settings.kl == 0.0 else [(kl, settings.kl)]
    return found + ([("negative_entropy", settings.entropy)] if settings.entropy != 0.0 else [])


def clip(settings: ClipSettings) -> tuple[str, dict[str, float]]:
    """PPO's mask."""
    return "ppo_clip", {"low": settings.clip_low, "high": settings.clip_high}

"""Retroformer: a model that reflects on failures is trained by the difference its reflection makes to the next try.

    A_i = (G_next,i - G_failed) - mean over the reflections on the same failure
    loss = -mean over tokens of [min(r A, clip(r) A) - c k3(pi, ref)]
    c <- c (1 + clip(KL / target - 1, +-0.2) rows / horizon) after each step

The actor is part of the environment (task t4d). A bad-luck failure is followed by a better try whatever was said: the
mean over reflections on the same failure takes that out. ``learn_from="ratings"`` puts what a model of it
says (``offrl.llm.ratings``) in place of the difference; it learns from the pairs of each batch, then rates them.

Source: arXiv:2308.02151; controller: arXiv:1909.08593.
Departures: differences are learnt from directly unless ratings are asked for; ratings learn while the policy does, not
once before it; the group's mean as a baseline, which the paper does not have; the KL stands in the loss, by k3, where
the paper takes it off the reward.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.regularizers import adapted, k3
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms
from offrl.llm.ratings import Rating


@dataclass(frozen=True, kw_only=True)
class RetroformerConfig(ClipSettings):
    """Settings of Retroformer."""

    kl: float = 0.2
    """Coefficient of the KL to the model that training began with, at first; above 0."""
    target: float = 0.1
    """KL of a response that the coefficient is adapted to."""
    horizon: int = 10_000
    """Responses over which the coefficient may change by a fifth."""
    learn_from: Literal["differences", "ratings"] = "differences"
    """What a reflection earns: the difference of returns, or the rating of a model that learns from pairs of them."""
    rating_lr: float = 1e-3
    """Learning rate of the model of ratings."""
    rating_updates: int = 4
    """Its updates from each batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_from != "ratings" and (self.rating_lr, self.rating_updates) != (1e-3, 4):
            raise ConfigError(
                "retroformer: rating_lr and rating_updates have no effect without learn_from ratings"
            )
        if not (self.rating_lr > 0.0 and self.rating_updates >= 1):
            raise ConfigError("retroformer: rating_lr must be positive, and rating_updates 1 or more")
        if not (self.kl > 0.0 and self.target > 0.0 and self.horizon >= 1):
            raise ConfigError("retroformer: kl and target must be positive, and horizon 1 or more")


def anchored(log_probs: Tensor, ref_log_probs: Tensor, factors: Tensor) -> Tensor:
    """The coefficient times k3; (B, T)."""
    return factors * k3(log_probs, ref_log_probs)


class Controller(Companion):
    """Adapts the coefficient of the KL, and rates."""

    metrics: tuple[str, ...] = ("kl_coefficient",)

    def __init__(self, settings: RetroformerConfig, learner: Any) -> None:
        super().__init__(settings, learner)
        self.coefficient = settings.kl
        self.rating: Rating | None = None
        if settings.learn_from == "ratings":
            micro = learner.options.micro_batch
            self.rating = Rating(learner.policy, settings.rating_lr, settings.rating_updates, micro)
            self.metrics = ("kl_coefficient", "rating_accuracy", "rating_loss")
        self.measures: dict[str, Tensor] = {}

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With ratings for rewards, where they are asked for."""
        if self.rating is None:
            return batch
        accuracy, loss = self.rating.learn(batch)
        self.measures = {"rating_accuracy": accuracy, "rating_loss": loss}
        return batch.replace(rewards=self.rating.rated(batch))

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All; a step's KL moves the coefficient of the next."""
        assert batch.ref_log_probs is not None
        self.now = self.coefficient
        kl = float(sequence_sum(batch.rollout_log_probs - batch.ref_log_probs, batch.mask).mean())
        s = self.settings
        self.coefficient = adapted(self.coefficient, kl, s.target, len(batch.mask) / s.horizon)
        return batch, {"kl_coefficient": batch.ref_log_probs.new_tensor(self.now), **self.measures}

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """With the coefficient."""
        return batch.replace(factors=batch.mask.to(batch.rollout_log_probs) * self.now), {}

    def state_dict(self) -> dict[str, Any]:
        """The coefficient and the model of ratings."""
        return {"coefficient": self.coefficient, "rating": self.rating and self.rating.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.coefficient = state["coefficient"]
        if self.rating is not None:
            self.rating.load_state_dict(state["rating"])


def estimator(settings: RetroformerConfig, length: int) -> Estimator:
    """The composition."""
    return compose(
        advantage="group_mean", mask=clip(settings), regularizers=[*terms(settings, None), (anchored, 1.0)]
    )


def unfit(settings: RetroformerConfig, options: Any, task: Any) -> str | None:
    """Ratings of parts of episodes, and of what has no body to copy."""
    if settings.learn_from == "ratings" and options.context != "full":
        return "ratings are of whole episodes: leave --context out"
    if settings.learn_from == "ratings" and options.model == "tiny:table":
        return "ratings need a transformer: tiny:table has no states to rate"
    return None


METHOD = Method(
    config=RetroformerConfig,
    estimator=estimator,
    grouped=True,
    reference=True,
    companion=Controller,
    unfit=unfit,
)

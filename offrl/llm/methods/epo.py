"""EPO: an entropy bonus over all turns of an episode, and entropies held near their mean over the steps so far.

    loss = L + entropy [ -<H> + beta_k <alpha P> ],     P = max(0, low W - H) + max(0, H - high W) of each token
    <x> = mean over episodes of the mean over turns of the mean over tokens
    W = mean of <H> over the steps before k (in the first step P = 0),     beta_k = 1 + exp(-decay k / floor(steps / 2))

L is the loss of GRPO, or of PPO with a value head. A token's entropy is so rewarded with the coefficient entropy
within the corridor, entropy (1 - beta_k alpha) above and entropy (1 + beta_k alpha) below it.

Source: arXiv:2509.22576, version 2; WujiangXu/EPO.
Departures: the ReLU of the paper's version 2. ``penalty="indicator"`` is what the authors' code does, a constant
outside the corridor, which has no gradient: the method is then its base with an entropy bonus. W is of whole episodes,
where that code keeps one a turn; <H> is of the parameters before a step's updates.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError, unused
from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.estimators.turns import Turns
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms, too_small


@dataclass(frozen=True, kw_only=True)
class EPOConfig(ClipSettings):
    """Settings of EPO."""

    entropy: float = 1e-3
    """Coefficient of the entropy bonus and of what holds it."""
    base: Literal["grpo", "ppo"] = "grpo"
    """Whose loss; ppo learns values."""
    alpha: float = 0.1
    """Weight of what holds entropies; below 1 / beta_k entropies above the corridor are still rewarded."""
    low: float = 0.0
    """Entropies below this times their history are pushed up; 0: none."""
    high: float = 2.0
    """Entropies above this times their history are held back."""
    decay: float = 3.0
    """How fast beta_k goes from 2 to 1."""
    penalty: Literal["relu", "indicator"] = "relu"
    """How far outside the corridor, or only whether: without a gradient, as in the authors' code."""
    lam: float = 0.95
    """GAE's lambda of base ppo."""
    value: float = 0.1
    """Coefficient of the value loss of base ppo."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.entropy > 0.0 and self.alpha >= 0.0 and 0.0 <= self.low <= self.high):
            raise ConfigError("epo: entropy must be positive, alpha 0 or more, and 0 <= low <= high")
        if self.base == "grpo":
            unused(self, "with base grpo", "lam", "value")


def held(
    entropy: Tensor, factors: Tensor, corridor: Tensor, *, alpha: float, penalty: Literal["relu", "indicator"]
) -> Tensor:
    """(beta alpha P - H) times a token's share; (B, T), (B, T), (B, 3) -> (B, T)."""
    low, high, beta = (x[:, None] for x in corridor.to(entropy).unbind(1))
    if penalty == "relu":
        outside = (low - entropy).clamp(min=0.0) + (entropy - high).clamp(min=0.0)
    else:
        outside = ((entropy < low) | (entropy > high)).to(entropy)
    return factors * (beta * alpha * outside - entropy)


def beta(k: int, steps: int, decay: float) -> float:
    """2 in step 0, 1 + exp(-decay) in the middle, towards 1."""
    return 1.0 + math.exp(-decay * k / max(steps // 2, 1))


class History(Companion):
    """Mean entropies of the steps so far."""

    metrics = ("turn_entropy", "outside")

    def __init__(self, settings: EPOConfig, learner: Any) -> None:
        super().__init__(settings, learner)
        self.past: list[float] = []
        self.corridor = [0.0, math.inf, 0.0]

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With entropies; they belong to the history from the next step on."""
        assert batch.step_ids is not None
        entropies = self.entropies(batch)
        k, s = len(self.past), self.settings
        if k:
            mean = sum(self.past) / k
            self.corridor = [s.low * mean, s.high * mean, beta(k, self.learner.options.steps, s.decay)]
        shares = Turns(batch.step_ids, batch.mask).shares()
        if batch.mask.any():  # not where all episodes were overlong
            self.past.append(float((shares * entropies).sum() / batch.mask.any(dim=1).sum()))
        return batch.replace(entropies=entropies)

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All; reports the mean over turns and the share of tokens outside the corridor."""
        assert batch.entropies is not None
        (low, high, _), h = self.corridor, batch.entropies[batch.mask]
        return batch, {
            "turn_entropy": h.new_tensor(self.past[-1] if len(h) else 0.0),
            "outside": ((h < low) | (h > high)).float().sum() / max(len(h), 1),
        }

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """With the corridor, and each token's share divided by what the base's mean multiplies it with."""
        assert batch.step_ids is not None
        shares, mask = Turns(batch.step_ids, batch.mask).shares(), batch.mask
        if self.settings.base == "grpo":  # a mean over tokens of a mean over rows
            factors = shares * mask.sum(dim=1, keepdim=True)
        else:
            factors = shares * mask.sum() / mask.any(dim=1).sum().clamp(min=1)
        corridor = torch.tensor([self.corridor], device=mask.device).expand(len(mask), 3)
        return batch.replace(factors=factors, corridor=corridor), {}

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"past": self.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.past = list(state["past"])


def estimator(settings: EPOConfig, length: int) -> Estimator:
    """The base's composition with the entropy terms."""
    own = (held, {"alpha": settings.alpha, "penalty": settings.penalty}), settings.entropy
    others = [term for term in terms(settings) if term[0] != "negative_entropy"]
    if settings.base == "grpo":
        return recipe("grpo", mask=clip(settings), regularizers=[*others, own])
    advantage = [("gae", {"discount": 1.0, "lam": settings.lam}), "whiten"]
    regularizers = [*others, own, ("value_loss", settings.value)]
    return recipe("ppo", advantage=advantage, mask=clip(settings), regularizers=regularizers)


def unfit(settings: EPOConfig, options: Any, task: Any) -> str | None:
    """Groups of one with base grpo."""
    return too_small(options, "base grpo") if settings.base == "grpo" else None


METHOD = Method(
    config=EPOConfig, estimator=estimator, companion=History, unfit=unfit,
    critic=lambda settings: settings.base == "ppo",
)  # fmt: skip

"""PPO: the clipped surrogate with advantages of a value head on the model's own states.

    A = GAE(lambda, discount 1) of R_i at the last token and -kl log(pi_old / ref) at each, whitened over the batch
    loss = -mean over tokens of [min(r A, clip(r) A) - value (V - A_gae - V_old)^2]

Source: arXiv:1707.06347; arXiv:1909.08593 for language models.
Departures: the value head is one linear layer that shares the model's trunk; its loss is not clipped.
"""

from dataclasses import dataclass

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ClipSettings):
    """Settings of PPO."""

    lam: float = 0.95
    """GAE's lambda."""
    value: float = 0.1
    """Coefficient of the value loss."""


def estimator(settings: PPOConfig, length: int) -> Estimator:
    """The composition."""
    regularizers = [*terms(settings, None), ("value_loss", settings.value)]
    advantage = [("gae", {"discount": 1.0, "lam": settings.lam}), "whiten"]
    return recipe("ppo", advantage=advantage, mask=clip(settings), regularizers=regularizers)


METHOD = Method(config=PPOConfig, estimator=estimator, kl="step-reward", critic=True)

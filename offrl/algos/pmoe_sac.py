"""PMOE-SAC: soft actor-critic whose policy is a mixture of K Gaussians; the gate learns which expert wins.

    pi(a | s) = sum_i w_i(s) pi_i(a | s),   a_i ~ pi_i one draw of every expert,   j = argmax_i min_k Q_k(s, a_i)
    L_pi   = mean (alpha log pi_j(a_j | s) - min_k Q_k(s, a_j)) + c mean (w - onehot j)^2
    y      = r + gamma (1 - d) (min_k Q'_k(s', a') - alpha log pi_i(a' | s')),   i ~ w(s'), a' ~ pi_i
    L_alpha = -log alpha mean (log pi_j(a_j | s) + H),   H = -A

The rest is ``sac``. The gate sees the last hidden layer as a constant, so the two parts of L_pi do not touch; it learns
how often an expert's draw is the best, not how good it is. ``gradient`` exchanges L_pi for a gradient of
E (alpha log pi - Q) itself, by all that pi depends on: the last hidden layer then learns from the gate too; see
``offrl.estimators.mixture``.

Source: Ren, Li, Ding, Pan and Dong, arXiv:2104.09122; official code (rlkit-pmoe) for what the text leaves open.
Departures: the official code steps the critics between building the actor's loss and using it, picks experts for a
batch by its first row, and explores with the initial policy; we take the actor's loss after the critics' step, draw an
expert a row, and explore uniformly. First weights and order are those of ``sac``, and the gate starts at zero. It
evaluates with drawn experts, here the deterministic action is the likeliest expert's. The Gumbel-softmax is
straight-through, the score ratio has the batch's mean as its baseline: the text on them was not at hand.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators import mixture as mx
from offrl.nn.mlp import Params
from offrl.nn.soft_actor_critic import values
from offrl.online.mixture import SoftMixturePolicy
from offrl.online.off_policy import SAC_METRICS, Metrics, OffPolicyConfig, SoftActorCritic
from offrl.online.options import OnlineAlgorithm, model_of

METRICS = (*SAC_METRICS, "policy_entropy", "gate_loss", "gate_entropy", "active_experts", "expert_distance")


@dataclass(frozen=True, kw_only=True)
class PMOESACConfig(OffPolicyConfig):
    """Settings of PMOE-SAC."""

    learning_starts: int = 1_000
    """Uniformly random steps before the first update."""
    experts: int = 4
    """Gaussians K of the policy."""
    gradient: Literal["frequency", "gumbel", "score", "marginal"] = "frequency"
    """frequency: how often an expert wins; gumbel: straight-through softmax; score: ratio; marginal: exact sum."""
    learners: Literal["winner", "all"] = "winner"
    """Experts that learn from a state, with the frequency gradient."""
    mixture_entropy: bool = False
    """Take log pi of the whole mixture in place of the drawn expert's; always so with the other gradients."""
    gate_weight: float = 1.0
    """Weight c of the gate's loss, with the frequency gradient."""
    softmax_temperature: float = 1.0
    """Of the Gumbel-softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts < 1:
            raise ConfigError(f"experts must be 1 or more, got {self.experts}")
        if self.gradient not in mx.GRADIENTS:
            raise ConfigError(f"gradient must be one of {', '.join(mx.GRADIENTS)}, got {self.gradient!r}")
        if self.learners not in ("winner", "all"):
            raise ConfigError(f"learners must be winner or all, got {self.learners!r}")
        for name in ("gate_weight", "softmax_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        own = {"learners": "winner", "mixture_entropy": False, "gate_weight": 1.0}
        for name, default in own.items():
            if self.gradient != "frequency" and getattr(self, name) != default:
                raise ConfigError(f"{name} belongs to gradient frequency, not to {self.gradient}")
        if self.gradient != "gumbel" and self.softmax_temperature != 1.0:
            raise ConfigError(f"softmax_temperature belongs to gradient gumbel, not to {self.gradient}")


PRESETS: dict[str, dict[str, Any]] = {  # as sac
    "Pendulum-": {"learning_starts": 100, "lr": 1e-3, "steps": 20_000},
}


class PMOESAC(SoftActorCritic):
    """PMOE-SAC as a stable-baselines3 algorithm: ``PMOESAC("MlpPolicy", env, experts=4, seed=0).learn(100_000)``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SoftMixturePolicy}
    config_class = PMOESACConfig
    settings: PMOESACConfig
    policy: SoftMixturePolicy

    def network_settings(self) -> dict[str, Any]:
        """Width, experts, whose log pi counts, and what the gate's gradient reaches."""
        s = self.settings
        frequency = s.gradient == "frequency"
        own = {"experts": s.experts, "whole": s.mixture_entropy or not frequency, "detach": frequency}
        return super().network_settings() | own

    def actor_loss(self, params: Params, batch: Batch, alpha: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi on one draw of every expert."""
        m, s = self.policy.actor.mixture(params, batch.observations), self.settings
        noise = torch.randn_like(m.mean)
        uniform = torch.rand_like(m.log_weights) if s.gradient in ("gumbel", "score") else m.log_weights
        options: dict[str, Any] = {}
        if s.gradient == "frequency":
            options = {"every": s.learners == "all", "whole": s.mixture_entropy, "weight": s.gate_weight}
        elif s.gradient == "gumbel":
            options = {"temperature": s.softmax_temperature}
        critics = self.critic_optimizer.constant

        def critic(actions: Tensor) -> Tensor:
            seen = batch.observations.repeat_interleave(actions.shape[2], dim=1)
            return values(critics, seen, actions.flatten(1, 2)).amin(dim=1).view(actions.shape[:3])

        found = mx.GRADIENTS[s.gradient](m, noise, uniform, critic, alpha, **options)
        usage = m.weights.detach().mean(dim=1)  # (1, K)
        metrics = {
            "actor_loss": found.loss,
            "entropy": -found.log_probs.mean(dim=1),
            "policy_entropy": -found.own.mean(dim=1),
            "q_policy": found.q.mean(dim=1),
            "gate_loss": found.gate_loss,
            "gate_entropy": mx.entropy(m.log_weights.detach()).mean(dim=1),
            "active_experts": mx.entropy(usage.log()).exp(),
            "expert_distance": mx.distance(m.mean.detach().tanh()),
        }
        return found.loss.sum(), metrics


ALGORITHM = OnlineAlgorithm(PMOESACConfig, model_of(PMOESAC), METRICS, PRESETS)

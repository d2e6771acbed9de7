"""PMOE-PPO: proximal policy optimization whose policy is a mixture of K Gaussians; the gate learns which expert wins.

    pi(a | s) = sum_i w_i(s) N(a; mu_i(s), sigma_i^2),   a_i ~ N(mu_i(s), sigma_i^2) one draw of every expert
    L = -mean min(rho A, clip(rho, 1 - e, 1 + e) A) + c_v mean (V - G)^2 + mean (Q - G)^2 + c mean (w - onehot j)^2
    rho = pi(a | s) / pi_old(a | s) of the whole mixture,   j = argmax_i Q(s, a_i)

Q(s, a) learns the returns of the actions taken and serves j alone. The gate learns from the ratio too. The rest is
``ppo``.

Source: Ren, Li, Ding, Pan and Dong, arXiv:2104.09122; a co-author's code (Popular-RL-Algorithms, pmoe_ppo) for what the
text leaves open.
Departures: that code multiplies densities before the logarithm, which underflows; we add logarithms. It takes a time
limit for a termination, clips the value loss and gives it half our weight; here as in stable-baselines3. The gate
starts at zero. One expert has neither gate nor Q, and is PPO.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators import mixture as mx
from offrl.online.mixture import MixtureActorCriticPolicy
from offrl.online.on_policy import CLIPPED_METRICS, ClippedConfig, ClippedMethod, Columns
from offrl.online.options import NORMALIZED, OnlineAlgorithm, model_of

METRICS = (*CLIPPED_METRICS, "q_loss", "gate_loss", "gate_entropy", "active_experts", "expert_distance")


@dataclass(frozen=True, kw_only=True)
class PMOEPPOConfig(ClippedConfig):
    """Settings of PMOE-PPO."""

    experts: int = 5
    """Gaussians K of the policy."""
    gate_weight: float = 1.0
    """Weight c of the gate's loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts < 1:
            raise ConfigError(f"experts must be 1 or more, got {self.experts}")
        if self.gate_weight < 0:
            raise ConfigError(f"gate_weight must be 0 or more, got {self.gate_weight}")


PRESETS: dict[str, dict[str, Any]] = {  # the co-author's code
    "Hopper-": NORMALIZED,
    "HalfCheetah-": NORMALIZED,
    "Ant-": NORMALIZED,
}


class PMOEPPO(ClippedMethod):
    """PMOE-PPO as a stable-baselines3 algorithm: ``PMOEPPO("MlpPolicy", env, experts=5, seed=0).learn(100_000)``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MixtureActorCriticPolicy}
    config_class = PMOEPPOConfig
    settings: PMOEPPOConfig
    policy: MixtureActorCriticPolicy

    def network_settings(self) -> dict[str, Any]:
        """Layers and experts."""
        return super().network_settings() | {"experts": self.settings.experts}

    def loss(self, samples: RolloutBufferSamples) -> tuple[Tensor, Columns]:
        """PPO's with the ratio of the mixture, Q's and the gate's."""
        m = self.policy.mixture(samples.observations)
        log_probs = mx.log_prob(m, samples.actions, squash=False)
        values = self.policy.predict_values(samples.observations)
        loss, seen = self.clipped_loss(samples, values, log_probs, None)
        seen |= {"log_weights": m.log_weights.detach(), "means": m.mean.detach()}
        if self.policy.experts == 1:
            return loss, seen
        q_loss, gate_loss = self.gate_losses(m, samples)
        seen |= {"q_loss": q_loss.detach()[None], "gate_loss": gate_loss.detach()[None]}
        return loss + q_loss + self.settings.gate_weight * gate_loss, seen

    def metrics(self, seen: Columns) -> dict[str, Tensor]:
        """PPO's, and what became of the gate; one expert has no losses of the gate."""
        log_weights, zero = seen["log_weights"], torch.zeros(1)
        logged = {
            "gate_entropy": mx.entropy(log_weights).mean(),
            "active_experts": mx.entropy(log_weights.exp().mean(dim=0).log()).exp(),
            "expert_distance": mx.distance(seen["means"]),
            "q_loss": seen.get("q_loss", zero).mean(),
            "gate_loss": seen.get("gate_loss", zero).mean(),
        }
        return super().metrics(seen) | logged

    def gate_losses(self, m: mx.Mixture, samples: RolloutBufferSamples) -> tuple[Tensor, Tensor]:
        """Mean (Q - G)^2, and mean (w - onehot j)^2 on fresh draws, through w alone."""
        q = self.policy.q(samples.observations, samples.actions[:, None]).squeeze(1)
        with torch.no_grad():
            draws = mx.draw_all(m, torch.randn_like(m.mean), squash=False).actions
            judged = self.policy.q(samples.observations, draws)
        return (q - samples.returns).square().mean(), mx.frequency_loss(m.weights, judged)


ALGORITHM = OnlineAlgorithm(PMOEPPOConfig, model_of(PMOEPPO), METRICS, PRESETS)

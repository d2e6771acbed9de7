"""PMOE-PPO: proximal policy optimization whose policy is a mixture of K Gaussians; the gate learns which expert wins.

    pi(a | s) = sum_i w_i(s) N(a; mu_i(s), sigma_i^2),   a_i ~ N(mu_i(s), sigma_i^2) one draw of every expert
    L = -mean min(rho A, clip(rho, 1 - e, 1 + e) A) + c_v mean (V - G)^2 + mean (Q - G)^2 + c mean (w - onehot j)^2
    rho = pi(a | s) / pi_old(a | s) of the whole mixture,   j = argmax_i Q(s, a_i)

Q(s, a) learns the returns of the actions taken and serves j alone. The gate learns from the ratio too. The rest is
``ppo``.

Source: Ren, Li, Ding, Pan and Dong, arXiv:2104.09122; a co-author's code (Popular-RL-Algorithms, pmoe_ppo) for what the
text leaves open.
Departures: that code multiplies densities before the logarithm, which underflows; we add logarithms. It takes a time
limit for a termination and clips the value loss; here as in stable-baselines3. The gate starts at zero. One expert has
neither gate nor Q, and is PPO.
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
from offrl.online.on_policy import CLIPPED_METRICS, ClippedConfig, ClippedMethod
from offrl.online.options import NORMALIZED, OnlineAlgorithm, model_of

METRICS = (*CLIPPED_METRICS, "q_loss", "gate_loss", "gate_entropy", "active_experts")


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

    def loss(self, samples: RolloutBufferSamples) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's with the ratio of the mixture, Q's and the gate's."""
        loss, logged = super().loss(samples)
        m = self.policy.get_distribution(samples.observations).mixture
        weights = m.weights.detach()
        logged["gate_entropy"] = mx.entropy(m.log_weights.detach()).mean()
        logged["active_experts"] = mx.entropy(weights.mean(dim=0).log()).exp()
        if self.policy.experts == 1:
            zero = torch.zeros_like(loss.detach())
            return loss, logged | {"q_loss": zero, "gate_loss": zero}
        q_loss, gate_loss = self.gate_losses(m, samples)
        logged |= {"q_loss": q_loss.detach(), "gate_loss": gate_loss.detach()}
        return loss + q_loss + self.settings.gate_weight * gate_loss, logged

    def gate_losses(self, m: mx.Mixture, samples: RolloutBufferSamples) -> tuple[Tensor, Tensor]:
        """Mean (Q - G)^2, and mean (w - onehot j)^2 on fresh draws, through w alone."""
        q = self.policy.q(samples.observations, samples.actions[:, None]).squeeze(1)
        with torch.no_grad():
            draws = mx.draw_all(m, torch.randn_like(m.mean), squash=False).actions
            judged = self.policy.q(samples.observations, draws)
        return (q - samples.returns).square().mean(), mx.frequency_loss(m.weights, judged)


ALGORITHM = OnlineAlgorithm(PMOEPPOConfig, model_of(PMOEPPO), METRICS, PRESETS)

"""MDPO, off policy: SAC whose actor stays near its own past, a mirror-descent step every thousand environment steps.

    L_pi = mean (c log_q pi(a | s) + q (lambda - c) log_q pi_k(a | s) - Q_1(s, a)) + w (mean mu^2 + mean log_sigma^2),
           a = tanh(mu + sigma noise),   log_q p = (p^(q-1) - 1) / (q - 1),   log_1 = log
    y_V  = min_j Q_j(s, a) - lambda log_q pi(a | s),   the same a;          L_V = mean (V - y_V)^2 / 2
    y_Q  = r + gamma (1 - d) V'(s');                                        L_Q = sum_j mean (Q_j - y_Q)^2 / 2

pi_k is the policy at the last multiple of m environment steps, c one over the step size of the mirror descent. q = 1 is
the KL divergence, q > 1 the Tsallis family. With lambda = c the actor's gradient is SAC's.

Source: Tomar, Shani, Efroni and Ghavamzadeh, arXiv:2005.09814, and the authors' code, which decides Q_1 in the actor's
loss, the regularisation w, the sum of log_q over action dimensions and the order: actor, critics, value function.
Departures: the code plays the mean action after the random steps; we play samples, as the paper says
(``deterministic_rollout`` for the code's way). Time limits bootstrap from the true last observation. Weights start as
torch's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.likelihood import tanh_gaussian_log_probs
from offrl.estimators.pathwise import mirror_descent_loss, tsallis_log
from offrl.nn.gradients import gradients
from offrl.nn.mlp import Params, member, mlp
from offrl.nn.soft_actor_critic import values
from offrl.online.off_policy import (
    Adam,
    Metrics,
    OffPolicyConfig,
    OffPolicyMethod,
    SoftPolicy,
    SquashedActor,
    frozen_copy,
    network,
)
from offrl.online.options import OnlineAlgorithm, model_of

METRICS = ("actor_loss", "critic_loss", "value_loss", "kl", "entropy", "q_policy")
PRESETS: dict[str, dict[str, Any]] = {
    "HalfCheetah-": {
        "kl_coefficient": 0.3
    },  # an early arXiv version, quoted by the authors in their repository
    "Walker2d-": {"kl_coefficient": 1.0},  # the README of the authors' code
    "HumanoidStandup-": {"tsallis_q": 1.4},  # the paper's best q there
    "Ant-": {"tsallis_q": 2.0, "hidden": 64, "batch_size": 64},  # likewise, in its minimal version
    # ours: the zoo's settings of SAC, and the old policy renewed as often in relation to the run
    "Pendulum-": {"learning_starts": 100, "lr": 1e-3, "refresh_every": 100, "steps": 20_000},
}


@dataclass(frozen=True, kw_only=True)
class MDPOOffConfig(OffPolicyConfig):
    """Settings of off-policy MDPO."""

    kl_coefficient: float = 1.0
    """c, one over the step size; the authors tune it from 0.1 to 1 for each task."""
    entropy_coefficient: float = 0.2
    """lambda, fixed."""
    refresh_every: int = 1000
    """m: environment steps after which pi_k becomes the current policy."""
    tsallis_q: float = 1.0
    """q of the logarithm, in [1, 2]; 1 is KL."""
    tsallis_mode: Literal["per_dim", "joint"] = "per_dim"
    """per_dim: log_q of every action dimension, summed, as in the authors' code; joint: of the whole density."""
    regularization: float = 1e-3
    """w, weight of mu^2 and log_sigma^2."""
    deterministic_rollout: bool = False
    """Play the mean action after the random steps, as the authors' code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_coefficient > 0:
            raise ConfigError(f"kl_coefficient must be above 0, got {self.kl_coefficient}")
        if not 1 <= self.tsallis_q <= 2:
            raise ConfigError(f"tsallis_q must be in [1, 2], got {self.tsallis_q}")
        if self.tsallis_mode not in ("per_dim", "joint"):
            raise ConfigError(f"tsallis_mode must be per_dim or joint, got {self.tsallis_mode!r}")
        if self.refresh_every < 1:
            raise ConfigError(f"refresh_every must be 1 or more, got {self.refresh_every}")
        if self.entropy_coefficient < 0 or self.regularization < 0:
            raise ConfigError("entropy_coefficient and regularization must be 0 or more")


class MDPOPolicy(SoftPolicy):
    """Actor, twin critics, the actor before (pi_k), the value function and its slow copy."""

    old_actor: SquashedActor

    def build(self, generator: torch.Generator) -> None:
        """Make the networks; pi_k is the actor at first."""
        super().build(generator)
        sizes = (self.obs_dim, self.hidden, self.hidden, 1)
        self.value = network(sizes, 1, generator)
        self.value_target = frozen_copy(self.value, network(sizes, 1, generator))
        self.old_actor = self.make_actor(generator)
        frozen_copy(self.actor, self.old_actor)


def state_values(value: Params, observations: Tensor) -> Tensor:
    """V(s): (S, B, O) -> (S, B)."""
    return mlp(value, observations)[:, 0]


class MDPOOff(OffPolicyMethod):
    """Off-policy MDPO as a stable-baselines3 algorithm: ``MDPOOff("MlpPolicy", env, kl_coefficient=0.3)``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MDPOPolicy}
    config_class = MDPOOffConfig
    settings: MDPOOffConfig
    policy: MDPOPolicy
    actor_optimizer: Adam
    critic_optimizer: Adam
    value_optimizer: Adam

    def make_optimizers(self) -> dict[str, Adam]:
        """Of the actor, the critics and the value function."""
        p, lr = self.policy, self.settings.lr
        return {
            "actor_optimizer": Adam(list(p.actor.parameters()), lr),
            "critic_optimizer": Adam(list(p.critic), lr),
            "value_optimizer": Adam(list(p.value), lr, list(p.value_target.parameters())),
        }

    def explore(self, observations: Tensor) -> Tensor:
        """Samples, or the mean if the settings say so."""
        return self.policy.actor.act(observations, deterministic=self.settings.deterministic_rollout)

    def update(self, batch: Batch) -> Metrics:
        """Actor, critics, value function, its slow copy."""
        noise = torch.randn_like(batch.actions)

        def actor_loss(params: Params) -> tuple[Tensor, Metrics]:
            return self.actor_loss(params, batch.observations, noise)

        grads, found = gradients(actor_loss, self.actor_optimizer.params)
        self.actor_optimizer.apply(grads)
        value_target, target = found.pop("value_target"), self.target(batch)

        def critic_loss(params: Params) -> tuple[Tensor, Metrics]:
            per_seed = 0.5 * td_loss(values(params, batch.observations, batch.actions), target)
            return per_seed.sum(), {"critic_loss": per_seed}

        def value_loss(params: Params) -> tuple[Tensor, Metrics]:
            per_seed = 0.5 * td_loss(state_values(params, batch.observations)[:, None], value_target)
            return per_seed.sum(), {"value_loss": per_seed}

        grads, critic_metrics = gradients(critic_loss, self.critic_optimizer.params)
        self.critic_optimizer.apply(grads)
        grads, value_metrics = gradients(value_loss, self.value_optimizer.params)
        self.value_optimizer.apply(grads)
        self.value_optimizer.update_target(self.settings.tau)
        return found | critic_metrics | value_metrics

    def actor_loss(self, params: Params, observations: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi; what to log; and y_V, from the same actions."""
        s, policy, critic = self.settings, self.policy, self.critic_optimizer.constant
        mean, log_std = policy.actor.moments(params, observations)
        with torch.no_grad():
            old_mean, old_log_std = policy.old_actor.moments(list(policy.old_actor.net), observations)
        u = mean + log_std.exp() * noise
        log_probs = tanh_gaussian_log_probs(log_std, noise, u)
        old_log_probs = tanh_gaussian_log_probs(old_log_std, (u - old_mean) * (-old_log_std).exp(), u)
        log_q = tsallis_log(log_probs, s.tsallis_q, s.tsallis_mode)
        old_log_q = tsallis_log(old_log_probs, s.tsallis_q, s.tsallis_mode)
        x = torch.cat((observations, u.tanh()), dim=2)
        q = mlp(member(critic, 0, 2), x)[:, 0]
        other_q = mlp(member(critic, 1, 2), x.detach())[:, 0]
        loss = mirror_descent_loss(
            log_q, old_log_q, q, kl=s.kl_coefficient, entropy=s.entropy_coefficient, q=s.tsallis_q
        )
        size = mean.square().mean(dim=(1, 2)) + log_std.square().mean(dim=(1, 2))
        least = torch.minimum(q, other_q)
        metrics = {
            "actor_loss": loss,
            "kl": (log_probs - old_log_probs).sum(dim=2).mean(dim=1),
            "entropy": -log_probs.sum(dim=2).mean(dim=1),
            "q_policy": least.mean(dim=1),
            "value_target": least - s.entropy_coefficient * log_q,
        }
        return (loss + s.regularization * size).sum(), metrics

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """y_Q (S, B)."""
        following = state_values(self.value_optimizer.target or [], batch.next_observations)
        return td_target(batch.rewards, batch.terminated, following, self.settings.discount)

    def _on_step(self) -> None:
        every = self.settings.refresh_every
        if self.num_timesteps // every > (self.num_timesteps - self.n_envs) // every:
            self.policy.old_actor.load_state_dict(self.policy.actor.state_dict())


ALGORITHM = OnlineAlgorithm(MDPOOffConfig, model_of(MDPOOff), METRICS, PRESETS)

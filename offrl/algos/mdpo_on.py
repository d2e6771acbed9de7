"""MDPO, on policy: each rollout poses one mirror-descent step, solved by m steps of Adam over the whole rollout.

    maximise  L_k = mean (pi(a | s) / pi_k(a | s)) A - (1 / t_k) mean KL(pi(. | s) || pi_k(. | s))
              t_k = t_0 (1 - k/N)

with the new policy first in the KL, in closed form, summed over action dimensions; A is GAE, standardised over the
rollout; k counts rollouts and N is their number in the run. The exact step in a state is pi_k exp(t_k A), normalised.
There is no clipping and no line search; a step's first gradient is the plain policy gradient, so m = 1 would be A2C.
Afterwards V is fitted: epochs of minibatches on max((V - G)^2, (V_k + clip(V - V_k, +-e) - G)^2).

Source: Tomar, Shani, Efroni and Ghavamzadeh, arXiv:2005.09814, and the authors' code, which decides the networks, Adam
(lr constant although the paper names an annealed one: ``anneal_lr``), its moments kept between rollouts, and the fit.
Departures: the code starts at t = 1 + 1/N and ends at 2/N; ours goes from 1 to 1/N. It treats time limits as ends; we
bootstrap. No entropy bonus: it is 0 there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from offrl.errors import ConfigError
from offrl.estimators.compose import compose
from offrl.estimators.likelihood import gaussian_log_prob
from offrl.estimators.regularizers import categorical_kl, clipped_value_loss, gaussian_kl, value_loss
from offrl.estimators.rollouts import Rollouts
from offrl.online.on_policy import OnPolicyConfig, OnPolicyMethod, rollouts_of
from offrl.online.options import NORMALIZED, OnlineAlgorithm, model_of

METRICS = ("policy_loss", "value_loss", "kl", "step_size", "explained_variance")
ESTIMATOR = compose(advantage="whiten", denominator="old")
MUJOCO = {**NORMALIZED, "steps": 10_000_000}  # the authors' script has one setting for all of it
PRESETS: dict[str, dict[str, Any]] = {
    **{f"{name}-": MUJOCO for name in ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid")},
    # ours: the zoo's discount and step size for PPO
    "Pendulum-": {"num_envs": 4, "steps": 100_000, "rollout": 512, "discount": 0.9, "lr": 1e-3},
}


@dataclass(frozen=True, kw_only=True)
class MDPOOnConfig(OnPolicyConfig):
    """Settings of on-policy MDPO; ``batch_size`` and ``epochs`` are those of the value function's fit."""

    batch_size: int = 128
    """Steps per minibatch of the value function's fit; the policy learns from the whole rollout at once."""
    epochs: int = 5
    """Passes of the value function's fit."""
    inner_steps: int = 10
    """m, steps of Adam per rollout for the policy."""
    step_size: float = 1.0
    """t_0, in units of one over the advantages' standard deviation."""
    anneal_step_size: bool = True
    """Let t_k fall to 0 over the run; runs of different length then differ from the first rollout on."""
    anneal_lr: bool = False
    """Let Adam's step size fall likewise."""
    value_clip: float = 0.2
    """e, how far the value function may move without penalty; 0: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_steps < 1:
            raise ConfigError(f"inner_steps must be 1 or more, got {self.inner_steps}")
        if not self.step_size > 0:
            raise ConfigError(f"step_size must be above 0, got {self.step_size}")
        if self.value_clip < 0:
            raise ConfigError(f"value_clip must be 0 or more, got {self.value_clip}")


Family = Normal | Categorical


def divergence(new: Family, old: Family) -> Tensor:
    """KL(new || old) of every state, (B,), in closed form."""
    if isinstance(new, Categorical) and isinstance(old, Categorical):
        return categorical_kl(new.logits, old.logits)
    assert isinstance(new, Normal)
    assert isinstance(old, Normal)
    return gaussian_kl(new.mean, new.stddev.log(), old.mean, old.stddev.log())


def log_density(family: Family, actions: Tensor) -> Tensor:
    """Log pi(a | s), (B,), of actions (B, A), or (B,) int64."""
    if isinstance(family, Categorical):
        return family.logits.gather(-1, actions[:, None]).squeeze(-1)  # torch keeps them normalised
    return gaussian_log_prob(family.mean, family.stddev.log(), actions)


def mirror_step_loss(log_probs: Tensor, rollouts: Rollouts, kl: Tensor, step_size: float) -> Tensor:
    """-L_k, up to a constant.

    Args:
        log_probs: log pi(a | s), (B,), with gradient.
        rollouts: with ``old_log_probs`` of pi_k and ``advantages``.
        kl: KL(pi || pi_k), (B,), with gradient.
        step_size: t_k.
    """
    return ESTIMATOR.loss(log_probs, rollouts) + kl.mean() / step_size


class MDPOOn(OnPolicyMethod):
    """On-policy MDPO as a stable-baselines3 algorithm: ``MDPOOn("MlpPolicy", env, seed=0).learn(1_000_000)``."""

    config_class = MDPOOnConfig
    settings: MDPOOnConfig

    def train(self) -> None:
        """One mirror-descent step of the policy, then the fit of V."""
        s, left = self.settings, self.left()
        for group in self.policy.optimizer.param_groups:
            group["lr"] = s.lr * (left if s.anneal_lr else 1.0)
        step_size = s.step_size * (left if s.anneal_step_size else 1.0)
        self.policy.set_training_mode(True)
        try:
            policy_loss, kl = self.improve(step_size)
        except ValueError:  # what torch's distributions say of means that are not finite
            self.require_finite()
            raise
        fitted = self.fit_values()
        self._n_updates += 1
        self.log({"policy_loss": policy_loss, "value_loss": fitted, "kl": [kl]})
        self.logger.record("train/step_size", step_size)

    def left(self) -> float:
        """1 - k/N of rollout k, which has been played and counted already: 1 at first, 1/N at last."""
        share = self.settings.rollout * self.n_envs / max(self._total_timesteps, 1)
        return min(max(self._current_progress_remaining + share, share), 1.0)

    def improve(self, step_size: float) -> tuple[list[Tensor], Tensor]:
        """M steps of the policy; their losses, and KL(pi_k+1 || pi_k) afterwards."""
        samples = next(self.minibatches(None))
        rollouts, actions = ESTIMATOR.prepare(rollouts_of(samples)), self.actions(samples)
        with torch.no_grad():
            old = self.family(samples.observations)
        losses = []
        for _ in range(self.settings.inner_steps):
            new = self.family(samples.observations)
            loss = mirror_step_loss(log_density(new, actions), rollouts, divergence(new, old), step_size)
            self.step(loss, self.actor_parameters(), self.settings.max_grad_norm)
            losses.append(loss.detach())
        with torch.no_grad():
            return losses, divergence(self.family(samples.observations), old).mean()

    def fit_values(self) -> list[Tensor]:
        """Epochs of minibatches on the value function; the losses."""
        s, losses = self.settings, []
        for _ in range(s.epochs):
            for samples in self.minibatches(s.batch_size, whole=True):
                predicted = self.policy.predict_values(samples.observations).flatten()
                if s.value_clip:
                    each = clipped_value_loss(
                        predicted, samples.returns, samples.old_values, clip=s.value_clip
                    )
                else:
                    each = value_loss(predicted, samples.returns)
                loss = each.mean()
                self.step(loss, self.critic_parameters(), None)
                losses.append(loss.detach())
        return losses

    def family(self, observations: Tensor) -> Family:
        """The policy's distributions in these states."""
        found = self.policy.get_distribution(observations).distribution
        assert isinstance(found, Normal | Categorical)
        return found

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of V; a features extractor that is the policy's too stays as the policy has it."""
        p = self.policy
        own = [] if p.share_features_extractor else list(p.vf_features_extractor.parameters())
        return [*own, *p.mlp_extractor.value_net.parameters(), *p.value_net.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """Those of the policy."""
        p = self.policy
        own = [*p.pi_features_extractor.parameters(), *p.mlp_extractor.policy_net.parameters()]
        own += p.action_net.parameters()
        return [*own, p.log_std] if isinstance(self.action_space, spaces.Box) else own


ALGORITHM = OnlineAlgorithm(MDPOOnConfig, model_of(MDPOOn), METRICS, PRESETS)

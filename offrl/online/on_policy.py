"""What on-policy actor-critics share, as a stable-baselines3 algorithm: rollouts, advantages, steps of Adam.

Rollouts, networks and the one Adam are stable-baselines3's; advantages and losses are the estimator core's. Where a
time limit cut an episode, gamma V(last observation) is part of the last reward, as stable-baselines3 stores it.

``ClippedMethod`` is PPO's loop over minibatches for any estimator of the core:

    L = -mean min(rho A, clip(rho, 1 - e, 1 + e) A) + c_v mean (V - G)^2 - c_H mean H,   rho = pi(a | s) / pi_old(a | s)

Source: PPO, arXiv:1707.06347; GAE, arXiv:1506.02438.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.estimators import advantages, regularizers
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.rollouts import Rollouts
from offrl.online.actor_critic import FastActorCriticPolicy
from offrl.online.settings import FixedSettings


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Settings of every method here."""

    discount: float = 0.99
    """Discount factor per step."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantages; 0: one step, 1: to the end of the rollout."""
    rollout: int = 2048
    """Steps of every environment between updates."""
    batch_size: int = 64
    """Steps per minibatch."""
    epochs: int = 10
    """Passes over the rollout per update."""
    lr: float = 3e-4
    """Adam step size."""
    max_grad_norm: float = 0.5
    """Longer gradients are cut to this length."""
    hidden: int = 64
    """Units of each of the two hidden layers of actor and critic."""
    activation: str = "tanh"
    """tanh or relu."""
    log_std: float = 0.0
    """First log standard deviation of the actions."""
    orthogonal: bool = True
    """Start from orthogonal weights; without, from torch's."""

    def __post_init__(self) -> None:
        for name, least in (("rollout", 2), ("batch_size", 2), ("epochs", 1), ("hidden", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.discount <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ConfigError("discount must be in (0, 1], gae_lambda in [0, 1]")
        if self.activation not in ("tanh", "relu"):
            raise ConfigError(f"activation must be tanh or relu, got {self.activation!r}")


Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Buffer(RolloutBuffer):
    """stable-baselines3's rollout buffer with the core's advantages; ``judge`` fills in what acting left out."""

    judge: Judge | None = None
    """Observations (M, O) and actions (M, A) -> values and log pi (M,)."""

    def reset(self) -> None:
        """Empty; what ``judge`` will fill in is NaN until then."""
        super().reset()
        if self.judge is not None:
            self.values.fill(np.nan)
            self.log_probs.fill(np.nan)

    def add(
        self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, episode_start: np.ndarray, *judged: Any
    ) -> None:
        """Take a step in; with ``judge`` what else is known of it is not needed."""
        if self.judge is None:
            super().add(obs, action, reward, episode_start, *judged)
            return
        self.observations[self.pos] = obs
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """GAE of every environment; a step that ended an episode, however, has its value in its reward already."""
        if self.judge is not None:
            seen = (self.to_torch(x.reshape(-1, x.shape[-1])) for x in (self.observations, self.actions))
            self.values, self.log_probs = (
                x.cpu().numpy().reshape(self.rewards.shape) for x in self.judge(*seen)
            )
        rewards, values, starts = (
            torch.from_numpy(x.T.copy()) for x in (self.rewards, self.values, self.episode_starts)
        )
        done = torch.cat([starts[:, 1:], torch.as_tensor(dones, dtype=starts.dtype)[:, None]], dim=1)
        following = advantages.next_values(values, last_values.detach().cpu().flatten())
        found = advantages.gae(rewards, values, following, done, discount=self.gamma, lam=self.gae_lambda)
        self.advantages = found.T.numpy().copy()
        self.returns = self.advantages + self.values


class OnPolicyMethod(FixedSettings, OnPolicyAlgorithm):
    """A stable-baselines3 algorithm; the subclasses say how a rollout changes the networks (``train``).

    Args:
        policy: ``MlpPolicy``.
        env: an environment with flat observations, and a box of actions or a number of them; or a VecEnv.
        policy_kwargs: arguments of the policy; they win over the settings of the networks.
        stats_window_size, tensorboard_log, verbose, device, seed: as in stable-baselines3.
        _init_setup_model: build the networks.
        **settings: the fields of ``config_class``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FastActorCriticPolicy}
    config_class: ClassVar[type[OnPolicyConfig]] = OnPolicyConfig
    settings: OnPolicyConfig
    policy: ActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy] = "MlpPolicy",
        env: Any = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        seed: int | None = None,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        self.settings = s = self.settings_of(settings)
        super().__init__(
            self.policy_of(policy),
            env,
            learning_rate=s.lr,
            n_steps=s.rollout,
            gamma=s.discount,
            gae_lambda=s.gae_lambda,
            ent_coef=0.0,
            vf_coef=0.5,
            max_grad_norm=s.max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=Buffer,
            policy_kwargs=self.network_settings() | (policy_kwargs or {}),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        self.require_spaces()
        super()._setup_model()

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """As in stable-baselines3; Adam's step size stays that of the settings."""
        super().set_parameters(*args, **kwargs)
        for group in self.policy.optimizer.param_groups:
            group["lr"] = self.settings.lr

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in stable-baselines3; values and likelihoods of all steps at once, at the end, where that is possible."""
        self.require_finite()
        policy, buffer = self.policy, rollout_buffer
        if not (isinstance(policy, FastActorCriticPolicy) and policy.short and isinstance(buffer, Buffer)):
            return super().collect_rollouts(env, callback, buffer, n_rollout_steps)
        policy.acting_only, buffer.judge = True, self.judge
        try:
            return super().collect_rollouts(env, callback, buffer, n_rollout_steps)
        finally:
            policy.acting_only, buffer.judge = False, None

    def require_finite(self) -> None:
        """Refuse to go on with parameters that are not finite (ConfigError)."""
        if not all(bool(torch.isfinite(p).all()) for p in self.policy.parameters()):
            raise ConfigError(f"the parameters are not finite after update {self._n_updates}: lower lr")

    @torch.no_grad()
    def judge(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log pi of steps, (M, O), (M, A) -> (M,) each."""
        values, log_probs, _ = self.policy.evaluate_actions(observations, actions)
        return values.flatten(), log_probs

    def network_settings(self) -> dict[str, Any]:
        """Arguments of the policy that the settings hold."""
        s = self.settings
        activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[s.activation]
        return {
            "net_arch": [s.hidden, s.hidden],
            "activation_fn": activation,
            "log_std_init": s.log_std,
            "ortho_init": s.orthogonal,
        }

    def minibatches(self, size: int | None, *, whole: bool = False) -> Iterator[RolloutBufferSamples]:
        """The rollout in random order, ``size`` steps at a time (None: all at once).

        Args:
            size: steps.
            whole: leave a smaller last one out, if there is another.
        """
        everything = next(self.rollout_buffer.get(None))
        total = len(everything.advantages)
        least = min(size or total, total) if whole else 2  # one step alone has no standard deviation
        for parts in zip(*(x.split(size or total) for x in everything), strict=True):
            if len(parts[0]) >= least:
                yield RolloutBufferSamples(*parts)

    def actions(self, samples: RolloutBufferSamples) -> Tensor:
        """Actions as distributions take them: (B, A), or (B,) int64."""
        if isinstance(self.action_space, spaces.Discrete):
            return samples.actions.long().flatten()
        return samples.actions

    def step(self, loss: Tensor, parameters: Sequence[nn.Parameter], limit: float | None) -> None:
        """One step of Adam for ``parameters`` alone; the moments of the others stay.

        Args:
            loss: scalar.
            parameters: of the policy.
            limit: longest gradient; None: no limit.
        """
        for group in self.policy.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        if limit is not None:
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (limit / (length + 1e-6)).clamp(max=1.0))
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        self.policy.optimizer.step()

    def log(self, metrics: dict[str, list[Tensor]]) -> None:
        """Record means, and what is known of the rollout."""
        for name, found in metrics.items():
            self.logger.record(f"train/{name}", float(torch.stack(found).mean()))
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", float(explained))
        if isinstance(self.action_space, spaces.Box):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


@dataclass(frozen=True, kw_only=True)
class ClippedConfig(OnPolicyConfig):
    """Settings of PPO and its kin; defaults are stable-baselines3's."""

    clip: float = 0.2
    """Steps whose ratio is beyond 1 +- this get no more gradient in that direction."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip > 0:
            raise ConfigError(f"clip must be above 0, got {self.clip}")


Columns = dict[str, Tensor]  # a row a step of the rollout, constants
CLIPPED_METRICS = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance")


class ClippedMethod(OnPolicyMethod):
    """Epochs of minibatches on an estimator of the core; PPO as it stands."""

    config_class: ClassVar[type[OnPolicyConfig]] = ClippedConfig
    settings: ClippedConfig

    def _setup_model(self) -> None:
        super()._setup_model()
        self.estimator = self.make_estimator()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "estimator"]

    def make_estimator(self) -> Estimator:
        """PPO's: advantages whitened a minibatch, clipped ratios, entropy bonus, value loss."""
        s = self.settings
        coefficients = (("negative_entropy", s.entropy_coefficient), ("value_loss", s.value_coefficient))
        return compose(
            advantage="whiten",
            mask=("ppo_clip", {"low": s.clip, "high": s.clip}),
            regularizers=[(name, weight) for name, weight in coefficients if weight],
        )

    def train(self) -> None:
        """Learn from the rollout."""
        self.policy.set_training_mode(True)
        parameters = list(self.policy.parameters())
        metrics: dict[str, list[Tensor]] = {}
        for _ in range(self.settings.epochs):
            steps: list[Columns] = []
            for samples in self.minibatches(self.settings.batch_size):
                loss, seen = self.loss(samples)
                self.step(loss, parameters, self.settings.max_grad_norm)
                steps.append(seen)
            if steps:
                whole = {name: torch.cat([seen[name] for seen in steps]) for name in steps[0]}
                for name, value in self.metrics(whole).items():
                    metrics.setdefault(name, []).append(value)
            self._n_updates += 1
        self.log(metrics)

    def loss(self, samples: RolloutBufferSamples) -> tuple[Tensor, Columns]:
        """The scalar to minimise of a minibatch, and what ``metrics`` reads of it."""
        found, log_probs, entropy = self.policy.evaluate_actions(samples.observations, self.actions(samples))
        return self.clipped_loss(samples, found, log_probs, entropy)

    def clipped_loss(
        self, samples: RolloutBufferSamples, values: Tensor, log_probs: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, Columns]:
        """``loss`` from what the networks say.

        Args:
            samples: of the rollout.
            values: V, (B, 1).
            log_probs: log pi of the actions, (B,).
            entropy: (B,); None: -log pi of the actions stands for it.
        """
        rollouts, predicted = self.estimator.prepare(rollouts_of(samples)), values.flatten()
        entropy = -log_probs if entropy is None else entropy
        loss = self.estimator.loss(log_probs, rollouts, entropy=entropy, predicted_values=predicted)
        kept = {name: getattr(rollouts, name) for name in ("old_log_probs", "advantages", "returns")}
        return loss, kept | {"log_probs": log_probs.detach(), "values": predicted.detach()}

    def metrics(self, seen: Columns) -> dict[str, Tensor]:
        """What to log of an epoch; ``seen``: what ``loss`` gave, its minibatches one after the other."""
        log_probs = seen["log_probs"]
        rollouts = Rollouts(old_log_probs=seen["old_log_probs"], advantages=seen["advantages"])
        logged = self.estimator.diagnostics(log_probs, rollouts)
        logged["policy_loss"] = self.estimator.surrogate(log_probs, rollouts)
        logged["value_loss"] = regularizers.value_loss(seen["values"], seen["returns"]).mean()
        return logged


def rollouts_of(samples: RolloutBufferSamples) -> Rollouts:
    """A minibatch as the core reads it: single steps, (B,)."""
    return Rollouts(
        old_log_probs=samples.old_log_prob,
        values=samples.old_values,
        returns=samples.returns,
        advantages=samples.advantages,
    )

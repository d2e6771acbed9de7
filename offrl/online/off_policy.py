"""What soft off-policy methods share, as a stable-baselines3 algorithm: replay buffer, twin critics, actor, Adam.

    critics:      y = r + gamma (1 - d) (min_k Q'_k(s', a') - alpha log pi(a' | s')), a' ~ pi;
                  L_Q = sum_k mean (Q_k - y)^2 / 2
    actor:        L_pi = mean (alpha log pi(a | s) - min_k Q_k(s, a)), critics already updated
    temperature:  L_alpha = -log alpha mean (log pi(a | s) + H),   H = -A the target entropy

A method exchanges the actor (``SoftPolicy.make_actor``), the loss (``actor_loss``) or the whole ``update``. Actions and
log-densities are those of actions scaled to [-1, 1]. Networks are stacked (``offrl.nn.mlp``) with a leading axis of 1;
their gradients are those that a step needs, and nothing else.

Source: SAC, arXiv:1812.05905.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.likelihood import tanh_gaussian_sample
from offrl.nn.gradients import gradients
from offrl.nn.mlp import Params, detached, init_mlp, mlp, unstack
from offrl.nn.policy import Policy, SquashedGaussianPolicy
from offrl.nn.precision import Precision
from offrl.nn.soft_actor_critic import LOG_STD_MAX, values
from offrl.nn.trainable import Trainable
from offrl.online.settings import FixedSettings, require_used

LOG_STD_MIN = -20.0
Metrics = dict[str, Tensor]
Gradients = tuple[tuple[Tensor, ...], Metrics]


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Settings of every method here."""

    discount: float = 0.99
    """Discount factor per step."""
    lr: float = 3e-4
    """Adam step size of every network."""
    batch_size: int = 256
    """Transitions per update; there is one update an environment step."""
    learning_starts: int = 10_000
    """Uniformly random steps before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept."""
    tau: float = 0.005
    """Step of the target network towards the online one, every update."""
    hidden: int = 256
    """Width of the two hidden layers."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "buffer_size", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.learning_starts < 0:
            raise ConfigError(f"learning_starts must be 0 or more, got {self.learning_starts}")
        if not self.lr > 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        for name in ("discount", "tau"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in (0, 1], got {getattr(self, name)}")


def network(sizes: Sequence[int], copies: int, generator: torch.Generator) -> nn.ParameterList:
    """A stacked network as a module."""
    return nn.ParameterList(init_mlp(sizes, copies, [generator]))


def frozen_copy(module: nn.Module, copy: nn.Module) -> nn.Module:
    """``copy`` with the weights of ``module``, constant for every gradient."""
    copy.load_state_dict(module.state_dict())
    return copy.requires_grad_(False)


class SquashedActor(nn.Module):
    """A tanh-Gaussian actor: a network from O to A means and A values of log_std.

    Args:
        obs_dim, act_dim: O and A.
        hidden: width of the two hidden layers.
        generator: of the first weights.
    """

    def __init__(self, obs_dim: int, act_dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.act_dim = act_dim
        self.net = network((obs_dim, hidden, hidden, 2 * act_dim), 1, generator)

    def moments(self, params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std before the tanh: (S, B, O) -> (S, B, A) each."""
        mean, log_std = mlp(params, observations).transpose(1, 2).chunk(2, dim=2)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(
        self, params: Params, observations: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] (S, B, A) and their log pi (S, B), differentiable in ``params``.

        Args:
            params: those of ``net``.
            observations: (S, B, O).
            noise: standard normal, (S, B, A); None: drawn from torch's global stream.
        """
        mean, log_std = self.moments(params, observations)
        return tanh_gaussian_sample(mean, log_std, torch.randn_like(mean) if noise is None else noise)

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool) -> Tensor:
        """Actions in [-1, 1], (B, O) -> (B, A)."""
        mean, log_std = self.moments(list(self.net), observations[None])
        if not deterministic:
            mean = torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        return mean[0].tanh()

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> Policy:
        """A copy on the CPU as a policy in the box ``low`` .. ``high``."""
        layers = [(w.cpu(), b.cpu()) for w, b in unstack(list(self.net), 0)]
        return SquashedGaussianPolicy.from_params(layers, low, high, observation_clip=observation_clip)


class SoftPolicy(BasePolicy):
    """An actor and twin critics as a stable-baselines3 policy.

    Args:
        observation_space, action_space: boxes.
        lr_schedule: not used; stable-baselines3 passes it.
        hidden: width of the two hidden layers of every network.
        **kwargs: ``normalize_images=False`` of ``BasePolicy``; nothing else of it has a meaning here.
    """

    actor: SquashedActor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any = None,
        hidden: int = 256,
        **kwargs: Any,
    ) -> None:
        require_used(kwargs, ("normalize_images",), "hidden, the width of both hidden layers")
        super().__init__(observation_space, action_space, squash_output=True, **kwargs)
        if not isinstance(observation_space, spaces.Box) or not isinstance(action_space, spaces.Box):
            raise ConfigError(f"observations and actions must be boxes: {observation_space}, {action_space}")
        if self.normalize_images and is_image_space(observation_space):
            raise ConfigError(
                "these networks learn from images as they are: scale them in a wrapper, or pass "
                "policy_kwargs={'normalize_images': False}"
            )
        self.hidden = hidden
        self.features_extractor = self.make_features_extractor()
        self.obs_dim, self.act_dim = self.features_extractor.features_dim, int(np.prod(action_space.shape))
        self.build(torch.Generator().manual_seed(int(torch.randint(2**31, ()))))

    def build(self, generator: torch.Generator) -> None:
        """Make the networks."""
        self.actor = self.make_actor(generator)
        self.critic = network((self.obs_dim + self.act_dim, self.hidden, self.hidden, 1), 2, generator)

    def make_actor(self, generator: torch.Generator) -> SquashedActor:
        """A fresh actor."""
        return SquashedActor(self.obs_dim, self.act_dim, self.hidden, generator)

    def forward(self, observations: Tensor, deterministic: bool = False) -> Tensor:
        """Actions in [-1, 1], as ``_predict``."""
        return self._predict(observations, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        assert self.features_extractor is not None
        features = self.extract_features(observation, self.features_extractor)
        return self.actor.act(features, deterministic=deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"hidden": self.hidden}

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> Policy:
        """Its actor as a policy in the box ``low`` .. ``high``."""
        return self.actor.acting_policy(low, high, observation_clip)


class SACPolicy(SoftPolicy):
    """The same with slow copies of the critics and a temperature."""

    def build(self, generator: torch.Generator) -> None:
        """Make the networks and log alpha, at first 0."""
        super().build(generator)
        sizes = (self.obs_dim + self.act_dim, self.hidden, self.hidden, 1)
        self.critic_target = frozen_copy(self.critic, network(sizes, 2, generator))
        self.log_alpha = nn.Parameter(torch.zeros(1))


class Adam(Trainable):
    """Parameters with their optimizer, as in the offline methods; its saved state is the optimizer's alone.

    Args:
        params: in a policy module, which saves them.
        lr: step size.
        target: parameters that ``update_target`` moves.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, target: Sequence[Tensor] | None = None) -> None:
        super().__init__(list(params), lr)
        self.target = None if target is None else detached(list(target))

    def state_dict(self) -> dict[str, Any]:
        """Steps and moments, flat."""
        named = {"first": self.first_moments, "second": self.second_moments}
        moments = {f"{name}.{k}": x for name, xs in named.items() for k, x in enumerate(xs)}
        return {"steps": self.steps} | moments

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore in place; stable-baselines3 passes ``strict``."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])


class Buffer(ReplayBuffer):
    """stable-baselines3's replay buffer with single-precision observations and whole batches in our form."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = self.observations.shape
        self.observations, self.next_observations = (np.zeros(shape, np.float32) for _ in range(2))

    def batch(self, size: int, normalizer: VecNormalize | None = None) -> Batch:
        """Uniform draws from numpy's global stream, with replacement; (1, size, ...) each."""
        rows = (self.buffer_size if self.full else self.pos) * self.n_envs
        index = np.random.randint(rows, size=size)  # noqa: NPY002 - as stable-baselines3 does
        if normalizer is not None:
            return self._normalized(index, normalizer)
        at = torch.from_numpy(index)

        def take(array: np.ndarray, width: int) -> Tensor:
            chosen = torch.from_numpy(array).view(-1, width).index_select(0, at)
            return chosen.to(self.device)[None]

        width = self.observations[0, 0].size
        done, cut = take(self.dones, 1), take(self.timeouts, 1)
        return Batch(
            observations=take(self.observations, width),
            actions=take(self.actions, self.action_dim),
            rewards=take(self.rewards, 1)[..., 0],
            next_observations=take(self.next_observations, width),
            terminated=(done * (1.0 - cut))[..., 0],
            rows=at[None],
        )

    def _normalized(self, index: np.ndarray, normalizer: VecNormalize) -> Batch:
        """The same as the normalizer sees it now."""
        at = np.divmod(index, self.n_envs)
        observations, following = (
            torch.as_tensor(normalizer.normalize_obs(x[at]), dtype=torch.float32, device=self.device)
            for x in (self.observations, self.next_observations)
        )
        rewards = np.asarray(normalizer.normalize_reward(self.rewards[at]), dtype=np.float32)
        ended = self.dones[at] * (1.0 - self.timeouts[at])
        return Batch(
            observations=observations.flatten(1)[None],
            actions=self.to_torch(self.actions[at])[None],
            rewards=self.to_torch(rewards)[None],
            next_observations=following.flatten(1)[None],
            terminated=self.to_torch(ended)[None],
            rows=torch.from_numpy(index)[None],
        )


class OffPolicyMethod(FixedSettings, OffPolicyAlgorithm):
    """A stable-baselines3 algorithm with one update an environment step; the subclasses say which.

    Args:
        policy: ``MlpPolicy``.
        env: an environment with boxes of observations and actions; or a VecEnv.
        policy_kwargs: arguments of the policy; they win over the settings of the networks.
        stats_window_size, tensorboard_log, verbose, device, seed: as in stable-baselines3.
        _init_setup_model: build the networks.
        **settings: the fields of ``config_class``.
    """

    config_class: ClassVar[type[OffPolicyConfig]] = OffPolicyConfig
    settings: OffPolicyConfig
    policy: SoftPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
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
            s.lr,
            buffer_size=s.buffer_size,
            learning_starts=s.learning_starts,
            batch_size=s.batch_size,
            tau=s.tau,
            gamma=s.discount,
            gradient_steps=-1,
            replay_buffer_class=Buffer,
            policy_kwargs=self.network_settings() | (policy_kwargs or {}),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self._sums: dict[str, Tensor] = {}  # metric -> sum since the last dump, on the device
        self._summed = 0
        if _init_setup_model:
            self._setup_model()

    def network_settings(self) -> dict[str, Any]:
        """Arguments of the policy that the settings hold."""
        return {"hidden": self.settings.hidden}

    @abstractmethod
    def make_optimizers(self) -> dict[str, Adam]:
        """Attribute name -> optimizer of a part of the policy."""

    @abstractmethod
    def update(self, batch: Batch) -> Metrics:
        """One update of everything; what to log, as scalars or (S,)."""

    def explore(self, observations: Tensor) -> Tensor:
        """Actions in [-1, 1] to play: (n, O) -> (n, A)."""
        return self.policy.actor.act(observations, deterministic=False)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """``gradient_steps`` updates."""
        assert isinstance(self.replay_buffer, Buffer)
        self.policy.set_training_mode(True)
        with Precision("float32", self.device.type):
            for _ in range(gradient_steps):
                metrics = self.update(self.replay_buffer.batch(batch_size, self._vec_normalize_env))
                for name, value in metrics.items():
                    self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += gradient_steps
        self._n_updates += gradient_steps

    def dump_logs(self) -> None:
        """Write the log."""
        self.record_means()
        super().dump_logs()

    def record_means(self) -> None:
        """Log means over the updates since the last time, without writing."""
        for name, total in self._sums.items():
            self.logger.record(f"train/{name}", float(total) / self._summed)
        self._sums, self._summed = {}, 0
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _setup_model(self) -> None:
        self.require_spaces()
        super()._setup_model()
        self.optimizers = self.make_optimizers()
        for name, optimizer in self.optimizers.items():
            setattr(self, name, optimizer)

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        seen = torch.as_tensor(self._last_obs, dtype=torch.float32, device=self.device)
        unit = self.explore(seen.flatten(1)).cpu().numpy().reshape(n_envs, *self.action_space.shape)  # type: ignore[misc]
        return self.policy.unscale_action(unit), unit

    def _excluded_save_params(self) -> list[str]:
        own = ["optimizers", "_sums", "_summed", *self.optimizers]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *self.optimizers], []


SAC_METRICS = ("actor_loss", "critic_loss", "alpha", "entropy", "q_policy")


class SoftActorCritic(OffPolicyMethod):
    """SAC; a subclass may exchange the actor and its loss."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SACPolicy}
    policy: SACPolicy
    actor_optimizer: Adam
    critic_optimizer: Adam
    temperature_optimizer: Adam

    def make_optimizers(self) -> dict[str, Adam]:
        """Of the actor, the critics (with their targets) and log alpha."""
        p, lr = self.policy, self.settings.lr
        return {
            "actor_optimizer": Adam(list(p.actor.parameters()), lr),
            "critic_optimizer": Adam(list(p.critic), lr, list(p.critic_target)),  # type: ignore[call-overload]
            "temperature_optimizer": Adam([p.log_alpha], lr),
        }

    def alpha(self) -> Tensor:
        """The temperature (1,), constant for the gradient."""
        return self.temperature_optimizer.constant[0].exp()

    def update(self, batch: Batch) -> Metrics:
        """Critics, actor with the new critics, temperature, target critics."""
        alpha = self.alpha()
        target = self.target(batch, alpha)
        grads, metrics = self.critic_gradients(self.critic_optimizer.params, batch, target)
        self.critic_optimizer.apply(grads)
        grads, actor_metrics = self.actor_gradients(self.actor_optimizer.params, batch, alpha)
        self.actor_optimizer.apply(grads)
        self.temperature_optimizer.apply([actor_metrics["entropy"] + self.policy.act_dim])
        self.critic_optimizer.update_target(self.settings.tau)
        return metrics | actor_metrics | {"alpha": alpha}

    def actor_gradients(self, params: Params, batch: Batch, alpha: Tensor) -> Gradients:
        """Of L_pi, and what to log."""
        return gradients(lambda actor: self.actor_loss(actor, batch, alpha), params)

    def critic_gradients(self, params: Params, batch: Batch, target: Tensor) -> Gradients:
        """Of L_Q, and what to log."""

        def loss(critic):  # type: ignore[no-untyped-def] # annotations of inner functions cannot be compiled
            per_seed = 0.5 * td_loss(values(critic, batch.observations, batch.actions), target)
            return per_seed.sum(), {"critic_loss": per_seed}

        return gradients(loss, params)

    def actor_loss(self, params: Params, batch: Batch, alpha: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi, and what to log: ``entropy`` (1,), which the temperature follows, is a must."""
        actions, log_probs = self.policy.actor.sample(params, batch.observations)
        q = values(self.critic_optimizer.constant, batch.observations, actions).amin(dim=1)
        loss = (alpha[:, None] * log_probs - q).mean(dim=1)
        metrics = {"actor_loss": loss, "entropy": -log_probs.mean(dim=1), "q_policy": q.mean(dim=1)}
        return loss.sum(), metrics

    @torch.no_grad()
    def target(self, batch: Batch, alpha: Tensor) -> Tensor:
        """Y (1, B)."""
        actor, target = self.actor_optimizer.constant, self.critic_optimizer.target
        actions, log_probs = self.policy.actor.sample(actor, batch.next_observations)
        next_q = values(target or [], batch.next_observations, actions).amin(dim=1)
        soft = next_q - alpha[:, None] * log_probs
        return td_target(batch.rewards, batch.terminated, soft, self.settings.discount)

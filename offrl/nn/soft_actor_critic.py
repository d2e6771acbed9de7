"""Soft actor-critic's machinery: a tanh-Gaussian actor with a learned temperature, and N critics with their targets.

    temperature: L_alpha = -log alpha (mean log pi(a | s) + H),   H = -A the target entropy
    actor:       L_pi = mean (alpha log pi(a | s) - min_k Q_k(s, a))
    critics:     y = r + gamma (1 - d) (min_k Q'_k(s', a') - alpha log pi(a' | s')), a' ~ pi
                 the method's own loss of y

Log-densities and the target entropy are those of actions scaled to [-1, 1], whatever the environment's box.

Source: SAC, arXiv:1812.05905; initial weights as in the official code of EDAC, arXiv:2110.01548.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_target
from offrl.estimators.likelihood import tanh_gaussian_sample
from offrl.nn.actor_critic import ActionBox, Metrics, check_common_settings
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp, small_outputs_, unstack
from offrl.nn.policy import SquashedGaussianPolicy
from offrl.nn.trainable import Trainable
from offrl.training.seeding import normal

LOG_STD_MAX = 2.0
CriticLoss = Callable[[Params, Batch, Tensor], tuple[Tensor, Metrics]]


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """The settings that SAC-N and EDAC share; defaults are those of CORL for halfcheetah."""

    num_critics: int = 10
    """Critics N; the more, the more pessimistic their minimum."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target critics towards the online ones."""
    lr: float = 3e-4
    """Adam step size of actor, critics and temperature."""
    hidden: int = 256
    """Width of the three hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if self.num_critics < 1:
            raise ConfigError(f"num_critics must be 1 or more, got {self.num_critics}")


def init_small_outputs(
    sizes: Sequence[int], copies: int, generators: Sequence[torch.Generator], bound: float
) -> Params:
    """As ``init_mlp``, with EDAC's small outputs (see ``small_outputs_``)."""
    params = init_mlp(sizes, copies, generators)
    small_outputs_(params, bound)
    return params


def init_orthogonal(sizes: Sequence[int], copies: int, generators: Sequence[torch.Generator]) -> Params:
    """As ``init_mlp``, with orthogonal weights of gain sqrt(2) (output layer: 0.01) and biases 0."""
    params = init_mlp(sizes, copies, generators)
    with torch.no_grad():
        for layer, weights in enumerate(params[::2]):
            gain = 0.01 if layer == len(sizes) - 2 else 2**0.5
            for g, weight in enumerate(weights):
                nn.init.orthogonal_(weight, gain, generators[g // copies])
        for bias in params[1::2]:
            bias.zero_()
    return params


def values(critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_k(s, a) of every member: (S, B, O), (S, B, A) -> (S, N, B)."""
    q = mlp(critic, torch.cat((observations, actions), dim=2))
    return q.view(len(observations), -1, observations.shape[1])


class SoftActor:
    """A tanh-Gaussian policy and the temperature that holds its entropy at -A, for S seeds side by side.

    Args:
        params: network from O to 2 A numbers: A means, then A values of log_std (two heads in one layer).
        lr: Adam step size of network and temperature.
        box: action bounds.
        log_std_min: log_std is clamped to [this, 2].
        scaled: log_std is ``m g(s) + c`` with learned scalars m and c, at first 1 and -1.
    """

    def __init__(
        self, params: Params, lr: float, box: ActionBox, log_std_min: float, *, scaled: bool = False
    ) -> None:
        ones = torch.ones(len(params[0]), 1, 1, device=params[0].device)
        scale = [ones.clone().requires_grad_(), (-ones).requires_grad_()] if scaled else []
        self.box, self.log_std_min, self.scaled = box, log_std_min, scaled
        self.net = Trainable([*params, *scale], lr)
        self.temperature = Trainable([torch.zeros_like(ones[:, 0, 0])], lr)  # log alpha, (S,)

    @property
    def alpha(self) -> Tensor:
        """The temperature (S,), constant for the gradient."""
        return self.temperature.constant[0].exp()

    def moments(self, params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std before the tanh: (S, B, O) -> (S, B, A) each."""
        network = params[:-2] if self.scaled else params
        mean, log_std = mlp(network, observations).transpose(1, 2).chunk(2, dim=2)
        if self.scaled:
            log_std = params[-2] * log_std + params[-1]
        return mean, log_std.clamp(self.log_std_min, LOG_STD_MAX)

    def sample(self, params: Params, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in the box and their log pi.

        Args:
            params: of the network.
            observations: (S, B, O).
            noise: standard normal, (S, B, A), or (S, K, B, A) for K actions a state.

        Returns:
            Actions of noise's shape, and log pi without its last axis.
        """
        mean, log_std = self.moments(params, observations)
        if noise.dim() == 4:
            mean, log_std = mean[:, None], log_std[:, None]
        unit, log_probs = tanh_gaussian_sample(mean, log_std, noise)
        return self.box.scale(unit), log_probs

    def entropy(self, observations: Tensor, noise: Tensor) -> Tensor:
        """-mean log pi over the batch, (S,), constant for the gradient."""
        return -self.sample(self.net.constant, observations, noise)[1].mean(dim=1)

    def gradients(
        self, critic: Params, observations: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_pi for the network; critics and temperature are constant."""
        alpha = self.alpha

        def loss(params: Params) -> tuple[Tensor, Metrics]:
            actions, log_probs = self.sample(params, observations, noise)
            q = values(critic, observations, actions).amin(dim=1)
            per_seed = (alpha[:, None] * log_probs - q).mean(dim=1)
            metrics = {"actor_loss": per_seed, "q_policy": q.mean(dim=1), "entropy": -log_probs.mean(dim=1)}
            return per_seed.sum(), metrics

        grads, metrics = gradients(loss, self.net.params)
        return grads, metrics | {"alpha": alpha}

    def adapt_temperature(self, entropy: Tensor) -> None:
        """One step on L_alpha: the temperature rises where ``entropy`` (S,) is below -A and falls above it."""
        self.temperature.apply([entropy + len(self.box.low)])

    def policy(self, seed: int, mean: Tensor, std: Tensor) -> SquashedGaussianPolicy:
        """The policy of one seed, with the observations' normalizer; its deterministic action is tanh(mean)."""
        params = self.net.params
        layers = unstack(params[:-2] if self.scaled else params, seed)
        if self.scaled:
            factor, shift = (p[seed].item() for p in self.net.constant[-2:])
            weight, bias = layers[-1]
            weight[len(self.box.low) :] *= factor
            bias[len(self.box.low) :] *= factor
            bias[len(self.box.low) :] += shift
        return SquashedGaussianPolicy.from_params(
            layers, self.box.low, self.box.high, mean, std, log_std_min=self.log_std_min
        )

    def state_dict(self) -> dict[str, Any]:
        """Network, temperature and their optimizers."""
        return {"net": self.net.state_dict(), "temperature": self.temperature.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        self.net.load_state_dict(state["net"])
        self.temperature.load_state_dict(state["temperature"])


class SoftActorCritic:
    """Actor, temperature, N critics and their targets; an update is temperature, actor, critics, targets.

    Args:
        obs_dim: O.
        box: action bounds.
        settings: shared settings.
        critic_loss: ``(critic, batch, y) -> (loss (S,), metrics)`` with y (S, B), a constant.
        init: one generator a seed, for the initial weights.
        noise: one generator a seed, for the actions; part of ``state_dict``.
        compile: compile the gradient computations (needs a C++ compiler on CPU).
    """

    def __init__(
        self,
        obs_dim: int,
        box: ActionBox,
        settings: EnsembleSettings,
        critic_loss: CriticLoss,
        *,
        init: Sequence[torch.Generator],
        noise: Sequence[torch.Generator],
        compile: bool = False,
    ) -> None:
        act_dim, hidden, lr = len(box.low), [settings.hidden] * 3, settings.lr
        actor = init_small_outputs((obs_dim, *hidden, 2 * act_dim), 1, init, 1e-3)
        critic = init_small_outputs((obs_dim + act_dim, *hidden, 1), settings.num_critics, init, 3e-3)
        self.actor = SoftActor(actor, lr, box, log_std_min=-5.0)
        self.critic = Trainable(critic, lr, target=True)
        self.settings, self.critic_loss, self.noise = settings, critic_loss, list(noise)
        self._actor_gradients, self._critic_gradients = self.actor.gradients, self.critic_gradients
        if compile:
            self._actor_gradients = compiled(self.actor.gradients)
            self._critic_gradients = compiled(self.critic_gradients)

    def update(self, batch: Batch) -> Metrics:
        """Temperature, actor with the new temperature, critics with the new actor, target critics."""
        noise, next_noise = normal((2, *batch.actions.shape[1:]), self.noise).unbind(dim=1)
        self.actor.adapt_temperature(self.actor.entropy(batch.observations, noise))

        grads, actor_metrics = self._actor_gradients(self.critic.constant, batch.observations, noise)
        self.actor.net.apply(grads)

        grads, critic_metrics = self._critic_gradients(batch, next_noise)
        self.critic.apply(grads)
        self.critic.update_target(self.settings.tau)
        return actor_metrics | critic_metrics

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        """Y (S, B), with a' from ``noise`` (S, B, A)."""
        next_actions, log_probs = self.actor.sample(self.actor.net.constant, batch.next_observations, noise)
        next_q = values(self.critic.target or [], batch.next_observations, next_actions).amin(dim=1)
        soft_values = next_q - self.actor.alpha[:, None] * log_probs
        return td_target(batch.rewards, batch.terminated, soft_values, self.settings.discount)

    def critic_gradients(self, batch: Batch, noise: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of the method's critic loss for the critics' parameters."""
        target = self.target(batch, noise)

        def loss(critic: Params) -> tuple[Tensor, Metrics]:
            per_seed, metrics = self.critic_loss(critic, batch, target)
            return per_seed.sum(), {"critic_loss": per_seed} | metrics

        return gradients(loss, self.critic.params)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, optimizers and the noise streams."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "noise": [g.get_state() for g in self.noise],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


class _ActorCritic(Protocol):
    """What a ``SoftLearner`` holds."""

    actor: SoftActor
    critic: Trainable

    def update(self, batch: Batch) -> Metrics: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SoftLearner:
    """The learner around such an actor-critic; a method's own part is how it makes ``sac``."""

    sac: _ActorCritic
    normalizer: Any  # ``mean`` and ``std`` of observations, (O,) each

    def update(self, batch: Batch) -> Metrics:
        """One step of everything, once each an update."""
        return self.sac.update(batch)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        return values(self.sac.critic.constant, observations, actions)

    def policy(self, seed: int = 0) -> SquashedGaussianPolicy:
        """Pi of one seed, acting on raw observations."""
        return self.sac.actor.policy(seed, self.normalizer.mean, self.normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, optimizers and noise streams."""
        return self.sac.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.sac.load_state_dict(state)

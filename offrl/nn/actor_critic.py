"""TD3's machinery, shared by every method that keeps its critic and changes the actor's objective.

    critic:  y   = r + gamma (1 - d) min_j Q'_j(s', clip(pi'(s') + eps))
             L_Q = sum_j mean (Q_j(s, a) - y)^2
    actor:   every ``policy_delay``-th update, the method's own loss of Q_1(s, pi(s)), pi(s) and an anchor action
    targets: both move only then, by tau towards the online networks

Source: TD3, arXiv:1802.09477, algorithm 1.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, member, mlp, unstack
from offrl.nn.policy import DeterministicPolicy
from offrl.nn.trainable import Trainable
from offrl.training.seeding import normal

Metrics = dict[str, Tensor]
Anchor = Tensor | tuple[Tensor, ...] | Callable[[Tensor], Tensor]
ActorLoss = Callable[[Tensor, Tensor, Any], tuple[Tensor, Metrics]]


class ActionBox:
    """The environment's action box: maps raw outputs into it, clips into it, scales noise to it."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        self.center, self.half = (high + low) / 2, (high - low) / 2
        self.is_unit = bool((low == -1).all() and (high == 1).all())

    def squash(self, raw: Tensor) -> Tensor:
        """Center + half-range * tanh(raw)."""
        return self.scale(raw.tanh())

    def scale(self, unit: Tensor) -> Tensor:
        """[-1, 1] -> the box."""
        return unit if self.is_unit else self.center + self.half * unit

    def clip(self, actions: Tensor) -> Tensor:
        """Actions clipped to the box."""
        return actions.clamp(-1.0, 1.0) if self.is_unit else torch.clamp(actions, self.low, self.high)

    def smoothed(self, actions: Tensor, noise: Tensor, std: float, limit: float) -> Tensor:
        """Actions with noise, clipped to the box.

        Args:
            actions: (S, B, A).
            noise: standard normal draws, (S, B, A).
            std: of the noise, in half-ranges of the box.
            limit: bound of the noise, same unit.

        Source: target policy smoothing, TD3, arXiv:1802.09477, section 5.3.
        """
        noise = (noise * std).clamp(-limit, limit)
        return self.clip(actions + (noise if self.is_unit else noise * self.half))


@dataclass(frozen=True, kw_only=True)
class TD3Settings:
    """The settings that TD3+BC, PRDC and their kin share; defaults are those of TD3+BC."""

    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target networks towards the online ones."""
    policy_noise: float = 0.2
    """Std of the target-policy noise, in units of the action box's half-range."""
    noise_clip: float = 0.5
    """Bound of that noise, same unit."""
    policy_delay: int = 2
    """Critic updates per actor update."""
    lr: float = 3e-4
    """Adam step size, actor and critics."""
    hidden: int = 256
    """Width of the two hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = True
    """Subtract the data's mean and divide by its std + 1e-3."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards, e.g. -1 on AntMaze."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if self.policy_noise < 0 or self.noise_clip < 0:
            raise ConfigError(
                f"policy_noise and noise_clip must be 0 or more, got {self.policy_noise} and {self.noise_clip}"
            )
        if self.policy_delay < 1:
            raise ConfigError(f"policy_delay must be 1 or more, got {self.policy_delay}")


def check_common_settings(config: Any) -> None:
    """Refuse impossible values of the settings that every off-policy method has (ConfigError)."""
    check_optimization(config)
    if not 0.0 < config.discount <= 1.0:
        raise ConfigError(f"discount must be in (0, 1], got {config.discount}")
    if not 0.0 < config.tau <= 0.5:
        hint = f"; did you mean {1 - config.tau:.4g}?" if 0.5 < config.tau < 1.0 else ""
        raise ConfigError(
            f"tau must be in (0, 0.5], got {config.tau}: it is the step towards the online network{hint}"
        )


def check_optimization(config: Any) -> None:
    """Refuse an impossible learning rate, width or batch size (ConfigError)."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{field.name} must be a finite number, got {value}")
        if field.name.endswith("lr") and not 0.0 < value < 1.0:
            raise ConfigError(f"{field.name} must be in (0, 1), got {value}; the usual value is 3e-4")
    for name in ("hidden", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, got {getattr(config, name)}")


class TD3:
    """Actor, twin critics, their targets and optimizers, for S seeds side by side.

    Args:
        obs_dim: O.
        box: action bounds.
        settings: shared settings.
        actor_loss: ``(q, pi, anchor) -> (loss (S,), metrics)`` with q = Q_1(s, pi(s)) (S, B), pi (S, B, A), and
            what ``update`` was given as anchor.
        init: one generator a seed, for the initial weights.
        noise: one generator a seed, for the target-policy noise; part of ``state_dict``.
        actor_layers, critic_layers: hidden layers of each.
        compile: compile both gradient computations (needs a C++ compiler on CPU).
    """

    def __init__(
        self,
        obs_dim: int,
        box: ActionBox,
        settings: TD3Settings,
        actor_loss: ActorLoss,
        *,
        init: Sequence[torch.Generator],
        noise: Sequence[torch.Generator],
        actor_layers: int = 2,
        critic_layers: int = 2,
        compile: bool = False,
    ) -> None:
        act_dim, width, lr = len(box.low), (settings.hidden,), settings.lr
        self.box, self.settings, self.actor_loss = box, settings, actor_loss
        actor = init_mlp((obs_dim, *width * actor_layers, act_dim), 1, init)
        critic = init_mlp((obs_dim + act_dim, *width * critic_layers, 1), 2, init)
        self.actor, self.critic = Trainable(actor, lr, target=True), Trainable(critic, lr, target=True)
        self.noise, self.updates, self.compiled = list(noise), 0, compile
        self._critic_gradients, self._actor_gradients = self.critic_gradients, self.actor_gradients
        if compile:
            self._critic_gradients = compiled(self.critic_gradients)
            self._actor_gradients = compiled(self.actor_gradients)

    def act(self, actor: Params, observations: Tensor) -> Tensor:
        """pi(s): (S, B, O) -> (S, B, A)."""
        return self.box.squash(mlp(actor, observations).transpose(1, 2))

    def values(self, critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of every member: (S, B, O), (S, B, A) -> (S, E, B)."""
        q = mlp(critic, torch.cat((observations, actions), dim=2))
        return q.view(len(observations), -1, observations.shape[1])

    def update(self, batch: Batch, anchor: Anchor) -> Metrics:
        """One critic step and, every ``policy_delay`` calls, one actor step and the target updates.

        Args:
            batch: S x B transitions.
            anchor: what the actor's regularizer pulls towards, (S, B, A), or all tensors that it is made of, or a
                function of pi(s) that finds it; pi(s) reaches that function as a constant.
        """
        noise = normal(batch.actions.shape[1:], self.noise)
        grads, metrics = self._critic_gradients(batch, noise)
        self.critic.apply(grads)
        return metrics | self.update_actor(batch.observations, anchor)

    def update_actor(self, observations: Tensor, anchor: Anchor) -> Metrics:
        """The second half of ``update``, after the critics' step."""
        self.updates += 1
        if self.updates % self.settings.policy_delay:
            return {}
        if callable(anchor) and self.compiled:
            anchor = anchor(self.act(self.actor.constant, observations))
        grads, metrics = self._actor_gradients(observations, anchor)
        self.actor.apply(grads)
        self.actor.update_target(self.settings.tau)
        self.critic.update_target(self.settings.tau)
        return metrics

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        """Y (S, B) with clipped noise on the target policy's action; ``noise`` is standard normal (S, B, A)."""
        next_actions = self.next_actions(batch, noise)
        return self.bootstrap(self.critic.target or [], batch, next_actions)

    def next_actions(self, batch: Batch, noise: Tensor) -> Tensor:
        """The target policy's action at s' with clipped noise, inside the box, (S, B, A)."""
        next_actions = self.act(self.actor.target or [], batch.next_observations)
        return self.box.smoothed(next_actions, noise, self.settings.policy_noise, self.settings.noise_clip)

    def bootstrap(self, critic: Params, batch: Batch, next_actions: Tensor) -> Tensor:
        """R + gamma (1 - d) min_j Q_j(s', a') of given critics, (S, B)."""
        next_values = self.values(critic, batch.next_observations, next_actions).amin(dim=1)
        return td_target(batch.rewards, batch.terminated, next_values, self.settings.discount)

    def critic_gradients(self, batch: Batch, noise: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_Q for the critics' parameters."""
        return self.regression_gradients(batch, self.target(batch, noise))

    def regression_gradients(self, batch: Batch, target: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_Q for a given target Y (S, B)."""

        def loss(critic: Params) -> tuple[Tensor, Metrics]:
            q = self.values(critic, batch.observations, batch.actions)
            per_seed = td_loss(q, target)
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=(1, 2))}

        return gradients(loss, self.critic.params)

    def actor_gradients(self, observations: Tensor, anchor: Anchor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of the method's actor loss for the actor's parameters; the critic is constant."""
        first_critic = member(self.critic.constant, 0, 2)

        def loss(actor: Params) -> tuple[Tensor, Metrics]:
            pi = self.act(actor, observations)
            target = anchor(pi.detach()) if callable(anchor) else anchor
            q = self.values(first_critic, observations, pi)[:, 0]
            per_seed, metrics = self.actor_loss(q, pi, target)
            return per_seed.sum(), {"actor_loss": per_seed, "q_policy": q.mean(dim=1)} | metrics

        return gradients(loss, self.actor.params)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, the update counter and the noise streams."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "updates": self.updates,
            "noise": [g.get_state() for g in self.noise],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.updates = state["updates"]
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


class TD3Learner:
    """The learner around a TD3; a method's own parts are how it makes ``td3``, and its updates."""

    td3: TD3
    normalizer: Any  # ``mean`` and ``std`` of observations, (O,) each

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        return self.td3.values(self.td3.critic.constant, observations, actions)

    def policy(self, seed: int = 0) -> DeterministicPolicy:
        """Pi of one seed, acting on raw observations."""
        layers = unstack(self.td3.actor.params, seed)
        box, normalizer = self.td3.box, self.normalizer
        return DeterministicPolicy.from_params(layers, box.low, box.high, normalizer.mean, normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, counters and noise streams."""
        return self.td3.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.td3.load_state_dict(state)

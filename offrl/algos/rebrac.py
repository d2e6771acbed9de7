"""ReBRAC: TD3+BC with one pull towards the data in the actor's loss and another in the critic's target.

    penalty:  p(x, x') = sum over action dims of (x - x')^2             in half-ranges of the action box
    critic:   a'   = clip(pi'(s') + eps)
              y    = r + gamma (1 - d) (min_j Q'_j(s', a') - critic_bc_coef p(a', a'_data))
              L_Q  = sum_j mean (Q_j(s, a) - y)^2
    actor:    L_pi = mean (actor_bc_coef p(pi(s), a) - lambda min_j Q_j(s, pi(s)))
              lambda = 1 / mean |min_j Q_j(s, pi(s))|, a constant for the gradient

The first update and then every ``policy_delay``-th moves actor and targets: the target actor goes towards the
actor *before* its step, the target critics towards the critics after theirs. Critics normalize their hidden layers
after the relu; the actor does not.

Online (``offrl train rebrac --from RUN``) critic_bc_coef is 0, actor_bc_coef falls linearly towards 0 over the updates
but not below bc_end of its value, and actions have no noise, as in CORL's finetune/rebrac.

Source: Tarasov, Kurenkov, Nikulin & Kolesnikov, arXiv:2305.09836; official code tinkoff-ai/ReBRAC, corl-team/CORL.
Departures: layer normalization adds 1e-5 to the variance, torch's default (the official JAX code: its library's
default). The official code needs the box [-1, 1]; here distances are in half-ranges, the same thing in that box.
Online, a'_data is the action that was played next; CORL draws another one there.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.pathwise import normalized_q_loss
from offrl.nn.actor_critic import ActionBox, TD3Settings
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp, small_outputs_, unstack
from offrl.nn.normed import init_normed, linear_part, normed_mlp
from offrl.nn.policy import DeterministicPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, Problem, PulledOnlineSettings
from offrl.training.seeding import normal

ACTOR_BOUND, CRITIC_BOUND = 1e-3, 3e-3  # of the initial weights, official code


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(TD3Settings):
    """Settings of ReBRAC; defaults are those of the official code for MuJoCo locomotion."""

    actor_bc_coef: float = 0.01
    """Weight of the penalty in the actor's loss (b1); the paper tunes it for every dataset."""
    critic_bc_coef: float = 0.01
    """Weight of the penalty in the critic's target (b2); the paper tunes it for every dataset."""
    lr: float = 1e-3
    """Adam step size of the actor."""
    critic_lr: float = 1e-3
    """Adam step size of the critics."""
    hidden: int = 256
    """Width of the three hidden layers."""
    batch_size: int = 1024
    """Transitions per update."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("actor_bc_coef", "critic_bc_coef"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ReBRACOnlineSettings(PulledOnlineSettings):
    """How ReBRAC goes on online (CORL's settings but for the warm-up); only with --from."""

    exploration_noise: float = 0.0
    """Std of the Gaussian noise on actions online, in half-ranges of the action box."""


_SMALL_BATCH: dict[str, Any] = {"lr": 3e-4, "critic_lr": 3e-4, "batch_size": 256}
_ANTMAZE: dict[str, Any] = {
    "lr": 3e-4,
    "critic_lr": 5e-5,
    "batch_size": 256,
    "discount": 0.999,
    "reward_scale": 100.0,
}
_TUNED: dict[str, dict[str, tuple[float, float]]] = {  # domain -> data -> actor_bc_coef, critic_bc_coef
    "halfcheetah": {
        "random": (0.001, 0.1),
        "medium": (0.001, 0.01),
        "medium-replay": (0.01, 0.001),
        "medium-expert": (0.01, 0.1),
        "expert": (0.01, 0.01),
        "full-replay": (0.001, 0.1),
    },
    "hopper": {
        "random": (0.001, 0.01),
        "medium": (0.01, 0.01),
        "medium-replay": (0.05, 0.5),
        "medium-expert": (0.1, 0.01),
        "expert": (0.1, 0.1),
        "full-replay": (0.01, 0.01),
    },
    "walker2d": {
        "random": (0.01, 0.0),
        "medium": (0.05, 0.1),
        "medium-replay": (0.05, 0.01),
        "medium-expert": (0.01, 0.01),
        "expert": (0.01, 0.5),
        "full-replay": (0.01, 0.01),
    },
    "antmaze": {
        "umaze": (0.003, 0.002),
        "umaze-diverse": (0.003, 0.001),
        "medium-play": (0.001, 0.0005),
        "medium-diverse": (0.001, 0.0),
        "large-play": (0.002, 0.001),
        "large-diverse": (0.002, 0.002),
    },
    "maze2d": {"": (0.003, 0.001)},
    "pen": {"human": (0.1, 0.5), "cloned": (0.05, 0.5), "expert": (0.01, 0.01)},
    "door": {"human": (0.1, 0.1), "cloned": (0.01, 0.1), "expert": (0.05, 0.01)},
    "hammer": {"human": (0.01, 0.5), "cloned": (0.1, 0.5), "expert": (0.01, 0.01)},
    "relocate": {"human": (0.1, 0.01), "cloned": (0.1, 0.01), "expert": (0.05, 0.01)},
}
_DOMAINS = {"antmaze": _ANTMAZE} | {
    domain: _SMALL_BATCH for domain in ("maze2d", "pen", "door", "hammer", "relocate")
}
PRESETS: dict[str, dict[str, Any]] = {  # configs of corl-team/CORL
    f"{domain}-{data}-" if data else f"{domain}-": {"actor_bc_coef": b1, "critic_bc_coef": b2}
    | _DOMAINS.get(domain, {})
    for domain, tuned in _TUNED.items()
    for data, (b1, b2) in tuned.items()
}


def penalty(actions: Tensor, data_actions: Tensor, half_range: Tensor) -> Tensor:
    """Sum over action dims of the squared distance in half-ranges (A,): (S, B, A), (S, B, A) -> (S, B)."""
    return ((actions - data_actions) / half_range).square().sum(dim=2)


def actor_loss(q: Tensor, distance: Tensor, actor_bc_coef: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The actor's loss, mean (actor_bc_coef p - lambda Q), per seed.

    Args:
        q: min_j Q_j(s, pi(s)), (S, B).
        distance: p(pi(s), a), (S, B).
        actor_bc_coef: weight of the penalty, a scalar.

    Returns:
        Loss (S,) and its parts.
    """
    q_loss, q_scale = normalized_q_loss(q, 1.0)
    bc_loss = distance.mean(dim=1)
    return q_loss + actor_bc_coef * bc_loss, {"bc_loss": bc_loss, "q_scale": q_scale}


class ReBRAC:
    """Learner: one critic step an update, actor and targets every ``policy_delay`` updates, the first included."""

    metrics = (
        *("critic_loss", "q_data", "next_penalty"),
        *("actor_loss", "q_policy", "bc_loss", "q_scale"),
    )

    def __init__(self, problem: Problem, config: ReBRACConfig) -> None:
        self.config, self.normalizer, self.problem = config, problem.normalizer, problem
        self.alarms = problem.q_alarm(config.discount)
        self.bc_end, self.actor_bc_coef = 1.0, torch.full((), config.actor_bc_coef, device=problem.device)
        if isinstance(problem.online, PulledOnlineSettings):
            self.bc_end = problem.online.bc_end
        self.box = ActionBox(problem.action_low, problem.action_high)
        obs_dim, act_dim, hidden = problem.obs_dim, problem.act_dim, (config.hidden,) * 3
        init = problem.streams("init")
        actor = init_mlp((obs_dim, *hidden, act_dim), 1, init)
        critic = init_normed((obs_dim + act_dim, *hidden, 1), 2, init)
        small_outputs_(actor, ACTOR_BOUND)
        small_outputs_(linear_part(critic), CRITIC_BOUND)
        self.actor = Trainable(actor, config.lr, target=True)
        self.critic = Trainable(critic, config.critic_lr, target=True)
        self.noise, self.updates = problem.streams("noise"), 0
        self._critic_gradients, self._actor_gradients = self.critic_gradients, self.actor_gradients
        if problem.compile:
            self._critic_gradients = compiled(self.critic_gradients)
            self._actor_gradients = compiled(self.actor_gradients)

    def act(self, actor: Params, observations: Tensor) -> Tensor:
        """pi(s): (S, B, O) -> (S, B, A)."""
        return self.box.squash(mlp(actor, observations).transpose(1, 2))

    def values(self, critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of both critics: (S, B, O), (S, B, A) -> (S, 2, B)."""
        q = normed_mlp(critic, torch.cat((observations, actions), dim=2), "after_relu")
        return q.view(len(observations), 2, -1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Critic step; on the first call and every ``policy_delay`` calls from there also actor and targets."""
        grads, metrics = self._critic_gradients(batch, normal(batch.actions.shape[1:], self.noise))
        self.critic.apply(grads)
        if self.updates % self.config.policy_delay == 0:
            if self.problem.online is not None:
                left = max(self.bc_end, 1.0 - self.problem.online_progress(self.updates))
                self.actor_bc_coef.fill_(self.config.actor_bc_coef * left)
            grads, actor_metrics = self._actor_gradients(batch)
            self.actor.update_target(self.config.tau)  # towards the actor before its step
            self.actor.apply(grads)
            self.critic.update_target(self.config.tau)
            metrics |= actor_metrics
        self.updates += 1
        return metrics

    def target(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Y and p(a', a'_data), both (S, B); ``noise`` is standard normal (S, B, A)."""
        if batch.next_actions is None:
            raise ValueError("ReBRAC needs batches with next_actions")
        config = self.config
        actions = self.act(self.actor.target or [], batch.next_observations)
        actions = self.box.smoothed(actions, noise, config.policy_noise, config.noise_clip)
        distance = penalty(actions, batch.next_actions, self.box.half)
        next_values = self.values(self.critic.target or [], batch.next_observations, actions).amin(dim=1)
        next_values = next_values - config.critic_bc_coef * distance
        return td_target(batch.rewards, batch.terminated, next_values, config.discount), distance

    def critic_gradients(self, batch: Batch, noise: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_Q for the critics' parameters."""
        target, distance = self.target(batch, noise)

        def loss(critic: Params) -> tuple[Tensor, dict[str, Tensor]]:
            q = self.values(critic, batch.observations, batch.actions)
            per_seed = td_loss(q, target)
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=(1, 2))}

        grads, metrics = gradients(loss, self.critic.params)
        return grads, metrics | {"next_penalty": distance.mean(dim=1)}

    def actor_gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_pi for the actor's parameters; the critics are constants."""

        def loss(actor: Params) -> tuple[Tensor, dict[str, Tensor]]:
            pi = self.act(actor, batch.observations)
            q = self.values(self.critic.constant, batch.observations, pi).amin(dim=1)
            distance = penalty(pi, batch.actions, self.box.half)
            per_seed, parts = actor_loss(q, distance, self.actor_bc_coef)
            return per_seed.sum(), {"actor_loss": per_seed, "q_policy": q.mean(dim=1)} | parts

        return gradients(loss, self.actor.params)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        return self.values(self.critic.constant, observations, actions)

    def policy(self, seed: int = 0) -> DeterministicPolicy:
        """Pi of one seed, acting on raw observations."""
        layers = unstack(self.actor.params, seed)
        box, normalizer = self.box, self.normalizer
        return DeterministicPolicy.from_params(layers, box.low, box.high, normalizer.mean, normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, the update counter and the noise streams."""
        networks = {name: getattr(self, name).state_dict() for name in ("actor", "critic")}
        return networks | {"updates": self.updates, "noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name in ("actor", "critic"):
            getattr(self, name).load_state_dict(state[name])
        self.updates = state["updates"]
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(
    ReBRACConfig,
    ReBRAC,
    PRESETS,
    next_actions=True,
    online=ReBRACOnlineSettings,
    online_overrides={"critic_bc_coef": 0.0},
)

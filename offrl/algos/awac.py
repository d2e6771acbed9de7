"""AWAC: advantage-weighted actor-critic; the advantage over one action that the policy itself would take.

    critic:  y    = r + gamma (1 - d) min_j Q'_j(s', a'),     a' ~ pi(s') clipped to the box
             L_Q  = sum_j mean (Q_j(s, a) - y)^2
    actor:   A    = min_j Q_j(s, a) - min_j Q_j(s, a_pi),     a_pi ~ pi(s) clipped to the box, one draw
             L_pi = mean min(exp(A / lam), 100) (-log pi(a | s))
    target:  Q' moves by tau towards Q after every update

Order in an update: Q, actor (with the new Q), target Q.

Source: Nair, Gupta, Dalal & Levine, arXiv:2006.09359; implementation of CORL, arXiv:2210.07105.
Departures: settings are CORL's, which made the scores that are compared with. Both draw actions and clip them, and
neither clips the density to match.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.likelihood import advantage_weights, weighted_likelihood_loss
from offrl.nn.actor_critic import ActionBox, Metrics, check_common_settings
from offrl.nn.gaussian import GaussianActor
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp
from offrl.nn.policy import GaussianPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, OnlineSettings, Problem
from offrl.training.seeding import normal

LOG_STD_RANGE = (-20.0, 2.0)  # CORL
WEIGHT_LIMIT = 100.0


@dataclass(frozen=True, kw_only=True)
class AWACConfig:
    """Settings of AWAC; defaults are CORL's for MuJoCo locomotion."""

    lam: float = 0.3333
    """Temperature of the advantage weights exp(A / lam); a large one is behaviour cloning."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target critics towards the online ones."""
    lr: float = 3e-4
    """Adam step size, actor and critics."""
    hidden: int = 256
    """Width of the three hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = True
    """Subtract the data's mean and divide by its std + 1e-3."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards; -1 on AntMaze."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if not self.lam > 0:
            raise ConfigError(f"lam must be above 0, got {self.lam}; CORL uses 0.3333 or 0.1")


PRESETS: dict[str, dict[str, Any]] = {  # configs of CORL
    "antmaze-": {"lam": 0.1, "reward_shift": -1.0},
    **{f"{task}-": {"lam": 0.1} for task in ("maze2d", "pen", "door", "hammer", "relocate")},
}


class AWAC:
    """Learner: critic, actor and target, once each an update."""

    metrics = ("critic_loss", "q_data", "actor_loss", "advantage", "weight")

    def __init__(self, problem: Problem, config: AWACConfig) -> None:
        self.config, self.normalizer = config, problem.normalizer
        self.head = GaussianActor(ActionBox(problem.action_low, problem.action_high), *LOG_STD_RANGE)
        obs_dim, act_dim, hidden = problem.obs_dim, problem.act_dim, (config.hidden,) * 3
        init, self.noise = problem.streams("init"), problem.streams("noise")
        self.actor = Trainable(self.head.init((obs_dim, *hidden, act_dim), init), config.lr)
        critics = init_mlp((obs_dim + act_dim, *hidden, 1), 2, init)
        self.critic = Trainable(critics, config.lr, target=True)
        self._critic_gradients, self._actor_gradients = self.critic_gradients, self.actor_gradients
        if problem.compile:
            self._critic_gradients = compiled(self.critic_gradients)
            self._actor_gradients = compiled(self.actor_gradients)

    def update(self, batch: Batch) -> Metrics:
        """The critics, then the actor with the new critics, then the target critics."""
        next_noise, noise = normal((2, *batch.actions.shape[1:]), self.noise).unbind(1)
        grads, metrics = self._critic_gradients(batch, next_noise)
        self.critic.apply(grads)
        grads, actor_metrics = self._actor_gradients(batch, noise)
        self.actor.apply(grads)
        self.critic.update_target(self.config.tau)
        return metrics | actor_metrics

    def values(self, critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of both critics: (S, B, O), (S, B, A) -> (S, 2, B)."""
        q = mlp(critic, torch.cat((observations, actions), dim=2))
        return q.view(len(observations), 2, -1)

    def critic_gradients(self, batch: Batch, noise: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_Q for the critics' parameters; ``noise`` (S, B, A) draws a'."""
        next_actions = self.head.sample(self.actor.constant, batch.next_observations, noise)
        next_values = self.values(self.critic.target or [], batch.next_observations, next_actions).amin(dim=1)
        target = td_target(batch.rewards, batch.terminated, next_values, self.config.discount)

        def loss(critic: Params) -> tuple[Tensor, Metrics]:
            q = self.values(critic, batch.observations, batch.actions)
            per_seed = td_loss(q, target)
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=(1, 2))}

        return gradients(loss, self.critic.params)

    def actor_gradients(self, batch: Batch, noise: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_pi for the actor's parameters; critics and weights are constants, ``noise`` draws a_pi."""
        critic, observations = self.critic.constant, batch.observations
        own_actions = self.head.sample(self.actor.constant, observations, noise)
        q, v = (self.values(critic, observations, a).amin(dim=1) for a in (batch.actions, own_actions))
        weights = advantage_weights(q - v, 1.0 / self.config.lam, WEIGHT_LIMIT)

        def loss(actor: Params) -> tuple[Tensor, Metrics]:
            per_seed = weighted_likelihood_loss(self.head.log_probs(actor, batch), weights)
            return per_seed.sum(), {"actor_loss": per_seed}

        grads, metrics = gradients(loss, self.actor.params)
        return grads, metrics | {"advantage": (q - v).mean(dim=1), "weight": weights.mean(dim=1)}

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        return self.values(self.critic.constant, observations, actions)

    def policy(self, seed: int = 0) -> GaussianPolicy:
        """Pi of one seed, acting on raw observations."""
        return self.head.policy(self.actor.params, seed, self.normalizer.mean, self.normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers and the noise streams."""
        noise = [g.get_state() for g in self.noise]
        return {"actor": self.actor.state_dict(), "critic": self.critic.state_dict(), "noise": noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(AWACConfig, AWAC, PRESETS, online=OnlineSettings)

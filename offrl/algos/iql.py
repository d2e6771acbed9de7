"""IQL: implicit Q-learning; values by expectile regression, the policy by advantage-weighted regression.

    value:   u    = min_j Q'_j(s, a) - V(s)
             L_V  = mean |expectile - 1[u < 0]| u^2
    actor:   L_pi = mean min(exp(temperature (min_j Q'_j(s, a) - V(s))), 100) (-log pi(a | s))
    critic:  L_Q  = sum_j mean (r + gamma (1 - d) V(s') - Q_j(s, a))^2
    target:  Q' moves by tau towards Q after every update

Order in an update: V, actor (new V, target Q), Q (new V), target Q.

Online (``offrl train iql --from RUN``) the actor's step size stays at lr, as in the official fine-tuning.

Source: Kostrikov, Nair & Levine, arXiv:2110.06169; official code ikostrikov/implicit_q_learning.
Departures: the official loader clips the data's actions to +-(1 - 1e-5), which an un-squashed Gaussian does not
need; we do not. CORL differs from the official code (V(s') and the advantage are taken before the value step, the
two critic losses are averaged, dropout never reaches its Gaussian policy); we follow the official code, but for its
``return_range_scaling``, which counts a piece of an episode at the end of the data.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import expectile_loss, td_loss, td_target
from offrl.estimators.likelihood import advantage_weights, gaussian_log_prob, weighted_likelihood_loss
from offrl.nn.actor_critic import ActionBox, check_common_settings
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp, unstack
from offrl.nn.policy import GaussianPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, OnlineSettings, Problem

LOG_STD_RANGE = (-5.0, 2.0)  # official code
WEIGHT_LIMIT = 100.0


@dataclass(frozen=True, kw_only=True)
class IQLConfig:
    """Settings of IQL; defaults are those of the paper for MuJoCo locomotion."""

    expectile: float = 0.7
    """Which expectile of Q over the data's actions V fits; 0.5 is the mean, towards 1 the maximum."""
    temperature: float = 3.0
    """Inverse temperature of the advantage weights; 0 is behaviour cloning."""
    dropout: float = 0.0
    """Dropout rate in the actor's hidden layers while training."""
    return_range_scaling: bool = False
    """Multiply rewards by 1000 / (best - worst episode return), as the paper does on locomotion."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target critics towards the online ones."""
    lr: float = 3e-4
    """Adam step size of all networks; the actor's falls to 0 over the run along a cosine."""
    hidden: int = 256
    """Width of the two hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3; off in the official code, on in CORL."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards; -1 on AntMaze."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if not 0.0 < self.expectile < 1.0:
            raise ConfigError(f"expectile must be in (0, 1), got {self.expectile}; the paper uses 0.7 or 0.9")
        if self.temperature < 0:
            raise ConfigError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")


_HANDS: dict[str, Any] = {"temperature": 0.5, "dropout": 0.1}
PRESETS: dict[
    str, dict[str, Any]
] = {  # scripts of ikostrikov/implicit_q_learning; ant, which they lack, is ours
    **{f"{robot}-": {"return_range_scaling": True} for robot in ("halfcheetah", "hopper", "walker2d", "ant")},
    "antmaze-": {"expectile": 0.9, "temperature": 10.0, "reward_shift": -1.0},
    **{f"{task}-": _HANDS for task in ("kitchen", "pen", "hammer", "door", "relocate")},
}


class IQL:
    """Learner: value, actor, critic and target, once each an update."""

    metrics = ("value_loss", "value", "actor_loss", "advantage", "weight", "critic_loss", "q_data")

    def __init__(self, problem: Problem, config: IQLConfig) -> None:
        self.config, self.normalizer, self.steps = config, problem.normalizer, problem.steps
        self.decays = problem.online is None
        self.box = ActionBox(problem.action_low, problem.action_high)
        obs_dim, act_dim, hidden, seeds = problem.obs_dim, problem.act_dim, config.hidden, len(problem.seeds)
        init = problem.streams("init")
        log_std = torch.zeros(seeds, 1, act_dim, device=problem.device, requires_grad=True)
        actor = [*init_mlp((obs_dim, hidden, hidden, act_dim), 1, init), log_std]
        self.actor = Trainable(actor, config.lr)
        self.critic = Trainable(
            init_mlp((obs_dim + act_dim, hidden, hidden, 1), 2, init), config.lr, target=True
        )
        self.value = Trainable(init_mlp((obs_dim, hidden, hidden, 1), 1, init), config.lr)
        self.noise, self.updates = problem.streams("noise"), 0
        self._value_gradients, self._actor_gradients = self.value_gradients, self.actor_gradients
        self._critic_gradients = self.critic_gradients
        if problem.compile:
            self._value_gradients = compiled(self.value_gradients)
            self._actor_gradients = compiled(self.actor_gradients)
            self._critic_gradients = compiled(self.critic_gradients)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """V, then the actor with the new V, then Q with the new V, then the target critics."""
        grads, target_q, value_metrics = self._value_gradients(batch)
        self.value.apply(grads)

        self.actor.lr = self.actor_lr()
        grads, actor_metrics = self._actor_gradients(batch, target_q, self._dropout_masks(batch))
        self.actor.apply(grads)

        grads, critic_metrics = self._critic_gradients(batch)
        self.critic.apply(grads)
        self.critic.update_target(self.config.tau)
        self.updates += 1
        return value_metrics | actor_metrics | critic_metrics

    def actor_lr(self) -> float:
        """The actor's step size: lr (1 + cos(pi t / T)) / 2 at update t of T; lr online."""
        if not self.decays:
            return self.config.lr
        progress = min(self.updates / self.steps, 1.0)
        return self.config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))

    def value_gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """Gradients of L_V for V's parameters; also min_j Q'_j(s, a) (S, B)."""
        target_q = self._q(self.critic.target or [], batch).amin(dim=1)

        def loss(value: Params) -> tuple[Tensor, dict[str, Tensor]]:
            v = mlp(value, batch.observations)[:, 0]
            per_seed = expectile_loss(target_q - v, self.config.expectile)
            return per_seed.sum(), {"value_loss": per_seed, "value": v.mean(dim=1)}

        grads, metrics = gradients(loss, self.value.params)
        return grads, target_q, metrics

    def actor_gradients(
        self, batch: Batch, target_q: Tensor, masks: list[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_pi for the actor's parameters; V, Q' and the weights are constants."""
        advantages = target_q - mlp(self.value.constant, batch.observations)[:, 0]
        weights = advantage_weights(advantages, self.config.temperature, WEIGHT_LIMIT)

        def loss(actor: Params) -> tuple[Tensor, dict[str, Tensor]]:
            mean = self.box.squash(mlp(actor[:-1], batch.observations, masks).transpose(1, 2))
            log_std = (
                actor[-1].clamp(*LOG_STD_RANGE) + self.box.half.log()
            )  # learned in units of the half-range
            log_probs = gaussian_log_prob(mean, log_std, batch.actions)
            per_seed = weighted_likelihood_loss(log_probs, weights)
            return per_seed.sum(), {"actor_loss": per_seed}

        grads, metrics = gradients(loss, self.actor.params)
        return grads, metrics | {"advantage": advantages.mean(dim=1), "weight": weights.mean(dim=1)}

    def critic_gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_Q for the critics' parameters."""
        next_values = mlp(self.value.constant, batch.next_observations)[:, 0]
        target = td_target(batch.rewards, batch.terminated, next_values, self.config.discount)

        def loss(critic: Params) -> tuple[Tensor, dict[str, Tensor]]:
            q = self._q(critic, batch)
            per_seed = td_loss(q, target)
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=(1, 2))}

        return gradients(loss, self.critic.params)

    def _q(self, critic: Params, batch: Batch) -> Tensor:
        q = mlp(critic, torch.cat((batch.observations, batch.actions), dim=2))
        return q.view(len(batch.observations), 2, -1)

    def _dropout_masks(self, batch: Batch) -> list[Tensor] | None:
        rate = self.config.dropout
        if rate == 0.0:
            return None
        shape, device = (1, batch.observations.shape[1], self.config.hidden), batch.observations.device
        draws = [
            torch.cat([torch.rand(shape, generator=g, device=device) for g in self.noise]) for _ in range(2)
        ]
        return [(u >= rate).float() / (1.0 - rate) for u in draws]

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        q = mlp(self.critic.constant, torch.cat((observations, actions), dim=2))
        return q.view(len(observations), 2, -1)

    def policy(self, seed: int = 0) -> GaussianPolicy:
        """Pi of one seed, acting on raw observations."""
        layers = unstack(self.actor.params[:-1], seed)
        log_std = self.actor.constant[-1][seed, 0].clamp(*LOG_STD_RANGE)
        box, normalizer = self.box, self.normalizer
        return GaussianPolicy.from_params(
            layers, box.low, box.high, normalizer.mean, normalizer.std, log_std=log_std
        )

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, the update counter and the dropout streams."""
        networks = {name: getattr(self, name).state_dict() for name in ("actor", "critic", "value")}
        return networks | {"updates": self.updates, "noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name in ("actor", "critic", "value"):
            getattr(self, name).load_state_dict(state[name])
        self.updates = state["updates"]
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(IQLConfig, IQL, PRESETS, online=OnlineSettings)

"""Conservative soft actor-critic's machinery: twin critics that are held down at actions outside the data.

    critics:     y    = r + gamma (1 - d) max_i min_k Q'_k(s', a'_i)        one a' ~ pi(. | s'), or the best of K
                 x_j  = Q_k(s, a_j) - log mu_j(a_j): K actions each from the uniform density over the box, from
                        pi(. | s') and from pi(. | s)
                 gap  = mean max(log sum_j exp x_j - Q_k(s, a), clip_min)
                 L_Q  = sum_k mean (Q_k(s, a) - y)^2 + weight gap            no entropy in y
    temperature, actor: those of soft actor-critic

All gradients of an update are taken before any of its steps.

Source: CQL, arXiv:2006.04779; cql of CORL, arXiv:2210.07105, after young-geng/CQL.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.ensemble import conservative_gap
from offrl.nn.actor_critic import ActionBox, Metrics, check_common_settings
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params
from offrl.nn.soft_actor_critic import SoftActor, init_orthogonal, values
from offrl.nn.trainable import Trainable
from offrl.training.seeding import normal

MULTIPLIER_LIMIT = 1e6
Bound = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class ConservativeSettings:
    """The settings that CQL and Cal-QL share; defaults are those of CORL's CQL on MuJoCo."""

    cql_alpha: float = 10.0
    """Weight of the gap; 0 is soft actor-critic without entropy in the target."""
    target_gap: float | None = None
    """Lagrange variant: a learned factor on cql_alpha holds the gap at this value; None: the weight is fixed."""
    num_actions: int = 10
    """Actions K from each of the three densities."""
    softmax_temperature: float = 1.0
    """Temperature of the soft maximum over actions."""
    importance_sampling: bool = True
    """Subtract log-densities; False: plain Q values, the data's action among them."""
    clip_min: float | None = None
    """Lower bound of each state's gap; None: no bound."""
    max_target_backup: bool = False
    """Bootstrap from the best of K next actions instead of from one."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target critics towards the online ones."""
    lr: float = 3e-4
    """Adam step size of the critics and of the Lagrange factor."""
    actor_lr: float = 3e-5
    """Adam step size of actor and temperature."""
    hidden: int = 256
    """Width of the hidden layers."""
    actor_layers: int = 3
    """Hidden layers of the actor."""
    critic_layers: int = 3
    """Hidden layers of each critic."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = True
    """Subtract the data's mean and divide by its std + 1e-3."""
    return_range_scaling: bool = False
    """Multiply rewards by 1000 / (best - worst episode return)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if not 0.0 < self.actor_lr < 1.0:
            raise ConfigError(f"actor_lr must be in (0, 1), got {self.actor_lr}")
        if self.cql_alpha < 0:
            raise ConfigError(f"cql_alpha must be 0 or more, got {self.cql_alpha}: it weighs a penalty")
        if self.softmax_temperature <= 0:
            raise ConfigError(f"softmax_temperature must be above 0, got {self.softmax_temperature}")
        for name in ("num_actions", "actor_layers", "critic_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Draws:
    """The random numbers of an update; standard normal except ``uniform``, which is in [-1, 1]."""

    actor: Tensor  # (S, B, A)
    target: Tensor  # (S, 1 or K, B, A)
    current: Tensor  # (S, K, B, A), for pi(. | s)
    following: Tensor  # (S, K, B, A), for pi(. | s')
    uniform: Tensor  # (S, K, B, A)


class ConservativeActorCritic:
    """Actor, temperature, twin critics, targets and the Lagrange factor, for S seeds side by side.

    Args:
        obs_dim: O.
        box: action bounds.
        settings: shared settings.
        bound: ``(q, batch) -> q``, applied to Q at the policy's actions (S, 2, 2 K, B) inside the soft maximum;
            None leaves them.
        init: one generator a seed, for the initial weights.
        noise: one generator a seed, for the actions; part of ``state_dict``.
        compile: compile both gradient computations (needs a C++ compiler on CPU).
    """

    def __init__(
        self,
        obs_dim: int,
        box: ActionBox,
        settings: ConservativeSettings,
        bound: Bound | None = None,
        *,
        init: Sequence[torch.Generator],
        noise: Sequence[torch.Generator],
        compile: bool = False,
    ) -> None:
        act_dim, width = len(box.low), settings.hidden
        actor = init_orthogonal((obs_dim, *[width] * settings.actor_layers, 2 * act_dim), 1, init)
        critic = init_orthogonal((obs_dim + act_dim, *[width] * settings.critic_layers, 1), 2, init)
        self.actor = SoftActor(actor, settings.actor_lr, box, log_std_min=-20.0, scaled=True)
        self.critic = Trainable(critic, settings.lr, target=True)
        self.multiplier = Trainable([torch.ones(len(init), device=box.low.device)], settings.lr)  # its log
        self.box, self.settings, self.bound, self.noise = box, settings, bound, list(noise)
        self._actor_gradients, self._critic_gradients = self.actor.gradients, self.critic_gradients
        if compile:
            self._actor_gradients = compiled(self.actor.gradients)
            self._critic_gradients = compiled(self.critic_gradients)

    def update(self, batch: Batch) -> Metrics:
        """All gradients, then all steps, then the target critics."""
        draws = self.draw(batch.actions.shape[1:])
        actor_grads, actor_metrics = self._actor_gradients(
            self.critic.constant, batch.observations, draws.actor
        )
        critic_grads, critic_metrics = self._critic_gradients(batch, draws)
        self.actor.adapt_temperature(actor_metrics["entropy"])
        self.actor.net.apply(actor_grads)
        self.critic.apply(critic_grads)
        if self.settings.target_gap is not None:
            self.adapt_multiplier(critic_metrics["cql_gap"])
        self.critic.update_target(self.settings.tau)
        return actor_metrics | critic_metrics

    def draw(self, shape: torch.Size) -> Draws:
        """The random numbers of one update, for actions of ``shape`` (B, A)."""
        k = self.settings.num_actions
        sizes = (1, k if self.settings.max_target_backup else 1, k, k)
        actor, target, current, following = normal((sum(sizes), *shape), self.noise).split(sizes, dim=1)
        uniform = [torch.rand((1, k, *shape), generator=g, device=g.device) for g in self.noise]
        return Draws(actor[:, 0], target, current, following, torch.cat(uniform) * 2.0 - 1.0)

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        """Y (S, B), from the best of the next actions that ``noise`` (S, K, B, A) gives."""
        next_actions, _ = self.actor.sample(self.actor.net.constant, batch.next_observations, noise)
        next_q = many_values(self.critic.target or [], batch.next_observations, next_actions)
        next_values = next_q.amin(dim=1).amax(dim=1)
        return td_target(batch.rewards, batch.terminated, next_values, self.settings.discount)

    def samples(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The data's action and the 3 K sampled ones (S, 1 + 3 K, B, A), and the latter's log-densities (S, 3 K, B)."""
        actor = self.actor.net.constant
        following, log_following = self.actor.sample(actor, batch.next_observations, draws.following)
        current, log_current = self.actor.sample(actor, batch.observations, draws.current)
        log_uniform = torch.full_like(log_current, -len(self.box.low) * math.log(2.0))
        actions = (batch.actions[:, None], self.box.scale(draws.uniform), following, current)
        return torch.cat(actions, dim=1), torch.cat((log_uniform, log_following, log_current), dim=1)

    def weight(self) -> Tensor:
        """What multiplies the gap, (S,): cql_alpha, times the learned factor in the Lagrange variant."""
        log_factor = self.multiplier.constant[0]
        if self.settings.target_gap is None:
            return torch.full_like(log_factor, self.settings.cql_alpha)
        return self.settings.cql_alpha * log_factor.exp().clamp(max=MULTIPLIER_LIMIT)

    def adapt_multiplier(self, gap: Tensor) -> None:
        """Dual ascent on weight * (gap - target_gap), for the gap (S,) averaged over critics."""
        below_limit = self.multiplier.constant[0].exp() <= MULTIPLIER_LIMIT
        ascent = self.weight() * (gap - (self.settings.target_gap or 0.0))
        self.multiplier.apply([-ascent * below_limit])

    def critic_gradients(self, batch: Batch, draws: Draws) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_Q for the critics' parameters; actor, temperature and weight are constant."""
        settings, k = self.settings, self.settings.num_actions
        target, weight = self.target(batch, draws.target), self.weight()
        actions, log_densities = self.samples(batch, draws)

        def loss(critic: Params) -> tuple[Tensor, Metrics]:
            q = many_values(critic, batch.observations, actions)
            q_data, q_uniform, q_policy = q.split((1, k, 2 * k), dim=2)
            bounded = q_policy if self.bound is None else self.bound(q_policy, batch)
            if settings.importance_sampling:
                x = torch.cat((q_uniform, bounded), dim=2) - log_densities[:, None]
            else:
                x = torch.cat((q_uniform, q_data, bounded), dim=2)
            q_data = q_data[:, :, 0]
            gap = conservative_gap(x, q_data, settings.softmax_temperature)
            if settings.clip_min is not None:
                gap = gap.clamp(min=settings.clip_min)
            gaps = gap.mean(dim=2)
            bellman = td_loss(q_data, target)
            metrics = {"critic_loss": bellman, "q_data": q_data.mean(dim=(1, 2)), "cql_gap": gaps.mean(dim=1)}
            if self.bound is not None:
                metrics["bound_rate"] = (bounded > q_policy).float().mean(dim=(1, 2, 3))
            return (bellman + weight * gaps.sum(dim=1)).sum(), metrics

        grads, metrics = gradients(loss, self.critic.params)
        return grads, metrics | {"cql_weight": weight}

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, Lagrange factor, optimizers and the noise streams."""
        networks = {name: getattr(self, name).state_dict() for name in ("actor", "critic", "multiplier")}
        return networks | {"noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        for name in ("actor", "critic", "multiplier"):
            getattr(self, name).load_state_dict(state[name])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


def many_values(critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_k(s, a_j) of several actions a state, in one pass: (S, B, O), (S, J, B, A) -> (S, N, J, B)."""
    count, batch_size = actions.shape[1:3]
    repeated = observations[:, None].expand(-1, count, -1, -1).flatten(1, 2)
    q = values(critic, repeated, actions.flatten(1, 2))
    return q.view(len(q), -1, count, batch_size)

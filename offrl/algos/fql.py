"""FQL: flow Q-learning; a flow clones the data, a one-step policy stays near it and climbs Q.

    flow:    x_t = (1 - t) z + t a,  z ~ Normal(0, 1),  t ~ Uniform(0, 1)
             L_flow = mean (v(s, x_t, t) - (a - z))^2
    sample:  flow(s, z): x <- x + v(s, x, i / M) / M for i = 0 .. M - 1 from x = z, then clipped to [-1, 1]
    policy:  L_pi = alpha mean (mu(s, z) - flow(s, z))^2 - lambda mean Q(s, clip(mu(s, z)))
             lambda = 1, with normalize_q 1 / mean |Q|; Q is the mean of both critics
    critic:  y    = r + gamma (1 - d) agg_j Q'_j(s', clip(mu(s', z'))),  agg = mean or min
             L_Q  = mean_j mean (Q_j(s, a) - y)^2
    target:  Q' moves by tau towards the critics *before* this update's step

Order in an update: all gradients are taken at the same parameters, then every network steps. Actions are in units of
the box's half-range around its center. The policy acts by sampling z.

Source: Park, Li & Levine, arXiv:2502.02538; official code seohongpark/fql, read in copies of it.
Departures: none known in the update. The official loader also lowers AntMaze rewards by 1, here that is
``reward_shift`` in the presets.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss, td_target
from offrl.estimators.flow import euler_flow, interpolate
from offrl.estimators.pathwise import normalized_q_loss, squared_distance
from offrl.nn.actor_critic import ActionBox, check_common_settings
from offrl.nn.gelu import gelu_mlp, init_gelu
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, unstack
from offrl.nn.one_step_flow import OneStepFlowPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, OnlineSettings, Problem
from offrl.training.seeding import normal


@dataclass(frozen=True, kw_only=True)
class FQLConfig:
    """Settings of FQL; defaults are those of the official code."""

    alpha: float = 10.0
    """Weight of the distillation; the one to tune for every task. With normalize_q start from 0.03 to 10."""
    normalize_q: bool = False
    """Divide the Q term by mean |Q|, which makes alpha independent of the reward's scale; advised for new tasks."""
    q_agg: Literal["mean", "min"] = "mean"
    """What the target takes of both critics."""
    flow_steps: int = 10
    """Euler steps (M) of the flow."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target critics towards the online ones."""
    lr: float = 3e-4
    """Adam step size of all networks."""
    hidden: int = 512
    """Width of the four hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards; -1 on D4RL's AntMaze."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if self.alpha < 0:
            raise ConfigError(f"alpha must be 0 or more, got {self.alpha}: it weighs the distillation")
        if self.flow_steps < 1:
            raise ConfigError(f"flow_steps must be 1 or more, got {self.flow_steps}")
        if self.q_agg not in ("mean", "min"):
            raise ConfigError(f"q_agg must be mean or min, got {self.q_agg!r}")


_LONG: dict[str, Any] = {"discount": 0.995}
_OGBENCH: dict[str, dict[str, Any]] = {
    "antmaze-large-navigate-": {"alpha": 10.0, "q_agg": "min"},
    "antmaze-giant-navigate-": {"alpha": 10.0, "q_agg": "min"} | _LONG,
    "humanoidmaze-medium-navigate-": {"alpha": 30.0} | _LONG,
    "humanoidmaze-large-navigate-": {"alpha": 30.0} | _LONG,
    "antsoccer-arena-navigate-": {"alpha": 10.0} | _LONG,
    **{f"{task}-play-": {"alpha": 300.0} for task in ("cube-single", "cube-double", "scene")},
    **{f"{task}-play-": {"alpha": 1000.0} for task in ("puzzle-3x3", "puzzle-4x4")},
}
_HANDS: dict[str, tuple[float, float, float]] = {  # alpha on human, cloned and expert data
    "pen": (1e4, 1e4, 3e3),
    "door": (3e4, 3e4, 3e4),
    "hammer": (3e4, 1e4, 3e4),
    "relocate": (1e4, 3e4, 3e4),
}
PRESETS: dict[str, dict[str, Any]] = {  # commands in the README of seohongpark/fql
    **_OGBENCH,
    **{
        f"antmaze-{maze}-": {"alpha": 3.0 if maze.startswith("large") else 10.0, "reward_shift": -1.0}
        for maze in ("umaze", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{data}-": {"alpha": alpha, "q_agg": "min"}
        for hand, alphas in _HANDS.items()
        for data, alpha in zip(("human", "cloned", "expert"), alphas, strict=True)
    },
}


class FQL:
    """Learner: critics, flow and one-step policy, one step each an update."""

    metrics = ("critic_loss", "q_data", "flow_loss", "distill_loss", "actor_loss", "q_policy")

    def __init__(self, problem: Problem, config: FQLConfig) -> None:
        self.config, self.normalizer = config, problem.normalizer
        self.box = ActionBox(problem.action_low, problem.action_high)
        obs_dim, act_dim, hidden = problem.obs_dim, problem.act_dim, (config.hidden,) * 4
        init = problem.streams("init")
        critic = init_gelu((obs_dim + act_dim, *hidden, 1), 2, init, layer_norm=True)
        self.critic = Trainable(critic, config.lr, target=True)
        self.flow = Trainable(init_gelu((obs_dim + act_dim + 1, *hidden, act_dim), 1, init), config.lr)
        self.actor = Trainable(init_gelu((obs_dim + act_dim, *hidden, act_dim), 1, init), config.lr)
        self.noise = problem.streams("noise")
        self._gradients = compiled(self.gradients) if problem.compile else self.gradients

    def velocity(self, flow: Params, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """v(s, x, t): (S, B, O), (S, B, A), (S, B, 1) -> (S, B, A)."""
        return gelu_mlp(flow, torch.cat((observations, x, t), dim=2)).transpose(1, 2)

    def one_step(self, actor: Params, observations: Tensor, noise: Tensor) -> Tensor:
        """mu(s, z), not clipped: (S, B, O), (S, B, A) -> (S, B, A)."""
        return gelu_mlp(actor, torch.cat((observations, noise), dim=2)).transpose(1, 2)

    def values(self, critic: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of both critics, a in units of the half-range: (S, B, O), (S, B, A) -> (S, 2, B)."""
        q = gelu_mlp(critic, torch.cat((observations, actions), dim=2), layer_norm=True)
        return q.view(len(observations), 2, -1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """All gradients at the current parameters; the target critics move, then every network steps."""
        rows, act_dim = batch.actions.shape[1:]
        noise = normal((3, rows, act_dim), self.noise)
        times = [torch.rand((1, rows, 1), generator=g, device=g.device) for g in self.noise]
        critic, flow, actor, metrics = self._gradients(batch, noise, torch.cat(times))
        self.critic.update_target(self.config.tau)  # towards the critics before their step
        self.critic.apply(critic)
        self.flow.apply(flow)
        self.actor.apply(actor)
        return metrics

    def gradients(
        self, batch: Batch, noise: Tensor, times: Tensor
    ) -> tuple[Any, Any, Any, dict[str, Tensor]]:
        """Gradients of L_Q, L_flow and L_pi, each for its own network's parameters.

        Args:
            batch: S x B transitions.
            noise: standard normal (S, 3, B, A), of the target, of the flow's loss and of the distillation.
            times: t, (S, B, 1).
        """
        z_target, z_flow, z_policy = noise.unbind(1)
        actions = (batch.actions - self.box.center) / self.box.half
        target = self.target(batch, z_target)
        flow_actions = self.flow_actions(batch.observations, z_policy)
        x, velocity = interpolate(z_flow, actions, times)

        def critic_loss(critic: Params) -> tuple[Tensor, dict[str, Tensor]]:
            q = self.values(critic, batch.observations, actions)
            per_seed = td_loss(q, target) / 2
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=(1, 2))}

        def flow_loss(flow: Params) -> tuple[Tensor, dict[str, Tensor]]:
            per_seed = squared_distance(self.velocity(flow, batch.observations, x, times), velocity)
            return per_seed.sum(), {"flow_loss": per_seed}

        def actor_loss(actor: Params) -> tuple[Tensor, dict[str, Tensor]]:
            mu = self.one_step(actor, batch.observations, z_policy)
            q = self.values(self.critic.constant, batch.observations, mu.clamp(-1.0, 1.0)).mean(dim=1)
            distill = squared_distance(mu, flow_actions)
            q_loss = normalized_q_loss(q, 1.0)[0] if self.config.normalize_q else -q.mean(dim=1)
            per_seed = self.config.alpha * distill + q_loss
            parts = {"actor_loss": per_seed, "distill_loss": distill, "q_policy": q.mean(dim=1)}
            return per_seed.sum(), parts

        critic, critic_metrics = gradients(critic_loss, self.critic.params)
        flow, flow_metrics = gradients(flow_loss, self.flow.params)
        actor, actor_metrics = gradients(actor_loss, self.actor.params)
        return critic, flow, actor, critic_metrics | flow_metrics | actor_metrics

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        """Y (S, B); ``noise`` is z' (S, B, A)."""
        actions = self.one_step(self.actor.constant, batch.next_observations, noise).clamp(-1.0, 1.0)
        q = self.values(self.critic.target or [], batch.next_observations, actions)
        next_values = q.amin(dim=1) if self.config.q_agg == "min" else q.mean(dim=1)
        return td_target(batch.rewards, batch.terminated, next_values, self.config.discount)

    def flow_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """flow(s, z), (S, B, A), a constant for the gradient."""
        x = euler_flow(
            lambda x, t: self.velocity(self.flow.constant, observations, x, t), noise, self.config.flow_steps
        )
        return x.clamp(-1.0, 1.0)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_j(s, a) of the online critics, in units of the scaled reward: (S, B, O), (S, B, A) -> (S, E, B)."""
        unit = (actions - self.box.center) / self.box.half
        return self.values(self.critic.constant, observations, unit)

    def policy(self, seed: int = 0) -> OneStepFlowPolicy:
        """The one-step policy of one seed, acting on raw observations."""
        layers = unstack(self.actor.params, seed)
        box, normalizer = self.box, self.normalizer
        return OneStepFlowPolicy.from_params(layers, box.low, box.high, normalizer.mean, normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, the target critics, optimizers and the noise streams."""
        networks = {name: getattr(self, name).state_dict() for name in ("critic", "flow", "actor")}
        return networks | {"noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name in ("critic", "flow", "actor"):
            getattr(self, name).load_state_dict(state[name])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(FQLConfig, FQL, PRESETS, online=OnlineSettings)

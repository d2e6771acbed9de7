"""A2PR: TD3+BC whose actor imitates the better of two actions, and only where one of them is good.

    critic:  TD3's, with y and a' = clip(pi'(s') + eps)
    value:   L_V   = mean (V(s) - min(y, r + gamma (1 - d) min_j Q_j(s', a')))^2
    vae:     L_vae = mean vae_weight 1[Q_1(s, a) > V(s)] (a~ - a)^2 + 0.5 KL(q(z | s, a) || N(0, I))
             a~ is a through encoder and decoder; means over the batch and over all dims, gated ones count as 0
    actor:   c     = pi(s) through encoder and decoder                  with its gradient
             t     = c where Q_1(s, c) >= Q_1(s, a), else a
             G     = mask 1[Q_1(s, c) >= V(s) or Q_1(s, a) > V(s)]
             L_pi  = -lambda mean Q_1(s, pi(s)) + mean G (pi(s) - t)^2
             lambda = alpha / mean |Q_1(s, pi(s))|, a constant for the gradient

Order in an update: Q, V (new Q), VAE (new Q, V before its step), actor (as the VAE) and both targets every
``policy_delay`` updates. V has no target copy.

Source: Liu, Li, Lan, Gao, Pan & Xu, arXiv:2405.19909; official code ltlhuuu/A2PR.
Departures: none from the official code. Paper and code differ: the paper's candidate is decoded from the prior
(``candidate="prior"`` does so) and its target reads as a constant (``detach_target``); its advantage threshold is 0
in the code. We follow the code.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.likelihood import standard_normal_kl
from offrl.estimators.pathwise import normalized_q_loss
from offrl.nn.actor_critic import TD3, ActionBox, TD3Learner, TD3Settings
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, member, mlp
from offrl.nn.trainable import Trainable
from offrl.nn.vae import decode, encode, init_vae
from offrl.training.problem import Alarm, Algorithm, Problem
from offrl.training.seeding import normal

PRIOR_LIMIT = 0.5  # official code: decoding from the prior clips z to this


@dataclass(frozen=True, kw_only=True)
class A2PRConfig(TD3Settings):
    """Settings of A2PR; defaults are those of the official code."""

    alpha: float = 2.5
    """Weight of the Q term."""
    mask: float = 0.5
    """Weight of the pull towards the target action where its gate is open; 0 is TD3."""
    vae_weight: float = 1.0
    """Weight of the VAE's reconstruction against its KL term."""
    candidate: Literal["reconstruction", "prior"] = "reconstruction"
    """What competes with the data's action: pi(s) through the VAE, or a decoded draw from the prior."""
    detach_target: bool = False
    """Keep the gradient of the pull from flowing through the VAE."""
    vae_lr: float = 1e-3
    """Adam step size of the VAE; ``lr`` is that of actor, critics and V."""
    hidden: int = 256
    """Width of the hidden layers of actor, critics and V."""
    actor_layers: int = 3
    """Hidden layers of the actor; TD3+BC has 2."""
    critic_layers: int = 4
    """Hidden layers of critics and V; TD3+BC has 2."""
    vae_hidden: int = 750
    """Width of the two hidden layers of the VAE's encoder and decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "mask", "vae_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("actor_layers", "critic_layers", "vae_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.candidate not in ("reconstruction", "prior"):
            raise ConfigError(f"candidate must be 'reconstruction' or 'prior', got {self.candidate!r}")


def _tuned(alpha: float, vae_weight: float, mask: float, discount: float) -> dict[str, Any]:
    return {"alpha": alpha, "vae_weight": vae_weight, "mask": mask, "discount": discount}


PRESETS: dict[str, dict[str, Any]] = {
    # README of ltlhuuu/A2PR
    "halfcheetah-medium-": _tuned(40.0, 1.0, 1.0, 0.99),
    "hopper-medium-": _tuned(2.5, 1.0, 0.4, 0.995),
    "walker2d-medium-": _tuned(2.5, 1.5, 1.0, 0.99),
    # earlier revisions of that README (9cc1eb7, a3b81aa, a90b9d0): working notes, probable but not final
    "halfcheetah-medium-replay-": _tuned(40.0, 1.5, 0.8, 0.995),
    "halfcheetah-medium-expert-": _tuned(40.0, 1.0, 10.0, 0.99),
    "hopper-random-": _tuned(2.5, 1.5, 1.5, 0.995),
    "hopper-medium-replay-": _tuned(2.5, 1.5, 0.5, 0.99),
    "hopper-medium-expert-": _tuned(2.5, 1.0, 4.0, 0.99),
    "walker2d-medium-replay-": _tuned(2.5, 1.5, 1.2, 0.995),
    "walker2d-medium-expert-": _tuned(2.5, 1.0, 0.8, 0.99),
    # ours, nothing is published: random as medium-replay of the robot, antmaze with PRDC's alpha and rewards
    "halfcheetah-random-": _tuned(40.0, 1.5, 0.8, 0.995),
    "walker2d-random-": _tuned(2.5, 1.5, 1.2, 0.995),
    "antmaze-": {"alpha": 7.5, "reward_scale": 10_000.0, "reward_shift": -1.0},
}


def vae_loss(
    reconstruction: Tensor, actions: Tensor, mean: Tensor, log_std: Tensor, good: Tensor, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The VAE's loss, weight * mean g (a~ - a)^2 + 0.5 KL, per seed.

    Args:
        reconstruction: a~, (S, B, A).
        actions: a, (S, B, A).
        mean: of q(z | s, a), (S, B, 2A).
        log_std: of the same, (S, B, 2A).
        good: g, whether an action has positive advantage, (S, B); the KL term does not ask.
        weight: of the reconstruction.

    Returns:
        Loss (S,) and its parts.
    """
    errors = good[..., None] * (reconstruction - actions).square()
    parts = {
        "reconstruction_loss": weight * errors.mean(dim=(1, 2)),
        "kl": standard_normal_kl(mean, log_std).mean(dim=(1, 2)),
    }
    return parts["reconstruction_loss"] + 0.5 * parts["kl"], parts


def choose_target(
    candidate: Tensor, actions: Tensor, q_candidate: Tensor, q_data: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The better of two actions, the candidate in a tie, and whether either has an advantage.

    Args:
        candidate: c, (S, B, A); its gradient passes.
        actions: a of the data, (S, B, A).
        q_candidate: Q_1(s, c), (S, B).
        q_data: Q_1(s, a), (S, B).
        values: V(s), (S, B).

    Returns:
        Target t (S, B, A), whether it is c (S, B), and whether the gate is open (S, B), bool.
    """
    is_candidate = q_candidate >= q_data
    is_open = (q_candidate >= values) | (q_data > values)
    return torch.where(is_candidate[..., None], candidate, actions), is_candidate, is_open


def actor_loss(
    q: Tensor, pi: Tensor, target: Tensor, gate: Tensor, alpha: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-lambda mean Q + mean G (pi - t)^2, per seed.

    Args:
        q: Q_1(s, pi(s)), (S, B).
        pi: pi(s), (S, B, A).
        target: t, (S, B, A); a constant only if it was detached.
        gate: G, (S, B).
        alpha: weight of the Q term.

    Returns:
        Loss (S,) and its parts.
    """
    q_loss, q_scale = normalized_q_loss(q, alpha)
    bc_loss = (gate[..., None] * (pi - target).square()).mean(dim=(1, 2))
    return q_loss + bc_loss, {"bc_loss": bc_loss, "q_scale": q_scale}


class ActorInputs(NamedTuple):
    """What the actor's step needs besides pi(s) and Q_1(s, pi(s))."""

    observations: Tensor  # (S, B, O)
    actions: Tensor  # (S, B, A)
    q_data: Tensor  # (S, B)
    values: Tensor  # (S, B)
    noise: Tensor  # (S, B, 2A), standard normal


class A2PR(TD3Learner):
    """Learner: critics, V and VAE once an update, the actor every ``policy_delay`` updates."""

    metrics = (
        *("critic_loss", "q_data", "value_loss", "value", "reconstruction_loss", "kl"),
        *("actor_loss", "q_policy", "bc_loss", "q_scale"),
        *("gate_open_frac", "frac_target_from_vae", "candidate_distance", "target_distance"),
    )

    def __init__(self, problem: Problem, config: A2PRConfig) -> None:
        self.config, self.normalizer = config, problem.normalizer
        held = Alarm(0.05, 1.0, "hardly anything holds the actor near the data")
        self.alarms = {"gate_open_frac": held} | problem.q_alarm(config.discount)
        init = problem.streams("init")
        self.td3 = TD3(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            self.actor_loss,
            init=init,
            noise=problem.streams("noise"),
            actor_layers=config.actor_layers,
            critic_layers=config.critic_layers,
            compile=problem.compile,
        )
        value = init_mlp((problem.obs_dim, *(config.hidden,) * config.critic_layers, 1), 1, init)
        self.value = Trainable(value, config.lr)
        vae = init_vae(problem.obs_dim, problem.act_dim, config.vae_hidden, init)
        self.vae = Trainable(vae, config.vae_lr)
        self.latent = problem.streams("latent")
        self._critic_gradients, self._value_gradients = self.critic_gradients, self.value_gradients
        self._vae_gradients = self.vae_gradients
        if problem.compile:
            self._critic_gradients = compiled(self.critic_gradients)
            self._value_gradients = compiled(self.value_gradients)
            self._vae_gradients = compiled(self.vae_gradients)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Q, V with the new Q, VAE, and every ``policy_delay`` calls actor and targets."""
        size, act_dim = batch.actions.shape[1:]
        noise = normal((size, act_dim), self.td3.noise)
        latents = [normal((size, 2 * act_dim), self.latent) for _ in range(2)]

        grads, next_actions, target, metrics = self._critic_gradients(batch, noise)
        self.td3.critic.apply(grads)

        grads, q_data, values, value_metrics = self._value_gradients(batch, next_actions, target)
        self.value.apply(grads)

        grads, vae_metrics = self._vae_gradients(batch, (q_data > values).float(), latents[0])
        self.vae.apply(grads)

        inputs = ActorInputs(batch.observations, batch.actions, q_data, values, latents[1])
        return metrics | value_metrics | vae_metrics | self.td3.update_actor(batch.observations, inputs)

    def critic_gradients(
        self, batch: Batch, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor, dict[str, Tensor]]:
        """Gradients of L_Q for the critics' parameters; also a' (S, B, A) and y (S, B)."""
        next_actions = self.td3.next_actions(batch, noise)
        target = self.td3.bootstrap(self.td3.critic.target or [], batch, next_actions)
        grads, metrics = self.td3.regression_gradients(batch, target)
        return grads, next_actions, target, metrics

    def value_gradients(
        self, batch: Batch, next_actions: Tensor, target: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor, dict[str, Tensor]]:
        """Gradients of L_V for V's parameters; also Q_1(s, a) and V(s), both (S, B)."""
        critic = self.td3.critic.constant
        pessimistic = torch.minimum(self.td3.bootstrap(critic, batch, next_actions), target)
        q_data = self.td3.values(member(critic, 0, 2), batch.observations, batch.actions)[:, 0]

        def loss(value: Params) -> tuple[Tensor, dict[str, Tensor]]:
            v = mlp(value, batch.observations)[:, 0]
            per_seed = (v - pessimistic).square().mean(dim=1)
            return per_seed.sum(), {"value_loss": per_seed, "values": v}

        grads, parts = gradients(loss, self.value.params)
        values = parts.pop("values")
        return grads, q_data, values, parts | {"value": values.mean(dim=1)}

    def vae_gradients(
        self, batch: Batch, good: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_vae for the VAE's parameters; ``noise`` is standard normal (S, B, 2A)."""

        def loss(vae: Params) -> tuple[Tensor, dict[str, Tensor]]:
            mean, log_std = encode(vae, batch.observations, batch.actions)
            decoded = decode(vae, batch.observations, mean + log_std.exp() * noise, self.td3.box)
            per_seed, parts = vae_loss(decoded, batch.actions, mean, log_std, good, self.config.vae_weight)
            return per_seed.sum(), parts

        return gradients(loss, self.vae.params)

    def candidate(self, observations: Tensor, pi: Tensor, noise: Tensor) -> Tensor:
        """The action c (S, B, A) that competes with the data's; ``noise`` is standard normal (S, B, 2A)."""
        vae = self.vae.constant
        if self.config.candidate == "prior":
            return decode(vae, observations, noise.clamp(-PRIOR_LIMIT, PRIOR_LIMIT), self.td3.box)
        mean, log_std = encode(vae, observations, pi.detach() if self.config.detach_target else pi)
        return decode(vae, observations, mean + log_std.exp() * noise, self.td3.box)

    def actor_loss(self, q: Tensor, pi: Tensor, inputs: ActorInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """L_pi (S,) with this learner's critic and VAE as constants, and its parts."""
        first_critic = member(self.td3.critic.constant, 0, 2)
        candidate = self.candidate(inputs.observations, pi, inputs.noise)
        q_candidate = self.td3.values(first_critic, inputs.observations, candidate.detach())[:, 0]
        target, is_candidate, is_open = choose_target(
            candidate, inputs.actions, q_candidate, inputs.q_data, inputs.values
        )
        loss, parts = actor_loss(q, pi, target, self.config.mask * is_open, self.config.alpha)
        return loss, parts | {
            "gate_open_frac": is_open.float().mean(dim=1),
            "frac_target_from_vae": is_candidate.float().mean(dim=1),
            "candidate_distance": (candidate - pi).abs().mean(dim=(1, 2)),
            "target_distance": (target - inputs.actions).abs().mean(dim=(1, 2)),
        }

    def state_dict(self) -> dict[str, Any]:
        """All networks, targets, optimizers, the update counter and both noise streams."""
        own = {"value": self.value.state_dict(), "vae": self.vae.state_dict()}
        return own | {"td3": self.td3.state_dict(), "latent": [g.get_state() for g in self.latent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name in ("td3", "value", "vae"):
            getattr(self, name).load_state_dict(state[name])
        for generator, saved in zip(self.latent, state["latent"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(
    A2PRConfig,
    A2PR,
    PRESETS,
    online="its generator imitates the offline data, and its paper has no online part",
)

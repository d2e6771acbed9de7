"""Actors that are mixtures of Gaussians, in place of the Gaussian ones of ``off_policy`` and ``on_policy``.

    off-policy  u ~ sum_i w_i N(f_i(h), exp g_i(h)),     w = softmax(G h), h the last hidden layer
    on-policy   a ~ sum_i w_i N(f_i(h), exp log_std_i),  w = softmax(G x), x the observation's features

Gates start at zero: every expert is equally likely. One expert is the Gaussian actor, weight for weight. With
``detach`` the off-policy gate takes h as a constant, as PMOE's own gradient asks: its loss does not touch the trunk.
"""

from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.estimators import mixture as mx
from offrl.nn.mixture import MixturePolicy, SquashedMixturePolicy
from offrl.nn.mlp import Params, unstack
from offrl.nn.policy import Policy
from offrl.nn.sb3 import ACTIVATIONS
from offrl.nn.soft_actor_critic import LOG_STD_MAX
from offrl.online.actor_critic import FastActorCriticPolicy, chain
from offrl.online.off_policy import LOG_STD_MIN, SACPolicy, SquashedActor


class MixtureActor(SquashedActor):
    """A mixture of K tanh-Gaussians.

    Args:
        obs_dim, act_dim: O and A.
        hidden: width of the two hidden layers.
        generator: of the first weights.
        experts: K.
        whole: log pi of a draw is that of the mixture, else that of the expert that was drawn.
        detach: the trunk gets no gradient from the weights.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: int,
        generator: torch.Generator,
        *,
        experts: int,
        whole: bool,
        detach: bool,
    ) -> None:
        super().__init__(obs_dim, experts * act_dim, hidden, generator)
        self.act_dim, self.experts, self.whole, self.detach = act_dim, experts, whole, detach
        self.gate = nn.ParameterList([torch.zeros(1, hidden, experts), torch.zeros(1, 1, experts)])

    def mixture(self, params: Params, observations: Tensor) -> mx.Mixture:
        """Weights and moments before the tanh, (S, B, O) -> (S, B, K, ...); ``params`` are those of net and gate."""
        *hidden, weight, bias, gate, offset = params
        h = observations
        for layer in range(0, len(hidden), 2):
            h = torch.baddbmm(hidden[layer + 1], h, hidden[layer]).relu()
        out = torch.baddbmm(bias, weight, h.transpose(1, 2)).transpose(1, 2)
        moments = out.unflatten(2, (2, self.experts, self.act_dim))
        logits = torch.baddbmm(offset, h.detach() if self.detach else h, gate)
        return mx.mixture(logits, moments[:, :, 0], moments[:, :, 1].clamp(LOG_STD_MIN, LOG_STD_MAX))

    def sample(
        self, params: Params, observations: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] (S, B, A) of experts drawn by their weights, and log pi (S, B).

        Args:
            params: those of net and gate.
            observations: (S, B, O).
            noise: standard normal, (S, B, A); None: drawn from torch's global stream, as the experts are.
        """
        m = self.mixture(params, observations)
        mean, log_std = m.expert(self.index(m))
        noise = torch.randn_like(mean) if noise is None else noise
        draws = mx.draw_all(mx.Mixture(m.log_weights, mean, log_std), noise, squash=True)
        return draws.actions, mx.log_prob(m, draws.u, squash=True) if self.whole else draws.log_probs

    def index(self, m: mx.Mixture) -> Tensor:
        """Experts drawn by their weights; one expert takes no random number."""
        if self.experts == 1:
            return torch.zeros(m.log_weights.shape[:-1], dtype=torch.int64, device=m.mean.device)
        return mx.draw_index(m, mx.gumbel_like(m.log_weights))

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool) -> Tensor:
        """Actions in [-1, 1], (B, O) -> (B, A); deterministic: the mean of the likeliest expert."""
        m = self.mixture([*self.net, *self.gate], observations[None])
        mean, log_std = m.expert(m.log_weights.argmax(dim=-1) if deterministic else self.index(m))
        if not deterministic:
            mean = torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        return mean[0].tanh()

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> Policy:
        """A copy on the CPU as a policy in the box ``low`` .. ``high``."""
        layers = [(w.cpu(), b.cpu()) for w, b in unstack(list(self.net), 0)]
        weight, bias = (p.detach().cpu() for p in self.gate)
        gate = (weight[0].T, bias[0, 0])
        return SquashedMixturePolicy.from_parts(layers, gate, low, high, observation_clip=observation_clip)


class SoftMixturePolicy(SACPolicy):
    """``SACPolicy`` with a mixture as its actor.

    Args:
        *args: as in ``SACPolicy``.
        experts: K.
        whole, detach: as in ``MixtureActor``.
        **kwargs: as in ``SACPolicy``.
    """

    actor: MixtureActor

    def __init__(
        self, *args: Any, experts: int = 4, whole: bool = False, detach: bool = True, **kwargs: Any
    ) -> None:
        self.experts, self.whole, self.detach = experts, whole, detach
        super().__init__(*args, **kwargs)

    def make_actor(self, generator: torch.Generator) -> MixtureActor:
        """A fresh mixture."""
        return MixtureActor(self.obs_dim, self.act_dim, self.hidden, generator, **self.of_mixture())

    def of_mixture(self) -> dict[str, Any]:
        """The settings that are not ``SACPolicy``'s."""
        return {"experts": self.experts, "whole": self.whole, "detach": self.detach}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.of_mixture()


class MixtureDistribution(Distribution):
    """A mixture of K Gaussians as stable-baselines3 distributions go; its entropy has no closed form."""

    mixture: mx.Mixture

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not asked for: the policy builds its heads."""
        raise NotImplementedError("the policy of a mixture builds its own heads")

    def proba_distribution(self, gate: Tensor, mean: Tensor, log_std: Tensor) -> "MixtureDistribution":
        """Of logits (B, K), means (B, K, A) and log_std (K, A)."""
        self.mixture = mx.mixture(gate, mean, log_std)
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        """Log pi of actions, (B, A) -> (B,)."""
        return mx.log_prob(self.mixture, x, squash=False)

    def entropy(self) -> None:
        """None: PPO then takes -log pi of the actions taken."""
        return

    def sample(self) -> Tensor:
        """Draws (B, A), constants for the gradient."""
        m = self.mixture
        noise = torch.randn_like(m.mean[..., :1, :])  # one for all: one expert's draw counts
        draws = torch.addcmul(m.mean, m.log_std.exp(), noise)
        if m.mean.shape[-2] == 1:
            return draws.squeeze(-2).detach()
        return mx.pick(draws, mx.draw_index(m, mx.gumbel_like(m.log_weights))).detach()

    def mode(self) -> Tensor:
        """The mean of the likeliest expert, (B, A)."""
        return self.mixture.expert(self.mixture.log_weights.argmax(dim=-1))[0]

    def actions_from_params(
        self, gate: Tensor, mean: Tensor, log_std: Tensor, deterministic: bool = False
    ) -> Tensor:
        """Draws, or the mode, of given parameters."""
        return self.proba_distribution(gate, mean, log_std).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, gate: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of given parameters, and their log pi."""
        actions = self.actions_from_params(gate, mean, log_std)
        return actions, self.log_prob(actions)


class MixtureActorCriticPolicy(FastActorCriticPolicy):
    """stable-baselines3's actor-critic with a mixture as its actor, and a Q network that judges the experts.

    Args:
        observation_space, action_space, lr_schedule: flat observations and a box of actions; as in stable-baselines3.
        experts: K; one expert has neither gate nor Q network.
        **kwargs: of ``ActorCriticPolicy``.
    """

    action_dist: MixtureDistribution

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        experts: int = 5,
        **kwargs: Any,
    ) -> None:
        assert isinstance(action_space, spaces.Box), f"the action space must be a box, not {action_space}"
        if kwargs.get("use_sde"):
            raise ConfigError("a mixture has no state-dependent exploration")
        self.experts, self.act_dim = experts, get_action_dim(action_space)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = MixtureDistribution()
        k, a, inputs = self.experts, self.act_dim, self.features_dim
        if k > 1:
            self.action_net = nn.Linear(self.action_net.in_features, k * a)
            if self.ortho_init:
                self.init_weights(self.action_net, gain=0.01)
            self.gate = nn.Linear(inputs, k)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
            layers = [nn.Linear(*pair) for pair in pairwise((inputs + a, 64, 64, 64, 1))]
            self.q_net = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
            self.q_layers = tuple(layers)
        self.log_std = nn.Parameter(torch.full((k, a), float(self.log_std_init)))
        made: Any = self.optimizer_class
        self.optimizer = made(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def mixture(self, obs: Any) -> mx.Mixture:
        """Weights and moments, (B, ...) -> (B, K, ...)."""
        features = obs.float() if self.short else self._features(obs)
        mean = self.mean(obs) if self.short else self.action_net(self.mlp_extractor.forward_actor(features))
        gate = self.gate(features) if self.experts > 1 else features.new_zeros(len(features), 1)
        return mx.mixture(gate, mean.view(-1, self.experts, self.act_dim), self.log_std)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log pi of the actions: (B, ...) -> (B, A), (B, 1), (B,)."""
        if self.short:
            return super().forward(obs, deterministic)
        actions = self.act(obs, deterministic=deterministic)
        values, log_probs, _ = self.evaluate_actions(obs, actions)
        return actions.view(-1, *self.action_space.shape), values, log_probs  # type: ignore[misc]

    def act(self, obs: Tensor, *, deterministic: bool) -> Tensor:
        """Draws, or the mean of the likeliest expert: (B, O) -> (B, A)."""
        return self.get_distribution(obs).get_actions(deterministic=deterministic)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log pi of the actions, no entropy."""
        return self.predict_values(obs), mx.log_prob(self.mixture(obs), actions, squash=False), None

    def get_distribution(self, obs: Any) -> MixtureDistribution:
        """The mixture at observations."""
        self.action_dist.mixture = self.mixture(obs)
        return self.action_dist

    def q(self, obs: Any, actions: Tensor) -> Tensor:
        """Q of N actions a state, (B, N, A) -> (B, N)."""
        features = obs.float() if self.short else self._features(obs)
        wide = features[:, None].expand(-1, actions.shape[1], -1)
        return chain(self.q_layers, torch.cat((wide, actions), dim=2), torch.relu).squeeze(2)

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> Policy:
        """Itself as a policy in the box ``low`` .. ``high``."""

        def linear(layer: nn.Module) -> tuple[Tensor, Tensor]:
            return tuple(p.detach().cpu() for p in layer.parameters())  # type: ignore[return-value]

        hidden = [layer for layer in self.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
        layers = [linear(layer) for layer in [*hidden, self.action_net]]
        none = (torch.zeros(1, self.features_dim), torch.zeros(1))
        activation = self.activation_fn.__name__
        policy = MixturePolicy.from_parts(
            layers,
            linear(self.gate) if self.experts > 1 else none,
            low,
            high,
            activation=ACTIVATIONS.get(activation, activation),
            observation_clip=observation_clip,
        )
        with torch.no_grad():
            policy.log_std.copy_(self.log_std)
        return policy

    def _features(self, obs: Any) -> Tensor:
        features = self.extract_features(obs)
        assert isinstance(features, Tensor), "a mixture shares its features extractor with the critic"
        return features

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"experts": self.experts}

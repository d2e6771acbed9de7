"""The actor-critic of on-policy methods: stable-baselines3's modules, run in fewer operations.

At 64 units a call of a module, a distribution object and its checks cost more than the products. For a box of actions,
flat observations and networks of linear layers, the same numbers are computed from the same parameters directly;
everything else (discrete actions, images, state-dependent exploration) goes through stable-baselines3's own methods.
Hooks on the inner layers are not called where the short way is taken.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from offrl.estimators.likelihood import gaussian_log_prob
from offrl.estimators.regularizers import gaussian_entropy
from offrl.online.settings import require_from_zero

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.Tanh: torch.tanh, nn.ReLU: torch.relu}


def chain(layers: Iterable[nn.Linear], x: Tensor, activation: Activation) -> Tensor:
    """Linear layers with the activation between them, (..., inputs) -> (..., outputs)."""
    *hidden, last = layers
    for layer in hidden:
        x = activation(F.linear(x, layer.weight, layer.bias))
    return F.linear(x, last.weight, last.bias)


class FastActorCriticPolicy(ActorCriticPolicy):
    """``ActorCriticPolicy`` with a short way through it, and torch's fused Adam.

    Args:
        *args, **kwargs: as in stable-baselines3; its Adam is the fused one unless ``optimizer_kwargs`` are given.
    """

    action_net: nn.Linear
    value_net: nn.Linear
    short: bool
    acting_only: bool = False
    """Let ``forward`` give NaN for values and likelihoods: of a whole rollout they are cheaper afterwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        adam = kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam
        if adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        require_from_zero(self.action_space)
        super()._build(lr_schedule)
        nets = (self.mlp_extractor.policy_net, self.mlp_extractor.value_net)
        self.actor_layers, self.critic_layers = (
            tuple(m for m in n if isinstance(m, nn.Linear)) for n in nets
        )
        self.short = (
            isinstance(self.observation_space, spaces.Box)
            and len(self.observation_space.shape) == 1
            and type(self.features_extractor) is FlattenExtractor
            and isinstance(self.action_dist, DiagGaussianDistribution)
            and self.activation_fn in ACTIVATIONS
            and all(type(m) in (nn.Linear, self.activation_fn) for n in nets for m in n)
        )

    def mean(self, obs: Tensor) -> Tensor:
        """What the actor's last layer says, (B, O) -> (B, A)."""
        return chain((*self.actor_layers, self.action_net), obs.float(), ACTIVATIONS[self.activation_fn])

    def predict_values(self, obs: Any) -> Tensor:
        """V, (B, O) -> (B, 1)."""
        if not self.short:
            return super().predict_values(obs)
        return chain((*self.critic_layers, self.value_net), obs.float(), ACTIVATIONS[self.activation_fn])

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log pi of the actions: (B, O) -> (B, A), (B, 1), (B,); see ``acting_only``."""
        if not self.short:
            return super().forward(obs, deterministic)
        actions = self.act(obs, deterministic=deterministic)
        if self.acting_only:
            values, log_probs = torch.full((2, len(actions)), torch.nan, device=actions.device)
            values = values[:, None]
        else:
            values, log_probs, _ = self.evaluate_actions(obs, actions)
        return actions.view(-1, *self.action_space.shape), values, log_probs  # type: ignore[misc]

    def act(self, obs: Tensor, *, deterministic: bool) -> Tensor:
        """Draws, or the mean: (B, O) -> (B, A)."""
        mean = self.mean(obs)
        return mean if deterministic else torch.addcmul(mean, self.log_std.exp(), torch.randn_like(mean))

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log pi of the actions, entropy: (B, 1), (B,), (B,)."""
        if not self.short:
            return super().evaluate_actions(obs, actions)
        log_probs = gaussian_log_prob(self.mean(obs), self.log_std, actions)
        return self.predict_values(obs), log_probs, gaussian_entropy(self.log_std).expand_as(log_probs)

"""The policy of methods that need likelihoods as a function of one parameter vector: no critic, no optimizer.

    box       a ~ Normal(f(x), exp(log_std)), clipped to the box by the environment only
    discrete  a ~ Categorical(softmax f(x))

f is a tanh network; log_std is one free number an action dimension, or it is fixed. It is ``log_std_min`` or more,
which bounds the scores. The bound is one on parameters, kept by whoever steps with ``floored``: in the likelihood it
would be a place without gradient, where the Fisher information degenerates and no way leads back.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.estimators.likelihood import gaussian_log_prob
from offrl.nn.policy import DiagGaussianPolicy, Linear
from offrl.online.settings import require_from_zero, require_used


class Net(nn.Module):
    """f, and log_std for a box: features (B, F) -> (B, A) or logits (B, actions)."""

    log_std: Tensor

    def __init__(self, sizes: Sequence[int], log_std: float | None, fixed_std: bool) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            last = layer is layers[-1]
            nn.init.orthogonal_(layer.weight, 0.01 if last else 2**0.5)
            nn.init.zeros_(layer.bias)
        if log_std is not None:
            value = torch.full((sizes[-1],), float(log_std))
            if fixed_std:
                self.register_buffer("log_std", value)
            else:
                self.log_std = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.tanh(layer(x))
        result: Tensor = last(x)
        return result

    def linear(self) -> list[Linear]:
        """Copies of weights and biases, on the CPU."""
        named = dict(self.layers.named_parameters())
        pairs = [(named[f"{k}.weight"], named[f"{k}.bias"]) for k in range(len(self.layers))]
        return [(weight.detach().cpu(), bias.detach().cpu()) for weight, bias in pairs]


class EpisodicPolicy(BasePolicy):
    """A stable-baselines3 policy around ``Net``.

    Args:
        observation_space, action_space: a flat box or a number of observations; a box or a number of actions.
        net_arch: sizes of the hidden layers.
        log_std: its first value, if it is not below its bound.
        log_std_min: its lower bound.
        fixed_std: keep it at its first value.
        **kwargs: the features extractor and ``normalize_images`` of ``BasePolicy``.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: Sequence[int] = (64, 64),
        log_std: float = 0.0,
        log_std_min: float = -3.0,
        fixed_std: bool = False,
        **kwargs: Any,
    ) -> None:
        used = ("features_extractor_class", "features_extractor_kwargs", "normalize_images")
        require_from_zero(action_space)
        require_used(kwargs, used, "net_arch, log_std, log_std_min, fixed_std")
        if isinstance(net_arch, Mapping):
            raise ConfigError(f"net_arch must be a list of widths, there is no critic: {net_arch}")
        super().__init__(observation_space, action_space, **kwargs)
        self.net_arch, self.log_std, self.log_std_min = list(net_arch), log_std, log_std_min
        self.fixed_std = fixed_std
        self.features_extractor = self.make_features_extractor()
        if any(True for _ in self.features_extractor.parameters()):
            raise ConfigError(
                f"the parameters of {type(self.features_extractor).__name__} would not be trained"
            )
        self.discrete = isinstance(action_space, spaces.Discrete)
        outputs = int(action_space.n) if self.discrete else get_action_dim(action_space)  # type: ignore[attr-defined]
        sizes = (self.features_extractor.features_dim, *net_arch, outputs)
        self.net = Net(sizes, None if self.discrete else max(log_std, log_std_min), fixed_std)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ["net_arch", "log_std", "log_std_min", "fixed_std"]
        own += ["features_extractor_class", "features_extractor_kwargs"]
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in own}

    def features(self, observations: Tensor) -> Tensor:
        """What the network sees of observations, (B, F) float."""
        assert self.features_extractor is not None
        return self.extract_features(observations, self.features_extractor)

    def forward(self, observations: Tensor, deterministic: bool = False) -> Tensor:
        """Actions, as ``_predict``."""
        return self._predict(observations, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.actions(self.net, self.features(observation), None, deterministic=deterministic)

    def actions(
        self, net: Net, features: Tensor, generator: torch.Generator | None, *, deterministic: bool = False
    ) -> Tensor:
        """Actions of ``net``: draws, unclipped, or the mode; (B, A), or (B,) int64."""
        output: Tensor = net(features)
        if self.discrete:
            if deterministic:
                return output.argmax(dim=-1)
            return torch.multinomial(output.softmax(dim=-1), 1, generator=generator).squeeze(-1)
        if deterministic:
            return output
        noise = torch.randn(output.shape, generator=generator, device=output.device, dtype=output.dtype)
        return output + net.log_std.exp() * noise

    def log_probs(self, theta: Tensor, features: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s) under the parameter vector ``theta`` (D,), (M,)."""
        named = dict(self.net.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        given = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        output: Tensor = torch.func.functional_call(self.net, given, (features,))
        if self.discrete:
            return output.log_softmax(dim=-1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
        return gaussian_log_prob(output, given.get("log_std", self.net.log_std), actions)

    def floored(self, theta: Tensor) -> Tensor:
        """The nearest parameter vector whose log_std is not below its bound, (D,)."""
        bounds = [
            torch.full_like(p, self.log_std_min if name == "log_std" else -torch.inf).flatten()
            for name, p in self.net.named_parameters()
        ]
        return theta.detach().maximum(torch.cat(bounds).detach())

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> DiagGaussianPolicy:
        """Itself as a policy in the box ``low`` .. ``high``."""
        return DiagGaussianPolicy.from_params(
            self.net.linear(),
            low,
            high,
            log_std=self.net.log_std.detach().cpu(),
            activation="tanh",
            observation_clip=observation_clip,
        )

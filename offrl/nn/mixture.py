"""Policies that are mixtures of K Gaussians: what PMOE leaves in a run directory.

    squashed_mixture  a = center + half_range tanh(u),  u ~ Normal(f_i(h), exp(clamp(g_i(h), log_std_min, 2))),
                      i ~ softmax(G h)
    mixture           a ~ Normal(f_i(h), exp(log_std_i)), clipped to the box,  i ~ softmax(G x)

x is the normalized observation, h the last hidden layer. The deterministic action is the mean of the likeliest expert.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from offrl.errors import PolicyError
from offrl.estimators import mixture as mx
from offrl.nn.policy import Bounds, Linear, MLPPolicy, fill_linear


class SquashedMixturePolicy(MLPPolicy):
    """A mixture of tanh-squashed Normals; the output layer gives K x A means, then K x A values of log_std.

    Args:
        obs_dim, act_dim, hidden, action_low, action_high, activation, observation_clip: as in ``MLPPolicy``.
        experts: K.
        log_std_min: log_std is clamped to [this, 2].
    """

    kind: ClassVar[str] = "squashed_mixture"
    per_expert: ClassVar[int] = 2  # numbers per expert and action dimension

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int] = (256, 256),
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        experts: int = 4,
        log_std_min: float = -20.0,
        activation: str = "relu",
        observation_clip: float | None = None,
    ) -> None:
        if experts < 1:
            raise PolicyError(f"experts must be 1 or more, got {experts}")
        super().__init__(
            obs_dim,
            act_dim,
            hidden,
            action_low,
            action_high,
            activation=activation,
            observation_clip=observation_clip,
        )
        self.experts, self.log_std_min = experts, log_std_min
        self.head = nn.Linear(self.head.in_features, self.per_expert * experts * act_dim)
        self.gate = nn.Linear(self.gate_inputs(), experts)

    def gate_inputs(self) -> int:
        """Size of what the gate sees."""
        return self.head.in_features

    @classmethod
    def from_parts(
        cls, params: Sequence[Linear], gate: Linear, low: Tensor, high: Tensor, **settings: Any
    ) -> Self:
        """A policy with given weights.

        Args:
            params: (weight (out, in), bias (out,)) pairs, input layer first.
            gate: of the gate; K rows.
            low: lower bounds of the action box, (A,).
            high: upper bounds, (A,).
            **settings: keyword arguments of the class.
        """
        sizes = [params[0][0].shape[1], *(weight.shape[0] for weight, _ in params)]
        policy = cls(sizes[0], len(low), sizes[1:-1], low, high, experts=len(gate[1]), **settings)
        for layer, pair in zip([*policy.trunk, policy.head, policy.gate], [*params, gate], strict=True):
            fill_linear(layer, pair)
        return policy

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().config() | {"experts": self.experts, "log_std_min": self.log_std_min}

    def mixture(self, observations: Tensor) -> mx.Mixture:
        """Weights and moments for (B, O) raw observations; before the tanh where there is one."""
        h = self.features(observations)
        moments = self.head(h).unflatten(-1, (2, self.experts, self.act_dim))
        return mx.mixture(
            self.gate(h), moments[..., 0, :, :], moments[..., 1, :, :].clamp(self.log_std_min, 2.0)
        )

    def bounded(self, u: Tensor) -> Tensor:
        """Numbers of the experts as actions in the box."""
        return self.to_box(torch.tanh(u))

    def forward(self, observations: Tensor) -> Tensor:
        """The likeliest expert's mean, (B, A)."""
        m = self.mixture(observations)
        return self.bounded(m.expert(m.log_weights.argmax(dim=-1))[0])

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws (B, A): an expert for each row, then its Normal."""
        m, device = self.mixture(observations), observations.device
        uniform = torch.rand(m.log_weights.shape, generator=generator, device=device)
        mean, log_std = m.expert(mx.draw_index(m, mx.gumbel(uniform)))
        noise = torch.randn(mean.shape, generator=generator, device=device)
        return self.bounded(torch.addcmul(mean, log_std.exp(), noise))

    def distribution(self, observations: Tensor) -> Distribution:
        """The mixture over actions in the box, with the tanh's correction in ``log_prob``."""
        to_box = AffineTransform(self.center, self.half_range, event_dim=1, cache_size=1)
        transforms = [TanhTransform(cache_size=1), to_box]
        return TransformedDistribution(_torch_mixture(self.mixture(observations)), transforms)


class MixturePolicy(SquashedMixturePolicy):
    """A mixture of Normals clipped to the box, with free log_std (K, A); the gate sees the observation itself."""

    kind: ClassVar[str] = "mixture"
    per_expert: ClassVar[int] = 1
    log_std: Tensor

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.log_std = nn.Parameter(torch.zeros(self.experts, self.act_dim))

    def gate_inputs(self) -> int:
        """O."""
        return self.obs_dim

    def mixture(self, observations: Tensor) -> mx.Mixture:
        """Weights and moments, in action units."""
        mean = self.output(observations).unflatten(-1, (self.experts, self.act_dim))
        return mx.mixture(self.gate(self.normalize(observations)), mean, self.log_std)

    def bounded(self, u: Tensor) -> Tensor:
        """Clipped."""
        return self.clip(u)

    def distribution(self, observations: Tensor) -> Distribution:
        """The mixture before clipping."""
        return _torch_mixture(self.mixture(observations))


def _torch_mixture(m: mx.Mixture) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(logits=m.log_weights), Independent(Normal(m.mean, m.log_std.exp()), 1)
    )

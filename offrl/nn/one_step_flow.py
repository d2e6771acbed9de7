"""The policy of flow Q-learning: one pass of a network turns Gaussian noise into an action."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offrl.errors import PolicyError
from offrl.nn.policy import Bounds, Linear, Policy


class OneStepFlowPolicy(Policy):
    """``center + half_range clip(f(x, z), -1, 1)`` with z ~ Normal(0, 1) in A dimensions.

    ``act`` always draws z, also with ``deterministic=True``: the map has no mode, and the method is evaluated by its
    samples. ``forward``, the export path, is the action at z = 0.

    Args:
        obs_dim, act_dim, action_low, action_high, observation_clip: as in ``Policy``.
        hidden: sizes of the hidden layers, each with a GELU (tanh approximation) after it.
    """

    kind: ClassVar[str] = "one_step_flow"

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int] = (512, 512, 512, 512),
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        observation_clip: float | None = None,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high, observation_clip=observation_clip)
        if any(size < 1 for size in hidden):
            raise PolicyError(f"hidden layers need 1 or more units each, got {tuple(hidden)}")
        self.hidden = tuple(hidden)
        sizes = (obs_dim + act_dim, *self.hidden, act_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    @classmethod
    def from_params(
        cls, params: Sequence[Linear], action_low: Tensor, action_high: Tensor, mean: Tensor, std: Tensor
    ) -> Self:
        """A policy with given weights, input layer first, action box (A,) and normalizer (O,); all are copied."""
        act_dim, hidden = len(action_low), [len(bias) for _, bias in params[:-1]]
        policy = cls(len(mean), act_dim, hidden, action_low, action_high)
        weights: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(params):
            weights |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        policy.load_state_dict(policy.state_dict() | weights)
        policy.set_normalizer(mean, std)
        return policy

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().config() | {"hidden": list(self.hidden)}

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """Actions (B, A) for fresh noise."""
        return super().act(observations, state, deterministic=False, generator=generator)

    def transport(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The actions (B, A) that raw observations (B, O) and noise (B, A) lead to."""
        x = torch.cat((self.normalize(observations), noise), dim=1)
        *hidden, last = self.layers
        for layer in hidden:
            x = F.gelu(layer(x), approximate="tanh")
        return self.to_box(last(x).clamp(-1.0, 1.0))

    def forward(self, observations: Tensor) -> Tensor:
        """The actions (B, A) at zero noise."""
        return self.transport(observations, observations.new_zeros(observations.shape[0], self.act_dim))

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws (B, A)."""
        shape = (len(observations), self.act_dim)
        noise = torch.randn(shape, generator=generator, device=observations.device)
        return self.transport(observations, noise)

"""A policy of uniform random actions."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform

from offrl.nn.policy import Policy


class RandomPolicy(Policy):
    """Uniform actions in the box, whatever the observation; random even with ``deterministic=True``."""

    kind: ClassVar[str] = "random"

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """Uniform draws (B, A)."""
        return super().act(observations, state, deterministic=False, generator=generator)

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform draws (B, A)."""
        shape = (len(observations), self.act_dim)
        u = torch.rand(shape, generator=generator, device=observations.device)
        return torch.addcmul(self.action_low, self.action_high - self.action_low, u)

    def forward(self, observations: Tensor) -> Tensor:
        """The center of the box (B, A): the mean of the draws."""
        return self.to_box(observations.new_zeros(len(observations), self.act_dim))

    def distribution(self, observations: Tensor) -> Distribution:
        """Uniform over the box for each of B observations."""
        low, high = (b.expand(len(observations), -1) for b in (self.action_low, self.action_high))
        return Independent(Uniform(low, high), 1)

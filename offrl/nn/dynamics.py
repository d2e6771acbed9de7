"""A learned one-step model of an environment: an ensemble of Gaussian networks, and rollouts that follow it.

    (o' - o, r) ~ N(mean_k(o, a), diag std_k(o, a)^2),  P(ended) = sigmoid(f_k(o, a)),  member k drawn anew each step
    L = mean (x - mean_k)^2 / (2 std_k^2) + ln std_k  + binary cross-entropy of ended,  x standardized

A rollout feeds the model's own states back, so that its errors compound; it is cut after ``horizon`` steps, or where
the model says that the episode ended. This is the autoregressive baseline of policy-guided diffusion.

Source: PETS, arXiv:1805.12114, section 4; short branched rollouts: MBPO, arXiv:1906.08253.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.nn.mlp import init_mlp, mlp
from offrl.nn.trainable import Trainable

LOG_STD_MIN, LOG_STD_MAX = -5.0, 1.0  # of standardized targets


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of inputs (O + A,) and targets (O + 1,)."""

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    @classmethod
    def fit(cls, observations: Tensor, actions: Tensor, rewards: Tensor, successors: Tensor) -> "Scale":
        """That of N transitions; a constant column keeps its scale."""
        inputs = torch.cat((observations, actions), dim=1)
        targets = torch.cat((successors - observations, rewards[:, None]), dim=1)
        stds = [torch.where(x.std(0) > 1e-6, x.std(0), 1.0) for x in (inputs, targets)]
        return cls(inputs.mean(0), stds[0], targets.mean(0), stds[1])


class DynamicsEnsemble:
    """E networks of two hidden layers, trained side by side on batches of their own.

    Args:
        scale: of inputs and targets.
        hidden: width of both hidden layers.
        members: E.
        lr: Adam step size.
        generator: of the initial weights.
    """

    def __init__(
        self, scale: Scale, hidden: int, members: int, lr: float, generator: torch.Generator
    ) -> None:
        self.scale, self.members = scale, members
        self.obs_dim = len(scale.target_mean) - 1
        sizes = (len(scale.input_mean), hidden, hidden, 2 * (self.obs_dim + 1) + 1)
        self.net = Trainable(init_mlp(sizes, members, [generator]), lr)

    @property
    def num_parameters(self) -> int:
        """Of all members together."""
        return sum(p.numel() for p in self.net.params)

    def predict(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-std (E, B, O + 1) of standardized targets, and the logit of the end (E, B).

        Args:
            observations: (E, B, O), each member's own.
            actions: (E, B, A).
        """
        x = (torch.cat((observations, actions), dim=2) - self.scale.input_mean) / self.scale.input_std
        out = mlp(self.net.params, x).transpose(1, 2)
        width = self.obs_dim + 1
        return (
            out[..., :width],
            LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * out[..., width : 2 * width].sigmoid(),
            out[..., -1],
        )

    def update(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, successors: Tensor, terminated: Tensor
    ) -> Tensor:
        """One Adam step on a batch for each member, (E, B, ...); returns the members' losses (E,)."""
        targets = torch.cat((successors - observations, rewards[..., None]), dim=2)
        targets = (targets - self.scale.target_mean) / self.scale.target_std
        mean, log_std, logit = self.predict(observations, actions)
        density = (0.5 * ((targets - mean) / log_std.exp()).square() + log_std).mean(dim=(1, 2))
        ended = F.binary_cross_entropy_with_logits(logit, terminated, reduction="none").mean(dim=1)
        losses = density + ended
        self.net.minimize(losses.sum())
        return losses.detach()

    @torch.no_grad()
    def step(
        self, observations: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A drawn successor (B, O), reward (B,) and end (B,) bool, each row by a member drawn for it."""
        batch, device = len(observations), observations.device
        predicted = self.predict(*(x.expand(self.members, -1, -1) for x in (observations, actions)))
        member = torch.randint(self.members, (batch,), generator=generator, device=device)
        mean, log_std, logit = (x[member, torch.arange(batch, device=device)] for x in predicted)
        noise = torch.randn(mean.shape, generator=generator, device=device)
        drawn = (mean + log_std.exp() * noise) * self.scale.target_std + self.scale.target_mean
        return observations + drawn[:, :-1], drawn[:, -1], logit > 0

    @torch.no_grad()
    def rollout(
        self, start: Tensor, act: Callable[[Tensor], Tensor], horizon: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Steps (B, horizon, ...) from ``start`` (B, O), with ``valid`` false after the end of an episode."""
        steps: list[tuple[Tensor, ...]] = []
        observations, alive = start, torch.ones(len(start), dtype=torch.bool, device=start.device)
        for _ in range(horizon):
            actions = act(observations)
            successors, rewards, ended = self.step(observations, actions, generator)
            steps.append((observations, actions, rewards, successors, ended, alive))
            alive = alive & ~ended
            observations = successors
        names = ("observations", "actions", "rewards", "next_observations", "terminated", "valid")
        return {name: torch.stack(x, dim=1) for name, x in zip(names, zip(*steps, strict=True), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer."""
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.net.load_state_dict(state)

"""A stacked Gaussian actor: the mean from a network, one free log_std an action dimension.

    a ~ Normal(center + half_range m(s), half_range exp(clamp(log_std)))        m = f, or tanh f where bounded

Its parameters are those of an MLP followed by log_std (S, 1, A), which starts at 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.estimators.likelihood import gaussian_log_prob
from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import Params, init_mlp, mlp, unstack
from offrl.nn.policy import DiagGaussianPolicy, GaussianPolicy


class GaussianActor:
    """What turns the parameters of S seeds' actors into likelihoods, samples and policies.

    Args:
        box: the action box; mean and std are learned in units of its half-range.
        low, high: range in which log_std is held.
        bounded: squash the mean by tanh.
    """

    def __init__(self, box: ActionBox, low: float, high: float, *, bounded: bool = False) -> None:
        self.box, self.low, self.high, self.bounded = box, low, high, bounded

    def init(self, sizes: Sequence[int], generators: Sequence[torch.Generator]) -> Params:
        """Fresh parameters; ``sizes`` are the layer widths, O first and A last."""
        shape, device = (len(generators), 1, sizes[-1]), generators[0].device
        return [*init_mlp(sizes, 1, generators), torch.zeros(shape, device=device, requires_grad=True)]

    def moments(self, params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (S, B, A) and log_std (S, 1, A), in action units."""
        raw = mlp(params[:-1], observations).transpose(1, 2)
        log_std = params[-1].clamp(self.low, self.high)
        if self.bounded:
            mean = self.box.squash(raw)
        else:
            mean = raw if self.box.is_unit else self.box.center + self.box.half * raw
        return mean, log_std if self.box.is_unit else log_std + self.box.half.log()

    def log_probs(self, params: Params, batch: Batch) -> Tensor:
        """Log pi(a | s) of the batch's actions, (S, B)."""
        mean, log_std = self.moments(params, batch.observations)
        return gaussian_log_prob(mean, log_std, batch.actions)

    def sample(self, params: Params, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions (S, B, A), clipped to the box; ``noise`` is standard normal (S, B, A)."""
        mean, log_std = self.moments(params, observations)
        return self.box.clip(mean + log_std.exp() * noise)

    def policy(self, params: Params, seed: int, mean: Tensor, std: Tensor) -> GaussianPolicy:
        """The policy of one seed, acting on raw observations normalized by ``mean`` and ``std``."""
        box, layers = self.box, unstack(params[:-1], seed)
        log_std = params[-1][seed, 0].detach().clamp(self.low, self.high)
        if self.bounded:
            return GaussianPolicy.from_params(layers, box.low, box.high, mean, std, log_std=log_std)
        weight, bias = layers[-1]
        if not box.is_unit:  # this kind of policy puts out action units
            layers[-1] = (box.half[:, None] * weight, box.center + box.half * bias)
            log_std = log_std + box.half.log()
        return DiagGaussianPolicy.from_params(layers, box.low, box.high, mean, std, log_std=log_std)

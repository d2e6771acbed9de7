"""What training a denoiser needs besides its loss: the step size over time, averages of the weights, exact resume.

    step size   start peak -> peak linearly over the warm-up, then peak (1 + cos(pi t)) / 2 down to 0
    average     w' <- d w' + (1 - d) w
                constant   the weighted mean sum_k decay^-k w_k / sum_k decay^-k of what was averaged so far
                growing    d = 1 - n^-power after n updates (0 at first), at most ``largest``

Source: constant average: arXiv:2404.06356's code; growing one: real-stanford/diffusion_policy, ``ema_model.py``.
Departure: the initial weights are no part of the constant average; there they fade with decay^k, so that a run of a
thousand updates, averaged every ten at 0.995, would keep 60 % of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.nn.mlp import Params
from offrl.nn.trainable import Trainable


@dataclass(frozen=True)
class WarmupCosine:
    """A step size that rises over the first updates and then falls to 0 along a cosine.

    Args:
        peak: largest step size.
        steps: updates in all.
        warmup: updates that the rise takes.
        start: where it begins, as a share of ``peak``.
    """

    peak: float
    steps: int
    warmup: int
    start: float = 0.0

    def __call__(self, update: int) -> float:
        """Step size of update 0, 1, ..."""
        if update < self.warmup:
            return self.peak * (self.start + (1.0 - self.start) * update / self.warmup)
        done = (update - self.warmup) / max(self.steps - self.warmup, 1)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class ConstantAverage:
    """Every ``every`` updates the average keeps ``decay`` of itself, less at first, when it holds little."""

    decay: float = 0.995
    every: int = 10

    def __call__(self, update: int) -> float:
        """What the average keeps of itself after ``update`` updates (1 leaves it alone)."""
        count, rest = divmod(update, self.every)
        if rest:
            return 1.0
        return self.decay * (1.0 - self.decay ** (count - 1)) / (1.0 - self.decay**count)


@dataclass(frozen=True)
class GrowingAverage:
    """The average forgets the first updates fast: after n updates it keeps 1 - n^-power, at most ``largest``."""

    power: float = 0.75
    largest: float = 0.9999

    def __call__(self, update: int) -> float:
        """What the average keeps of itself after ``update`` updates."""
        return 0.0 if update <= 1 else min(1.0 - float(update) ** -self.power, self.largest)


class AveragedTraining:
    """A network, Adam with a scheduled step size, and the average of its weights.

    Args:
        params: tensors with a leading axis S that require gradients; updated in place.
        lr: step size of update 0, 1, ...
        average: what the average keeps of itself after each update.
        betas: of Adam's moments.
        weight_decay: parameters shrink by the step size times this each update (AdamW).
        decayed: which of them do; None: all.
    """

    def __init__(
        self,
        params: Params,
        lr: Callable[[int], float],
        average: ConstantAverage | GrowingAverage,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        decayed: Sequence[bool] | None = None,
    ) -> None:
        self.net = Trainable(params, lr(0), target=True, betas=betas)
        self.lr, self.decay, self.weight_decay, self.updates = lr, average, weight_decay, 0
        chosen = [True] * len(params) if decayed is None else decayed
        self.decayed = [p for p, yes in zip(self.net.constant, chosen, strict=True) if yes]

    @property
    def params(self) -> Params:
        """What is trained."""
        return self.net.params

    @property
    def average(self) -> Params:
        """The averaged weights, constants: what samples are drawn with."""
        assert self.net.target is not None
        return self.net.target

    def apply(self, grads: Sequence[Tensor]) -> None:
        """One update with given gradients."""
        self.net.lr = self.lr(self.updates)
        if self.weight_decay:
            torch._foreach_mul_(self.decayed, 1.0 - self.net.lr * self.weight_decay)
        self.net.apply(grads)
        self.updates += 1
        kept = self.decay(self.updates)
        if kept < 1.0:
            self.net.update_target(1.0 - kept)

    def state_dict(self) -> dict[str, Any]:
        """Weights, average, moments and the number of updates."""
        return {"net": self.net.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.net.load_state_dict(state["net"])
        self.updates = state["updates"]

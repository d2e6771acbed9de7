"""Losses that couple the rows of a group, and their weights.

Where a row's gradient depends on what the current policy says of its whole group (CoPG, PACS, REAL, P3O), a method
writes its loss as one function of tensors, in the manner of the parts of ``compose``, that returns one value a group or
a row. Groups are found by ids (``groups.Groups``) and must be whole in every micro-batch (``groups.whole_groups``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offrl.estimators.advantages import ADVANTAGES
from offrl.estimators.aggregation import token_mean
from offrl.estimators.compose import Part, Spec, Specs, Step, parts, regularized, resolve, single
from offrl.estimators.regularizers import REGULARIZERS, k3
from offrl.estimators.rollouts import Counts, Rollouts


@dataclass(frozen=True)
class GroupEstimator:
    """What ``Estimator`` is, for losses that are written as one function. Build it with ``group_loss``."""

    part: Part
    per: Literal["groups", "rows"]
    advantage: tuple[Part, ...] = ()
    regularizers: tuple[tuple[Part, float], ...] = ()

    @torch.no_grad()
    def advantages(self, rollouts: Rollouts) -> Tensor | None:
        """Those of the function, if it reads any: of a whole batch, to be kept in it before it is split."""
        step = Step(rollouts, advantages=rollouts.advantages)
        for part in self.advantage:
            step.advantages = part(step)
        return step.advantages

    def prepare(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with them."""
        return rollouts.replace(advantages=self.advantages(rollouts))

    def loss(
        self,
        log_probs: Tensor,
        rollouts: Rollouts,
        counts: Counts | None = None,
        *,
        entropy: Tensor | None = None,
        predicted_values: Tensor | None = None,
    ) -> Tensor:
        """The scalar to minimise: the sum of the function's values over the number of groups or rows.

        Args:
            log_probs: of the current policy, (B, T), with gradient.
            rollouts: a batch, or a part of one with whole groups.
            counts: of the whole batch (with its groups), if ``rollouts`` is a part of it.
            entropy: (B, T) with gradient, for regularizers that read it.
            predicted_values: (B, T) with gradient, likewise.
        """
        log_probs = single(log_probs)
        loss = self.surrogate(log_probs, rollouts, counts)
        step = Step(rollouts, log_probs, rollouts.advantages, entropy, predicted_values)
        for part, coefficient in self.regularizers:
            loss = loss + coefficient * token_mean(regularized(part, step), rollouts.mask, counts)
        return loss

    def surrogate(self, log_probs: Tensor, rollouts: Rollouts, counts: Counts | None = None) -> Tensor:
        """The loss without regularizers."""
        total = self.part(Step(rollouts, single(log_probs), rollouts.advantages)).sum()
        if counts is not None:
            return total / (counts.groups if self.per == "groups" else counts.rows)
        ids = rollouts.group_ids
        if self.per == "rows" or ids is None:
            return total / len(log_probs)
        return total / len(ids.unique())

    @torch.no_grad()
    def diagnostics(self, log_probs: Tensor, rollouts: Rollouts) -> dict[str, Tensor]:
        """Scalars to log: nothing is clipped, and KL(old || current) by k3."""
        zero = torch.zeros((), device=log_probs.device, dtype=log_probs.dtype)
        if rollouts.old_log_probs is None:
            return {"clip_fraction": zero}
        kl = k3(rollouts.old_log_probs, single(log_probs))
        return {"clip_fraction": zero, "approx_kl": token_mean(kl, rollouts.mask)}

    def weights(self, log_probs: Tensor, rollouts: Rollouts) -> Tensor:
        """The factors on grad log pi that the loss amounts to, summed over steps: (B, T), constants."""
        return weights_of(lambda x: self.loss(x, rollouts), log_probs)


def group_loss(
    function: Spec,
    per: Literal["groups", "rows"] = "groups",
    *,
    advantage: Specs = (),
    regularizers: Sequence[tuple[Spec, float]] = (),
) -> GroupEstimator:
    """An estimator from a function whose positional arguments are named after what it reads.

    Args:
        function: for instance of ``log_probs, old_log_probs, rewards, group_ids, mask``; alone or with settings. It
            returns one value a group or a row.
        per: what the sum of these is divided by.
        advantage: parts as in ``compose``, for a function that reads ``advantages``.
        regularizers: (part, coefficient), added to the loss as means over steps.
    """
    return GroupEstimator(
        resolve("group loss", {}, function),
        per,
        parts("advantage", ADVANTAGES, advantage),
        tuple((resolve("regularizer", REGULARIZERS, spec), weight) for spec, weight in regularizers),
    )


def weights_of(loss: Callable[[Tensor], Tensor], log_probs: Tensor) -> Tensor:
    """The weights of a loss that couples the rows of a group: w = -d loss / d log pi, constants, (B, T).

    ``-(w * log_probs).sum()`` then has the gradient of ``loss(log_probs)``, so that such methods (CoPG, PACS, REAL,
    P3O) can be looked at, masked and mixed like any other.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return -gradient

"""What a policy-gradient estimator reads: sampled actions with what was stored about them, and how many there are.

Shapes here and in the estimator core: B rows (responses, trajectories or segments), T steps (tokens). Trajectories
of a control task and responses of a language model differ in nothing else. A minibatch of single steps may
also come flat, (B,), where no part needs sequences.
"""

import dataclasses
from typing import Any, Self

import torch
from torch import Tensor

Number = Tensor | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Sampled steps. A part that needs a field which is None says so; methods with more fields subclass this.

    Nothing here carries gradients: what the current policy says is passed to the estimator beside.
    """

    mask: Tensor | None = None
    """(B, T) bool: steps that the policy chose. Padding, prompts and tool output are False. None: all of them."""
    old_log_probs: Tensor | None = None
    """(B, T) log pi_old(a | s) as training computes it, before the first update; Gaussians summed over action dims."""
    rollout_log_probs: Tensor | None = None
    """(B, T) log mu(a | s) as the sampling engine computed it."""
    ref_log_probs: Tensor | None = None
    """(B, T) log-probabilities of the policy that a KL term anchors to."""
    rewards: Tensor | None = None
    """(B,) outcome of a row, or (B, T) reward of a step."""
    group_ids: Tensor | None = None
    """(B,) int64, equal for rows with a common prompt or start; any numbers, in any order."""
    demo: Tensor | None = None
    """(B,) bool: rows that are demonstrations."""
    baseline_rewards: Tensor | None = None
    """(B,) outcome of the greedy response (ReMax)."""
    terminated: Tensor | None = None
    """(B, T) bool or 0/1: the task ended with this step."""
    truncated: Tensor | None = None
    """(B, T) bool or 0/1: a time limit cut the episode after this step."""
    values: Tensor | None = None
    """(B, T) V(s_t) at collection."""
    next_values: Tensor | None = None
    """(B, T) V of what truly followed the step; see ``advantages.next_values``."""
    returns: Tensor | None = None
    """(B, T) target of the value function."""
    advantages: Tensor | None = None
    """(B,), (B, T) or (B, 1 or T, K), what ``Estimator.advantages`` gave."""

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, got {self.mask.dtype}")
        if self.rewards is not None and not self.rewards.is_floating_point():
            raise ValueError(f"rewards must be floating-point numbers, got {self.rewards.dtype}")
        rows = {name: len(x) for name, x in self._tensors() if x.dim()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"fields disagree on the number of rows: {rows}")

    @property
    def lengths(self) -> Tensor:
        """Chosen steps of every row, (B,) float."""
        if self.mask is None:
            raise ValueError("lengths need a mask")
        return self.mask.sum(dim=1).float()

    def rows(self, index: Tensor) -> Self:
        """The rows of ``index`` (int64 or bool), every field: a minibatch."""
        return self.replace(**{name: x[index] for name, x in self._tensors() if x.dim()})

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **fields)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, x) for name, x in vars(self).items() if isinstance(x, Tensor)]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What means divide by. Pass those of the whole batch with each of its parts, and the parts' losses add up.

    Under data parallelism that averages gradients, divide the sums over all workers by the number of workers.
    """

    tokens: Number
    """Chosen steps."""
    rows: Number
    """Rows with at least one chosen step."""
    groups: Number = 1.0
    """Groups, for losses that couple the rows of one."""


def count(mask: Tensor, group_ids: Tensor | None = None) -> Counts:
    """Counts of a batch: (B, T) bool and (B,) ids; each at least 1, so that an empty batch gives loss 0."""
    tokens, rows = mask.sum().clamp(min=1), mask.any(dim=1).sum().clamp(min=1)
    return Counts(tokens, rows, 1.0 if group_ids is None else float(group_ids.unique().numel()))

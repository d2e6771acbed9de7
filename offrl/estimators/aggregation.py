"""From one number a step to the loss: the four means in use, with global counts.

    token-mean                sum x m / sum m
    seq-mean-token-mean       mean_i (sum_t x m / L_i)
    seq-mean-token-sum        mean_i (sum_t x m)
    fixed-length              sum x m / (rows * length)

Rows without a chosen step count nowhere. The mean of a part of a batch is not part of the batch's mean: pass
``counts`` of the whole batch, and the losses (and gradients) of any parts add up to those of the whole.

Source: DAPO, arXiv:2503.14476 (token-mean); GRPO, arXiv:2402.03300 (means of rows); Dr. GRPO, arXiv:2503.20783
(fixed length). Names as in volcengine/verl, whose ``seq-mean-token-sum-norm`` is ``fixed-length`` (before version 0.9
times the rows); so is trl's ``dr_grpo``.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from offrl.estimators.rollouts import Counts, count

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "fixed-length"]


def masked_sum(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over chosen steps, whatever stands elsewhere (NaN too): (B, T), (B, T) -> scalar."""
    return x.sum() if mask is None else x.where(mask, 0.0).sum()


def sequence_sum(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over the chosen steps of every row: (B, T), (B, T) -> (B,)."""
    return x.sum(dim=1) if mask is None else x.where(mask, 0.0).sum(dim=1)


def sequence_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the chosen steps of every row, 0 for a row without any: (B, T), (B, T) -> (B,)."""
    return x.mean(dim=1) if mask is None else sequence_sum(x, mask) / mask.sum(dim=1).clamp(min=1)


def token_mean(x: Tensor, mask: Tensor | None, counts: Counts | None = None) -> Tensor:
    """Every step weighs the same: (B, T) or (B,) -> scalar."""
    if counts is None:
        return x.mean() if mask is None else masked_sum(x, mask) / mask.sum().clamp(min=1)
    return masked_sum(x, mask) / counts.tokens


def row_mean(x: Tensor, mask: Tensor | None, counts: Counts | None = None) -> Tensor:
    """Every row weighs the same, its steps by 1 / length: (B, T) -> scalar."""
    return sequence_mean(x, mask).sum() / _rows(x, mask, counts)


def row_sum(x: Tensor, mask: Tensor | None, counts: Counts | None = None) -> Tensor:
    """Every step weighs 1 / rows: (B, T) -> scalar."""
    return masked_sum(x, mask) / _rows(x, mask, counts)


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor | None, Counts | None], Tensor]] = {
    "token-mean": token_mean,
    "seq-mean-token-mean": row_mean,
    "seq-mean-token-sum": row_sum,
}


def aggregator(
    mode: Aggregation, length: int | None = None
) -> Callable[[Tensor, Tensor | None, Counts | None], Tensor]:
    """The function (x, mask, counts) -> scalar of a name; ``fixed-length`` needs the ``length`` to divide by."""
    if (mode == "fixed-length") != (length is not None):
        raise ValueError(f"{mode}: 'fixed-length', and it alone, takes a length")
    if length is not None:
        if length < 1:
            raise ValueError(f"length must be 1 or more, got {length}")
        return lambda x, mask, counts: row_sum(x, mask, counts) / length
    if mode not in AGGREGATIONS:
        raise ValueError(
            f"unknown aggregation {mode!r}; known are {', '.join([*AGGREGATIONS, 'fixed-length'])}"
        )
    return AGGREGATIONS[mode]


def aggregate(
    x: Tensor,
    mask: Tensor | None,
    mode: Aggregation,
    counts: Counts | None = None,
    length: int | None = None,
) -> Tensor:
    """One number from one a step.

    Args:
        x: (B, T).
        mask: (B, T) bool; None: all steps.
        mode: see the head of this module.
        counts: of the whole batch; None: of ``mask``.
        length: for ``fixed-length``.
    """
    return aggregator(mode, length)(x, mask, counts)


def _rows(x: Tensor, mask: Tensor | None, counts: Counts | None) -> Tensor | float:
    if counts is not None:
        return counts.rows
    return float(len(x)) if mask is None else count(mask).rows

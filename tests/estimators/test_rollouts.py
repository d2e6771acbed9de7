"""Rollouts: checks at the door, minibatches, counts."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from offrl.estimators.rollouts import Rollouts, count


def test_a_minibatch_takes_every_field():
    @dataclass(frozen=True, kw_only=True)
    class WithAnswers(Rollouts):
        answers: Tensor | None = None

    whole = WithAnswers(
        mask=torch.ones(4, 3, dtype=torch.bool), rewards=torch.arange(4.0), answers=torch.arange(4)
    )
    part = whole.rows(torch.tensor([2, 0]))
    assert isinstance(part, WithAnswers)
    assert part.mask.shape == (2, 3)
    assert part.rewards.tolist() == [2.0, 0.0]
    assert part.answers.tolist() == [2, 0]
    assert part.values is None


def test_shapes_and_types_are_checked():
    with pytest.raises(ValueError, match="mask must be boolean"):
        Rollouts(mask=torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"disagree on the number of rows: .*'rewards': 3"):
        Rollouts(mask=torch.ones(2, 2, dtype=torch.bool), rewards=torch.zeros(3))
    with pytest.raises(ValueError, match="need a mask"):
        _ = Rollouts().lengths


def test_counts_leave_empty_rows_out():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    counts = count(mask, torch.tensor([5, 5, 8]))
    assert (int(counts.tokens), int(counts.rows), counts.groups) == (3, 2, 2.0)
    assert Rollouts(mask=mask).lengths.tolist() == [2.0, 0.0, 1.0]
    empty = count(torch.zeros(2, 2, dtype=torch.bool))
    assert (int(empty.tokens), int(empty.rows)) == (1, 1)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_rewards_are_numbers_with_a_mean(kind):
    with pytest.raises(ValueError, match=f"rewards must be floating-point numbers, got {kind}"):
        Rollouts(rewards=torch.ones(3, dtype=kind))

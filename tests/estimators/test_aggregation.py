"""Sums and means over steps and rows, with a mask and without one."""

import pytest
import torch

from offrl.estimators import aggregation
from offrl.estimators.rollouts import Counts

X = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()
NOWHERE = X.where(MASK, torch.nan)  # what stands where nothing is chosen must not matter


def test_sums_and_means_of_rows():
    assert aggregation.sequence_sum(X, None).tolist() == [7.0, 56.0]
    assert aggregation.sequence_sum(NOWHERE, MASK).tolist() == [3.0, 32.0]
    torch.testing.assert_close(aggregation.sequence_mean(X, None), torch.tensor([7.0, 56.0]) / 3)
    assert aggregation.sequence_mean(NOWHERE, MASK).tolist() == [1.5, 32.0]
    assert aggregation.sequence_mean(X, torch.zeros_like(MASK)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("mode", "plain", "chosen"),
    [
        ("token-mean", 63 / 6, 35 / 3),
        ("seq-mean-token-mean", (7 / 3 + 56 / 3) / 2, (1.5 + 32.0) / 2),
        ("seq-mean-token-sum", 63 / 2, 35 / 2),
    ],
)
def test_one_number(mode, plain, chosen):
    assert float(aggregation.aggregate(X, None, mode)) == pytest.approx(plain)
    assert float(aggregation.aggregate(NOWHERE, MASK, mode)) == pytest.approx(chosen)


def test_a_fixed_length_divides_whatever_the_rows_hold():
    assert float(aggregation.aggregate(X, None, "fixed-length", length=1)) == 63 / 2
    assert float(aggregation.aggregate(NOWHERE, MASK, "fixed-length", length=10)) == pytest.approx(35 / 20)
    for mode, length in (("fixed-length", None), ("token-mean", 3), ("fixed-length", 0)):
        with pytest.raises(ValueError, match="length"):
            aggregation.aggregator(mode, length)


def test_counts_of_the_whole_batch_stand_for_those_of_a_part():
    counts = Counts(tokens=30.0, rows=5.0)
    of = {mode: float(aggregation.aggregate(X, MASK, mode, counts)) for mode in aggregation.AGGREGATIONS}
    assert of == pytest.approx(
        {"token-mean": 35 / 30, "seq-mean-token-mean": 33.5 / 5, "seq-mean-token-sum": 7.0}
    )

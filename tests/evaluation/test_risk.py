"""Risk measures by hand, paired intervals, and what an adjustment is said to have done."""

import numpy as np
import pytest
import torch

from offrl.data.neighbours import NeighbourIndex
from offrl.errors import ConfigError
from offrl.evaluation.risk import (
    comparison,
    conditional_value_at_risk,
    mean_interval,
    measure_shift,
    paired_interval,
    value_at_risk,
)

HUNDRED = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))


@pytest.mark.parametrize("percent", range(1, 101))
def test_the_tail_of_a_hundred_returns(percent):
    """Of 1 .. 100, VaR_q is 100 q and CVaR_q the mean of 1 .. 100 q; CVaR_0.1 = 5.5 (cdsa sheet 8.7)."""
    q = percent / 100
    assert value_at_risk(HUNDRED, q) == percent
    assert conditional_value_at_risk(HUNDRED, q) == pytest.approx((1 + percent) / 2)


def test_there_is_no_interpolation_and_the_tail_is_never_empty():
    """Of 3 returns a share 1/3 is at most the least; from just above, the second."""
    returns = np.array([5.0, -2.0, 1.0])
    assert [value_at_risk(returns, q) for q in (0.01, 1 / 3, 0.34, 2 / 3, 0.67, 1.0)] == [-2, -2, 1, 1, 5, 5]
    assert conditional_value_at_risk(returns, 0.01) == -2
    assert conditional_value_at_risk(returns, 1.0) == pytest.approx(returns.mean())
    assert conditional_value_at_risk(np.array([1.0, 1.0, 1.0, 9.0]), 0.25) == 1.0, "ties are all in the tail"


@pytest.mark.parametrize("q", [0.05, 0.1, 0.5, 1.0])
def test_both_follow_a_change_of_scale_and_origin(q):
    returns = np.random.default_rng(1).normal(size=77)
    for measure in (value_at_risk, conditional_value_at_risk):
        assert measure(3.5 * returns - 11.0, q) == pytest.approx(3.5 * measure(returns, q) - 11.0)


def test_impossible_questions_are_refused():
    for returns, q in ((np.array([]), 0.1), (np.ones(3), 0.0), (np.ones(3), 1.1), (np.ones((2, 2)), 0.5)):
        with pytest.raises(ConfigError, match=r"returns \(n,\) and a level in \(0, 1\]"):
            value_at_risk(returns, q)
    with pytest.raises(ConfigError, match="paired returns"):
        paired_interval(np.mean, np.ones(3), np.ones(4))


def test_pairing_takes_the_noise_of_the_episodes_out():
    """returns + 1 differ by exactly 1, however much they vary; unpaired draws would not see it."""
    returns = np.random.default_rng(2).normal(scale=100, size=20)
    assert paired_interval(np.mean, returns, returns + 1) == pytest.approx((1.0, 1.0))
    rows = comparison(returns, returns + 1, 0.2)
    assert list(rows) == ["mean", "VaR_0.2", "CVaR_0.2"]
    for row in rows.values():
        assert row["difference"] == pytest.approx(1.0)
        assert row["interval"] == pytest.approx((1.0, 1.0))
        assert row["adjusted"] - row["base"] == pytest.approx(row["difference"])
    assert comparison(returns[:1], returns[:1])["mean"]["interval"] is None


def test_the_bootstrap_covers_the_spread_of_a_mean():
    """For a mean of n pairs it is about that of Student's t."""
    base = np.zeros(200)
    other = np.random.default_rng(3).normal(loc=2.0, size=200)
    assert paired_interval(np.mean, base, other) == pytest.approx(mean_interval(other), abs=0.02)


def test_a_shift_is_measured_in_distance_to_the_data():
    """Data: state 0 with actions 0; the base at 0.5 and 1, adjusted to half of that."""
    index = NeighbourIndex(torch.zeros(3, 2), torch.zeros(3, 1), 1.0)
    base, states = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    shift = measure_shift(index, states, base, base / 2)
    assert shift.action_change == pytest.approx(0.375)
    assert (shift.clipped, shift.clipped_before) == (0.0, 0.5)
    assert shift.distance_before == pytest.approx((0.25 + 1 + 4) / 2)
    assert shift.distance_after == pytest.approx((0.0625 + 0.25 + 4) / 2)

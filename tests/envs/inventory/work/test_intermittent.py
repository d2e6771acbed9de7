"""Croston and TSB by hand."""

import numpy as np
import pytest

from offrl.envs.inventory.work.intermittent import croston, tsb


def test_croston_by_hand():
    """0 4 0 0 2 with alpha 0.5: size 4, gap 2; then size 3, gap 2.5."""
    x = np.array([0.0, 4, 0, 0, 2])
    assert croston(x, 0.5, unbiased=False) == pytest.approx(3 / 2.5)
    assert croston(x, 0.5) == pytest.approx(0.75 * 3 / 2.5)
    assert croston(np.zeros(4)) == 0


def test_tsb_by_hand_and_when_an_item_dies():
    active, size = tsb(np.array([2.0, 0, np.nan, 4]), alpha=0.5, beta=0.5)
    assert size == pytest.approx(3.0)  # 2, then half way to 4
    assert active == pytest.approx((((2 / 3 + 1) / 2) / 2 + 1) / 2)
    dying = tsb(np.array([3.0, 0, 2, 0, 3] * 4 + [0.0] * 60))
    assert dying[0] < 0.05
    assert tsb(np.zeros(5)) == (0.0, 0.0)


def test_both_find_the_rate_of_rare_demand():
    random = np.random.default_rng(0)
    x = np.where(random.random(20000) < 0.2, 1 + random.poisson(3, 20000), 0).astype(float)
    assert croston(x, 0.05) == pytest.approx(0.8, rel=0.25)
    assert np.prod(tsb(x, 0.02, 0.02)) == pytest.approx(0.8, rel=0.25)

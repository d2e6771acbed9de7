"""Budgets: the formulas, the optimum against brute force, bounds, and what budgets do on independent prompts."""

import itertools
import time

import numpy as np
import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.prompts.knapsack import allocate, even, exact, failures, information, needed, spread

RATES = np.array([0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
SATURATED = np.array([1.0] * 6 + [0.97] * 2 + [0.05] * 4 + [0.1] * 2 + [0.5] * 2)


def unequal(n, p):
    return 1.0 - p**n - (1.0 - p) ** n


def table(p, low, high, value=information):
    return value(np.arange(low, high + 1.0), np.asarray(p, dtype=np.float64)[:, None])


def worth(p, counts, value=information):
    return float(value(counts.astype(float), np.asarray(p)).sum())


def test_chances_of_unequal_rewards_are_those_of_the_paper():
    found = [unequal(8, p) for p in (0.01, 0.05, 0.1, 0.3, 0.5)]
    assert found == pytest.approx([0.077, 0.337, 0.570, 0.942, 0.992], abs=5e-4)
    assert information(8.0, np.array(0.1)) == pytest.approx(0.570 * 0.1 * 0.81, abs=1e-4)
    assert needed(0.01, 0.9) == pytest.approx(229.1, abs=0.05)
    assert needed(0.99, 0.9) == pytest.approx(229.1, abs=0.05)


def test_chances_are_those_of_draws():
    rng = np.random.default_rng(0)
    for p, n in ((0.05, 8), (0.3, 3), (0.9, 16)):
        right = rng.binomial(n, p, size=200_000)
        share = ((right > 0) & (right < n)).mean()
        assert share == pytest.approx(unequal(n, p), abs=5 * np.sqrt(0.25 / 200_000))


def test_the_value_of_many_responses_is_highest_at_a_third():
    p = np.linspace(0.001, 0.999, 999)
    assert p[information(1e6, p).argmax()] == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_greedy_optimum_is_that_of_brute_force_and_of_dynamic_programming(seed):
    rng = np.random.default_rng(seed)
    p, low, high = rng.uniform(size=4), int(rng.integers(1, 4)), 7
    total = int(rng.integers(4 * low, 4 * high + 1))
    best = max(
        worth(p, np.array(c)) for c in itertools.product(range(low, high + 1), repeat=4) if sum(c) == total
    )
    greedy, dynamic = allocate(p, total, low, high), exact(table(p, low, high), total, low)
    for counts in (greedy, dynamic):
        assert counts.sum() == total
        assert counts.min() >= low
        assert counts.max() <= high
        assert worth(p, counts) == pytest.approx(best, abs=1e-12)


def test_dynamic_programming_is_brute_force_for_the_utility_that_is_not_concave():
    for seed in range(4):
        p, low, high = np.random.default_rng(seed).uniform(0.02, 0.9, size=4), 2, 8
        counts = exact(table(p, low, high, failures), 19, low)
        best = max(
            worth(p, np.array(c), failures)
            for c in itertools.product(range(low, high + 1), repeat=4)
            if sum(c) == 19
        )
        assert counts.sum() == 19
        assert worth(p, counts, failures) == pytest.approx(best, abs=1e-12)


def test_eight_rates_share_64_responses_as_known():
    """Own figures of the sheet: the objective rises, the share of unequal groups does not."""
    counts, uniform = allocate(RATES, 64, 2, 128), np.full(8, 8)
    assert counts.tolist() == [2, 13, 19, 11, 7, 8, 2, 2]
    assert [worth(RATES, c) for c in (uniform, counts)] == pytest.approx([0.389, 0.420], abs=5e-4)
    assert [unequal(c, RATES).mean() for c in (uniform, counts)] == pytest.approx([0.563, 0.560], abs=5e-4)


def test_with_many_saturated_prompts_more_groups_are_unequal():
    counts = allocate(SATURATED, 128, 2, 128)
    assert counts.sum() == 128
    assert unequal(8, SATURATED).mean() == pytest.approx(0.306, abs=5e-4)
    assert unequal(counts, SATURATED).mean() == pytest.approx(0.373, abs=2e-3)
    assert counts[:6].tolist() == [2] * 6


def test_equal_rates_get_equal_numbers_up_to_one():
    counts = allocate(np.full(7, 0.2), 60, 2, 128)
    assert counts.sum() == 60
    assert counts.max() - counts.min() == 1


def test_equal_bounds_leave_nothing_to_choose():
    assert allocate(RATES, 64, 8, 8).tolist() == [8] * 8
    assert exact(table(RATES, 8, 8), 64, 8).tolist() == [8] * 8


def test_what_gains_nothing_goes_to_prompts_that_never_succeeded_first():
    assert allocate(np.array([0.0, 1.0, 1.0]), 12, 2, 6).tolist() == [6, 3, 3]
    assert allocate(np.array([1.0, 1.0]), 7, 2, 6).tolist() == [4, 3]
    assert spread(np.array([2, 5, 2]), np.array([True, True, False]), 4, 6).tolist() == [6, 5, 2]
    assert allocate(np.array([0.0, 1.0]), 100, 2, 6).tolist() == [6, 6]


def test_the_budget_is_kept_and_nobody_loses_when_it_grows():
    p = np.random.default_rng(1).uniform(size=20)
    for value in ("greedy", "dynamic"):
        before = None
        for total in range(40, 160, 10):
            counts = allocate(p, total, 2, 30) if value == "greedy" else exact(table(p, 2, 30), total, 2)
            assert counts.sum() == total
            if before is not None and value == "greedy":
                assert (counts >= before).all()
            if before is not None:
                assert worth(p, counts) > worth(p, before)
            before = counts


def test_expected_failures_where_one_response_succeeds():
    """U(B, p) = E[(B - K) 1{K >= 1}], K binomial."""
    from scipy.stats import binom

    for b, p in itertools.product((1, 2, 5, 16), (0.0, 0.03, 0.5, 0.9, 1.0)):
        k = np.arange(1, b + 1)
        want = float(((b - k) * binom.pmf(k, b, p)).sum())
        assert failures(float(b), np.array(p)) == pytest.approx(want, abs=1e-12)
    for p in RATES:
        assert failures(1.0, p) == 0.0
    for b in (1.0, 4.0, 9.0):
        assert failures(b, np.array(1.0)) == 0.0
        assert failures(b, np.array(0.0)) == 0.0


def test_that_utility_is_for_dynamic_programming():
    """Winner takes most: 50 of 64 to p = 0.1, where the gains of single responses lead to p = 0.3."""
    counts = exact(table(RATES, 2, 64, failures), 64, 2)
    assert counts.tolist() == [2, 2, 50, 2, 2, 2, 2, 2]
    assert worth(RATES, counts, failures) == pytest.approx(46.4, abs=0.05)
    greedy = np.array([2, 2, 2, 50, 2, 2, 2, 2])
    assert worth(RATES, greedy, failures) == pytest.approx(36.4, abs=0.05)


def test_a_thousand_prompts_take_less_than_50_milliseconds():
    """The figure of scripts/bench_llm_agents.py; here the best of several, with room for a busy machine."""
    p = np.random.default_rng(0).uniform(size=1024)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        counts = allocate(p, 8192, 2, 128)
        seconds.append(time.process_time() - began)
    assert counts.sum() == 8192
    assert min(seconds) < 0.05


def test_every_prompt_weighs_the_same():
    ids = torch.tensor([7, 7, 3, 7, 7, 3])
    weights = even(ids)
    assert weights.tolist() == [0.75, 0.75, 1.5, 0.75, 0.75, 1.5]
    assert even(torch.tensor([1, 1, 5, 5])).tolist() == [1.0] * 4


def climbed(seed, budget, lr=0.5, steps=50):
    """Accuracies of 16 prompts each at 0.02 and 0.1 beside 32 at 0.99, after normalized group gradients."""
    rng = np.random.default_rng(seed)
    start = np.repeat([0.99, 0.02, 0.1], [32, 16, 16])
    logits = np.log(start / (1 - start))
    for _ in range(steps):
        p = 1 / (1 + np.exp(-logits))
        n = budget(p)
        right = rng.binomial(n, p)
        mean = right / n
        std = np.sqrt(mean * (1 - mean) * n / (n - 1)) + 1e-6
        logits += lr * mean * (1 - mean) / std  # mean over i of A_i d log pi_i / d logit
    return 1 / (1 + np.exp(-logits[32:]))


def test_known_rates_lift_the_hard_prompts_further_at_the_same_budget():
    gaps = []
    for seed in range(6):
        uniform = climbed(seed, lambda p: np.full(len(p), 8)).mean()
        gaps.append(climbed(seed, lambda p: allocate(p, 8 * len(p), 2, 128)).mean() - uniform)
    assert min(gaps) > 0.02


@pytest.mark.parametrize(
    ("rates", "low", "high", "says"),
    [
        ([0.5, 1.5], 2, 8, "rates must be within 0 and 1, got 1.5"),
        ([0.5, float("nan")], 2, 8, "rates must be within 0 and 1, got nan"),
        ([0.5, 0.2], 0, 8, "1 <= low <= high, got low 0"),
        ([0.5, 0.2], 4, 2, "1 <= low <= high, got low 4, high 2"),
    ],
)
def test_what_is_no_rate_and_no_bound_is_refused(rates, low, high, says):
    with pytest.raises(ConfigError, match=says):
        allocate(rates, 8, low, high)

"""The bandit that chooses policies: its rule by hand, what it finds, what replaying recorded episodes gives."""

import contextlib

import numpy as np
import pytest

from offrl.errors import ConfigError
from offrl.evaluation.bandit import selection_curve, ucb


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_rule_by_hand():
    """Arms that always give 10, 9 and 0: each once in some order, then the largest bound."""
    values = np.array([10.0, 9.0, 0.0])
    played = ucb(lambda arm: values[arm], 3, 40, rng=rng())
    assert sorted(played.arms[0, :3]) == [0, 1, 2]
    count = np.zeros(3)
    for t, arm in enumerate(played.arms[0], 1):
        if t > 3:
            assert arm == np.argmax(values + np.sqrt(2.0 * np.log(t) / count))
        count[arm] += 1
    assert count[2] == 1
    assert 1 < count[1] < count[0]
    assert (played.values == values[played.arms]).all()
    assert (played.chosen[0, 3:] == 0).all()


def test_an_arm_that_was_not_pulled_is_never_chosen():
    """Scores below 0 (a random policy's is 0): the first arm pulled is the one to deploy, not an untried one."""
    played = ucb(lambda arm: -5.0 - arm, 6, 1, trials=50, rng=rng())
    assert (played.chosen == played.arms).all()
    assert set(played.arms[:, 0]) == set(range(6)), "ties are broken by lot"


def test_alpha_zero_is_greedy_and_large_alpha_is_even():
    values = np.array([1.0, 3.0, 2.0])
    greedy = ucb(lambda arm: values[arm], 3, 30, alpha=0.0, rng=rng())
    even = ucb(lambda arm: values[arm], 3, 30, alpha=1e9, rng=rng())
    assert (greedy.arms[0, 3:] == 1).all()
    assert np.bincount(even.arms[0]).tolist() == [10, 10, 10]


def test_trials_know_nothing_of_each_other():
    """A trial whose values are 0 throughout goes its own way while the others find their best arm."""
    values = np.array([[0.0, 0.0, 0.0], [50.0, 1.0, 2.0], [1.0, 2.0, 50.0]])
    played = ucb(lambda arm: values[np.arange(3), arm], 3, 60, trials=3, rng=rng())
    assert np.bincount(played.arms[0]).tolist() == [20, 20, 20]
    assert played.chosen[1:, -1].tolist() == [0, 2]


def test_the_same_generator_replays_the_same_pulls():
    noise = rng(1).normal(size=(4, 30))

    def live(stop: int | None = None):
        used, seen = np.zeros(4, dtype=int), []

        def pull(arm):
            value = noise[arm[0], used[arm[0]]]
            used[arm[0]] += 1
            seen.append((int(arm[0]), value))
            if len(seen) == stop:
                raise KeyboardInterrupt
            return np.array([value])

        with contextlib.suppress(KeyboardInterrupt):
            ucb(pull, 4, 30, rng=rng(5))
        return seen

    assert live(stop=12) == live()[:12]


def test_the_curve_rises_from_the_mean_to_the_best():
    """One pull deploys a random policy: the mean of all; many pulls: the best of those drawn, in expectation known."""
    means = np.array([10.0, 30.0, 50.0, 90.0])
    returns = [m + 3.0 * rng(i).normal(size=500) for i, m in enumerate(means)]
    worth = np.array([r.mean() for r in returns])
    curve = selection_curve(returns, 100, policies=2, trials=4000, rng=rng())
    assert curve.mean[0] == pytest.approx(worth.mean(), abs=2.0)
    best_of_two = np.mean([max(a, b) for i, a in enumerate(worth) for b in worth[i + 1 :]])
    assert curve.mean[-1] == pytest.approx(best_of_two, abs=2.0)
    assert (curve.low <= curve.mean).all()
    assert (curve.mean <= curve.high).all()
    assert curve.pulls.tolist() == list(range(1, 101))


def test_episodes_of_different_number_and_few_policies():
    curve = selection_curve([np.array([1.0]), np.array([7.0, 9.0, 8.0])], 5, trials=200, rng=rng())
    assert curve.mean[1:].tolist() == [8.0] * 4, "both were pulled once, and 7 > 1"
    again = selection_curve([np.array([1.0]), np.array([7.0, 9.0, 8.0])], 5, trials=200, rng=rng())
    assert (again.low == curve.low).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ucb(lambda arm: arm * 1.0, 0, 5, rng=rng()), "needs arms, pulls"),
        (lambda: ucb(lambda arm: arm * 1.0, 2, 0, rng=rng()), "needs arms, pulls"),
        (lambda: ucb(lambda arm: arm * 1.0, 2, 5, alpha=-1.0, rng=rng()), "alpha >= 0"),
        (lambda: ucb(lambda arm: arm * np.nan, 2, 5, rng=rng()), "not a finite score"),
        (lambda: selection_curve([], rng=rng()), "at least one recorded episode"),
        (lambda: selection_curve([np.zeros(3), np.zeros(0)], rng=rng()), "at least one recorded episode"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()

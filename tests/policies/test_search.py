"""The search for weights on toys whose success curve is known."""

import numpy as np
import pytest

from offrl.errors import ConfigError
from offrl.policies.search import paired_gain, search_weights, simplex


def curve(best, height=0.8, slope=1.5):
    return lambda w: height - slope * abs(w[0] - best)


def toy(rate, seed=0):
    """Outcomes 0 or 1; episode i of a stream has the same luck for every candidate."""

    def evaluate(weights, stream, episodes):
        luck = np.random.default_rng([seed, stream]).random(episodes)
        return (luck < rate(weights)).astype(float)

    return evaluate


def test_the_grid_is_nine_weights_for_two_policies_and_36_for_three():
    two, three = simplex(2), simplex(3)
    assert two == [(k / 10, (10 - k) / 10) for k in range(1, 10)]
    assert len(three) == len(set(three)) == 36
    assert all(min(w) > 0 and sum(w) == pytest.approx(1) for w in three)
    with pytest.raises(ConfigError, match="need 3 parts"):
        simplex(3, 2)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("best", [0.2, 0.5, 0.7])
def test_a_planted_best_weight_is_found(best, rounds):
    found = search_weights(toy(curve(best)), simplex(2), 400, rounds=rounds)
    assert found.best[0] == pytest.approx(best)
    assert found.episodes[found.best] == 400
    assert found.played == (3600 if rounds == 1 else 9 * 100 + 5 * 100 + 3 * 200)


def test_each_round_plays_new_episodes_of_a_stream_of_its_own():
    calls = []

    def evaluate(weights, stream, episodes):
        calls.append((stream, episodes))
        return np.ones(episodes)

    search_weights(evaluate, simplex(2), 8, rounds=3)
    assert calls == [(0, 2)] * 9 + [(1, 2)] * 5 + [(2, 4)] * 3


def test_equal_outcomes_choose_the_most_even_weights():
    assert search_weights(lambda w, s, n: np.ones(n), simplex(2), 5).best == (0.5, 0.5)
    assert search_weights(lambda w, s, n: np.full(n, w[0] in (0.2, 0.6)), simplex(2), 5).best[0] == 0.6


def test_the_search_flatters_the_winner_and_the_report_does_not():
    """All weights equal (0.5): the best of nine on 100 independent episodes each reads about 7 points too high."""
    chosen, reported = [], []
    for repeat in range(300):
        rng = np.random.default_rng(repeat)

        def evaluate(weights, stream, episodes, rng=rng):
            return (rng.random(episodes) < 0.5).astype(float)

        found = search_weights(evaluate, simplex(2), 100)
        chosen.append(found.means[found.best])
        reported.append(evaluate(found.best, 9, 100).mean())
    assert np.mean(chosen) - 0.5 == pytest.approx(0.074, abs=0.01)
    assert np.mean(reported) == pytest.approx(0.5, abs=3 * 0.05 / 300**0.5)


def test_a_paired_interval_is_that_of_the_differences():
    a, b = np.array([1.0, 1, 0, 1, 1]), np.array([0.0, 1, 0, 1, 0])
    gain = paired_gain(a, b)
    half = 2.7764451 * np.std([1, 0, 0, 0, 1], ddof=1) / 5**0.5
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        shared = rng.normal(size=30)
        gain = paired_gain(shared + rng.normal(0.3, 0.5, 30), shared)
        inside += gain.low <= 0.3 <= gain.high
    assert inside / 400 == pytest.approx(0.95, abs=0.035)
    for bad in (np.ones(4), np.ones(1)):
        with pytest.raises(ConfigError, match="two or more"):
            paired_gain(np.ones(5)[: len(bad) if len(bad) == 1 else 5], bad)


@pytest.mark.parametrize(("episodes", "rounds"), [(0, 1), (3, 3), (5, 0)])
def test_numbers_that_make_no_search_are_refused(episodes, rounds):
    with pytest.raises(ConfigError, match="a search needs"):
        search_weights(toy(curve(0.5)), simplex(2), episodes, rounds=rounds)


def test_each_candidate_has_student_s_interval():
    """Outcomes 0, 1, 1, 0, 1: mean 0.6, s = 0.5477, t(4) = 2.776, half width 0.680."""
    outcomes = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = search_weights(lambda w, stream, episodes: outcomes[:episodes], [(0.5, 0.5)], 5)
    low, high = found.intervals[(0.5, 0.5)]
    assert (low, high) == pytest.approx((0.6 - 0.680, 0.6 + 0.680), abs=1e-3)
    assert search_weights(lambda w, stream, episodes: outcomes[:1], [(0.5, 0.5)], 1).intervals == {
        (0.5, 0.5): (0.0, 0.0)
    }

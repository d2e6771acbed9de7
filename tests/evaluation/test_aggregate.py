import itertools

import numpy as np
import pytest

from offrl.errors import ConfigError
from offrl.evaluation.aggregate import bootstrap_mean, iqm, stratified_bootstrap, summarize_run


def mean(tables: np.ndarray) -> np.ndarray:
    return tables.mean(axis=-1)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0, 9.0], 5.0),  # floor(3/4) = 0: the plain mean
        ([100.0, 2.0, 4.0, -50.0], 3.0),  # one off each end
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0], 3.5),  # two off each end: 2 .. 5
        ([0.0, 0.0, 10.0, 20.0, 60.0, 1e9], 22.5),  # floor(6/4) = 1: 0, 10, 20, 60
    ],
)
def test_iqm_is_the_mean_of_the_middle_half(scores, expected):
    assert iqm(np.array(scores)) == expected


def test_iqm_takes_any_shape_and_moves_with_shift_and_scale():
    x = rng().normal(size=(5, 4))
    assert iqm(x) == iqm(x.T.ravel())
    assert iqm(x, axis=0).tolist() == [iqm(x[:, i]) for i in range(4)]
    assert iqm(x, axis=1).tolist() == [iqm(row) for row in x]
    assert iqm(3.0 * x - 7.0) == pytest.approx(3.0 * iqm(x) - 7.0)


def test_iqm_leaves_its_input_alone():
    x = np.array([3.0, 1.0, 2.0])
    iqm(x)
    assert x.tolist() == [3.0, 1.0, 2.0]


def test_bootstrap_of_two_values_has_three_outcomes():
    """Means of {0, 1} resampled are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the quantiles are known."""
    values = np.array([0.0, 1.0])
    assert bootstrap_mean(values, level=0.95, rng=rng()) == (0.0, 1.0)
    assert bootstrap_mean(values, level=0.40, rng=rng()) == (0.5, 0.5)  # tails of 30 % lie inside the middle


def test_bootstrap_of_three_values_matches_all_27_resamples():
    """Quantiles of the exact resampling distribution, away from its jumps, are those of many draws."""
    values = np.array([1.0, 4.0, 10.0])
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=3))
    for level in (0.95, 0.7, 0.2):
        low, high = bootstrap_mean(values, level=level, repeats=20_000, rng=rng())
        tail = (1 - level) / 2
        assert low == pytest.approx(means[int(tail * 27)])
        assert high == pytest.approx(means[26 - int(tail * 27)])


def test_bootstrap_mean_approaches_the_normal_interval():
    """n = 400: the interval is mean +- 1.96 s / sqrt(n), within 5 % of its half-width (2000 draws)."""
    values = rng().normal(50.0, 8.0, size=400)
    low, high = bootstrap_mean(values, rng=rng())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_bootstrap_of_curves_draws_whole_seeds():
    """Two seeds whose curves mirror each other: every resampled sum over the points is constant."""
    curve = np.array([[0.0, 1.0, 5.0], [6.0, 5.0, 1.0]])
    low, high = bootstrap_mean(curve, rng=rng())
    assert low.tolist() == [0.0, 1.0, 1.0]
    assert high.tolist() == [6.0, 5.0, 5.0]


def test_one_value_has_an_interval_without_width():
    assert bootstrap_mean(np.array([3.0]), rng=rng()) == (3.0, 3.0)


def test_stratified_bootstrap_resamples_runs_within_tasks_only():
    """Runs of a task agree, tasks differ: nothing to resample, so the interval is the statistic itself.

    Drawing across tasks instead would mix 10 and 20.
    """
    scores = np.tile([10.0, 20.0], (5, 1))
    low, high = stratified_bootstrap(scores, mean, rng=rng())
    assert low == high == 15.0


def test_stratified_bootstrap_matches_the_exact_distribution_of_a_small_table():
    """(2 runs, 2 tasks): 16 equally likely tables; the mean takes 0, 1, .., 4 quarters binomially."""
    scores = np.array([[0.0, 0.0], [4.0, 4.0]])
    means = sorted(
        np.mean([scores[i, 0], scores[j, 0], scores[k, 1], scores[m, 1]])
        for i, j, k, m in itertools.product((0, 1), repeat=4)
    )
    low, high = stratified_bootstrap(scores, mean, level=0.8, repeats=4_000, rng=rng())
    assert (low, high) == (means[int(0.1 * 16)], means[15 - int(0.1 * 16)]) == (1.0, 3.0)


def test_stratified_bootstrap_draws_each_task_on_its_own():
    """Two mirrored tasks: drawing the same runs for both would always give the total 2."""
    totals = []

    def remember(tables: np.ndarray) -> np.ndarray:
        totals.extend(tables.sum(axis=-1).tolist())
        return np.zeros(len(tables))

    stratified_bootstrap(np.array([[0.0, 1.0], [1.0, 0.0]]), remember, repeats=200, rng=rng())
    assert set(totals) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_stratified_bootstrap_of_the_iqm_by_hand():
    """One run of 100, three of 0: the middle two of four draws are (0, 0) unless 100 comes twice or more.

    P(at most once) = (3/4)^4 + 4 (1/4) (3/4)^3 = 0.738 and P(at most twice) = 0.949, so the quantile at 0.8
    is the case of two, whose middle half is (0, 100).
    """
    scores = np.array([[0.0], [0.0], [0.0], [100.0]])
    low, high = stratified_bootstrap(scores, level=0.6, repeats=4_000, rng=rng())
    assert (low, high) == (0.0, 50.0)


def test_an_interval_covers_about_as_often_as_it_says():
    """200 samples of 30 normal values; 0.95 less the known small-sample loss, +- 4 standard errors."""
    draw, hits = rng(), 0
    for _ in range(200):
        low, high = bootstrap_mean(draw.normal(size=30), repeats=500, rng=draw)
        hits += low <= 0.0 <= high
    assert 0.93 - 4 * 0.018 < hits / 200 <= 1.0


def test_summary_of_a_run():
    summary = summarize_run(np.array([10, 20, 30, 40]), np.array([1.0, 9.0, 4.0, 6.0]), k=3)
    assert (summary.last, summary.best, summary.best_step) == (6.0, 9.0, 20)
    assert summary.mean_of_last == pytest.approx(19 / 3)
    assert summary.last_count == 3


def test_summary_of_a_short_run_says_how_many_evaluations_it_averaged():
    summary = summarize_run(np.array([5, 10]), np.array([2.0, 4.0]), k=10)
    assert (summary.mean_of_last, summary.last_count) == (3.0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iqm(np.zeros(0)), "no scores"),
        (lambda: stratified_bootstrap(np.zeros(3), rng=rng()), r"\(runs, tasks\)"),
        (lambda: stratified_bootstrap(np.zeros((0, 2)), rng=rng()), "not empty"),
        (lambda: bootstrap_mean(np.zeros(0), rng=rng()), "at least one value"),
        (lambda: bootstrap_mean(np.zeros(2), level=95, rng=rng()), r"level must be in \(0, 1\), got 95"),
        (lambda: summarize_run(np.zeros(0), np.zeros(0)), "each evaluation"),
        (lambda: summarize_run(np.ones(2), np.ones(2), k=0), "k must be 1 or more"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()

"""Methods against each other: probability of improvement and its interval."""

import itertools

import numpy as np
import pytest

from offrl.evaluation.aggregate import improvement_interval, probability_of_improvement
from offrl.evaluation.compare import improvement, improvement_rows
from offrl.evaluation.groups import group_runs


def by_hand(x, y):
    tasks = [
        np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(x[:, t], y[:, t])])
        for t in range(x.shape[1])
    ]
    return np.mean(tasks)


def test_probability_of_improvement_is_rliables():
    """Ties, unequal numbers of runs and several tasks, as the library that the method comes with computes it."""
    from rliable.metrics import probability_of_improvement as reference

    rng = np.random.default_rng(0)
    for runs in ((3, 5), (5, 5), (1, 4)):
        x, y = (rng.integers(0, 6, (n, 4)).astype(float) for n in runs)
        assert probability_of_improvement(x, y) == pytest.approx(reference(x, y))
        assert probability_of_improvement(x, y) == pytest.approx(by_hand(x, y))
        assert probability_of_improvement(y, x) == pytest.approx(1 - by_hand(x, y))


def test_the_iqm_is_rliables():
    from rliable.metrics import aggregate_iqm

    from offrl.evaluation.aggregate import iqm

    rng = np.random.default_rng(1)
    for shape in ((5, 3), (4, 1), (10, 7)):
        scores = rng.normal(size=shape)
        assert float(iqm(scores)) == pytest.approx(aggregate_iqm(scores))


def test_resampled_tables_are_judged_one_by_one():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3, 2)), rng.normal(size=(6, 4, 2))
    want = [by_hand(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(probability_of_improvement(x, y), want)


def test_the_interval_covers_and_narrows():
    """For two equal distributions 1/2 is inside; more runs narrow it; both sides are resampled."""
    rng = np.random.default_rng(3)
    few = improvement_interval(*rng.normal(size=(2, 4, 1)), rng=np.random.default_rng(0))
    many = improvement_interval(*rng.normal(size=(2, 100, 1)), rng=np.random.default_rng(0))
    assert few[0] <= 0.5 <= few[1]
    assert many[0] <= 0.55
    assert many[1] >= 0.45
    assert many[1] - many[0] < few[1] - few[0]
    ladder, step = np.arange(5.0)[:, None], np.array([[2.0]])
    assert improvement_interval(ladder, step, rng=rng)[0] < improvement_interval(ladder, step, rng=rng)[1]
    assert improvement_interval(step, ladder, rng=rng)[0] < improvement_interval(step, ladder, rng=rng)[1]


def test_groups_are_compared_by_their_last_evaluations(records):
    """Last means 60, 70, 80 against 70, 80: of six pairs one is above and two are equal."""
    task = next(task for task in group_runs(records) if len(task.groups) == 2)
    td3, iql = sorted(task.groups, key=lambda g: g.label, reverse=True)
    chance, interval = improvement(td3, iql)
    assert chance == pytest.approx((1 + 0.5 * 2) / 6)
    assert interval is not None
    assert 0 <= interval[0] <= chance <= interval[1] <= 1
    head, rows = improvement_rows(task)
    assert len(rows) == 2
    assert len(head) == 3
    assert any("0.33" in cell for row in rows for cell in row)
    assert any("0.67" in cell for row in rows for cell in row)


def test_one_group_is_compared_with_nothing(records):
    task = next(task for task in group_runs(records) if len(task.groups) == 1)
    assert improvement_rows(task) == ([], [])

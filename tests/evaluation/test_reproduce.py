"""Success rates and returns with their intervals."""

import numpy as np
import pytest
from scipy.stats import beta

from offrl.evaluation.reproduce import measured
from offrl.evaluation.rollout import EvaluationResult


def result(successes, returns=(1.0, 3.0)):
    n = len(returns) if successes is None else len(successes)
    wins = None if successes is None else np.array(successes, bool)
    return EvaluationResult(np.resize(returns, n).astype(float), np.ones(n, np.int64), wins, "x")


@pytest.mark.parametrize(("k", "n"), [(3, 10), (0, 5), (5, 5), (130, 200)])
def test_a_success_rates_interval_is_clopper_and_pearsons(k, n):
    rate = measured(result([True] * k + [False] * (n - k)))
    assert (rate.kind, rate.mean) == ("success", k / n)
    assert rate.low == pytest.approx(0 if k == 0 else beta.ppf(0.025, k, n - k + 1))
    assert rate.high == pytest.approx(1 if k == n else beta.ppf(0.975, k + 1, n - k))


def test_without_success_it_is_the_return_and_on_request():
    for rate in (measured(result(None)), measured(result([True, False]), "return")):
        assert (rate.kind, rate.mean) == ("return", 2.0)
        assert rate.low < 2 < rate.high

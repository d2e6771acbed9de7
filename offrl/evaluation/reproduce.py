"""Does a policy reproduce what was published for it: its success rate, or return, with a 95 % interval."""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from offrl.evaluation.risk import mean_interval
from offrl.evaluation.rollout import EvaluationResult


@dataclass(frozen=True)
class Measured:
    """A mean and its interval, and what it is a mean of."""

    kind: str  # success or return
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.kind == "success" else 1
        return f"{self.kind} {self.mean:.{digits}f} ({self.low:.{digits}f} .. {self.high:.{digits}f})"


def measured(result: EvaluationResult, kind: str | None = None) -> Measured:
    """Success where the environment says so, else the return.

    Args:
        result: of two episodes or more.
        kind: ``success`` or ``return`` to insist on one.

    The interval of a success rate is Clopper and Pearson's, never shorter than its level says.
    """
    if kind == "return" or result.successes is None:
        low, high = mean_interval(result.returns) or (result.mean, result.mean)
        return Measured("return", result.mean, float(low), float(high))
    n, k = len(result.successes), int(np.count_nonzero(result.successes))
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, 0.025))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.975))
    return Measured("success", k / n, low, high)

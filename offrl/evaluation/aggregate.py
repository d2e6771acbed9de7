"""Statistics of runs: interquartile mean, bootstrap intervals; last, best and mean of the last k of a run.

Everything is deterministic: functions that draw take a ``rng``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from offrl.errors import ConfigError

REPEATS = 2_000
LEVEL = 0.95


def iqm(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: drop floor(n / 4) values from each end, then average.

    Args:
        scores: at least one value.
        axis: the axis to reduce; None takes all values together.

    Returns:
        ``scores`` without that axis.

    Raises:
        ConfigError: ``scores`` is empty.

    Source: arXiv:2108.13264, section 4.3.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.size == 0:
        raise ConfigError("the interquartile mean of no scores is undefined")
    ordered = np.sort(scores.ravel() if axis is None else np.moveaxis(scores, axis, -1), axis=-1)
    n = ordered.shape[-1]
    middle: np.ndarray = ordered[..., n // 4 : n - n // 4].mean(axis=-1)
    return middle


def stratified_bootstrap(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda tables: iqm(tables, axis=-1),
    *,
    repeats: int = REPEATS,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Percentile interval of ``statistic``, resampling runs within each task.

    Args:
        scores: (runs, tasks), one number for each run of each task.
        statistic: of each resampled table, given as the rows of (repeats, runs * tasks); returns (repeats,).
        repeats: number of resampled tables.
        level: coverage, 0 .. 1.
        rng: source of the draws.

    Returns:
        Lower and upper bound. One run a task gives an interval without width: it says nothing about seeds.

    Raises:
        ConfigError: ``scores`` is not a non-empty matrix.

    Source: arXiv:2108.13264, section 4.1.
    """
    if scores.ndim != 2 or scores.size == 0:
        raise ConfigError(f"scores must be (runs, tasks) and not empty, got shape {scores.shape}")
    drawn = rng.integers(len(scores), size=(repeats, *scores.shape))
    tables = np.take_along_axis(scores[None], drawn, axis=1)
    low, high = np.percentile(statistic(tables.reshape(repeats, -1)), _tails(level))
    return float(low), float(high)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How often a run of X beats a run of Y on the same task: mean over tasks of P(X > Y) + P(X = Y) / 2.

    Args:
        x: (..., runs, tasks) scores of X; leading axes are resamples.
        y: (..., runs, tasks) scores of Y on the same tasks, the number of runs may differ.

    Returns:
        (...), in 0 .. 1; X and Y swapped give 1 minus it.

    Source: arXiv:2108.13264, section 4.3.
    """
    gaps = np.asarray(x, dtype=np.float64)[..., :, None, :] - np.asarray(y, dtype=np.float64)[..., None, :, :]
    chances: np.ndarray = ((gaps > 0) + 0.5 * (gaps == 0)).mean(axis=(-3, -2, -1))
    return chances


def improvement_interval(
    x: np.ndarray,
    y: np.ndarray,
    *,
    repeats: int = REPEATS,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Percentile interval of ``probability_of_improvement``, resampling the runs of both within each task.

    Args:
        x: (runs, tasks).
        y: (runs, tasks).
        repeats: number of resampled pairs of tables.
        level: coverage, 0 .. 1.
        rng: source of the draws.
    """
    tables = [
        np.take_along_axis(scores[None], rng.integers(len(scores), size=(repeats, *scores.shape)), axis=1)
        for scores in (x, y)
    ]
    low, high = np.percentile(probability_of_improvement(*tables), _tails(level))
    return float(low), float(high)


def bootstrap_mean(
    values: np.ndarray, *, repeats: int = REPEATS, level: float = LEVEL, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over the first axis: episodes (n,), or seeds (n, points) of a curve.

    A resampled row is drawn whole, so the points of a curve keep their dependence.

    Args:
        values: (n, ...), at least one row.
        repeats: number of resamples.
        level: coverage, 0 .. 1.
        rng: source of the draws.

    Returns:
        Lower and upper bounds, each (...).

    Raises:
        ConfigError: no rows.
    """
    n = len(values)
    if n == 0:
        raise ConfigError("an interval needs at least one value")
    weights = rng.multinomial(n, np.full(n, 1.0 / n), size=repeats) / n  # how often each row is drawn
    means = np.tensordot(weights, np.asarray(values, dtype=np.float64), axes=1)
    low, high = np.percentile(means, _tails(level), axis=0)
    return low, high


@dataclass(frozen=True)
class RunSummary:
    """What a run's evaluations come to; every number is a mean over the episodes of an evaluation."""

    last: float  # the last evaluation
    best: float  # the highest one: chosen with online episodes, so not an offline result
    best_step: int
    mean_of_last: float  # mean over the last ``last_count`` evaluations
    last_count: int  # k, or fewer if the run has fewer


def summarize_run(steps: np.ndarray, means: np.ndarray, k: int = 10) -> RunSummary:
    """Last, best and mean of the last ``k`` evaluations.

    Args:
        steps: (n,) updates made before each evaluation, ascending.
        means: (n,) mean return or score of each evaluation.
        k: evaluations in the closing mean.

    Raises:
        ConfigError: no evaluation, or ``k`` below 1.
    """
    if len(means) == 0 or len(steps) != len(means):
        raise ConfigError(f"need one mean for each evaluation, got {len(steps)} steps and {len(means)} means")
    if k < 1:
        raise ConfigError(f"k must be 1 or more, got {k}")
    top = int(np.argmax(means))
    closing = means[-k:]
    return RunSummary(
        last=float(means[-1]),
        best=float(means[top]),
        best_step=int(steps[top]),
        mean_of_last=float(closing.mean()),
        last_count=len(closing),
    )


def _tails(level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level must be in (0, 1), got {level}; 0.95 is usual")
    tail = 50.0 * (1.0 - level)
    return tail, 100.0 - tail

"""Choosing a policy online: a UCB bandit over candidates, live or replayed from recorded episodes.

    b_i = m_i + sqrt(alpha ln t / n_i)      infinite while n_i = 0; pull t = 1, 2, ... goes to the largest, ties by lot
    chosen after t pulls = argmax of m_i over the arms that were pulled

m_i is the mean of the n_i values that arm i gave; a value is an episode's score. alpha is not free of scale: 2 belongs
to scores on 0-100.

Source: Jackson et al. (Unifloral), arXiv:2504.11453, and its code's ``evaluation.py``: alpha 2, up to 200 pulls, 1000
trials of 8 policies drawn from all. Departure: there an arm that was never pulled counts as mean 0 when the best one is
named; here it is never named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offrl.errors import ConfigError
from offrl.evaluation.aggregate import LEVEL, REPEATS, bootstrap_mean

ALPHA, PULLS, POLICIES, TRIALS = 2.0, 200, 8, 1_000  # the protocol's numbers

Pull = Callable[[np.ndarray], np.ndarray]  # arms (T,), one a trial -> a score of each (T,)


@dataclass(frozen=True)
class Pulls:
    """What T bandits did with ``budget`` pulls each."""

    arms: np.ndarray  # (T, budget) int64, the arm of each pull
    values: np.ndarray  # (T, budget) float64, what it gave
    chosen: np.ndarray  # (T, budget) int64, the arm that would be deployed after each pull


def ucb(
    pull: Pull, arms: int, budget: int, *, alpha: float = ALPHA, trials: int = 1, rng: np.random.Generator
) -> Pulls:
    """Play UCB bandits side by side; one trial is the live case.

    Args:
        pull: plays one episode of an arm for each trial. What ``rng`` draws here does not depend on the values, so the
            same ``rng`` and the same values give the same pulls: a run that was stopped is replayed from its record.
        arms: how many candidates.
        budget: pulls of each trial.
        alpha: exploration; 2 belongs to scores on 0-100.
        trials: bandits that know nothing of each other.
        rng: breaks ties.

    Raises:
        ConfigError: no arm, no pull, a negative alpha, or a value that is not finite.
    """
    if min(arms, budget, trials) < 1 or not alpha >= 0.0:
        raise ConfigError(f"a bandit needs arms, pulls and alpha >= 0, got {arms}, {budget} and {alpha}")
    count, total = np.zeros((trials, arms)), np.zeros((trials, arms))
    pulled, chosen = (np.empty((trials, budget), dtype=np.int64) for _ in range(2))
    values, every = np.empty((trials, budget)), np.arange(trials)
    for t in range(budget):
        known = np.maximum(count, 1.0)
        bound = np.where(count > 0, total / known + np.sqrt(alpha * np.log(t + 1) / known), np.inf)
        lots = np.where(bound == bound.max(axis=1, keepdims=True), rng.random(bound.shape), -1.0)
        arm = lots.argmax(axis=1)
        value = np.asarray(pull(arm), dtype=np.float64)
        if not np.isfinite(value).all():
            raise ConfigError(f"pull {t + 1} of arm {arm.tolist()} gave {value.tolist()}: not a finite score")
        count[every, arm] += 1
        total[every, arm] += value
        pulled[:, t], values[:, t] = arm, value
        chosen[:, t] = np.where(count > 0, total / np.maximum(count, 1.0), -np.inf).argmax(axis=1)
    return Pulls(pulled, values, chosen)


@dataclass(frozen=True)
class SelectionCurve:
    """Score of the policy that a bandit would deploy, against the online episodes it has used."""

    pulls: np.ndarray  # (budget,) 1, 2, ...
    mean: np.ndarray  # (budget,) over the trials
    low: np.ndarray  # (budget,) of a percentile interval of that mean: it says how well the
    high: np.ndarray  # trials average, narrows with their number, and says nothing about seeds


def selection_curve(
    returns: Sequence[np.ndarray],
    budget: int = PULLS,
    *,
    policies: int = POLICIES,
    trials: int = TRIALS,
    alpha: float = ALPHA,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> SelectionCurve:
    """Unifloral's protocol on recorded episodes: no new one is played.

    Each trial draws ``policies`` of the candidates and plays a bandit whose pulls draw from a candidate's recorded
    scores with replacement; a choice is worth the mean of all of them.

    Args:
        returns: scores on 0-100 of each candidate's episodes, (n_i,).
        budget: pulls of a trial.
        policies: candidates of a trial, drawn without replacement; all, if there are fewer.
        trials: independent bandits.
        alpha: exploration.
        level: coverage of the interval.
        rng: source of all draws.

    Raises:
        ConfigError: no candidate, or one without episodes; or as ``ucb``.
    """
    arrays = [np.asarray(values, dtype=np.float64).ravel() for values in returns]
    if not arrays or not all(map(len, arrays)) or policies < 1:
        raise ConfigError("every candidate of a bandit needs at least one recorded episode")
    flat, sizes = np.concatenate(arrays), np.array([len(values) for values in arrays])
    starts, worth = np.cumsum(sizes) - sizes, np.array([values.mean() for values in arrays])
    drawn = rng.random((trials, len(arrays))).argsort(axis=1)[:, :policies]
    every = np.arange(trials)

    def pull(arm: np.ndarray) -> np.ndarray:
        candidate = drawn[every, arm]
        episode: np.ndarray = flat[starts[candidate] + rng.integers(sizes[candidate])]
        return episode

    played = ucb(pull, drawn.shape[1], budget, alpha=alpha, trials=trials, rng=rng)
    scores = worth[np.take_along_axis(drawn, played.chosen, axis=1)]
    low, high = bootstrap_mean(scores, repeats=REPEATS, level=level, rng=rng)
    return SelectionCurve(np.arange(1, budget + 1), scores.mean(axis=0), low, high)

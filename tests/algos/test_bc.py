"""Behaviour cloning: least squares, the best episodes, and rewards that never enter."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from offrl.algos.bc import ALGORITHM, BC, BCConfig, best_episodes
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.training.build import build
from offrl.training.check import batches, source_of, tiny_problem

SMALL = {"hidden": 16, "batch_size": 32}
RUN = {"rows": "exact", "device": "cpu", "seed": 0, "steps": 10, "compile": False, "threads": 1}


def series(problem, count):
    return itertools.islice(batches(ALGORITHM, problem), count)


def dataset(returns, length=4, offset=10.0):
    """One episode for each return, with observations about ``offset`` times the return, so that rows tell."""
    rng = np.random.default_rng(0)
    n = len(returns) * length
    ends = np.arange(n) % length == length - 1
    rewards = np.repeat(np.asarray(returns, float) / length, length)
    observations = rng.normal(size=(n, 3)) + offset * np.repeat(returns, length)[:, None]
    return OfflineDataset.from_arrays(observations, rng.uniform(-1, 1, (n, 2)), rewards, ends)


def test_linear_data_give_the_least_squares_fit():
    """a = s W + noise: the minimizer of the squared error is the conditional mean, here the linear fit.

    The data's noise is 0.05; the policy's root mean square distance from the fit is held to 0.03, against
    0.3 for the best constant.
    """
    rng = np.random.default_rng(1)
    s = rng.normal(size=(512, 3)).astype(np.float32)
    a = (s @ np.array([[0.2, -0.1], [0.0, 0.3], [-0.2, 0.1]]) + 0.05 * rng.normal(size=(512, 2))).astype(
        np.float32
    )
    fit = s @ np.linalg.lstsq(s, a, rcond=None)[0]
    problem = dataclasses.replace(
        tiny_problem(rows=512), observations=torch.from_numpy(s), actions=torch.from_numpy(a)
    )
    learner = BC(problem, BCConfig(hidden=32, lr=3e-3))
    source, generators = source_of(problem, 128), problem.streams("data")
    for _ in range(400):
        learner.update(source.sample(generators))
    error = learner.policy().act(torch.from_numpy(s))[0].detach().numpy() - fit
    assert np.sqrt((error**2).mean()) < 0.03
    assert fit.std() > 0.25


def test_the_gradient_is_that_of_the_mean_over_batch_and_dims():
    """One Adam step of the stacked learner equals one on mean (pi - a)^2 by torch's modules, a box of (0, 4)
    included.
    """
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    problem = dataclasses.replace(tiny_problem(), action_low=low, action_high=high)
    learner = BC(problem, BCConfig(lr=1e-2, **SMALL))
    policy = learner.policy()
    adam = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for batch in series(problem, 3):
        loss = ((policy(batch.observations[0]) - batch.actions[0]) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        metrics = learner.update(batch)
        torch.testing.assert_close(metrics["bc_loss"], loss.detach()[None])
    for ours, theirs in zip(learner.policy().parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [(1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), (0.3, [2, 5, 7]), (0.39, [2, 5, 7]), (0.1, [5]), (0.001, [5])],
)
def test_the_best_episodes_are_kept_in_their_order(fraction, kept):
    """max(1, floor(fraction n)) episodes, the best by undiscounted return, however long they are."""
    data = dataset([1.0, -3.0, 6.0, 2.0, 0.0, 9.0, 3.0, 8.0, -1.0, 4.0])
    chosen = best_episodes(data, BCConfig(top_fraction=fraction))
    np.testing.assert_allclose(chosen.episode_returns, data.episode_returns[kept], rtol=1e-6)


@pytest.mark.parametrize(("fraction", "count"), [(0.29, 29), (0.57, 57), (0.1, 10)])
def test_the_number_of_kept_episodes_does_not_suffer_from_rounding(fraction, count):
    """0.29 * 100 is 28.999999999999996 in floating point; 29 of 100 were asked for."""
    data = dataset(np.arange(100.0), length=1, offset=0.0)
    assert best_episodes(data, BCConfig(top_fraction=fraction)).num_episodes == count


def test_of_equal_episodes_the_earlier_are_kept():
    data = dataset([1.0, 2.0, 2.0, 2.0], offset=0.0)
    chosen = best_episodes(data, BCConfig(top_fraction=0.5))
    np.testing.assert_array_equal(chosen.fields["observations"], data.fields["observations"][4:12])


def test_a_long_episode_of_small_rewards_beats_a_short_one_of_large_rewards():
    """The return is the sum: 10 steps of 0.3 against 2 steps of 1."""
    ends = np.isin(np.arange(12), (1, 11))
    rewards = np.where(np.arange(12) < 2, 1.0, 0.3)
    data = OfflineDataset.from_arrays(np.zeros((12, 1)), np.zeros((12, 1)), rewards, ends)
    assert best_episodes(data, BCConfig(top_fraction=0.5)).num_steps == 10


def test_statistics_are_those_of_the_kept_episodes():
    """Observations are about 10 x return: the mean of the best half lies near 30 and 40, not near 25."""
    data = dataset([1.0, 2.0, 3.0, 4.0])
    learner, source = build(ALGORITHM, BCConfig(top_fraction=0.5, **SMALL), data, None, dict(RUN))
    kept = data.fields["observations"][8:].astype(np.float64)
    np.testing.assert_allclose(learner.normalizer.mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(learner.normalizer.std, kept.std(0) + 1e-3, rtol=1e-5)
    assert len(source) == 8


def test_rewards_never_enter_when_all_episodes_are_kept():
    """Two datasets that differ in their rewards alone train to the same bits; at a fraction of 0.5 they do
    not.
    """
    first = dataset([1.0, 2.0, 3.0, 4.0], offset=0.0)
    fields = {**first.fields, "rewards": -first.fields["rewards"]}
    second = OfflineDataset(fields, first.episode_starts)
    for fraction, equal in ((1.0, True), (0.5, False)):
        weights = []
        for data in (first, second):
            config = BCConfig(top_fraction=fraction, **SMALL)
            learner, source = build(ALGORITHM, config, data, None, dict(RUN))
            generators = tiny_problem().streams("data")
            for _ in range(5):
                learner.update(source.sample(generators))
            weights.append(learner.actor.params)
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)) is equal


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_an_impossible_fraction_is_refused_with_value_and_rule(fraction):
    with pytest.raises(
        ConfigError, match=rf"top_fraction must be in \(0, 1\], got {fraction}; 0.1 keeps the best 10 %"
    ):
        BCConfig(top_fraction=fraction)


@pytest.mark.parametrize(("setting", "value"), [("lr", 0.0), ("hidden", 0), ("batch_size", -1)])
def test_an_impossible_setting_is_refused_with_value(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} must be .*, got {value}"):
        BCConfig(**{setting: value})

"""Accuracies, pass@k and their intervals."""

import itertools

import pytest
import torch

from offrl.llm.evaluate import Evaluation, evaluate, interval
from offrl.llm.models import load_model
from offrl.llm.tasks import load_task


def made(success):
    n, k = success.shape
    zeros = torch.zeros(n, k)
    return Evaluation(success, zeros, zeros, success[:, 0], torch.arange(n) % 2 + 1)


def test_pass_at_k_is_the_mean_over_all_subsets():
    success = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    found = made(success)
    for k in range(1, 6):
        want = [
            sum(bool(row[list(s)].any()) for s in subsets) / len(subsets)
            for row in success
            for subsets in [list(itertools.combinations(range(5), k))]
        ]
        assert found.pass_each(k).tolist() == pytest.approx(want)
    assert found.pass_at(1) == pytest.approx(found.accuracy)
    assert found.by_level() == pytest.approx({1: 0.6, 2: 0.0})


def test_prompts_of_a_seed_are_the_same_and_draws_have_names():
    task = load_task("t1")
    policy = load_model("tiny:dense", task, 0)
    one, same, other = (
        evaluate(policy, task, prompts=40, samples=4, seed=0, name=name) for name in ("a", "a", "b")
    )
    assert torch.equal(one.lengths, same.lengths)
    assert not torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.greedy, other.greedy)
    assert one.lengths.shape == (40, 4)


def test_the_interval_covers_the_mean_with_the_right_width():
    x = torch.rand(400, generator=torch.Generator().manual_seed(0))
    low, high = interval(x)
    width = 2 * 1.96 * float(x.std()) / 20
    assert low < float(x.mean()) < high
    assert high - low == pytest.approx(width, rel=0.1)

"""Sets of rollouts: scores and advantages against enumeration, and where gradient ascent on them ends."""

from itertools import combinations, product

import pytest
import torch

from offrl.estimators.sets import all_sets, enumerable, polychromic, projected, random_sets, shared

R = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0], dtype=torch.float64)
CLASSES = torch.tensor([3, -1, 3, 7, -1])


def f(members):
    return float(R[list(members)].mean()) * len({int(CLASSES[i]) for i in members}) / len(members)


def test_scores_are_mean_reward_times_the_share_of_different_classes():
    sets = all_sets(5, 3)
    assert len(sets) == 10
    want = torch.tensor([f(members) for members in sets.tolist()], dtype=torch.float64)
    torch.testing.assert_close(polychromic(R, CLASSES, sets), want, atol=1e-12, rtol=0)


def test_projected_advantages_are_the_u_statistic_of_all_sets():
    sets = all_sets(5, 3)
    found = projected(polychromic(R, CLASSES, sets), sets, 5)
    mean = sum(f(s) for s in combinations(range(5), 3)) / 10
    for i in range(5):
        others = [f((i, *s)) for s in combinations([j for j in range(5) if j != i], 2)]
        assert abs(float(found[i]) - (sum(others) / len(others) - mean)) < 1e-12
    assert abs(float(found.sum())) < 1e-12
    assert found.abs().max() > 0.05


def test_shared_advantages_add_up_to_the_projected_ones_over_all_sets():
    sets = all_sets(5, 3)
    scores = polychromic(R, CLASSES, sets)
    each = shared(scores, sets, 5)
    assert each.shape == (5, 10)
    torch.testing.assert_close(each.sum(dim=1), projected(scores, sets, 5), atol=1e-12, rtol=0)
    member = torch.zeros(5, 10, dtype=torch.bool)
    for c, members in enumerate(sets.tolist()):
        member[members, c] = True
    assert ((each != 0) <= member).all()
    one = each[:, 2][member[:, 2]]
    assert (one == one[0]).all()  # every member the same


def test_random_sets_are_subsets_and_cover_all():
    sets = random_sets(5, 3, 400, torch.Generator().manual_seed(0))
    assert all(len(set(s)) == 3 for s in sets.tolist())
    counts = torch.bincount(sets.flatten(), minlength=5) / 400
    torch.testing.assert_close(counts, torch.full((5,), 0.6), atol=0.08, rtol=0)
    assert enumerable(8, 4)
    assert not enumerable(32, 8)
    found = projected(torch.tensor([1.0, 0.0]), torch.tensor([[0, 1], [1, 2]]), 4)
    assert found.tolist() == [0.5, 0.0, -0.5, 0.0]  # the last is in no set


def test_identical_rollouts_teach_nothing_but_equal_rewards_may():
    sets = all_sets(4, 2)
    same = polychromic(torch.ones(4), torch.zeros(4, dtype=torch.int64), sets)
    assert (projected(same, sets, 4) == 0).all()
    rarer = polychromic(torch.ones(4), torch.tensor([0, 0, 0, 1]), sets)
    assert projected(rarer, sets, 4)[3] > 0
    nothing = polychromic(torch.zeros(4), torch.arange(4), sets)
    assert (shared(nothing, sets, 4) == 0).all()


def bandit_gradient(logits, rewards, n, size, diverse):
    """Exact expectation of sum_i A_i grad log pi(a_i) over all draws of ``size`` arms."""
    p = logits.softmax(0)
    sets = all_sets(size, n)
    total = torch.zeros_like(logits)
    for draw in product(range(len(p)), repeat=size):
        arms = torch.tensor(draw)
        classes = arms if diverse else torch.arange(size)
        a = projected(polychromic(rewards[arms], classes, sets), sets, size)
        score = torch.eye(len(p), dtype=p.dtype)[arms] - p
        total += p[arms].prod() * (a[:, None] * score).sum(dim=0)
    return total


def test_without_diversity_it_is_the_policy_gradient_of_the_reward():
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    found = bandit_gradient(logits.detach(), rewards, 2, 4, diverse=False)
    want = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    ratio = found / want
    assert ratio[0] > 0
    torch.testing.assert_close(ratio, ratio[0].expand(3), atol=1e-10, rtol=0)


def test_its_gradient_is_that_of_the_expected_score_of_a_set():
    """E f over n independent draws, differentiated, is parallel to the estimator's expectation."""
    logits = torch.tensor([0.9, -0.2, 0.4], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    p, value = logits.softmax(0), torch.zeros((), dtype=torch.float64)
    for draw in product(range(3), repeat=2):
        arms = torch.tensor(draw)
        value = value + p[arms].prod() * polychromic(rewards[arms], arms, torch.tensor([[0, 1]]))[0]
    want = torch.autograd.grad(value, logits)[0]
    found = bandit_gradient(logits.detach(), rewards, 2, 4, diverse=True)
    ratio = found / want
    torch.testing.assert_close(ratio, ratio[0].expand(3), atol=1e-10, rtol=0)
    assert ratio[0] > 0


@pytest.mark.parametrize("diverse", [True, False])
def test_gradient_ascent_keeps_both_winning_arms_only_with_diversity(diverse):
    p = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    logits, rewards = p.log(), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    for _ in range(150):
        logits = logits + 8.0 * bandit_gradient(logits, rewards, 2, 3, diverse)
    p = logits.softmax(0)
    assert p[2] < 0.05
    assert (abs(float(p[0] - p[1])) < 0.02) == diverse

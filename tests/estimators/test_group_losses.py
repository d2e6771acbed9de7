"""Losses over whole groups: one is written here from its formula, as a method would."""

import pytest
import torch

from offrl.estimators.aggregation import sequence_mean
from offrl.estimators.group_losses import group_loss, weights_of
from offrl.estimators.groups import Groups, whole_groups
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts, count


def labels_loss(log_probs, old_log_probs, rewards, group_ids, mask, *, temperature=0.5):
    """log(1 + sum_{right} exp(-s / tau)) + log(1 + sum_{wrong} exp(s / tau)) in mixed groups (arXiv:2602.05630)."""
    groups = Groups(group_ids)
    s = sequence_mean(log_probs - old_log_probs, mask) / temperature
    right = rewards > 0.5
    total = 0.0
    for rows, x in ((right, -s), (~right, s)):
        total = total + groups.sum(x.exp() * rows).log1p() * (groups.sum(rows.double()) > 0)
    mixed = (groups.max(rewards) > 0.5) & (groups.max(-rewards) > -0.5)
    return total * mixed


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    x = (-torch.rand(9, 4, generator=g, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(9, 4, generator=g) < 0.7
    mask[:, 0] = True
    return x, Rollouts(
        mask=mask,
        old_log_probs=x.detach() + 0.2 * torch.randn(9, 4, generator=g, dtype=torch.float64),
        rewards=torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0]).double(),
        group_ids=torch.tensor([0, 5, 0, 5, 0, 5, 7, 7, 0]),
    )


def naive(x, r):
    total = 0.0
    for i in (0, 5, 7):
        up, down = 1.0, 1.0
        labels = r.rewards[r.group_ids == i]
        if labels.min() == labels.max():
            continue
        for row in torch.where(r.group_ids == i)[0]:
            chosen = r.mask[row]
            s = (x[row] - r.old_log_probs[row])[chosen].mean() / 0.5
            if r.rewards[row] > 0.5:
                up = up + (-s).exp()
            else:
                down = down + s.exp()
        total = total + up.log() + down.log()
    return total / 3


def test_a_group_loss_is_the_naive_one(batch):
    x, rollouts = batch
    loss = group_loss(labels_loss).loss(x, rollouts)
    torch.testing.assert_close(loss, naive(x, rollouts))
    (got,), (want,) = torch.autograd.grad(loss, x), torch.autograd.grad(naive(x, rollouts), x)
    torch.testing.assert_close(got, want)
    other = group_loss((labels_loss, {"temperature": 2.0}))
    assert not torch.allclose(other.loss(x, rollouts), loss)
    per_row = group_loss(labels_loss, "rows").loss(x, rollouts)
    torch.testing.assert_close(per_row, loss / 3)


def test_its_weights_give_its_gradient(batch):
    x, rollouts = batch
    estimator = group_loss(labels_loss)
    w = estimator.weights(x.detach(), rollouts)
    assert not w.requires_grad
    (got,) = torch.autograd.grad(-(w * x).sum(), x)
    (want,) = torch.autograd.grad(estimator.loss(x, rollouts), x)
    torch.testing.assert_close(got, want)
    assert (w[rollouts.rewards > 0.5] >= 0).all()
    assert (w[rollouts.rewards < 0.5] <= 0).all()


def test_micro_batches_of_whole_groups_add_up(batch):
    x, rollouts = batch
    estimator, counts = group_loss(labels_loss), count(rollouts.mask, rollouts.group_ids)
    parts = whole_groups(rollouts.group_ids, 4)
    assert len(parts) == 3
    total = sum(estimator.loss(x[i], rollouts.rows(i), counts) for i in parts)
    torch.testing.assert_close(total, estimator.loss(x, rollouts))


def test_the_pairwise_loss_on_policy_is_leave_one_out(batch):
    """CoPG with beta = 0: the coefficients of all pairs of a group are RLOO's times its size minus one."""
    x, rollouts = batch

    def pairs(sums):
        totals = sums.where(rollouts.mask, 0.0).sum(dim=1)
        same = rollouts.group_ids[:, None] == rollouts.group_ids
        gap = rollouts.rewards[:, None] - rollouts.rewards
        return -0.5 * (same * gap * (totals[:, None] - totals)).sum()

    w = weights_of(pairs, x)
    rloo = recipe("rloo").prepare(rollouts).advantages
    groups = Groups(rollouts.group_ids)
    want = (rloo * (groups.rows(groups.size) - 1))[:, None] * rollouts.mask
    torch.testing.assert_close(w, want)

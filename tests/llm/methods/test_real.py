"""REAL: closed-form weights, bounds and limits of tau, groups of one kind, its other forms."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.group_losses import group_loss
from offrl.estimators.rollouts import Rollouts
from offrl.llm.methods import load_method
from offrl.llm.methods.real import real

METHOD = load_method("real")


def loss_of(means, rewards, ids=None, tau=0.5, form="anchored"):
    """The groups' losses from mean log-ratios, one token a response."""
    ids = torch.zeros(len(rewards), dtype=torch.int64) if ids is None else torch.tensor(ids)
    x = means[:, None]
    return real(x, torch.zeros_like(x), torch.tensor(rewards).double(), ids, tau=tau, form=form)


def weights(means, rewards, **how):
    leaf = torch.tensor(means).double().requires_grad_()
    return torch.autograd.grad(loss_of(leaf, rewards, **how).sum(), leaf)[0]


def closed_form(means, rewards, tau):
    found = []
    for s, r in zip(means, rewards, strict=True):
        side = [-x / tau if q else x / tau for x, q in zip(means, rewards, strict=True) if q == r]
        own = -s / tau if r else s / tau
        top = max(0.0, *side)
        share = math.exp(own - top) / (math.exp(-top) + sum(math.exp(x - top) for x in side))
        found.append((-1 if r else 1) * share / tau)
    return found


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("tau", [0.5, 1.3])
def test_weights_are_the_closed_form_and_bounded(scale, tau):
    g = torch.Generator().manual_seed(0)
    means = (scale * (2 * torch.rand(8, generator=g) - 1)).tolist()
    rewards = [1, 0, 0, 1, 0, 1, 0, 0]
    found = weights(means, rewards, tau=tau)
    assert found.tolist() == pytest.approx(closed_form(means, rewards, tau), abs=1e-12)
    assert found.abs().max() <= 1 / tau
    assert torch.isfinite(found).all()
    assert (found[torch.tensor(rewards) > 0] <= 0).all()
    assert (found[torch.tensor(rewards) == 0] >= 0).all()


def test_on_policy_weights():
    found = weights([0.0] * 8, [1, 1, 1, 0, 0, 0, 0, 0])
    assert found[:3].tolist() == pytest.approx([-0.5] * 3)
    assert found[3:].tolist() == pytest.approx([1 / 3] * 5)


def test_the_value_by_hand():
    """Two rewarded at 0.1 and -0.2, one other at 0.3, tau 1/2."""
    found = loss_of(torch.tensor([0.1, -0.2, 0.3]).double(), [1.0, 1.0, 0.0])
    want = math.log(1 + math.exp(-0.2) + math.exp(0.4)) + math.log(1 + math.exp(0.6))
    assert found.tolist() == pytest.approx([want])


@pytest.mark.parametrize("form", ["anchored", "bce", "product"])
def test_groups_of_one_kind_weigh_nothing_but_are_counted(form):
    ids = [4, 4, 9, 9, 2, 2]
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]).double()
    leaf = torch.tensor([[0.2], [0.1], [-0.3], [0.4], [0.1], [5.0]]).double().requires_grad_()
    batch = Rollouts(
        mask=torch.ones(6, 1, dtype=torch.bool), old_log_probs=torch.zeros(6, 1).double(), rewards=rewards,
        group_ids=torch.tensor(ids),
    )  # fmt: skip
    estimator = group_loss((real, {"tau": 0.5, "form": form}))
    found = torch.autograd.grad(estimator.loss(leaf, batch), leaf)[0]
    assert found[2:].abs().max() == 0
    alone = torch.autograd.grad(estimator.loss(leaf[:2], batch.rows(torch.tensor([0, 1]))), leaf)[0]
    torch.testing.assert_close(found[:2], alone[:2] / 3)
    assert found[:2].abs().min() > 0.01
    nothing = estimator.loss(leaf[2:], batch.rows(torch.tensor([2, 3, 4, 5])))
    assert float(nothing.detach()) == 0.0
    assert torch.autograd.grad(nothing, leaf)[0].abs().max() == 0


def test_means_over_the_chosen_tokens_and_groups_by_id():
    g = torch.Generator().manual_seed(3)
    old = torch.randn(6, 4, generator=g).double()
    new = old + torch.randn(6, 4, generator=g).double()
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 2, 4])[:, None]
    new = new.masked_fill(~mask, 77.0)
    ids, rewards = torch.tensor([5, 1, 1, 5, 1, 5]), torch.tensor([1.0, 0, 1, 0, 0, 0]).double()
    found = real(new, old, rewards, ids, mask, tau=0.5, form="anchored")
    means = torch.stack([(new - old)[i, : int(mask[i].sum())].mean() for i in range(6)])
    want = [loss_of(means[rows], rewards[rows].tolist())[0] for rows in ([1, 2, 4], [0, 3, 5])]
    torch.testing.assert_close(found, torch.stack(want))


def test_detached_advantages_give_the_same_gradient(drifted):
    now, batch = drifted()
    leaf = now.clone().requires_grad_()
    estimator = METHOD.estimator(METHOD.config(), 6)
    want = torch.autograd.grad(estimator.loss(leaf, batch), leaf)[0]
    weights = estimator.weights(now, batch)
    found = torch.autograd.grad(-(weights * leaf).where(batch.mask, 0.0).sum(), leaf)[0]
    torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-9)
    means = ((now - batch.old_log_probs) * batch.mask).sum(1) / batch.lengths.double()
    good = batch.rewards > torch.stack([batch.rewards[i % 3 :: 3].mean() for i in range(12)])
    for i in range(12):
        group = [j for j in range(12) if j % 3 == i % 3]
        each = closed_form([float(means[j]) for j in group], [bool(good[j]) for j in group], 0.5)
        a = torch.tensor(each[group.index(i)], dtype=torch.float64) / 3 / batch.lengths[i].double()
        torch.testing.assert_close(want[i], torch.where(batch.mask[i], a, 0.0), atol=1e-12, rtol=1e-9)


def test_limits_of_tau():
    means, rewards = [-0.3, -0.1, 0.2, 0.4, 0.1, -0.2], [1, 1, 1, 0, 0, 0]
    flat = weights(means, rewards, tau=1e6) * 1e6
    assert flat.tolist() == pytest.approx([-0.25] * 3 + [0.25] * 3, abs=1e-5)
    sharp = weights(means, rewards, tau=1e-3) * 1e-3
    assert sharp.tolist() == pytest.approx([-1, 0, 0, 1, 0, 0], abs=1e-6)


def test_a_rewarded_response_weighs_less_the_likelier_it_became():
    sizes = [float(weights([s, 0.0, 0.0], [1, 1, 0])[0].abs()) for s in torch.linspace(-3, 3, 13).tolist()]
    assert sizes == sorted(sizes, reverse=True)
    others = [float(weights([0.0, 0.0, s], [1, 1, 0])[2]) for s in torch.linspace(-3, 3, 13).tolist()]
    assert others == sorted(others)


def test_bce_is_half_of_it_for_a_pair():
    means = torch.tensor([0.3, -0.7]).double()
    pair = loss_of(means, [1.0, 0.0])
    torch.testing.assert_close(loss_of(means, [1.0, 0.0], form="bce"), pair / 2)
    many, rewards = torch.tensor([0.3, -0.7, 0.1]).double(), [1.0, 0.0, 0.0]
    logits = many / 0.5
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(rewards).double())
    torch.testing.assert_close(loss_of(many, rewards, form="bce")[0], want)


def test_product_compares_the_kinds_alone():
    means, rewards = torch.tensor([0.3, -0.7, 0.1]).double(), [1.0, 0.0, 0.0]
    want = math.log(1 + (math.exp(-1.4) + math.exp(0.2)) * math.exp(-0.6))
    assert float(loss_of(means, rewards, form="product")) == pytest.approx(want)
    torch.testing.assert_close(
        loss_of(means + 3.0, rewards, form="product"), loss_of(means, rewards, form="product")
    )


def test_graded_rewards_are_split_at_their_mean():
    means = torch.tensor([0.3, -0.7, 0.1, 0.2]).double()
    torch.testing.assert_close(loss_of(means, [3.0, 0.0, 2.0, 1.0]), loss_of(means, [1.0, 0.0, 1.0, 0.0]))


def test_tau_must_be_positive():
    with pytest.raises(ConfigError, match="tau must be positive"):
        METHOD.config(tau=0.0)

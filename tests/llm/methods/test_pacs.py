"""PACS: RLOO at the start, coefficients by label, the analytic gradient, and that it limits itself."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts
from offrl.llm.methods import load_method

METHOD = load_method("pacs")
IDS = torch.tensor([3, 8, 3, 8, 3, 8, 3, 8, 3, 3])
LABELS = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 0, 0]).double()  # group 3: 2 of 6; group 8: 3 of 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def estimator(**settings):
    return METHOD.estimator(METHOD.config(**settings), 5)


def ragged(labels=LABELS, shift=0.0):
    old = -normal(10, 5).abs()
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 3, 4, 2, 1, 3, 5, 4])[:, None]
    x = (old + shift * normal(10, 5, seed=1)).requires_grad_()
    return x, Rollouts(mask=mask, old_log_probs=old, rewards=labels, group_ids=IDS)


def coefficients(made, x, batch):
    """d loss / d log pi of each row; the same at all of its tokens, 0 at padding."""
    (found,) = torch.autograd.grad(made.loss(x, batch), x)
    torch.testing.assert_close(found, found[:, :1] * batch.mask)
    return found[:, 0]


def test_at_the_start_it_is_rloo():
    x, batch = ragged()
    rloo = recipe("rloo")
    (want,) = torch.autograd.grad(rloo.loss(x, rloo.prepare(batch)), x)
    (found,) = torch.autograd.grad(estimator(beta=0.7, balance=False).loss(x, batch), x)
    torch.testing.assert_close(found, 0.7 * want, atol=1e-12, rtol=1e-6)


def test_balanced_labels_pull_by_their_number():
    x, batch = ragged()
    c = coefficients(estimator(), x, batch)
    mine, right = IDS == 3, LABELS > 0
    assert (c[mine & right] < 0).all()
    torch.testing.assert_close(c[mine & right], c[0].expand(2))
    torch.testing.assert_close(c[mine & ~right], (-c[0] / 2).expand(4))
    torch.testing.assert_close(c[~mine & ~right], -3 * c[~mine & right][:1])


def test_labels_between_0_and_1_count_on_the_nearer_side():
    x, batch = ragged()
    soft = 0.5 + 0.8 * (LABELS - 0.5)  # 0.9 and 0.1
    c = coefficients(estimator(), x, batch.replace(rewards=soft))
    torch.testing.assert_close(c, 0.8 * coefficients(estimator(), x, batch))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_groups_of_one_label_teach_nothing_at_first(label):
    labels = torch.full_like(LABELS, label)
    assert (coefficients(estimator(), *ragged(labels)) == 0).all()
    later = coefficients(estimator(), *ragged(labels, shift=0.5))
    assert (later.abs() > 1e-4).all()
    for group in (3, 8):
        assert float(later[group == IDS].sum().abs()) < 1e-12
    plain = coefficients(estimator(balance=False), *ragged(labels, shift=0.5))
    assert torch.equal(plain, later)


@pytest.mark.parametrize("balance", [True, False])
def test_the_gradient_is_that_of_centred_residuals(balance):
    x, batch = ragged(shift=0.8)
    made = estimator(beta=1.5, balance=balance)
    found = coefficients(made, x, batch)
    scores = 1.5 * (x - batch.old_log_probs).where(batch.mask, 0.0).sum(1).detach()
    value = 0.0
    for i in range(10):
        group = [j for j in range(10) if IDS[j] == IDS[i]]
        psi = {
            j: float(scores[j]) - sum(float(scores[k]) for k in group if k != j) / (len(group) - 1)
            for j in group
        }
        sigma = {j: 1 / (1 + math.exp(-psi[j])) for j in group}
        same = {j: sum(LABELS[k] == LABELS[j] for k in group).item() for j in group}
        w = {j: len(group) / (2 * same[j]) if balance else 1.0 for j in group}
        e = {j: w[j] * (float(LABELS[j]) - sigma[j]) for j in group}
        a = 1.5 * (e[i] - sum(e[k] for k in group if k != i) / (len(group) - 1))
        assert float(found[i]) == pytest.approx(-a / 10, rel=1e-9)
        right = sigma[i] if LABELS[i] > 0 else 1 - sigma[i]
        value -= w[i] * math.log(right) / 10
    assert float(made.loss(x.detach(), batch)) == pytest.approx(value, rel=1e-9)
    for group in (3, 8):
        assert float(found[group == IDS].sum().abs()) < 1e-12


def test_finite_differences():
    x, batch = ragged(shift=0.8)
    made = estimator()
    (found,) = torch.autograd.grad(made.loss(x, batch), x)
    step, base = 1e-5, x.detach()
    for place in ((0, 0), (4, 2), (1, 0), (1, 4)):
        up, down = base.clone(), base.clone()
        up[place] += step
        down[place] -= step
        slope = (made.loss(up, batch) - made.loss(down, batch)) / (2 * step)
        assert float(found[place]) == pytest.approx(float(slope), abs=1e-9)


def test_what_all_responses_gain_changes_nothing():
    x, batch = ragged(shift=0.8)
    made = estimator()
    gain = torch.zeros_like(batch.mask, dtype=torch.float64)
    gain[:, 0] = torch.where(IDS == 3, 0.7, -1.1)
    torch.testing.assert_close(made.loss(x, batch), made.loss(x + gain, batch))
    torch.testing.assert_close(made.loss(x, batch), made.loss(x + 5.0 * ~batch.mask, batch))  # padding
    order = torch.tensor([9, 1, 4, 0, 2, 3, 8, 7, 6, 5])
    torch.testing.assert_close(made.loss(x, batch), made.loss(x[order], batch.rows(order)))


def test_one_batch_again_and_again_stops_moving_the_policy():
    """A bandit of six arms, a group of one response each; RLOO without a clip goes on for ever."""
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    old = logits.detach().log_softmax(0)[:, None]
    labels = torch.tensor([1, 0, 0, 1, 0, 1]).double()
    batch = Rollouts(
        mask=torch.ones(6, 1).bool(), old_log_probs=old, rewards=labels, group_ids=torch.zeros(6).long()
    )
    made, norms = estimator(balance=False), []
    for _ in range(300):
        loss = made.loss(logits.log_softmax(0)[:, None], batch)
        (slope,) = torch.autograd.grad(loss, logits)
        norms.append(float(slope.norm()))
        with torch.no_grad():
            logits -= 5.0 * slope
    assert norms[-1] < 0.02 * norms[0]
    scores = (logits.log_softmax(0)[:, None] - old)[:, 0].detach()
    assert scores[labels > 0].min() - scores[labels == 0].max() > 3
    rloo = recipe("rloo")
    (slope,) = torch.autograd.grad(rloo.loss(logits.log_softmax(0)[:, None], rloo.prepare(batch)), logits)
    assert float(slope.norm()) > 0.9 * norms[0]


def test_rewards_must_be_labels():
    with pytest.raises(ConfigError, match=r"labels in \[0, 1\]; there is one of 2.5"):
        METHOD.shaped(METHOD.config(), torch.tensor([0.0, 2.5]), None, None)
    with pytest.raises(ConfigError, match=r"there is one of -0.2"):
        METHOD.shaped(METHOD.config(), torch.tensor([0.9, -0.2]), None, None)
    assert METHOD.shaped(METHOD.config(), LABELS, None, None) is LABELS

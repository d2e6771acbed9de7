"""P3O: exact off policy, blind to the prompt's share of a reward, RLOO on policy; what its clips stop."""

import itertools
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.recipes import recipe
from offrl.llm.methods import load_method
from offrl.llm.methods.p3o import pairs

METHOD = load_method("p3o")
FORMS = ["separate", "joint"]
ARMS = torch.tensor([0.3, -0.5, 1.2, 0.0, -1.0, 0.7], dtype=torch.float64)
REWARDS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5], dtype=torch.float64)


def expected_loss(logits, old, rewards, form, clip):
    """The loss over all ordered pairs of arms that pi_old draws, each with its probability."""
    both = torch.tensor(list(itertools.product(range(6), repeat=2)))
    new, before = logits.log_softmax(0)[both], old.log_softmax(0)[both]
    ids = torch.arange(36).repeat_interleave(2)
    values = pairs(
        new.reshape(-1, 1), before.reshape(-1, 1), rewards[both].flatten(), ids, clip=clip, form=form
    )
    return (values * before.sum(dim=1).exp()).sum()


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_off_policy_is_that_of_the_expected_reward(form):
    logits = (ARMS + torch.tensor([0.1, 0.4, -0.3, 0.2, 0.0, -0.5])).requires_grad_()
    loss = expected_loss(logits, ARMS, REWARDS, form, clip=1e9)
    (found,) = torch.autograd.grad(loss, logits)
    (want,) = torch.autograd.grad(-(logits.softmax(0) * REWARDS).sum(), logits)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-12)


def gradient(now, batch, **settings):
    leaf = now.clone().requires_grad_()
    estimator = METHOD.estimator(METHOD.config(**settings), 6)
    return torch.autograd.grad(estimator.loss(leaf, batch), leaf)[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_reward_of_the_prompt_changes_nothing(form, drifted):
    now, batch = drifted()
    shifts = torch.tensor([5.0, -30.0, 1000.0], dtype=torch.float64)[batch.group_ids]
    found = gradient(now, batch, form=form)
    torch.testing.assert_close(gradient(now, batch.replace(rewards=batch.rewards + shifts), form=form), found)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [6, 3])
def test_on_policy_it_is_rloo(form, groups, drifted):
    """Groups of two, and of four."""
    _, batch = drifted(groups=groups)
    now = batch.old_log_probs
    leaf = now.clone().requires_grad_()
    rloo = recipe("rloo")
    want = torch.autograd.grad(rloo.loss(leaf, rloo.prepare(batch)), leaf)[0]
    torch.testing.assert_close(gradient(now, batch, form=form), want, atol=1e-8, rtol=1e-6)


def by_hand(log_rho, rewards, form, e):
    """The loss of a group, pair by pair."""
    total, count = 0.0, 0
    for i, j in itertools.combinations(range(len(rewards)), 2):
        one, other = math.exp(log_rho[i]), math.exp(log_rho[j])
        gap, near = rewards[i] - rewards[j], lambda x: min(max(x, 1 - e), 1 + e)
        if form == "separate":
            first = min(other * gap * one, near(other) * gap * near(one))
            second = min(one * -gap * other, near(one) * -gap * near(other))
            total -= 0.5 * (first + second)
        else:
            d = log_rho[i] - log_rho[j]
            cut = min(max(d, -e), e)
            total -= 0.5 * min(one * other * gap * d, near(one * other) * gap * cut)
        count += 1
    return total / count


@pytest.mark.parametrize("form", FORMS)
def test_the_value_by_hand(form, drifted):
    now, batch = drifted()
    found = pairs(now, batch.old_log_probs, batch.rewards, batch.group_ids, batch.mask, clip=0.3, form=form)
    log_rho = ((now - batch.old_log_probs) * batch.mask).sum(1)
    for group in range(3):
        rows = (batch.group_ids == group).nonzero()[:, 0]
        want = by_hand(log_rho[rows].tolist(), batch.rewards[rows].tolist(), form, 0.3)
        assert float(found[group]) == pytest.approx(want, rel=1e-9)


def pushed(form, free, e=0.2, steps=400):
    """Log-ratios of a pair after many small steps along the gradient of its loss, the first being better.

    Only the responses in ``free`` move.
    """
    x = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        g = slope(x, form, e)
        moved = torch.zeros_like(g)
        moved[free] = g[free]
        x = (x - 0.005 * moved).detach().requires_grad_()
    return x.detach()[:, 0]


def slope(x, form, e=0.2):
    ids, rewards = torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 0.0])
    loss = pairs(x, torch.zeros_like(x), rewards, ids, clip=e, form=form).sum()
    return torch.autograd.grad(loss, x)[0]


def test_pushing_a_pair_stops_at_the_clip():
    one, other = pushed("joint", [0, 1]).tolist()
    assert one - other == pytest.approx(0.2, abs=0.01)
    assert float(pushed("separate", [0])[0].exp()) == pytest.approx(1.2, abs=0.01)
    assert float(pushed("separate", [1])[1].exp()) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("form", "at"), [("joint", [-1.0, 1.0]), ("separate", [-1.0, 0.0])])
def test_where_the_better_response_became_less_likely_it_is_pushed_back(form, at):
    g = slope(torch.tensor(at, dtype=torch.float64)[:, None].requires_grad_(), form)
    assert float(g[0]) < -0.1
    assert float(g[1]) > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_with_a_kl_in_the_reward_it_ends_at_the_known_optimum(form):
    """Exact expectations on six arms, the reward of each step less the KL's at the policy that draws."""
    beta, logits = 0.5, ARMS.clone()
    target = (ARMS.log_softmax(0) + REWARDS / beta).log_softmax(0)
    for _ in range(600):
        leaf = logits.clone().requires_grad_()
        rewards = REWARDS - beta * (logits.log_softmax(0) - ARMS.log_softmax(0))
        (g,) = torch.autograd.grad(expected_loss(leaf, logits, rewards, form, clip=0.2), leaf)
        logits = logits - 2.0 * g
    found = logits.log_softmax(0)
    assert float((found.exp() * (found - target)).sum()) < 1e-3


def test_prompts_shifts_do_not_add_to_its_variance():
    """A baseline that is one for all prompts does not see them; pairs do."""
    g = torch.Generator().manual_seed(0)

    def spread(scale):
        delta = scale * torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        mine, plain = [], []
        for _ in range(200):
            arms = torch.multinomial(ARMS.softmax(0), 16, replacement=True, generator=g)
            ids = torch.arange(8).repeat_interleave(2)
            logits = ARMS.clone().requires_grad_()
            x = logits.log_softmax(0)[arms][:, None]
            rewards = REWARDS[arms] + delta[ids]
            loss = pairs(x, x.detach(), rewards, ids, clip=0.2, form="joint").mean()
            mine.append(torch.autograd.grad(loss, logits, retain_graph=True)[0])
            surrogate = -((rewards - rewards.mean()) * x[:, 0]).mean()
            plain.append(torch.autograd.grad(surrogate, logits)[0])
        return [float(torch.stack(x).var(dim=0).sum()) for x in (mine, plain)]

    calm, wild = spread(0.0), spread(10.0)
    assert wild[0] == pytest.approx(calm[0], rel=0.3)
    assert wild[1] > 10 * calm[1]


def test_long_responses_do_not_overflow():
    x = torch.full((2, 1), 300.0, dtype=torch.float64, requires_grad=True)
    for form in FORMS:
        loss = pairs(
            x,
            torch.zeros_like(x),
            torch.tensor([1.0, 0.0]),
            torch.zeros(2, dtype=torch.int64),
            clip=0.2,
            form=form,
        )
        assert torch.isfinite(torch.autograd.grad(loss.sum(), x)[0]).all()


def test_the_clip_must_be_positive():
    with pytest.raises(ConfigError, match="clip must be positive"):
        METHOD.config(clip=0.0)

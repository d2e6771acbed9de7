"""CoPG: its optimum off policy, its gradient on policy, its other forms, and IPO as a special case."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.compose import Step
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts
from offrl.llm.methods import load_method

KL = 0.3
METHOD = load_method("copg")
ESTIMATOR = METHOD.estimator(METHOD.config(kl=KL), 4)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged():
    x = (-normal(9, 4).abs()).requires_grad_()
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4, 2, 1, 3, 4])[:, None]
    batch = Rollouts(
        mask=mask, ref_log_probs=-normal(9, 4, seed=1).abs(), rewards=normal(9, seed=2),
        group_ids=torch.tensor([0, 5, 0, 5, 0, 5, 7, 7, 7]),
    )  # fmt: skip
    return x, batch


def gradient(loss, x):
    return torch.autograd.grad(loss, x, retain_graph=True)[0]


def regularized(x, batch):
    return batch.rewards - KL * (x - batch.ref_log_probs).where(batch.mask, 0.0).sum(dim=1)


# a bandit of five arms: rows are all pairs of arms, a group each

ARMS = 5
REWARDS, REF = normal(ARMS, seed=3), normal(ARMS, seed=4).softmax(0)
MU = normal(ARMS, seed=5).softmax(0)
FIRST, SECOND = (i.flatten() for i in torch.meshgrid(torch.arange(ARMS), torch.arange(ARMS), indexing="ij"))
PAIRS = torch.stack([FIRST, SECOND], dim=1).flatten()
TARGET = (REF.log() + REWARDS / KL).softmax(0)


def of_pairs(logits, probabilities):
    """The loss in expectation over pairs of independent draws."""
    log_p = logits.log_softmax(0)
    batch = Rollouts(
        mask=torch.ones(len(PAIRS), 1, dtype=torch.bool), ref_log_probs=REF.log()[PAIRS, None],
        rewards=REWARDS[PAIRS], group_ids=torch.arange(len(FIRST)).repeat_interleave(2),
    )  # fmt: skip
    values = ESTIMATOR.part(Step(batch, log_p[PAIRS, None]))
    return (values * probabilities[FIRST] * probabilities[SECOND]).sum()


def test_whatever_sampled_it_ends_at_the_optimum():
    """The loss is quadratic in the logits, up to a shift: one Newton step is where all descent ends."""
    logits = torch.zeros(ARMS, dtype=torch.float64, requires_grad=True)
    slope = gradient(of_pairs(logits, MU), logits)
    curvature = torch.autograd.functional.hessian(lambda x: of_pairs(x, MU), logits)
    values, vectors = torch.linalg.eigh(curvature)
    assert values[0].abs() < 1e-12
    assert values[1] > 1e-3
    end = -(vectors[:, 1:] / values[1:]) @ (vectors[:, 1:].T @ slope)
    assert (end.softmax(0) - TARGET).abs().max() < 1e-8
    found = gradient(of_pairs(end.requires_grad_(), MU), end)
    assert found.abs().max() < 1e-12


def test_without_the_contrast_it_would_end_elsewhere():
    """Ascent on E_mu[R_kl(y) grad log pi(y)], the weight constant."""
    logits = REF.log().clone()
    for _ in range(3000):
        log_p = logits.log_softmax(0)
        weights = MU * (REWARDS - KL * (log_p - REF.log()))
        logits = logits + 0.5 * (weights - weights.sum() * log_p.exp())
    assert (logits.softmax(0) - TARGET).abs().max() > 0.05


def test_on_policy_its_gradient_is_the_objectives():
    logits = normal(ARMS, seed=6).requires_grad_()
    p = logits.softmax(0)
    objective = (p * (REWARDS - KL * (p / REF).log())).sum()
    found = gradient(of_pairs(logits, p.detach()), logits)
    torch.testing.assert_close(found, -gradient(objective, logits), atol=1e-12, rtol=1e-9)


def test_square_product_and_weights_point_the_same_way():
    """The square of R_kl's difference; the product with R_{kl/2}; detached weights on grad log pi."""
    x, batch = ragged()
    log_ratio = (x - batch.ref_log_probs).where(batch.mask, 0.0).sum(dim=1)
    full, half = batch.rewards - KL * log_ratio, batch.rewards - 0.5 * KL * log_ratio
    ids, sizes = batch.group_ids, 3.0
    pairs = (ids[:, None] == ids).double() / (3 * sizes * (sizes - 1))
    square = (pairs * (full[:, None] - full).square()).sum() / (4 * KL)
    product = -(pairs * (half[:, None] - half) * (log_ratio[:, None] - log_ratio)).sum() / 2
    weights = ((full[:, None] - full).detach() * pairs).sum(dim=1)
    found = gradient(ESTIMATOR.loss(x, batch), x)
    for other in (square, product, -(weights * log_ratio).sum()):
        torch.testing.assert_close(found, gradient(other, x), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(ESTIMATOR.loss(x, batch), square)


def test_it_is_leave_one_out_on_regularized_rewards():
    x, batch = ragged()
    rloo = recipe("rloo")
    other = rloo.prepare(batch.replace(rewards=regularized(x.detach(), batch)))
    found = gradient(ESTIMATOR.loss(x, batch), x)
    torch.testing.assert_close(found, gradient(rloo.loss(x, other), x), atol=1e-12, rtol=1e-9)
    assert found[~batch.mask].abs().max() == 0


def test_rewards_of_a_quarter_give_ipo():
    x, batch = ragged()
    rows = torch.tensor([0, 1, 6, 7])
    x, batch = (
        x[rows],
        batch.rows(rows).replace(
            rewards=torch.tensor([0.25, -0.25, -0.25, 0.25]).double(), group_ids=torch.tensor([1, 1, 2, 2])
        ),
    )
    log_ratio = (x - batch.ref_log_probs).where(batch.mask, 0.0).sum(dim=1)
    gaps = torch.stack([log_ratio[0] - log_ratio[1], log_ratio[3] - log_ratio[2]])
    ipo = (gaps - 1 / (2 * KL)).square().mean()
    torch.testing.assert_close(ESTIMATOR.loss(x, batch), 0.25 * KL * ipo)


def test_a_prompts_shift_and_the_order_change_nothing():
    x, batch = ragged()
    found = gradient(ESTIMATOR.loss(x, batch), x)
    shift = torch.tensor([0.0, 3.0, -2.0])[Groups(batch.group_ids).index].double()
    shifted = batch.replace(rewards=batch.rewards + shift)
    torch.testing.assert_close(gradient(ESTIMATOR.loss(x, shifted), x), found, atol=1e-12, rtol=1e-9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    permuted = gradient(ESTIMATOR.loss(x[order], batch.rows(order)), x)
    torch.testing.assert_close(permuted, found, atol=1e-12, rtol=1e-9)


def test_equal_responses_teach_nothing():
    x, batch = ragged()
    x, batch = x[[0, 0, 0]], batch.rows(torch.tensor([0, 0, 0]))
    assert float(ESTIMATOR.loss(x.detach(), batch)) == 0.0


def test_without_kl_there_is_no_optimum():
    with pytest.raises(ConfigError, match="copg needs --kl above 0"):
        METHOD.config(kl=0.0)

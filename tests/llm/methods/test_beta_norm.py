"""BNPO: the fit of its normalizer, what it turns into at known parameters, and what leaves it alone."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.advantages import group_mean, group_std
from offrl.llm.methods import load_method
from offrl.llm.methods.beta_norm import beta_norm, each_beta_norm, fitted, of_one, reciprocal
from offrl.llm.options import LLMOptions
from offrl.llm.session import build

UNIT = {"low": 0.0, "high": 1.0, "cap": 1e6}


def drawn(groups=8, size=6, seed=0):
    """Binary rewards with rates all over, group ids in no order."""
    g = torch.Generator().manual_seed(seed)
    rates = torch.rand(groups, generator=g, dtype=torch.float64)
    ids = torch.arange(groups).repeat_interleave(size)[torch.randperm(groups * size, generator=g)]
    rewards = torch.bernoulli(rates[ids], generator=g)
    return rewards, ids


def forced(rewards, ids, alpha, beta):
    from offrl.estimators.groups import Groups

    groups = Groups(ids)
    weights = reciprocal(
        groups.mean(rewards), torch.tensor(alpha).double(), torch.tensor(beta).double(), cap=1e9
    )
    return groups.centered(rewards) * groups.rows(weights)


def test_parameters_of_one_are_the_centred_reward_and_of_three_halves_grpo():
    rewards, ids = drawn()
    torch.testing.assert_close(
        forced(rewards, ids, 1.0, 1.0), group_mean(rewards, ids), atol=1e-12, rtol=1e-12
    )
    biased = group_std(rewards, ids, epsilon=0.0).nan_to_num() * math.sqrt(6 / 5)
    torch.testing.assert_close(forced(rewards, ids, 1.5, 1.5), biased * math.pi / 8, atol=1e-12, rtol=1e-12)


def test_the_density_is_torchs():
    rates = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    alpha, beta = torch.tensor(2.3).double(), torch.tensor(1.4).double()
    want = (-torch.distributions.Beta(alpha, beta).log_prob(rates)).exp()
    torch.testing.assert_close(reciprocal(rates, alpha, beta, 1e6), want)


def test_by_hand():
    """Rates 1/4, 1/2, 3/4: mean 1/2, unbiased variance 1/16, k = 3, a = b = 3/2, so alpha = beta = 3/2."""
    rewards = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]).double()
    ids = torch.arange(3).repeat_interleave(4)
    alpha, beta = fitted(torch.tensor([0.25, 0.5, 0.75]).double())
    assert (float(alpha), float(beta)) == pytest.approx((1.5, 1.5))
    found = beta_norm(rewards, ids, **UNIT)
    quarter = math.pi / 8 / math.sqrt(3 / 16)
    assert found[:4].tolist() == pytest.approx([0.75 * quarter] + [-0.25 * quarter] * 3)
    assert found[4:8].tolist() == pytest.approx([math.pi / 8] * 2 + [-math.pi / 8] * 2)


def test_float32_rewards_have_the_factors_of_float64():
    """Two rates 0.0005 apart: alpha = 3.3e5, of whose lgamma float32 keeps the first digits."""
    rewards = torch.zeros(2, 2000, dtype=torch.float64)
    rewards[0, :1000] = rewards[1, :1001] = 1.0
    ids = torch.arange(2).repeat_interleave(2000)
    alpha, _ = fitted(rewards.mean(dim=1).float())
    assert float(alpha) == pytest.approx(1 + 2e6 / 6, rel=1e-2)
    how = {"low": 0.0, "high": 1.0, "cap": 1e6}
    found = beta_norm(rewards.flatten().float(), ids, **how)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), beta_norm(rewards.flatten(), ids, **how), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("a", "b"), [(1.5, 1.5), (3.0, 1.0), (2.0, 6.0)])
def test_the_fit_finds_the_formulas_parameters(a, b):
    torch.manual_seed(0)
    rates = torch.distributions.Beta(torch.tensor(a).double(), torch.tensor(b).double()).sample((100_000,))
    alpha, beta = fitted(rates)
    assert float(alpha) == pytest.approx(1 + a / 3, rel=0.02)
    assert float(beta) == pytest.approx(1 + b / 3, rel=0.02)


@pytest.mark.parametrize(("a", "b"), [(1.5, 1.5), (3.0, 2.0)])
def test_its_parameters_have_the_least_variance_of_a_grid(a, b):
    """Mean of ((R - p) / density)^2 over the same draws; a density integrates to 1, so that no scale is free."""
    torch.manual_seed(1)
    p = torch.distributions.Beta(torch.tensor(a).double(), torch.tensor(b).double()).sample((100_000,))
    square = (torch.bernoulli(p) - p).square()

    def variance(alpha, beta):
        w = reciprocal(p, torch.tensor(alpha).double(), torch.tensor(beta).double(), 1e9)
        return float((square * w.square()).mean())

    best = (1 + a / 3, 1 + b / 3)
    grid = {(best[0] + i * 0.25, best[1] + j * 0.25) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert min(grid, key=lambda at: variance(*at)) == best


def test_what_does_not_teach_gets_nothing_and_everything_stays_finite():
    ids = torch.arange(4).repeat_interleave(3)
    mixed = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0]).double()
    found = beta_norm(mixed, ids, **UNIT)
    assert found[:6].tolist() == [0.0] * 6
    assert found[6:].abs().min() > 0.1
    for rewards in (
        torch.zeros(12),
        torch.ones(12),
        torch.tensor([1.0, 0, 0] * 4),
        torch.tensor([1.0, 1, 0] * 4),
    ):
        equal = beta_norm(rewards.double(), ids, **UNIT)
        torch.testing.assert_close(equal, group_mean(rewards.double(), ids))
    for groups in range(2, 40):  # thirds whose mean is rounded: a variance of 1e-33 is no spread
        third, many = torch.tensor([1.0, 0, 0] * groups).double(), torch.arange(groups).repeat_interleave(3)
        torch.testing.assert_close(beta_norm(third, many, **UNIT), group_mean(third, many))
    certain = beta_norm(torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]).double(), ids, **UNIT)
    assert certain.tolist() == [0.0] * 12  # k < 0: the clamp at 1
    assert [float(x) for x in fitted(torch.tensor([0.0, 1.0, 0.0, 1.0]))] == [1.0, 1.0]
    one = beta_norm(torch.tensor([1.0, 0.0]).double(), torch.tensor([7, 7]), **UNIT)
    assert one.tolist() == [0.5, -0.5]


def test_a_group_sums_to_zero_and_rows_may_come_in_any_order():
    rewards, ids = drawn()
    found = beta_norm(rewards, ids, **UNIT)
    for group in ids.unique():
        assert float(found[ids == group].sum()) == pytest.approx(0.0, abs=1e-9)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(beta_norm(rewards[order], ids[order], **UNIT), found[order])
    torch.testing.assert_close(beta_norm(rewards, 100 - 3 * ids, **UNIT), found)


def test_the_mean_over_rewards():
    rewards, ids = drawn()
    other, _ = drawn(seed=4)
    one = beta_norm(rewards, ids, **UNIT)
    same = each_beta_norm(torch.stack([rewards, rewards], dim=1), ids, **UNIT)
    torch.testing.assert_close(same, one)
    constant = each_beta_norm(torch.stack([rewards, torch.ones_like(rewards)], dim=1), ids, **UNIT)
    torch.testing.assert_close(constant, one / 2)
    both = each_beta_norm(torch.stack([rewards, other], dim=1), ids, **UNIT)
    torch.testing.assert_close(both, (one + of_one(other, ids, **UNIT)) / 2)


def test_the_range_of_rewards_does_not_matter_but_must_be_told():
    rewards, ids = drawn()
    found = beta_norm(2 * rewards + 3, ids, low=3.0, high=5.0, cap=1e6)
    torch.testing.assert_close(found, beta_norm(rewards, ids, **UNIT))
    with pytest.raises(ConfigError, match="rewards of 3 to 5 are not in 0 to 1; give --low and --high"):
        beta_norm(2 * rewards + 3, ids, **UNIT)
    with pytest.raises(ConfigError, match="low must be below high"):
        load_method("beta_norm").config(low=1.0)


def test_the_cap_bounds_the_factor():
    rates = torch.tensor([1 / 16, 0.5]).double()
    three = torch.tensor(3.0).double()
    free = reciprocal(rates, three, three, 1e6)
    assert float(free[0]) == pytest.approx(1 / (30 * (1 / 16) ** 2 * (15 / 16) ** 2))
    assert reciprocal(rates, three, three, 5.0).tolist() == pytest.approx([5.0, float(free[1])])


@pytest.mark.parametrize("decompose", [False, True])
def test_the_learner_reports_parameters_and_uses_the_settings(decompose):
    settings = {"high": 1.0 if decompose else 3.0, "cap": 7.0, "decompose": decompose}
    made = build(
        "beta_norm", load_method("beta_norm").config(**settings), LLMOptions(task="t5", group=6, prompts=6)
    )
    batch = made._prepared(made._collect()[0])
    how = {"low": 0.0, "high": settings["high"], "cap": 7.0}
    columns = batch.components.unbind(1) if decompose else [batch.rewards]
    want = torch.stack([of_one(column, batch.group_ids, **how) for column in columns]).mean(dim=0)
    torch.testing.assert_close(batch.advantages, want)
    assert batch.advantages.abs().max() > 0.01
    found = made.companion.chosen(batch)[1]
    assert set(found) == set(made.companion.metrics) <= set(made.metrics)
    assert float(found["alpha"]) >= 1.0
    assert 0.0 < float(found["largest_factor"]) <= 7.0
    outcome = torch.zeros(36).index_fill(
        0, torch.tensor([0, 1, 2, 6, 7]), settings["high"]
    )  # rates 1/2, 1/3, 0 ...
    batch = batch.replace(rewards=outcome, components=outcome[:, None])
    found = made.companion.chosen(batch)[1]
    rates = torch.tensor([1 / 2, 1 / 3, 0, 0, 0, 0]).double()
    alpha, beta = fitted(rates)
    assert float(beta) > 1.0  # at a rate of 0 the factor is the largest of all, and teaches nothing
    assert float(found["beta"]) == pytest.approx(float(beta), rel=1e-6)
    assert float(found["largest_factor"]) == pytest.approx(
        float(reciprocal(rates[:2], alpha, beta, 7.0).max()), rel=1e-5
    )


def test_tokens_with_negative_advantage_are_cut_at_the_dual_clip_too():
    method = load_method("beta_norm")
    estimator = method.estimator(method.config(), 4)
    from offrl.estimators.rollouts import Rollouts

    ratio = torch.tensor([[9.0, 11.0, 0.7, 1.25, 1.3]]).double()
    mask = torch.ones(1, 5, dtype=torch.bool)
    for a, want in ((-1.0, [1, 0, 0, 1, 1]), (1.0, [0, 0, 1, 1, 0])):
        batch = Rollouts(mask=mask, old_log_probs=-ratio.log(), advantages=torch.tensor([a]).double())
        found = estimator.weights(torch.zeros(1, 5).double(), batch)
        assert (found != 0).int().tolist() == [want]

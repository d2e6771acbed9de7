"""Denominators of the surrogate; how methods use them is tested with the recipes."""

import pytest
import torch

from offrl.estimators import ratios

NEW = torch.tensor([[-0.5, -2.0, -1.0], [-3.0, -0.1, -0.2]])
OLD = torch.tensor([[-1.5, -0.5, -1.0], [-0.5, -0.3, -2.2]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()


def test_exponents_stay_within_bounds():
    far = ratios.ratio(torch.tensor([-1e4, -3.0, 3.0, 1e4]))
    torch.testing.assert_close(far, torch.tensor([-20.0, -3.0, 3.0, 20.0]).exp())


def test_weights_of_what_sampled_are_cut_from_above_only():
    plain = (NEW - OLD).exp()
    torch.testing.assert_close(ratios.rollout(NEW, OLD, cap=2.0), plain.clamp(max=2.0))
    assert float(ratios.rollout(NEW, OLD, cap=2.0).min()) == pytest.approx(float(plain.min()))
    assert float(ratios.rollout(NEW, OLD).max()) == 5.0


def test_a_truncated_ratio_has_a_ceiling_and_a_floor_where_one_is_asked_for():
    plain = (NEW - OLD).exp()
    torch.testing.assert_close(ratios.truncated(NEW, OLD, high=0.5), plain.clamp(max=1.5))
    torch.testing.assert_close(ratios.truncated(NEW, OLD, high=0.5, low=0.4), plain.clamp(0.6, 1.5))


def test_rows_have_one_ratio_over_the_steps_that_count():
    log_ratio = NEW - OLD
    want = torch.tensor([[log_ratio[0].sum()], [log_ratio[1, :2].sum()]])
    torch.testing.assert_close(ratios.sequence_product(NEW, OLD, MASK), want.exp())
    torch.testing.assert_close(ratios.sequence(NEW, OLD, MASK), (want / torch.tensor([[3.0], [2.0]])).exp())


def test_the_geometric_mean_cuts_each_step_where_its_surrogate_would_be_flat():
    """A > 0 cuts above, A < 0 below; a row that is neither better nor worse weighs 1."""
    advantages = torch.tensor([[1.0], [-1.0]])
    log_ratio = NEW - OLD
    want = torch.stack([log_ratio[0].clamp(max=0.4).mean(), log_ratio[1, :2].clamp(min=-0.3).mean()])
    got = ratios.geometric(NEW, OLD, advantages, MASK, low=0.3, high=0.4)
    torch.testing.assert_close(got, want.exp()[:, None])
    assert (ratios.geometric(NEW, OLD, 0.0 * advantages, MASK) == 1.0).all()


def test_disagreement_of_steps_and_rows():
    log_ratio = NEW - OLD
    torch.testing.assert_close(ratios.mismatch_ratio(NEW, OLD, MASK, "token"), log_ratio.exp())
    rows = torch.tensor([[log_ratio[0].sum()], [log_ratio[1, :2].sum()]])
    torch.testing.assert_close(ratios.mismatch_ratio(NEW, OLD, MASK, "sequence"), rows.exp())
    means = rows / torch.tensor([[3.0], [2.0]])
    torch.testing.assert_close(ratios.mismatch_ratio(NEW, OLD, MASK, "geometric"), means.exp())

"""One-step targets, squared TD errors and the expectile loss."""

import pytest
import torch

from offrl.estimators.bellman import expectile_loss, td_loss, td_target


def test_the_target_adds_the_discounted_next_value():
    """y = r + gamma V(s'), and r alone where the episode terminated. Shapes (S, B)."""
    rewards, values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    terminated = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert td_target(rewards, terminated, values, 0.5).tolist() == [[6.0, 2.0], [18.0, 24.0]]


def test_a_terminated_row_ignores_whatever_comes_next():
    """Its successor is often the first state of another episode: no value of it may matter."""
    r, ended = torch.tensor([1.0]), torch.tensor([1.0])
    assert (
        td_target(r, ended, torch.tensor([1e9]), 0.99).item()
        == td_target(r, ended, torch.tensor([-1e9]), 0.99).item()
    )


def test_a_discount_of_one_keeps_the_next_value_whole():
    assert td_target(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([5.0]), 1.0).item() == 6.0


def test_the_td_loss_sums_members_and_averages_the_batch():
    """sum_j mean_B (Q_j - y)^2: here (1 + 9)/2 + (4 + 0)/2 = 7 for the first seed, 0 for the second."""
    target = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    q = torch.stack([target[0] + torch.tensor([[1.0, -3.0], [2.0, 0.0]]), target[1].expand(2, 2)])
    assert td_loss(q, target).tolist() == [7.0, 0.0]


def test_the_td_gradient_is_twice_the_error_over_the_batch_and_none_for_the_target():
    """dL/dQ_jb = 2 (Q_jb - y_b) / B; the target is a constant (no residual gradient)."""
    q = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    td_loss(q, y).sum().backward()
    torch.testing.assert_close(q.grad, (2 * (q - y[:, None]) / 5).detach())
    assert y.grad is None


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_expectile_of_a_fair_coin_is_the_expectile_itself(expectile):
    """For x in {0, 1} equally likely the gradient in v is tau (1 - v) - (1 - tau) v up to a factor: 0 at v =
    tau.

    A grid search over v in [0, 1] finds it.
    """
    coin, grid = (
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.linspace(0, 1, 1001, dtype=torch.float64),
    )
    losses = expectile_loss(coin - grid[:, None], expectile)
    assert grid[losses.argmin()].item() == pytest.approx(expectile, abs=1e-9)


def test_the_half_expectile_is_the_mean():
    """|1/2 - 1[u < 0]| = 1/2 on both sides: half the mean squared error."""
    u = torch.randn(3, 50)
    torch.testing.assert_close(expectile_loss(u, 0.5), 0.5 * u.square().mean(dim=1))


def test_a_high_expectile_weighs_what_lies_above_the_estimate():
    """u = x - v > 0 means that x lies above: weight tau there, 1 - tau below, as means over the batch."""
    assert expectile_loss(torch.tensor([[2.0, 2.0]]), 0.9).item() == pytest.approx(0.9 * 4)
    assert expectile_loss(torch.tensor([[-2.0, -2.0]]), 0.9).item() == pytest.approx(0.1 * 4)
    assert expectile_loss(torch.tensor([[2.0, -2.0]]), 0.9).item() == pytest.approx(2.0)


def test_the_expectile_gradient_is_closed_form_and_per_row_of_seeds():
    """dL/du_b = 2 |tau - 1[u_b < 0]| u_b / B, in float64."""
    u = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    loss = expectile_loss(u, 0.7)
    assert loss.shape == (4,)
    loss.sum().backward()
    x = u.detach()
    torch.testing.assert_close(u.grad, 2 * torch.where(x < 0, 0.3 * x, 0.7 * x) / 6)

"""The normalized Q term of the actor and the squared distance beside it."""

import pytest
import torch

from offrl.estimators.pathwise import mirror_descent_loss, normalized_q_loss, squared_distance, tsallis_log


def test_the_q_term_is_minus_alpha_mean_q_over_mean_absolute_q():
    """Seed 0: -2 * 1 / 3 with mean Q = 1, mean |Q| = 3; seed 1: all alike and negative, so +2."""
    loss, scale = normalized_q_loss(torch.tensor([[4.0, -2.0], [-5.0, -5.0]]), 2.0)
    torch.testing.assert_close(loss, torch.tensor([-2 / 3, 2.0]))
    torch.testing.assert_close(scale, torch.tensor([2 / 3, 2 / 5]))


def test_lambda_is_a_constant_for_the_gradient():
    """dL/dQ_b = -lambda / B, the same for all b. Were lambda differentiated, a term +lambda mean Q sign(Q_b)
    / ... would come in, and for Q > 0 the whole gradient would vanish (the loss is then -alpha, whatever Q).
    """
    q = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    loss, scale = normalized_q_loss(q, 2.5)
    loss.sum().backward()
    torch.testing.assert_close(q.grad, torch.full((1, 3), -2.5 / 3.0 / 3))
    assert not scale.requires_grad


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_the_gradient_does_not_depend_on_the_scale_of_q(factor):
    """lambda = alpha / mean |Q| undoes Q -> c Q, c > 0: the policy's gradient stays (TD3+BC, section 5)."""
    pi = torch.randn(2, 8, 3, dtype=torch.float64)
    grads = []
    for c in (1.0, factor):
        p = pi.clone().requires_grad_()
        normalized_q_loss(c * (p.sum(dim=2) + p[..., 0].square()), 2.5)[0].sum().backward()
        grads.append(p.grad)
    torch.testing.assert_close(*grads)


def test_lambda_is_each_seeds_own():
    """Scaling seed 1's Q by 1000 changes its own lambda and nothing of seed 0's."""
    q = torch.randn(2, 8)
    loss, scale = normalized_q_loss(q, 2.5)
    scaled_loss, scaled = normalized_q_loss(q * torch.tensor([[1.0], [1000.0]]), 2.5)
    assert torch.equal(scale[0], scaled[0])
    assert torch.equal(loss[0], scaled_loss[0])
    torch.testing.assert_close(scaled[1], scale[1] / 1000)
    torch.testing.assert_close(scaled_loss[1], loss[1])


def test_alpha_zero_removes_the_q_term():
    q = torch.randn(2, 8, requires_grad=True)
    loss, _ = normalized_q_loss(q, 0.0)
    loss.sum().backward()
    assert not loss.any()
    assert not q.grad.any()


def test_the_distance_is_a_mean_over_batch_and_action_dims():
    """(1 + 4 + 9 + 16) / 4 = 7.5 for the first seed: not the sum over dims, which would be 15."""
    pi = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert squared_distance(pi, torch.zeros(2, 2, 2)).tolist() == [7.5, 1.0]


def test_the_distances_gradient_is_closed_form_and_none_for_the_anchor():
    """dL/dpi = 2 (pi - a) / (B A) for each seed; a is a constant."""
    pi = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    anchor = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    squared_distance(pi, anchor).sum().backward()
    torch.testing.assert_close(pi.grad, (2 * (pi - anchor) / 10).detach())
    assert anchor.grad is None


@pytest.mark.parametrize(("mode", "value"), [("per_dim", -1.0), ("joint", -0.75)])
def test_q_logs_of_dimensions_and_of_their_product(mode, value):
    """Densities 1/2 and 1/2, q = 2: (1/2 - 1) + (1/2 - 1), or 1/4 - 1. At q = 1 both are log 1/4."""
    log_probs = torch.tensor([[0.5, 0.5]]).log()
    torch.testing.assert_close(tsallis_log(log_probs, 2.0, mode), torch.tensor([value]))
    torch.testing.assert_close(tsallis_log(log_probs, 1.0, mode), torch.tensor([0.25]).log())
    torch.testing.assert_close(
        tsallis_log(log_probs, 1.0 + 1e-4, mode), torch.tensor([0.25]).log(), atol=1e-3, rtol=0
    )


def test_q_logs_stay_finite():
    """Densities below 1e-6 count as that; huge ones do not overflow."""
    logs = tsallis_log(torch.tensor([[-1e4], [1e4], [-13.0]]), 1.5)
    assert logs.isfinite().all()
    torch.testing.assert_close(logs[0], torch.tensor(2 * (1e-3 - 1)))
    torch.testing.assert_close(tsallis_log(torch.tensor([[-50.0]]), 1.0), torch.tensor([-50.0]))


def test_the_mirror_descent_loss_is_its_formula():
    """c log p + q (lambda - c) log p_k - Q, averaged: 2 * 3 + 1.5 (0.5 - 2) 4 - 1 = -4 and 0 + 0 - 7."""
    a, b, q = torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0]), torch.tensor([1.0, 7.0])
    assert mirror_descent_loss(a, b, q, kl=2.0, entropy=0.5, q=1.5).item() == -5.5

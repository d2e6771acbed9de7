"""Losses of ensembles: similarity of action gradients, the conservative gap."""

import itertools
import math

import pytest
import torch

from offrl.estimators.ensemble import conservative_gap, gradient_similarity


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("members", [2, 5])
def test_identical_gradients_have_a_similarity_of_n(members):
    """N (N - 1) ordered pairs of cosine 1, over N - 1; lengths do not matter."""
    gradients = draws(2, 1, 7, 3) * torch.arange(1.0, members + 1)[:, None, None]
    torch.testing.assert_close(gradient_similarity(gradients), torch.full((2,), float(members)))


def test_orthogonal_gradients_have_none():
    gradients = torch.diag(torch.tensor([1.0, -2.0, 0.5]))[None, :, None].expand(1, 3, 7, 3)
    assert gradient_similarity(gradients).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("members", [2, 3, 6])
def test_the_smallest_similarity_is_that_of_gradients_that_cancel(members):
    """Unit vectors at equal angles sum to 0: 0 - N, over N - 1. No gradients go lower."""
    angles = 2 * math.pi * torch.arange(members) / members
    cancelling = torch.stack((angles.cos(), angles.sin()), dim=1)[None, :, None]
    bound = -members / (members - 1)
    assert gradient_similarity(cancelling).item() == pytest.approx(bound, abs=1e-5)
    assert (gradient_similarity(draws(500, members, 1, 2)) >= bound - 1e-5).all()


def test_the_similarity_is_the_mean_of_a_loop_over_pairs():
    gradients = draws(2, 4, 5, 3)
    for k in range(2):
        total = sum(
            torch.cosine_similarity(gradients[k, i], gradients[k, j], dim=1).mean()
            for i, j in itertools.permutations(range(4), 2)
        )
        torch.testing.assert_close(gradient_similarity(gradients)[k], total / 3)


def test_a_gradient_of_zero_counts_nothing_and_stays_finite():
    """A row on which a critic is flat: no pair of its own, and no NaN behind it."""
    gradients = torch.stack((torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3)))[None].requires_grad_()
    similarity = gradient_similarity(gradients)
    assert similarity.item() == pytest.approx(2 / 2)
    (grad,) = torch.autograd.grad(similarity.sum(), gradients)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gaps_gradient_is_the_softmax_and_minus_one(temperature):
    """d/dx_j = softmax(x / T)_j, which sums to 1; d/dQ(s, a) = -1, as the data's action is not among the x_j."""
    samples, q_data = draws(2, 2, 6, 4).requires_grad_(), draws(2, 2, 4).requires_grad_()
    gap = conservative_gap(samples, q_data, temperature)
    assert gap.shape == (2, 2, 4)
    grads = torch.autograd.grad(gap.sum(), (samples, q_data))
    torch.testing.assert_close(grads[0], torch.softmax(samples.detach() / temperature, dim=2))
    torch.testing.assert_close(grads[0].sum(dim=2), torch.ones(2, 2, 4))
    assert (grads[1] == -1).all()


def test_a_constant_added_to_q_leaves_the_gap():
    samples, q_data = draws(1, 2, 6, 4), draws(1, 2, 4)
    torch.testing.assert_close(
        conservative_gap(samples + 7.0, q_data + 7.0, 2.0), conservative_gap(samples, q_data, 2.0)
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_a_constant_q_and_uniform_actions_the_gap_is_closed_form(temperature):
    """Ten actions of density 0.5^A: T log sum_j exp(-log(0.5^A) / T) = T log 10 + A log 2."""
    act_dim = 3
    samples = torch.full((1, 2, 10, 4), 5.0) - math.log(0.5**act_dim)
    gap = conservative_gap(samples, torch.full((1, 2, 4), 5.0), temperature)
    want = temperature * math.log(10) + act_dim * math.log(2)
    torch.testing.assert_close(gap, torch.full((1, 2, 4), want))

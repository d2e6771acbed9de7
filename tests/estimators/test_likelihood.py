"""Weighted log-likelihoods: the density, the weights and their loss."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from offrl.estimators.likelihood import (
    advantage_weights,
    gaussian_log_prob,
    standard_normal_kl,
    tanh_gaussian_log_probs,
    tanh_gaussian_sample,
    weighted_likelihood_loss,
)


def test_the_log_density_is_the_normal_distributions():
    """Summed over action dims, in nats; log_std broadcasts over the batch."""
    mean, actions = torch.randn(3, 7, 2), torch.randn(3, 7, 2)
    log_std = torch.tensor([[[-1.0, 0.5]], [[0.0, 0.0]], [[1.5, -3.0]]])
    want = Independent(Normal(mean, log_std.exp().expand_as(mean)), 1).log_prob(actions)
    got = gaussian_log_prob(mean, log_std, actions)
    assert got.shape == (3, 7)
    torch.testing.assert_close(got, want)


def test_the_log_density_integrates_to_one():
    """Riemann sum over [-20, 20] with std e^0.3, one dimension, step 0.01."""
    grid = torch.arange(-20, 20, 0.01, dtype=torch.float64)[:, None]
    mean, log_std = torch.tensor([[0.7], [0.3]], dtype=torch.float64)
    density = gaussian_log_prob(mean, log_std, grid).exp()
    assert density.sum().item() * 0.01 == pytest.approx(1.0, abs=1e-9)


def test_the_gradients_of_the_log_density_are_closed_form():
    """With z = (a - mean) / std: d/dmean = z / std, d/dlog_std = z^2 - 1 (0 at one std, so std fits the
    spread).
    """
    mean = torch.tensor([[0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([[0.2, -0.7]], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([[1.5, -1.2]], dtype=torch.float64)
    gaussian_log_prob(mean, log_std, actions).sum().backward()
    std = log_std.detach().exp()
    z = (actions - mean.detach()) / std
    torch.testing.assert_close(mean.grad, z / std)
    torch.testing.assert_close(log_std.grad, z.square() - 1)


def test_the_squashed_log_density_is_the_transformed_normals():
    """Value and gradients of both moments, against torch's distribution in double precision at tanh(u) < 1."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(3, 7, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    mean, log_std, noise = draws[0].requires_grad_(), (0.5 * draws[1]).requires_grad_(), draws[2]
    actions, log_prob = tanh_gaussian_sample(mean, log_std, noise)
    base = Independent(Normal(mean, log_std.exp()), 1)
    want_actions = torch.tanh(mean + log_std.exp() * noise)
    want = TransformedDistribution(base, TanhTransform(cache_size=1)).log_prob(want_actions)
    torch.testing.assert_close(actions, want_actions)
    torch.testing.assert_close(log_prob, want)
    grads = torch.autograd.grad((actions.sum(2) + log_prob).sum(), (mean, log_std))
    wanted = torch.autograd.grad((want_actions.sum(2) + want).sum(), (mean, log_std))
    torch.testing.assert_close(grads, wanted)


def test_the_squashed_density_integrates_to_one():
    """Over actions, on a grid of noise: sum pi(a) da with da from neighbouring actions."""
    noise = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    mean, log_std = torch.tensor([[0.7], [-0.4]], dtype=torch.float64)
    actions, log_prob = tanh_gaussian_sample(mean, log_std, noise)
    assert torch.trapezoid(log_prob.exp(), actions[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(40.0, 0.0), (-40.0, 2.0), (3.0, -20.0), (0.0, -20.0)])
def test_the_squashed_log_density_is_exact_where_the_action_rounds_to_the_bound(mean, log_std):
    """float32 against the asymptote: for large |u|, log(1 - tanh(u)^2) = 2 log 2 - 2 |u| + O(exp(-2 |u|)).

    A tiny std must give back the noise's own density, which (u - mean) / std would have rounded away.
    """
    moments = [torch.tensor([x], requires_grad=True) for x in (mean, log_std)]
    noise = torch.tensor([1.3])
    action, log_prob = tanh_gaussian_sample(*moments, noise)
    u = mean + math.exp(log_std) * 1.3
    log_slope = 2 * math.log(2) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u)))
    want = -(1.3**2) / 2 - log_std - 0.5 * math.log(2 * math.pi) - log_slope
    assert action.abs().item() <= 1
    assert log_prob.item() == pytest.approx(want, rel=1e-6)
    grads = torch.autograd.grad(log_prob, moments)
    assert grads[0].item() == pytest.approx(2 * math.tanh(u), abs=1e-6)  # d/du of -log(1 - tanh(u)^2)
    assert grads[1].item() == pytest.approx(-1 + 2 * math.tanh(u) * math.exp(log_std) * 1.3, abs=1e-5)


def test_the_weights_are_exponential_up_to_the_limit():
    """min(exp(beta A), limit): exp(3 * 0.5) below it; 100 above it, also where the exponential overflows."""
    weights = advantage_weights(torch.tensor([-2.0, 0.0, 0.5, 5.0, 1e6]), 3.0, 100.0)
    torch.testing.assert_close(weights, torch.tensor([math.exp(-6), 1.0, math.exp(1.5), 100.0, 100.0]))


def test_a_temperature_of_zero_weighs_all_alike():
    assert advantage_weights(torch.tensor([-1e6, 0.0, 1e6]), 0.0, 100.0).tolist() == [1.0, 1.0, 1.0]


def test_the_weights_are_constants_for_the_gradient():
    advantages = torch.ones(3, requires_grad=True)
    assert not advantage_weights(advantages, 1.0, 100.0).requires_grad


def test_the_loss_is_minus_the_weighted_mean_of_each_seed():
    """-(2 * -1 + 3 * -5) / 2 = 8.5 and -(0 * 7 + 1 * 4) / 2 = -2: a mean over the batch, not over the
    weights.
    """
    log_probs = torch.tensor([[-1.0, -5.0], [7.0, 4.0]], requires_grad=True)
    weights = torch.tensor([[2.0, 3.0], [0.0, 1.0]], requires_grad=True)
    loss = weighted_likelihood_loss(log_probs, weights)
    assert loss.tolist() == [8.5, -2.0]
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, -weights.detach() / 2)
    assert weights.grad is None


def test_the_divergence_from_the_standard_normal():
    """0 at N(0, 1) and nowhere else; 1/2 at N(1, 1); elsewhere torch's own closed form, a number a dimension."""
    zero = torch.zeros(2, 3)
    assert (standard_normal_kl(zero, zero) == 0.0).all()
    assert (standard_normal_kl(zero + 1, zero) == 0.5).all()
    mean, log_std = torch.randn(2, 3), torch.randn(2, 3)
    want = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(standard_normal_kl(mean, log_std), want)
    assert (want > 0).all()


def test_squashed_densities_of_other_policies_at_the_same_draw():
    """As torch's transformed distribution has it, dimension by dimension; also far out, where tanh rounds to 1."""
    mean, log_std, u = torch.randn(3, 50, 2, dtype=torch.float64)
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    found = tanh_gaussian_log_probs(log_std, (u - mean) / log_std.exp(), u)
    torch.testing.assert_close(found, squashed.log_prob(u.tanh()), rtol=1e-6, atol=1e-6)
    far = tanh_gaussian_log_probs(torch.zeros(1), torch.zeros(1), torch.tensor([40.0]))
    torch.testing.assert_close(far, torch.tensor([-0.5 * math.log(2 * math.pi) + 80.0 - 2 * math.log(2.0)]))

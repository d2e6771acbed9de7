"""The policy: likelihoods as functions of one vector, bounded standard deviations."""

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from offrl.online.policies import EpisodicPolicy

BOX, THREE = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(3)
SEEN = gymnasium.spaces.Box(-np.inf, np.inf, (4,))


def test_gaussian_likelihoods_are_those_of_torch():
    policy = EpisodicPolicy(SEEN, BOX, net_arch=[5], log_std=-0.5)
    x, a = torch.randn(6, 4), torch.randn(6, 2)
    theta = parameters_to_vector(policy.net.parameters())
    expected = torch.distributions.Normal(policy.net(x), torch.full((2,), -0.5).exp()).log_prob(a).sum(-1)
    torch.testing.assert_close(policy.log_probs(theta, x, a), expected)
    assert not torch.allclose(policy.log_probs(theta + 0.1, x, a), expected)


def test_discrete_likelihoods_are_those_of_torch():
    policy = EpisodicPolicy(SEEN, THREE, net_arch=[5])
    x, a = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    theta = parameters_to_vector(policy.net.parameters())
    expected = torch.distributions.Categorical(logits=policy.net(x)).log_prob(a)
    torch.testing.assert_close(policy.log_probs(theta, x, a), expected)
    assert theta.numel() == 5 * 5 + 6 * 3


def test_draws_follow_the_likelihood():
    """Mean and standard deviation of 20 000 draws within 4.5 standard errors; frequencies of numbers too."""
    policy, g, n = EpisodicPolicy(SEEN, BOX, log_std=0.7), torch.Generator().manual_seed(0), 20_000
    x = torch.ones(n, 4)
    with torch.no_grad():
        drawn, mode = (
            policy.actions(policy.net, x, g),
            policy.actions(policy.net, x[:1], g, deterministic=True),
        )
    std = float(torch.tensor(0.7).exp())
    assert ((drawn.mean(0) - mode[0]).abs() < 4.5 * std / n**0.5).all()
    assert ((drawn.std(0) - std).abs() < 4.5 * std / (2 * n) ** 0.5).all()
    policy = EpisodicPolicy(SEEN, THREE)
    with torch.no_grad():
        policy.net.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        share = torch.bincount(policy.actions(policy.net, 0 * x, g), minlength=3) / n
        assert policy.actions(policy.net, 0 * x[:1], g, deterministic=True).item() == 2
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / n) ** 0.5).all()


def test_the_standard_deviation_has_a_floor_everywhere():
    """Likelihood, draws and the policy on disk agree on it."""
    policy = EpisodicPolicy(SEEN, BOX, log_std=-9.0, log_std_min=-1.0)
    x, a = torch.randn(4000, 4), torch.randn(4000, 2)
    theta = parameters_to_vector(policy.net.parameters()).detach()
    expected = torch.distributions.Normal(policy.net(x), torch.full((2,), -1.0).exp()).log_prob(a).sum(-1)
    torch.testing.assert_close(policy.log_probs(theta, x, a), expected)
    with torch.no_grad():
        drawn = policy.actions(policy.net, x, torch.Generator().manual_seed(0)) - policy.net(x)
    assert float(drawn.std()) == pytest.approx(float(torch.tensor(-1.0).exp()), rel=0.05)
    saved = policy.acting_policy(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), None)
    assert torch.equal(saved.log_std, torch.full((2,), -1.0))


@pytest.mark.parametrize("above", [-0.01, 0.0, 0.01])
def test_likelihoods_have_every_derivative_at_the_floor(above):
    """By log_std, with z = (a - f)/std: first z^2 - 1, second -2 z^2; around the bound as elsewhere."""
    policy = EpisodicPolicy(SEEN, BOX, net_arch=[3], log_std=-1.0, log_std_min=-1.0)
    x, a = torch.randn(6, 4), torch.randn(6, 2)
    with torch.no_grad():
        policy.net.log_std += above
        z = (a - policy.net(x)) / policy.net.log_std.exp()
    theta = parameters_to_vector(policy.net.parameters()).detach()
    free = policy.floored(torch.full_like(theta, -9.0)) == -1.0  # where log_std is
    assert free.sum() == 2
    slope, bend = torch.func.jacrev(policy.log_probs), torch.func.hessian(policy.log_probs)
    torch.testing.assert_close(slope(theta, x, a)[:, free], z.square() - 1)
    second = bend(theta, x, a)[:, free][:, :, free]
    torch.testing.assert_close(second, torch.diag_embed(-2 * z.square()))


def test_the_floor_moves_log_std_and_nothing_else():
    """Only where it is below; a number of actions, or a fixed standard deviation, has no floor."""
    policy = EpisodicPolicy(SEEN, BOX, net_arch=[3], log_std_min=-1.0)
    with torch.no_grad():
        policy.net.log_std.copy_(torch.tensor([-7.0, -0.5]))
        policy.net.layers[0].bias.fill_(-8.0)
    theta = parameters_to_vector(policy.net.parameters()).detach()
    with torch.no_grad():
        policy.net.log_std.copy_(torch.tensor([-1.0, -0.5]))
    assert torch.equal(policy.floored(theta), parameters_to_vector(policy.net.parameters()))
    for other in (EpisodicPolicy(SEEN, THREE), EpisodicPolicy(SEEN, BOX, fixed_std=True)):
        theta = parameters_to_vector(other.net.parameters()).detach() - 9.0
        assert torch.equal(other.floored(theta), theta)


def test_a_fixed_standard_deviation_is_no_parameter():
    free, fixed = (EpisodicPolicy(SEEN, BOX, fixed_std=f) for f in (False, True))
    sizes = [sum(p.numel() for p in policy.net.parameters()) for policy in (free, fixed)]
    assert sizes[0] - sizes[1] == 2
    theta = parameters_to_vector(fixed.net.parameters())
    assert fixed.log_probs(theta, torch.randn(3, 4), torch.randn(3, 2)).shape == (3,)


def test_constructor_arguments_survive_saving(tmp_path):
    policy = EpisodicPolicy(SEEN, BOX, net_arch=[7], log_std=-1.0, log_std_min=-2.0, fixed_std=True)
    policy.save(tmp_path / "policy.pth")
    loaded = EpisodicPolicy.load(tmp_path / "policy.pth")
    assert (loaded.net_arch, loaded.log_std, loaded.log_std_min, loaded.fixed_std) == ([7], -1.0, -2.0, True)

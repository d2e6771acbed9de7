"""Mixture policies: what they play, their density in the box, and the way to disk."""

import pytest
import torch

from offrl.errors import PolicyError
from offrl.nn.mixture import MixturePolicy, SquashedMixturePolicy
from offrl.nn.policy import load_policy, save_policy

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 1.0])
BOTH = pytest.mark.parametrize("kind", [SquashedMixturePolicy, MixturePolicy])


def one_of(kind, **settings):
    torch.manual_seed(0)
    policy = kind(3, 2, (8, 5), LOW, HIGH, experts=3, activation="tanh", observation_clip=4.0, **settings)
    policy.set_normalizer(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5]))
    with torch.no_grad():
        if kind is MixturePolicy:
            policy.log_std.copy_(torch.randn(3, 2) - 2.0)
        policy.gate.weight.mul_(5.0)
    return policy.eval()


def states(n=6):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1))


@BOTH
def test_the_deterministic_action_is_the_likeliest_experts(kind):
    policy, x = one_of(kind), states(40)
    m = policy.mixture(x)
    index = m.weights.argmax(-1)
    assert len(index.unique()) > 1
    for row, i in enumerate(index.tolist()):
        mean = m.mean[row, i]
        if kind is SquashedMixturePolicy:
            expected = (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * mean.tanh()
        else:
            expected = torch.minimum(torch.maximum(mean, LOW), HIGH)
        torch.testing.assert_close(policy(x)[row], expected)


@BOTH
def test_draws_follow_the_weights_and_stay_in_the_box(kind):
    """Experts far apart with tiny deviations: the share of draws at each is its weight."""
    policy, x = one_of(kind), states(1).expand(20_000, -1)
    with torch.no_grad():
        policy.head.weight.zero_()
        bias = torch.tensor([[-0.5, 0.3], [0.2, 0.5], [0.9, 0.8]])
        policy.head.bias.copy_(
            bias.flatten() if kind is MixturePolicy else torch.cat([bias.flatten(), torch.full((6,), -6.0)])
        )
        if kind is MixturePolicy:
            policy.log_std.fill_(-6.0)
        drawn = policy.sample(x, torch.Generator().manual_seed(0))
        centers = policy.bounded(bias)
        near = (drawn[:, None] - centers).norm(dim=2).argmin(1)
        share = torch.bincount(near, minlength=3) / len(x)
        assert ((share - policy.mixture(x[:1]).weights[0]).abs() < 0.012).all()
        assert ((drawn - centers[near]).norm(dim=1) < 0.05).all()
    assert ((drawn >= LOW) & (drawn <= HIGH)).all()
    again = policy.sample(x, torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn)


def test_the_density_in_the_box_integrates_to_one():
    policy = SquashedMixturePolicy(3, 1, (4,), [-1.0], [3.0], experts=3)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([-0.7, 0.0, 0.4, -1.0, -0.5, -1.5]))
    edges = torch.linspace(-1, 3, 200_001)
    a = ((edges[1:] + edges[:-1]) / 2)[:, None]
    with torch.no_grad():
        density = policy.distribution(states(1)).log_prob(a.double().float()).exp()
    assert float(density.double().sum() * 4 / 200_000) == pytest.approx(1.0, abs=2e-3)


@BOTH
def test_the_distribution_is_that_of_the_draws(kind):
    policy, x = one_of(kind), states(1)
    with torch.no_grad():
        drawn = policy.sample(x.expand(20_000, -1), torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        theirs = policy.distribution(x).sample((20_000,))[:, 0]
        theirs = torch.minimum(torch.maximum(theirs, LOW), HIGH)
    torch.testing.assert_close(drawn.mean(0), theirs.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), theirs.std(0), rtol=0.03, atol=0)


@BOTH
def test_it_comes_back_from_disk_bit_for_bit(kind, tmp_path):
    policy = one_of(kind)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert type(loaded) is kind
    assert torch.equal(loaded(states()), policy(states()))
    draws = [p.sample(states(), torch.Generator().manual_seed(3)) for p in (policy, loaded)]
    assert torch.equal(*draws)


def test_impossible_sizes_are_refused():
    with pytest.raises(PolicyError, match="experts must be 1 or more, got 0"):
        SquashedMixturePolicy(3, 2, experts=0)
    layers = [(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(8, 4), torch.zeros(8))]
    with pytest.raises(PolicyError, match="do not fit the layers around them"):
        SquashedMixturePolicy.from_parts(layers, (torch.zeros(3, 4), torch.zeros(3)), LOW, HIGH)

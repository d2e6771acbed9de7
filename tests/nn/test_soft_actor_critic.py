"""The soft actor and the initial weights: densities, temperature, the policy that is saved."""

import math

import pytest
import torch

from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import init_mlp
from offrl.nn.soft_actor_critic import SoftActor, init_orthogonal, init_small_outputs
from offrl.training.seeding import normal, streams

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


def actor(seeds=(0, 1), scaled=False, log_std_min=-5.0, lr=0.1):
    params = init_mlp((3, 8, 8, 4), 1, streams(seeds, "init"))
    return SoftActor(params, lr, ActionBox(LOW, HIGH), log_std_min, scaled=scaled)


def test_small_outputs_have_the_initial_weights_of_edac():
    """Hidden biases 0.1; the output layer, bias too, fills U(-b, b): its largest of 512 draws is above 0.97 b."""
    params = init_small_outputs((5, 64, 64, 8), 3, streams((0, 1), "init"), 3e-3)
    plain = init_mlp((5, 64, 64, 8), 3, streams((0, 1), "init"))
    for layer in (0, 1):
        assert torch.equal(params[2 * layer], plain[2 * layer])
        assert (params[2 * layer + 1] == 0.1).all()
    for p in params[-2:]:
        assert p.abs().max() <= 3e-3
    assert params[-2].abs().flatten(1).amax(dim=1).min() > 0.97 * 3e-3
    assert params[-2].requires_grad


def test_orthogonal_weights_have_their_gains_and_come_from_each_seeds_stream():
    """W W^T = g^2 I on the smaller side, g = sqrt(2) in hidden layers and 0.01 in the output layer; biases 0."""
    params = init_orthogonal((5, 16, 16, 2), 2, streams((0, 1), "init"))
    for weights, gain in zip(params[::2], (2**0.5, 2**0.5, 0.01), strict=True):
        for w in weights.detach():
            small = w if w.shape[0] <= w.shape[1] else w.T
            torch.testing.assert_close(
                small @ small.T, gain**2 * torch.eye(len(small)), atol=1e-5 * gain**2, rtol=0
            )
    assert all((b == 0).all() for b in params[1::2])
    single = init_orthogonal((5, 16, 16, 2), 2, streams((1,), "init"))
    assert all(torch.equal(p[2:], q) for p, q in zip(params, single, strict=True))
    assert not torch.equal(params[0][0], params[0][1])


@pytest.mark.parametrize("scaled", [False, True])
def test_the_density_of_training_is_that_of_the_policy(scaled):
    """Box (-1, 1) x (0, 4), normalized observations, scalars away from 1 and -1.

    The saved policy's density is per unit of the environment's action: larger by -sum log half-range.
    """
    soft = actor(scaled=scaled)
    with torch.no_grad():
        for p in soft.net.params[-2:] if scaled else ():
            p.copy_(torch.tensor([0.6, 1.7])[:, None, None] * p)
    mean, std = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([2.0, 0.7, 1.0])
    raw = normal((7, 3), streams((0, 1), "observations"))
    noise = normal((7, 2), streams((0, 1), "noise"))
    actions, log_probs = soft.sample(soft.net.constant, (raw - mean) / std, noise)
    for seed in range(2):
        policy = soft.policy(seed, mean, std)
        want = policy.distribution(raw[seed]).log_prob(actions[seed]) + soft.box.half.log().sum()
        torch.testing.assert_close(log_probs[seed], want, rtol=1e-3, atol=1e-3)
        moments = soft.moments(soft.net.constant, (raw - mean) / std)
        assert_moments(policy.moments(raw[seed]), [m[seed] for m in moments])
        torch.testing.assert_close(policy.act(raw[seed])[0], soft.box.squash(moments[0][seed]))


def assert_moments(policy, training):
    torch.testing.assert_close(policy[0], training[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy[1].log(), training[1], rtol=1e-4, atol=1e-5)


def test_a_scaled_log_std_begins_at_one_below_the_networks():
    plain, scaled = actor(), actor(scaled=True)
    x = normal((7, 3), streams((0, 1), "observations"))
    mean, log_std = plain.moments(plain.net.constant, x)
    same, lower = scaled.moments(scaled.net.constant, x)
    assert torch.equal(mean, same)
    torch.testing.assert_close(lower, log_std - 1)


@pytest.mark.parametrize(("raw", "held"), [(9.0, 2.0), (-9.0, -5.0)])
def test_log_std_is_held_between_its_bounds_in_training_and_acting(raw, held):
    soft = actor()
    with torch.no_grad():
        soft.net.params[-2][:, 2:] = 0.0
        soft.net.params[-1][:, 2:] = raw
    x = torch.zeros(2, 1, 3)
    assert (soft.moments(soft.net.constant, x)[1] == held).all()
    policy = soft.policy(1, torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(policy.moments(x[1])[1], torch.full((1, 2), math.exp(held)))


def test_several_actions_a_state_are_those_of_each_noise():
    soft = actor()
    x, noise = torch.randn(2, 7, 3), torch.randn(2, 5, 7, 2)
    actions, log_probs = soft.sample(soft.net.constant, x, noise)
    assert actions.shape == (2, 5, 7, 2)
    for j in range(5):
        one, log_prob = soft.sample(soft.net.constant, x, noise[:, j])
        torch.testing.assert_close(actions[:, j], one)
        torch.testing.assert_close(log_probs[:, j], log_prob)


def test_the_temperature_rises_below_the_target_entropy_and_falls_above_it():
    """dL_alpha / d log alpha = entropy + A with A = 2; Adam's first step is lr against the gradient's sign."""
    soft = actor(seeds=(0, 1, 2), lr=0.1)
    assert (soft.alpha == 1).all()
    soft.adapt_temperature(torch.tensor([-2.5, -1.5, -2.0]))
    torch.testing.assert_close(soft.alpha.log(), torch.tensor([0.1, -0.1, 0.0]))


def test_the_temperature_settles_where_the_entropy_is_minus_a():
    """With an entropy of 3 log alpha the fixed point is log alpha = -2/3."""
    soft = actor(seeds=(0,), lr=0.02)
    for _ in range(300):
        soft.adapt_temperature(3 * soft.alpha.log())
    assert soft.alpha.log().item() == pytest.approx(-2 / 3, abs=1e-2)

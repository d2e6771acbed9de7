"""TD3+BC: its limits, its known answers, and an independent implementation beside it."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from offrl.algos.td3_bc import TD3BC, TD3BCConfig, actor_loss
from offrl.errors import ConfigError
from offrl.nn.mlp import mlp, unstack
from offrl.training.check import batches, tiny_problem
from offrl.training.problem import Algorithm
from offrl.training.seeding import normal

SMALL = {"hidden": 8, "batch_size": 32}


def series(problem, count):
    return list(itertools.islice(batches(Algorithm(TD3BCConfig, TD3BC), problem), count))


def trained(problem, config, updates):
    learner = TD3BC(problem, config)
    return learner, [learner.update(batch) for batch in series(problem, updates)]


def actor_gradient(learner, batch):
    return learner.td3.actor_gradients(batch.observations, batch.actions)[0]


def test_alpha_zero_gives_the_gradient_of_behaviour_cloning():
    """-0 * Q + mean (pi - a)^2: the critic has no say; gradient by autograd of the squared error alone."""
    problem = tiny_problem()
    learner, (batch,) = TD3BC(problem, TD3BCConfig(alpha=0.0, **SMALL)), series(problem, 1)
    params = learner.td3.actor.params
    pi = mlp(params, batch.observations).transpose(1, 2).tanh()
    want = torch.autograd.grad(((pi - batch.actions) ** 2).mean(), params)
    torch.testing.assert_close(actor_gradient(learner, batch), want)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_actors_gradient_does_not_depend_on_the_scale_of_q(factor):
    """Multiplying the critics' output layers by c > 0 multiplies Q by c, which lambda = alpha / mean |Q|
    undoes.
    """
    problem = tiny_problem()
    learner, (batch,) = TD3BC(problem, TD3BCConfig(**SMALL)), series(problem, 1)
    before = actor_gradient(learner, batch)
    with torch.no_grad():
        for p in learner.td3.critic.params[-2:]:
            p.mul_(factor)
    torch.testing.assert_close(actor_gradient(learner, batch), before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("alpha", "data"), [(2.5, -1.0), (2.5, 0.3), (0.5, -0.2)])
def test_the_one_dimensional_bandit_settles_where_the_two_pulls_balance(alpha, data):
    """Q(a) = a and a free scalar pi > 0: dL/dpi = -alpha / |pi| + 2 (pi - a) = 0, as lambda is a constant.

    So pi (pi - a) = alpha / 2 and pi = (a + sqrt(a^2 + 2 alpha)) / 2; for a = -1, alpha = 2.5 that is
    (sqrt(6) - 1) / 2 = 0.7247. Gradient descent from 0.5 must find it.
    """
    pi = torch.tensor([[[0.5]]], requires_grad=True)
    for _ in range(400):
        loss, _ = actor_loss(pi[..., 0], pi, torch.tensor([[[data]]]), alpha)
        (grad,) = torch.autograd.grad(loss.sum(), pi)
        with torch.no_grad():
            pi -= 0.02 * grad
    assert pi.item() == pytest.approx((data + math.sqrt(data**2 + 2 * alpha)) / 2, abs=1e-4)


def test_the_loss_is_reported_in_its_parts():
    """-2.5 * 1 / 2 + (1 + 1) / 2: Q = (-1, 3) has mean 1 and mean |Q| = 2."""
    loss, parts = actor_loss(torch.tensor([[-1.0, 3.0]]), torch.ones(1, 2, 1), torch.zeros(1, 2, 1), 2.5)
    assert loss.tolist() == [-0.25]
    assert parts["bc_loss"].tolist() == [1.0]
    assert parts["q_scale"].tolist() == [1.25]


class Reference:
    """TD3+BC written again with torch's own modules and Adam, one seed, box [-1, 1]; initial weights are
    given.
    """

    def __init__(self, learner, seed, config):
        self.config, self.step = config, 0
        actor, critic = learner.td3.actor.params, learner.td3.critic.params
        self.actor, self.actor_target = sequential(actor, seed), sequential(actor, seed)
        self.critics = [sequential(critic, 2 * seed + j) for j in range(2)]
        self.critic_targets = [sequential(critic, 2 * seed + j) for j in range(2)]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=config.lr)
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], lr=config.lr)

    def update(self, s, a, r, s2, d, noise):
        c = self.config
        with torch.no_grad():
            eps = (c.policy_noise * noise).clip(-c.noise_clip, c.noise_clip)
            a2 = (torch.tanh(self.actor_target(s2)) + eps).clip(-1, 1)
            q2 = [q(torch.cat([s2, a2], 1))[:, 0] for q in self.critic_targets]
            y = r + c.discount * (1 - d) * torch.minimum(*q2)
        loss = sum(nn.functional.mse_loss(q(torch.cat([s, a], 1))[:, 0], y) for q in self.critics)
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        self.step += 1
        if self.step % c.policy_delay:
            return
        pi = torch.tanh(self.actor(s))
        q = self.critics[0](torch.cat([s, pi], 1))
        loss = -c.alpha / q.abs().mean().detach() * q.mean() + nn.functional.mse_loss(pi, a)
        self.actor_adam.zero_grad()
        loss.backward()
        self.actor_adam.step()
        pairs = [(self.actor_target, self.actor), *zip(self.critic_targets, self.critics, strict=True)]
        for target, online in pairs:
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - c.tau) * t.data + c.tau * o.data


def sequential(params, g):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("policy_delay", [1, 2])
def test_twenty_updates_equal_an_independent_implementation(policy_delay):
    """Two stacked seeds against torch's modules, autograd and Adam on the same batches and noise, to 1e-4.

    Settings are away from the defaults (tau .05, gamma .9, lr 3e-3), so that a wrong order, sign or schedule
    shows.
    """
    config = TD3BCConfig(policy_delay=policy_delay, tau=0.05, discount=0.9, lr=3e-3, **SMALL)
    problem = tiny_problem((0, 1))
    learner = TD3BC(problem, config)
    references = [Reference(learner, seed, config) for seed in range(2)]
    noise = problem.streams("noise")
    for batch in series(problem, 20):
        eps = normal(batch.actions.shape[1:], noise)
        for k, reference in enumerate(references):
            fields = (
                batch.observations,
                batch.actions,
                batch.rewards,
                batch.next_observations,
                batch.terminated,
            )
            reference.update(*(f[k] for f in fields), eps[k])
        learner.update(batch)
    for k, reference in enumerate(references):
        for ours, theirs in (
            (learner.td3.actor.params, [reference.actor]),
            (learner.td3.actor.target, [reference.actor_target]),
            (learner.td3.critic.params, reference.critics),
            (learner.td3.critic.target, reference.critic_targets),
        ):
            for j, net in enumerate(theirs):
                for (weight, bias), linear in zip(unstack(ours, len(theirs) * k + j), net[::2], strict=True):
                    torch.testing.assert_close(weight, linear.weight.data, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(bias, linear.bias.data, rtol=1e-4, atol=1e-4)


def test_the_policy_acts_on_raw_observations_like_the_trained_actor_on_normalized_ones():
    """In a box that is not [-1, 1], for each seed of a stack; later updates do not change a policy handed
    out.
    """
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    problem = dataclasses.replace(tiny_problem((0, 1)), action_low=low, action_high=high)
    normalizer = dataclasses.replace(
        problem.normalizer, mean=torch.tensor([1.0, -2.0, 0.5]), std=torch.tensor([2.0, 0.1, 1.0])
    )
    problem = dataclasses.replace(problem, normalizer=normalizer)
    learner, _ = trained(problem, TD3BCConfig(**SMALL), 4)
    raw = problem.observations[:9]
    want = learner.td3.act(learner.td3.actor.params, normalizer(raw).expand(2, -1, -1)).detach()
    policies = [learner.policy(k) for k in range(2)]
    for batch in series(problem, 2):
        learner.update(batch)
    for k in range(2):
        torch.testing.assert_close(policies[k].act(raw)[0], want[k])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more, got -1.0: it weighs the Q term"),
        ({"tau": 0.995}, "did you mean 0.005"),
        ({"policy_delay": 0}, "policy_delay must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ConfigError, match=message):
        TD3BCConfig(**settings)


def test_the_defaults_are_the_papers():
    c = TD3BCConfig()
    assert (c.alpha, c.discount, c.tau, c.policy_noise, c.noise_clip, c.policy_delay) == (
        2.5,
        0.99,
        0.005,
        0.2,
        0.5,
        2,
    )
    assert (c.lr, c.hidden, c.batch_size, c.normalize_observations) == (3e-4, 256, 256, True)

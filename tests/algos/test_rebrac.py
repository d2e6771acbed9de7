"""ReBRAC: both pulls, the order of its updates, its known answers, and an independent implementation beside it."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.rebrac import ALGORITHM, ReBRAC, ReBRACConfig, actor_loss, penalty
from offrl.algos.td3_bc import actor_loss as td3_bc_loss
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.nn.normed import linear_part
from offrl.training.check import batches, tiny_problem
from offrl.training.seeding import normal

SMALL = {"hidden": 8, "batch_size": 32}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])  # half-ranges 1 and 2


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def snapshot(learner):
    networks = {"actor": learner.actor, "critic": learner.critic}
    nets = {name: [p.clone() for p in net.constant] for name, net in networks.items()}
    return nets | {f"{name}_target": [p.clone() for p in net.target] for name, net in networks.items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The losses


def test_the_penalty_is_a_sum_over_action_dims_in_half_ranges():
    """(0.5 - 0)^2 / 1 + (3 - 1)^2 / 4 = 1.25; in the unit box the same actions are 0.25 + 4 apart."""
    a, b = torch.tensor([[[0.5, 3.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert penalty(a, b, (HIGH - LOW) / 2).tolist() == [[1.25]]
    assert penalty(a, b, torch.ones(2)).tolist() == [[4.25]]


def test_the_loss_is_reported_in_its_parts():
    """-(1) / 2 + 0.1 * (3 + 5) / 2: Q = (-1, 3) has mean 1 and mean |Q| = 2."""
    loss, parts = actor_loss(torch.tensor([[-1.0, 3.0]]), torch.tensor([[3.0, 5.0]]), 0.1)
    torch.testing.assert_close(loss, torch.tensor([-0.1]))
    assert parts["bc_loss"].tolist() == [4.0]
    assert parts["q_scale"].tolist() == [0.5]


@pytest.mark.parametrize("alpha", [0.5, 2.5])
def test_with_the_right_coefficient_the_actors_gradient_is_that_of_td3_bc(alpha):
    """b1 = 1 / (A alpha), as here distances are summed over the A dims and Q has weight 1 instead of alpha.

    Then L_ReBRAC = L_TD3+BC / alpha, and so are the gradients.
    """
    generator = torch.Generator().manual_seed(0)
    pi, data, w = (torch.randn(2, 16, 3, generator=generator) for _ in range(3))
    pi.requires_grad_()
    q = (w * pi).sum(dim=2) + 1.0
    ours, _ = actor_loss(q, penalty(pi, data, torch.ones(3)), 1 / (3 * alpha))
    theirs, _ = td3_bc_loss(q, pi, data, alpha)
    (own,) = torch.autograd.grad(ours.sum(), pi, retain_graph=True)
    (other,) = torch.autograd.grad(theirs.sum(), pi)
    torch.testing.assert_close(own * alpha, other)


# The target


def make(b2, problem=None):
    problem = problem or tiny_problem()
    return ReBRAC(problem, ReBRACConfig(critic_bc_coef=b2, discount=0.9, **SMALL)), series(problem, 1)[0]


def test_the_critics_penalty_lowers_the_bootstrap_by_the_distance_to_the_datas_next_action():
    """y(b2) = y(0) - 0.9 (1 - d) b2 |a' - a'_data|^2; a fresh actor's a' is 0 within 0.01, without noise."""
    (plain, batch), (pulled, _) = make(0.0), make(0.5)
    noise = torch.zeros_like(batch.actions)
    y, distance = pulled.target(batch, noise)
    torch.testing.assert_close(
        plain.target(batch, noise)[0] - y, 0.45 * (1 - batch.terminated) * distance, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(distance, batch.next_actions.square().sum(dim=2), atol=0.05, rtol=0)


def test_neither_bootstrap_nor_penalty_goes_through_a_termination():
    learner, batch = make(10.0)
    y, distance = learner.target(batch, torch.zeros_like(batch.actions))
    ended = batch.terminated == 1
    assert ended.any()
    assert (distance > 0).all()
    assert torch.equal(y[ended], batch.rewards[ended])
    assert (y != batch.rewards)[~ended].all()


def test_a_batch_without_next_actions_is_refused():
    learner, batch = make(0.1)
    with pytest.raises(ValueError, match="ReBRAC needs batches with next_actions"):
        learner.update(dataclasses.replace(batch, next_actions=None))


# The networks


def test_the_initial_weights_are_edacs():
    """Hidden biases 0.1 and weights U(+-1/sqrt(in)); output layers U(+-3e-3) (critics), U(+-1e-3) (actor)."""
    learner = ReBRAC(tiny_problem(), ReBRACConfig(batch_size=32))
    critic = linear_part(learner.critic.params)
    for linear, bound, fan_in in ((learner.actor.params, 1e-3, 3), (critic, 3e-3, 5)):
        assert len(linear) == 8
        for weight, bias, inputs in zip(linear[0:6:2], linear[1:6:2], (fan_in, 256, 256), strict=True):
            assert (bias == 0.1).all()
            assert 0.95 < weight.abs().max().item() * inputs**0.5 <= 1.0
        assert 0.95 * bound < linear[-2].abs().max().item() <= bound
        assert 0.0 < linear[-1].abs().max().item() <= bound
    assert all((p == 1 - i % 2).all() for i, p in enumerate(learner.critic.params[8:]))  # gains 1, shifts 0
    assert same(learner.critic.target, learner.critic.constant)


def test_the_critics_normalize_after_the_relu():
    """Then the last hidden layer has mean 0, and Q with equal output weights is the output bias, here 0.7."""
    learner, batch = make(0.0)
    linear = linear_part(learner.critic.constant)
    linear[-2].fill_(1.0)
    linear[-1].fill_(0.7)
    q = learner.values(learner.critic.constant, batch.observations, batch.actions)
    assert q.shape == (1, 2, 32)
    torch.testing.assert_close(q, torch.full_like(q, 0.7))


# The update


def test_the_first_update_and_every_policy_delay_th_from_there_moves_actor_and_targets():
    learner = ReBRAC(tiny_problem(), ReBRACConfig(policy_delay=3, **SMALL))
    for update, batch in enumerate(series(tiny_problem(), 7)):
        before, metrics = snapshot(learner), learner.update(batch)
        after, acts = snapshot(learner), update % 3 == 0
        assert not same(before["critic"], after["critic"])
        assert same(before["actor"], after["actor"]) is not acts
        assert same(before["critic_target"], after["critic_target"]) is not acts
        assert ("actor_loss" in metrics) is acts


def test_the_target_actor_follows_the_actor_before_its_step_and_the_target_critics_those_after():
    config = ReBRACConfig(policy_delay=1, tau=0.1, lr=1e-2, critic_lr=1e-2, **SMALL)
    learner, (one, two) = ReBRAC(tiny_problem(), config), series(tiny_problem(), 2)
    learner.update(one)
    before = snapshot(learner)
    learner.update(two)
    after = snapshot(learner)
    for net, online in (("actor", before["actor"]), ("critic", after["critic"])):
        old, new = before[f"{net}_target"], after[f"{net}_target"]
        for o, p, n in zip(old, online, new, strict=True):
            torch.testing.assert_close(n, 0.9 * o + 0.1 * p)


class Normed(nn.Module):
    """A critic in torch's own modules: relu, then layer normalization."""

    def __init__(self, params, g):
        super().__init__()
        self.linears = linears(linear_part(params), g)
        norms, self.norms = params[len(linear_part(params)) :], nn.ModuleList()
        for gain, shift in zip(norms[::2], norms[1::2], strict=True):
            norm = nn.LayerNorm(gain.shape[2])
            norm.load_state_dict({"weight": gain[g].flatten(), "bias": shift[g].flatten()})
            self.norms.append(norm)

    def forward(self, s, a):
        h = torch.cat([s, a], 1)
        for linear, norm in zip(self.linears[:-1], self.norms, strict=True):
            h = norm(torch.relu(linear(h)))
        return self.linears[-1](h)[:, 0]


def linears(params, g):
    layers = nn.ModuleList()
    for weight, bias in unstack(params, g):
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": bias})
    return layers


class Actor(nn.Module):
    def __init__(self, params, g):
        super().__init__()
        self.linears = linears(params, g)

    def forward(self, s):
        for linear in self.linears[:-1]:
            s = torch.relu(linear(s))
        return torch.tanh(self.linears[-1](s))


class Reference:
    """ReBRAC written again with torch's own modules and Adam, one seed, box [-1, 1]."""

    def __init__(self, learner, seed, config):
        self.c, self.step = config, 0
        actor, critic = learner.actor.params, learner.critic.params
        self.actor, self.actor_target = Actor(actor, seed), Actor(actor, seed)
        self.critics, self.critic_targets = (
            [Normed(critic, 2 * seed + j) for j in range(2)] for _ in range(2)
        )
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=config.lr)
        own = [p for q in self.critics for p in q.parameters()]
        self.critic_adam = torch.optim.Adam(own, lr=config.critic_lr)

    def update(self, s, a, r, s2, d, a2_data, noise):
        c = self.c
        with torch.no_grad():
            eps = (c.policy_noise * noise).clip(-c.noise_clip, c.noise_clip)
            a2 = (self.actor_target(s2) + eps).clip(-1, 1)
            q2 = torch.min(self.critic_targets[0](s2, a2), self.critic_targets[1](s2, a2))
            y = r + c.discount * (1 - d) * (q2 - c.critic_bc_coef * ((a2 - a2_data) ** 2).sum(1))
        loss = sum(nn.functional.mse_loss(q(s, a), y) for q in self.critics)
        step(self.critic_adam, loss)
        if self.step % c.policy_delay == 0:
            pi = self.actor(s)
            q = torch.min(self.critics[0](s, pi), self.critics[1](s, pi))
            loss = (c.actor_bc_coef * ((pi - a) ** 2).sum(1) - q / q.abs().mean().detach()).mean()
            average(self.actor_target, self.actor, c.tau)
            step(self.actor_adam, loss)
            for target, online in zip(self.critic_targets, self.critics, strict=True):
                average(target, online, c.tau)
        self.step += 1


def step(adam, loss):
    adam.zero_grad()
    loss.backward()
    adam.step()


def average(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.data = (1 - tau) * t.data + tau * o.data


@pytest.mark.parametrize("policy_delay", [1, 2])
def test_twenty_updates_equal_an_independent_implementation(policy_delay):
    """Two stacked seeds against torch's modules, autograd and Adam on the same batches and noise, to 1e-4.

    Settings are away from the defaults, so that a wrong order, sign, sum or schedule shows.
    """
    rates = {"lr": 3e-3, "critic_lr": 2e-3, "tau": 0.05, "discount": 0.9, "policy_delay": policy_delay}
    config = ReBRACConfig(actor_bc_coef=0.3, critic_bc_coef=0.2, **rates, **SMALL)
    problem = tiny_problem((0, 1))
    learner = ReBRAC(problem, config)
    references = [Reference(learner, seed, config) for seed in range(2)]
    noise = problem.streams("noise")
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "next_actions")
    for batch in series(problem, 20):
        eps = normal(batch.actions.shape[1:], noise)
        for k, reference in enumerate(references):
            reference.update(*(getattr(batch, name)[k] for name in names), eps[k])
        learner.update(batch)
    for k, reference in enumerate(references):
        for ours, theirs in (
            (learner.actor.params, [reference.actor]),
            (learner.actor.target, [reference.actor_target]),
            (learner.critic.params, reference.critics),
            (learner.critic.target, reference.critic_targets),
        ):
            linear = linear_part(ours) if len(theirs) == 2 else ours
            for j, net in enumerate(theirs):
                g = len(theirs) * k + j
                for (weight, bias), layer in zip(unstack(linear, g), net.linears, strict=True):
                    torch.testing.assert_close(weight, layer.weight.data, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(bias, layer.bias.data, rtol=1e-4, atol=1e-4)
                for i, norm in enumerate(getattr(net, "norms", ())):
                    gain, shift = (p[g].flatten() for p in ours[len(linear) + 2 * i :][:2])
                    torch.testing.assert_close(gain, norm.weight, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(shift, norm.bias, rtol=1e-4, atol=1e-4)


def test_the_policy_acts_on_raw_observations_inside_its_own_box():
    problem = dataclasses.replace(tiny_problem((0, 1)), action_low=LOW, action_high=HIGH)
    normalizer = dataclasses.replace(
        problem.normalizer, mean=torch.tensor([1.0, -2.0, 0.5]), std=torch.tensor([2.0, 0.1, 1.0])
    )
    learner = ReBRAC(dataclasses.replace(problem, normalizer=normalizer), ReBRACConfig(lr=0.02, **SMALL))
    for batch in series(problem, 4):
        learner.update(batch)
    raw = problem.observations[:9]
    want = learner.act(learner.actor.constant, normalizer(raw).expand(2, -1, -1))
    for k in range(2):
        torch.testing.assert_close(learner.policy(k).act(raw)[0], want[k])


# The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actor_bc_coef": -1.0}, "actor_bc_coef must be 0 or more, got -1.0"),
        ({"critic_bc_coef": -0.1}, "critic_bc_coef must be 0 or more, got -0.1"),
        ({"critic_lr": 0.0}, r"critic_lr must be in \(0, 1\), got 0.0"),
        ({"tau": 0.995}, "did you mean 0.005"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ConfigError, match=message):
        ReBRACConfig(**settings)


def test_the_defaults_are_those_of_locomotion():
    c = ReBRACConfig()
    assert (c.lr, c.critic_lr, c.batch_size, c.hidden, c.normalize_observations) == (
        1e-3,
        1e-3,
        1024,
        256,
        False,
    )
    assert (c.discount, c.tau, c.policy_noise, c.noise_clip, c.policy_delay) == (0.99, 0.005, 0.2, 0.5, 2)
    assert ALGORITHM.next_actions


@pytest.mark.parametrize(
    ("name", "b1", "b2", "others"),
    [
        ("hopper-medium-v2", 0.01, 0.01, {}),
        ("hopper-medium-replay-v2", 0.05, 0.5, {}),
        ("walker2d-random-v2", 0.01, 0.0, {}),
        ("halfcheetah-full-replay-v2", 0.001, 0.1, {}),
        (
            "antmaze-umaze-diverse-v2",
            0.003,
            0.001,
            {"lr": 3e-4, "critic_lr": 5e-5, "batch_size": 256, "discount": 0.999, "reward_scale": 100.0},
        ),
        ("maze2d-large-v1", 0.003, 0.001, {"lr": 3e-4, "critic_lr": 3e-4, "batch_size": 256}),
        ("pen-human-v1", 0.1, 0.5, {"lr": 3e-4, "critic_lr": 3e-4, "batch_size": 256}),
    ],
)
def test_the_presets_are_those_of_the_official_configs(name, b1, b2, others):
    assert preset(ALGORITHM, name) == {"actor_bc_coef": b1, "critic_bc_coef": b2} | others
    assert len(ALGORITHM.presets) == 37

"""AWAC: its limits, one sampled action as baseline, the order of its updates, an independent implementation."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.awac import ALGORITHM, AWAC, AWACConfig
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.training.check import batches, tiny_problem
from offrl.training.seeding import normal

SMALL = {"hidden": 8, "batch_size": 32}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
CENTER, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2


def own_box(seeds=(0,)):
    """The tiny problem with its actions moved to the box (-1, 1) x (0, 4)."""
    problem = tiny_problem(seeds)
    return dataclasses.replace(
        problem, actions=CENTER + HALF * problem.actions, action_low=LOW, action_high=HIGH
    )


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def sequential(params, g=0):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reference:
    """AWAC written again with torch's modules, distributions and Adam, one seed."""

    def __init__(self, learner, config, seed):
        self.config, params = config, learner.actor.params
        self.actor = sequential(params[:-1], seed)
        self.log_std = params[-1][seed, 0].detach().clone().requires_grad_()
        self.critics = [sequential(learner.critic.params, 2 * seed + j) for j in range(2)]
        self.targets = [sequential(learner.critic.params, 2 * seed + j) for j in range(2)]
        self.q_adam = torch.optim.Adam(itertools.chain(*(q.parameters() for q in self.critics)), lr=config.lr)
        self.pi_adam = torch.optim.Adam([*self.actor.parameters(), self.log_std], lr=config.lr)

    def distribution(self, s):
        std = HALF * self.log_std.clip(-20, 2).exp()
        return torch.distributions.Normal(CENTER + HALF * self.actor(s), std)

    def draw(self, s, noise):
        d = self.distribution(s)
        return torch.minimum(torch.maximum(d.mean + d.stddev * noise, LOW), HIGH).detach()

    def smaller(self, nets, s, a):
        return torch.minimum(*(net(torch.cat([s, a], 1))[:, 0] for net in nets)).detach()

    def minimize(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def update(self, s, a, r, s2, d, noise):
        c = self.config
        y = r + c.discount * (1 - d) * self.smaller(self.targets, s2, self.draw(s2, noise[0]))
        q = [net(torch.cat([s, a], 1))[:, 0] for net in self.critics]
        self.minimize(self.q_adam, sum(((x - y) ** 2).mean() for x in q))
        own = self.smaller(self.critics, s, self.draw(s, noise[1]))
        weight = torch.exp((self.smaller(self.critics, s, a) - own) / c.lam).clip(max=100)
        log_prob = self.distribution(s).log_prob(a).sum(1)
        self.minimize(self.pi_adam, -(weight * log_prob).mean())
        for target, online in zip(self.targets, self.critics, strict=True):
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - c.tau) * t.data + c.tau * o.data


def test_twenty_updates_equal_an_independent_implementation():
    """Two stacked seeds, box (-1, 1) x (0, 4); lr 1e-2 and tau .1 so that the order shows."""
    config = AWACConfig(lam=0.5, tau=0.1, discount=0.9, lr=1e-2, **SMALL)
    problem = own_box((0, 1))
    learner = AWAC(problem, config)
    references = [Reference(learner, config, k) for k in range(2)]
    streams = problem.streams("noise")
    for batch in series(problem, 20):
        noise = normal((2, 32, 2), streams)
        for k, reference in enumerate(references):
            fields = (batch.observations, batch.actions, batch.rewards, batch.next_observations)
            reference.update(*(x[k] for x in (*fields, batch.terminated)), noise[k])
        learner.update(batch)
    for k, reference in enumerate(references):
        pairs = [(learner.actor.params[:-1], reference.actor, k)]
        pairs += [(learner.critic.params, reference.critics[j], 2 * k + j) for j in range(2)]
        pairs += [(learner.critic.target, reference.targets[j], 2 * k + j) for j in range(2)]
        for params, net, g in pairs:
            for (weight, bias), linear in zip(unstack(params, g), net[::2], strict=True):
                torch.testing.assert_close(weight, linear.weight.data, rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(bias, linear.bias.data, rtol=1e-3, atol=1e-4)
        log_std = learner.actor.params[-1][k, 0].detach()
        torch.testing.assert_close(log_std, reference.log_std.detach(), rtol=1e-3, atol=1e-4)


def test_networks_have_three_hidden_layers():
    learner = AWAC(tiny_problem(), AWACConfig(**SMALL))
    widths = [w.shape for w, _ in unstack(learner.critic.params, 0)]
    assert widths == [(8, 5), (8, 8), (8, 8), (1, 8)]
    assert [w.shape for w, _ in unstack(learner.actor.params[:-1], 0)] == [(8, 3), (8, 8), (8, 8), (2, 8)]


def plain_gradients(problem, batch):
    """Of -mean log pi(a | s): behaviour cloning by likelihood."""
    learner = AWAC(problem, AWACConfig(lam=1e12, **SMALL))
    return learner.actor_gradients(batch, torch.zeros(1, 32, 2))


@pytest.mark.parametrize("case", ["large temperature", "constant critics"])
def test_it_is_behaviour_cloning_where_no_action_is_better(case):
    """Every weight is 1, and the loss is the mean negative log-likelihood of the policy that is saved."""
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(lam=1e12 if case == "large temperature" else 0.3, **SMALL))
    (batch,) = series(problem, 1)
    if case == "constant critics":
        with torch.no_grad():
            learner.critic.params[-2].zero_()
    grads, metrics = learner.actor_gradients(batch, torch.ones(1, 32, 2))
    assert metrics["weight"].item() == pytest.approx(1.0)
    log_prob = learner.policy().distribution(batch.observations[0]).log_prob(batch.actions[0])
    torch.testing.assert_close(metrics["actor_loss"][0], -log_prob.mean().detach())
    for a, b in zip(grads, plain_gradients(problem, batch)[0], strict=True):
        torch.testing.assert_close(a, b)


def test_a_constant_added_to_both_critics_changes_nothing_for_the_actor():
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(**SMALL))
    (batch,) = series(problem, 1)
    noise = normal((32, 2), problem.streams("noise"))
    before, _ = learner.actor_gradients(batch, noise)
    with torch.no_grad():
        learner.critic.params[-1] += 3.0
    after, _ = learner.actor_gradients(batch, noise)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def linear_critic(learner, slope):
    """Q_j(s, a) = slope_j * a_0, built from the ReLU network by hand: relu(a_0 + 9) - 9 all the way up."""
    with torch.no_grad():
        for p in learner.critic.params:
            p.zero_()
        first, *hidden, last, bias = learner.critic.params
        first[:, 3, 0] = 1.0
        hidden[0][:, 0, 0] = 9.0
        for weight in hidden[1::2]:
            weight[:, 0, 0] = 1.0
        last[:, 0, 0] = torch.tensor(slope)
        bias[:, 0, 0] = -9.0 * torch.tensor(slope)


def test_the_advantage_is_over_one_action_of_the_policy_clipped_to_the_box():
    """Q = a_0, the mean of pi 0, log_std 0: noise .3 gives a_pi = .3, noise 5 is cut to 1; A = a_0 - a_pi."""
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(lam=0.5, **SMALL))
    linear_critic(learner, [1.0, 1.0])
    with torch.no_grad():
        learner.actor.params[-3].zero_()
        learner.actor.params[-2].zero_()
    (batch,) = series(problem, 1)
    for noise, own in ((0.3, 0.3), (5.0, 1.0)):
        _, metrics = learner.actor_gradients(batch, torch.full((1, 32, 2), noise))
        advantage = batch.actions[0, :, 0] - own
        torch.testing.assert_close(metrics["advantage"][0], advantage.mean())
        torch.testing.assert_close(metrics["weight"][0], torch.exp(advantage / 0.5).mean())


def test_both_values_are_the_smaller_critics():
    """Slopes 1 and -1: min_j Q_j = -|a_0|, so that A = |a_pi| - |a_0|."""
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(**SMALL))
    linear_critic(learner, [1.0, -1.0])
    with torch.no_grad():
        learner.actor.params[-3].zero_()
        learner.actor.params[-2].zero_()
    (batch,) = series(problem, 1)
    _, metrics = learner.actor_gradients(batch, torch.full((1, 32, 2), -0.6))
    torch.testing.assert_close(metrics["advantage"][0], 0.6 - batch.actions[0, :, 0].abs().mean())


def test_no_weight_exceeds_one_hundred():
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(**SMALL))
    linear_critic(learner, [1e6, 1e6])
    with torch.no_grad():
        learner.actor.params[-3].zero_()
        learner.actor.params[-2].fill_(-0.999)  # all but the worst action
    (batch,) = series(problem, 1)
    grads, metrics = learner.actor_gradients(batch, torch.zeros(1, 32, 2))
    assert metrics["weight"].item() == 100.0
    other = AWAC(problem, AWACConfig(lam=1e12, **SMALL))
    other.actor.load_state_dict(learner.actor.state_dict())
    plain, _ = other.actor_gradients(batch, torch.zeros(1, 32, 2))
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, 100 * b, rtol=1e-4, atol=1e-4)


def test_the_critics_target_stops_at_terminations_only():
    """Q' = 100 everywhere, Q = 0: the loss is twice the mean of (r + 90 (1 - d))^2."""
    problem = tiny_problem()
    learner = AWAC(problem, AWACConfig(discount=0.9, **SMALL))
    with torch.no_grad():
        for p in learner.critic.params[-2:] + learner.critic.target[-2:]:
            p.zero_()
        learner.critic.target[-1].fill_(100.0)
    (batch,) = series(problem, 1)
    batch = dataclasses.replace(batch, terminated=(torch.arange(32) % 2).float()[None])
    _, metrics = learner.critic_gradients(batch, torch.zeros(1, 32, 2))
    y = batch.rewards + 90.0 * (1 - batch.terminated)
    torch.testing.assert_close(metrics["critic_loss"], 2 * y.square().mean(dim=1))


@pytest.mark.parametrize(("raw", "acting"), [(5.0, 2.0), (-30.0, -20.0), (-7.0, -7.0)])
def test_log_std_is_held_within_minus_twenty_and_two(raw, acting):
    learner = AWAC(tiny_problem(), AWACConfig(**SMALL))
    with torch.no_grad():
        learner.actor.params[-1].fill_(raw)
    assert learner.policy().log_std.tolist() == [acting, acting]


def test_noise_streams_are_restored_from_a_state_on_another_device(elsewhere):
    saved, restored = (AWAC(tiny_problem((seed,)), AWACConfig(**SMALL)) for seed in (0, 5))
    state = saved.state_dict()
    state["noise"] = [elsewhere(s) for s in state["noise"]]
    restored.load_state_dict(state)
    assert torch.equal(normal((9,), restored.noise), normal((9,), saved.noise))


def test_the_form_that_is_compiled_makes_the_same_updates(monkeypatch):
    problem = own_box((0, 1))
    eager, other = (AWAC(problem, AWACConfig(lr=1e-2, **SMALL)) for _ in range(2))
    for batch in series(problem, 3):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            metrics = other.update(batch)
        torch.testing.assert_close(metrics, eager.update(batch), rtol=1e-4, atol=1e-5)
    for net in ("actor", "critic"):
        for a, b in zip(getattr(eager, net).params, getattr(other, net).params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("lam", 0.0, "lam must be above 0, got 0.0; CORL uses"),
        ("tau", 0.995, "did you mean 0.005"),
        ("hidden", 0, "hidden must be 1 or more, got 0"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        AWACConfig(**{setting: value})


def test_defaults_and_presets_are_corls():
    c = AWACConfig()
    assert (c.lam, c.discount, c.tau, c.lr, c.hidden, c.batch_size) == (0.3333, 0.99, 0.005, 3e-4, 256, 256)
    assert c.normalize_observations
    assert preset(ALGORITHM, "antmaze-umaze-v2") == {"lam": 0.1, "reward_shift": -1.0}
    for name in (
        "maze2d-umaze-v1",
        "pen-human-v1",
        "door-expert-v1",
        "hammer-cloned-v1",
        "relocate-human-v1",
    ):
        assert preset(ALGORITHM, name) == {"lam": 0.1}

"""IQL: its limits, known answers, the order of its updates, and an independent implementation beside it."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from offrl.algos.iql import ALGORITHM, IQL, IQLConfig
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.training.check import batches, source_of, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


def own_box(seeds=(0,)):
    """The tiny problem with its actions moved to the box (-1, 1) x (0, 4)."""
    problem = tiny_problem(seeds)
    actions = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * problem.actions
    return dataclasses.replace(problem, actions=actions, action_low=LOW, action_high=HIGH)


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def actor_gradients(learner, batch, masks=None):
    _, target_q, _ = learner.value_gradients(batch)
    return learner.actor_gradients(batch, target_q, masks)


def sequential(params, g=0):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def assert_equal_networks(params, net, g=0):
    for (weight, bias), linear in zip(unstack(params, g), net[::2], strict=True):
        torch.testing.assert_close(weight, linear.weight.data, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bias, linear.bias.data, rtol=1e-4, atol=1e-4)


class Reference:
    """IQL written again with torch's modules, distributions, Adam and cosine schedule, one seed."""

    def __init__(self, learner, config, steps, seed):
        self.config, self.box = config, learner.box
        actor = learner.actor.params
        self.actor, self.log_std = (
            sequential(actor[:-1], seed),
            actor[-1][seed, 0].detach().clone().requires_grad_(),
        )
        self.value = sequential(learner.value.params, seed)
        self.critics = [sequential(learner.critic.params, 2 * seed + j) for j in range(2)]
        self.targets = [sequential(learner.critic.params, 2 * seed + j) for j in range(2)]
        adam = lambda params: torch.optim.Adam(list(params), lr=config.lr)  # noqa: E731
        self.adams = {
            "actor": adam([*self.actor.parameters(), self.log_std]),
            "value": adam(self.value.parameters()),
            "critic": adam(itertools.chain(*(c.parameters() for c in self.critics))),
        }
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adams["actor"], T_max=steps)

    def minimize(self, name, loss):
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()

    def update(self, s, a, r, s2, d):
        c, pairs, half = self.config, torch.cat([s, a], 1), (HIGH - LOW) / 2
        with torch.no_grad():
            q = torch.minimum(*(net(pairs)[:, 0] for net in self.targets))
        u = q - self.value(s)[:, 0]
        self.minimize("value", torch.where(u > 0, c.expectile * u**2, (1 - c.expectile) * u**2).mean())
        with torch.no_grad():
            weight = torch.exp(c.temperature * (q - self.value(s)[:, 0])).clip(max=100)
        normal = torch.distributions.Normal(self.actor(s).tanh(), self.log_std.clip(-5, 2).exp())
        log_prob = (normal.log_prob((a - (LOW + HIGH) / 2) / half) - half.log()).sum(
            1
        )  # in units of the half-range
        self.minimize("actor", -(weight * log_prob).mean())
        self.schedule.step()
        with torch.no_grad():
            y = r + c.discount * (1 - d) * self.value(s2)[:, 0]
        self.minimize("critic", sum(((net(pairs)[:, 0] - y) ** 2).mean() for net in self.critics))
        for target, online in zip(self.targets, self.critics, strict=True):
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - c.tau) * t.data + c.tau * o.data


def test_twenty_updates_equal_an_independent_implementation():
    """Two stacked seeds, box (-1, 1) x (0, 4), 25 steps of a cosine; lr 1e-2 and tau .1 so that the order
    shows.

    V first, the actor with the new V and the target Q, Q with the new V, then the targets: the official
    order.
    """
    config = IQLConfig(expectile=0.8, temperature=2.0, tau=0.1, discount=0.9, lr=1e-2, **SMALL)
    problem = dataclasses.replace(own_box((0, 1)), steps=25)
    learner = IQL(problem, config)
    references = [Reference(learner, config, 25, k) for k in range(2)]
    for batch in series(problem, 20):
        for k, reference in enumerate(references):
            fields = (
                batch.observations,
                batch.actions,
                batch.rewards,
                batch.next_observations,
                batch.terminated,
            )
            reference.update(*(f[k] for f in fields))
        learner.update(batch)
    for k, reference in enumerate(references):
        assert_equal_networks(learner.actor.params[:-1], reference.actor, k)
        assert_equal_networks(learner.value.params, reference.value, k)
        torch.testing.assert_close(
            learner.actor.params[-1][k, 0].detach(), reference.log_std.detach(), rtol=1e-4, atol=1e-4
        )
        for j in range(2):
            assert_equal_networks(learner.critic.params, reference.critics[j], 2 * k + j)
            assert_equal_networks(learner.critic.target, reference.targets[j], 2 * k + j)


# The value


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_in_a_terminal_bandit_the_value_is_the_expectile_of_the_mean_rewards(expectile):
    """One state, every row terminates, a = -1 pays 0 and a = 1 pays 1, equally often: Q(a) = r(a), V = tau_e.

    With noise of +-0.5 added to each reward Q still converges to its mean: V fits Q, not the rewards
    themselves.
    """
    good, noise = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([-0.5, 0.5, -0.5, 0.5])
    problem = dataclasses.replace(
        tiny_problem(rows=4),
        observations=torch.zeros(4, 3),
        next_observations=torch.zeros(4, 3),
        actions=(2 * good - 1)[:, None].expand(4, 2).contiguous(),
        rewards=good + noise,
        terminated=torch.ones(4),
        steps=10_000,
    )
    learner = IQL(problem, IQLConfig(expectile=expectile, lr=1e-2, tau=0.2, hidden=16))
    source, generators = source_of(problem, 128), problem.streams("data")
    values = [learner.update(source.sample(generators))["value"].item() for _ in range(200)]
    assert sum(values[-60:]) / 60 == pytest.approx(expectile, abs=0.04)


def test_an_expectile_of_one_half_fits_the_mean_of_q():
    """The value's gradient is then half that of the mean squared error between V(s) and min_j Q'_j(s, a)."""
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(expectile=0.5, **SMALL)), series(problem, 1)
    learner.critic.target[-1][0] += 0.3  # online and target differ
    grads, target_q, metrics = learner.value_gradients(batch)
    pairs = torch.cat([batch.observations[0], batch.actions[0]], dim=1)
    q = torch.minimum(*(sequential(learner.critic.target, j)(pairs)[:, 0] for j in range(2))).detach()
    torch.testing.assert_close(target_q[0], q)
    net = sequential(learner.value.params)
    loss = 0.5 * ((q - net(batch.observations[0])[:, 0]) ** 2).mean()
    loss.backward()
    torch.testing.assert_close(metrics["value_loss"][0], loss.detach())
    torch.testing.assert_close(grads[-2][0], net[-1].weight.grad)
    torch.testing.assert_close(grads[0][0], net[0].weight.grad.T)


# The critic


def test_the_critics_target_uses_the_value_and_stops_at_terminations_only():
    """y = r + gamma (1 - d) V(s'): raising V by 100 raises y by gamma 100 where d = 0 (a time limit too)."""
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(discount=0.9, **SMALL)), series(problem, 1)
    half = dataclasses.replace(batch, terminated=(torch.arange(32) % 2).float()[None])
    with torch.no_grad():
        learner.critic.params[-2].zero_()
        learner.critic.params[-1].zero_()  # Q = 0, so the loss is twice the mean of y^2
        learner.value.params[-2].zero_()
        learner.value.params[-1].fill_(100.0)
    _, metrics = learner.critic_gradients(half)
    y = half.rewards + 90.0 * (1 - half.terminated)
    torch.testing.assert_close(metrics["critic_loss"], 2 * y.square().mean(dim=1))


def test_the_target_critics_follow_after_every_update():
    problem = tiny_problem()
    learner = IQL(problem, IQLConfig(tau=0.25, lr=1e-2, **SMALL))
    for batch in series(problem, 2):
        old = [p.clone() for p in learner.critic.target]
        learner.update(batch)
        for before, online, after in zip(old, learner.critic.params, learner.critic.target, strict=True):
            torch.testing.assert_close(after, 0.75 * before + 0.25 * online.detach())


# The actor


def test_the_likelihood_of_training_is_that_of_the_policy():
    """With temperature 0 the loss is -mean log pi(a | s); the saved policy's own distribution gives the same.

    The box is (-1, 1) x (0, 4), log_std not 0, observations normalized: units must agree between the two.
    """
    problem = own_box((0, 1))
    normalizer = dataclasses.replace(
        problem.normalizer, mean=torch.tensor([1.0, -2.0, 0.5]), std=torch.tensor([2.0, 0.1, 1.0])
    )
    learner = IQL(dataclasses.replace(problem, normalizer=normalizer), IQLConfig(temperature=0.0, **SMALL))
    with torch.no_grad():
        learner.actor.params[-1].copy_(torch.tensor([[[-0.7, 0.4]], [[0.3, -9.0]]]))
    (batch,) = series(problem, 1)
    _, metrics = actor_gradients(
        learner, dataclasses.replace(batch, observations=normalizer(batch.observations))
    )
    for k in range(2):
        distribution = learner.policy(k).distribution(batch.observations[k])
        torch.testing.assert_close(
            metrics["actor_loss"][k], -distribution.log_prob(batch.actions[k]).mean().detach()
        )


def test_a_temperature_of_zero_is_plain_likelihood_whatever_the_values():
    """exp(0 A) = 1: the critics and the value have no say in the actor's gradient."""
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(temperature=0.0, **SMALL)), series(problem, 1)
    before, _ = actor_gradients(learner, batch)
    with torch.no_grad():
        for p in [*learner.critic.target, *learner.value.params]:
            p.mul_(-3.0)
    after, metrics = actor_gradients(learner, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert metrics["weight"].item() == 1.0


def test_no_weight_exceeds_one_hundred():
    """Advantages of 1e6 weigh 100 each; ones of -1e6 nothing, so that the loss vanishes with its gradient."""
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(**SMALL)), series(problem, 1)
    plain, _ = actor_gradients(IQL(problem, IQLConfig(temperature=0.0, **SMALL)), batch)
    for advantage, weight in ((1e6, 100.0), (-1e6, 0.0)):
        with torch.no_grad():
            learner.value.params[-1].fill_(-advantage)
        grads, metrics = actor_gradients(learner, batch)
        assert metrics["weight"].item() == weight
        for a, b in zip(grads, plain, strict=True):
            torch.testing.assert_close(a, weight * b, rtol=1e-4, atol=1e-5)


def test_better_actions_weigh_more_and_by_the_target_critic():
    """The weight is exp(beta (min_j Q'_j - V)): lowering V by log 2 / beta doubles it; online critics play no
    part.
    """
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(temperature=2.0, **SMALL)), series(problem, 1)
    _, before = actor_gradients(learner, batch)
    with torch.no_grad():
        learner.value.params[-1] -= math.log(2) / 2.0
        learner.critic.params[-1] += 5.0
    _, after = actor_gradients(learner, batch)
    torch.testing.assert_close(after["weight"], 2 * before["weight"])
    torch.testing.assert_close(after["advantage"], before["advantage"] + math.log(2) / 2.0)


@pytest.mark.parametrize(("raw", "acting"), [(5.0, 2.0), (-9.0, -5.0)])
def test_log_std_is_held_within_minus_five_and_two(raw, acting):
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(**SMALL)), series(problem, 1)
    losses = []
    for value in (raw, acting):
        with torch.no_grad():
            learner.actor.params[-1].fill_(value)
        losses.append(actor_gradients(learner, batch)[1]["actor_loss"])
        assert learner.policy().log_std.tolist() == [acting, acting]
    torch.testing.assert_close(*losses)


def test_the_actors_step_size_falls_along_a_cosine_and_the_others_do_not():
    """lr (1 + cos(pi t / T)) / 2: all at t = 0, half at T/2, none from T on, where V and Q still move."""
    problem = dataclasses.replace(tiny_problem(), steps=4)
    learner = IQL(problem, IQLConfig(lr=0.1, **SMALL))
    rates = []
    for batch in series(problem, 6):
        before = [
            [p.detach().clone() for p in net.params] for net in (learner.actor, learner.value, learner.critic)
        ]
        learner.update(batch)
        rates.append(learner.actor.lr)
        moved = [
            not torch.equal(old[0], net.params[0].detach())
            for old, net in zip(before, (learner.actor, learner.value, learner.critic), strict=True)
        ]
        assert moved == [learner.updates <= 4, True, True]
    assert rates == pytest.approx(
        [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0.0, 0.0]
    )
    assert learner.value.lr == learner.critic.lr == 0.1


# Dropout


def test_dropout_masks_keep_each_units_expectation():
    """A unit is 0 with probability p, else 1 / (1 - p): mean 1, variance p / (1 - p), over n draws a standard
    error of sqrt(p / (1 - p) / n); 5 of them. One mask for each of the two hidden layers, drawn apart."""
    learner = IQL(tiny_problem((0, 1)), IQLConfig(dropout=0.2, hidden=64))
    (batch,) = series(tiny_problem((0, 1)), 1)
    first, second = learner._dropout_masks(batch)
    assert first.shape == second.shape == (2, 32, 64)
    assert sorted(first.unique().tolist()) == [0.0, 1.25]
    for mask in (first, second):
        assert abs(mask.mean().item() - 1) < 5 * (0.25 / mask.numel()) ** 0.5
    assert not torch.equal(first, second)
    assert not torch.equal(first, learner._dropout_masks(batch)[0])  # fresh in the next update


def test_dropout_masks_come_from_each_seeds_own_stream():
    config = IQLConfig(dropout=0.5, **SMALL)
    masks = {}
    for seeds in ((0,), (1,), (0, 1)):
        problem = tiny_problem(seeds)
        masks[seeds] = IQL(problem, config)._dropout_masks(series(problem, 1)[0])
    for layer in range(2):
        assert torch.equal(masks[0, 1][layer], torch.cat([masks[0,][layer], masks[1,][layer]]))


def test_a_dropped_unit_reaches_neither_the_loss_nor_its_gradient():
    """With every unit of the last hidden layer dropped the mean is its bias: the lower layers' gradients
    vanish.
    """
    problem = tiny_problem()
    learner, (batch,) = IQL(problem, IQLConfig(**SMALL)), series(problem, 1)
    masks = [torch.ones(1, 32, 8), torch.zeros(1, 32, 8)]
    grads, _ = actor_gradients(learner, batch, masks)
    assert not any(g.any() for g in grads[:5])
    assert all(g.any() for g in grads[5:])


def test_dropout_acts_in_training_only():
    """It changes the training, the same seed repeats it, and the policy that comes out is deterministic."""
    problem = tiny_problem()
    weights = {}
    for name, rate in (("with", 0.5), ("again", 0.5), ("without", 0.0)):
        learner = IQL(problem, IQLConfig(dropout=rate, lr=1e-2, **SMALL))
        for batch in series(problem, 3):
            learner.update(batch)
        weights[name] = torch.cat([p.flatten() for p in learner.policy().parameters()])
        first, second = (learner.policy()(problem.observations[:5]) for _ in range(2))
        assert torch.equal(first, second)
    assert torch.equal(weights["with"], weights["again"])
    assert not torch.equal(weights["with"], weights["without"])


def test_dropout_streams_are_restored_from_a_state_on_another_device(elsewhere):
    saved, restored = (IQL(tiny_problem((seed,)), IQLConfig(dropout=0.5, **SMALL)) for seed in (0, 5))
    state = saved.state_dict()
    state["noise"] = [elsewhere(s) for s in state["noise"]]
    restored.load_state_dict(state)
    (batch,) = series(tiny_problem(), 1)
    assert torch.equal(restored._dropout_masks(batch)[0], saved._dropout_masks(batch)[0])


def test_the_form_that_is_compiled_makes_the_same_updates(monkeypatch):
    """Compiled, gradients come from torch.func and networks are plain compositions; both forms agree, with
    dropout.
    """
    problem = own_box((0, 1))
    eager, twin = (IQL(problem, IQLConfig(dropout=0.2, lr=1e-2, **SMALL)) for _ in range(2))
    for batch in series(problem, 3):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            metrics = twin.update(batch)
        torch.testing.assert_close(metrics, eager.update(batch))
    for net in ("actor", "value", "critic"):
        for a, b in zip(getattr(eager, net).params, getattr(twin, net).params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# The settings


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("expectile", 0.0, r"expectile must be in \(0, 1\), got 0.0; the paper uses 0.7 or 0.9"),
        ("expectile", 1.0, r"expectile must be in \(0, 1\), got 1.0"),
        ("temperature", -1.0, "temperature must be 0 or more, got -1.0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("dropout", -0.1, r"dropout must be in \[0, 1\), got -0.1"),
        ("tau", 0.995, "did you mean 0.005"),
        ("discount", 2.0, "discount must be in"),
        ("lr", -1.0, "lr must be in"),
        ("hidden", 0, "hidden must be 1 or more, got 0"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        IQLConfig(**{setting: value})


def test_the_defaults_are_the_papers_for_locomotion():
    c = IQLConfig()
    assert (c.expectile, c.temperature, c.dropout, c.discount, c.tau, c.lr) == (
        0.7,
        3.0,
        0.0,
        0.99,
        0.005,
        3e-4,
    )
    assert (c.hidden, c.batch_size, c.normalize_observations, c.reward_shift) == (256, 256, False, 0.0)

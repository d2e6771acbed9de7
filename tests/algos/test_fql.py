"""FQL: its losses, what is constant for which gradient, known answers, and an independent implementation beside it."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.fql import ALGORITHM, FQL, FQLConfig
from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.nn.normed import linear_part
from offrl.training.check import batches, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])  # centers 0 and 2, half-ranges 1 and 2


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def make(problem=None, **settings):
    return FQL(problem or tiny_problem(), FQLConfig(**SMALL | settings))


def wide_problem():
    """The tiny problem with its actions moved into the box LOW .. HIGH."""
    problem = tiny_problem()
    actions = (LOW + HIGH) / 2 + problem.actions * (HIGH - LOW) / 2
    return dataclasses.replace(problem, actions=actions, action_low=LOW, action_high=HIGH)


def draws(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = batch.actions.shape
    noise = torch.randn(shape[0], 3, *shape[1:], generator=generator)
    return noise, torch.rand(*shape[:2], 1, generator=generator)


def set_(params, *values):
    """Constant output: every weight 0, the output bias ``values``."""
    with torch.no_grad():
        for p in params:
            p.zero_()
    linear = params if len(params) == 10 else linear_part(params)
    with torch.no_grad():
        linear[-1][:] = (
            torch.tensor(values).view(-1, 1)
            if linear[-1].shape[0] == 1
            else torch.tensor(values).view(-1, 1, 1)
        )


# The target


@pytest.mark.parametrize(("q_agg", "next_value"), [("mean", 3.0), ("min", 1.0)])
def test_the_target_takes_mean_or_min_of_both_critics(q_agg, next_value):
    learner, batch = make(q_agg=q_agg, discount=0.5), series(tiny_problem(), 1)[0]
    set_(learner.critic.target, 1.0, 5.0)
    y = learner.target(batch, torch.zeros_like(batch.actions))
    torch.testing.assert_close(y, batch.rewards + 0.5 * (1 - batch.terminated) * next_value)


def test_only_a_termination_stops_the_bootstrap():
    learner, batch = make(), series(tiny_problem(), 1)[0]
    set_(learner.critic.target, 7.0, 7.0)
    y, ended = learner.target(batch, torch.zeros_like(batch.actions)), batch.terminated == 1
    assert ended.any()
    assert torch.equal(y[ended], batch.rewards[ended])
    torch.testing.assert_close(y[~ended], batch.rewards[~ended] + 0.99 * 7.0)


def test_the_target_asks_for_the_one_step_policys_clipped_action_at_the_next_state():
    """The policy puts out (3, -0.5) -> (1, -0.5); so does the target Q of the batch whose action that is."""
    learner, batch = make(discount=1.0), series(tiny_problem(), 1)[0]
    set_(learner.actor.params, 3.0, -0.5)
    action = torch.tensor([1.0, -0.5]).expand_as(batch.actions)
    q = learner.values(learner.critic.target, batch.next_observations, action).mean(dim=1)
    y = learner.target(batch, torch.randn_like(batch.actions))
    torch.testing.assert_close(y, batch.rewards + (1 - batch.terminated) * q)


def test_the_targets_action_depends_on_its_noise():
    learner, batch = make(), series(tiny_problem(), 1)[0]
    one, other = (learner.target(batch, torch.full_like(batch.actions, z)) for z in (0.0, 1.0))
    assert not torch.allclose(one, other)


# The losses


def test_the_losses_of_constant_networks_are_what_the_formulas_say():
    """v = (0.5, 0), mu = (0.2, -3), Q = (2, 4): each loss by hand from the noise."""
    learner, batch = make(alpha=2.0, flow_steps=2), series(tiny_problem(), 1)[0]
    batch = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
    set_(learner.flow.params, 0.5, 0.0)
    set_(learner.actor.params, 0.2, -3.0)
    set_(learner.critic.params, 2.0, 4.0)
    noise, times = draws(batch)
    *_, metrics = learner.gradients(batch, noise, times)
    velocity = batch.actions - noise[:, 1]
    flow_loss = (torch.tensor([0.5, 0.0]) - velocity).square().mean(dim=(1, 2))
    flow = (noise[:, 2] + torch.tensor([0.5, 0.0])).clamp(-1, 1)
    distill = (torch.tensor([0.2, -3.0]) - flow).square().mean(dim=(1, 2))
    critic = ((2 - batch.rewards).square() + (4 - batch.rewards).square()).mean(dim=1) / 2
    want = {"flow_loss": flow_loss, "distill_loss": distill, "critic_loss": critic}
    want |= {"actor_loss": 2 * distill - 3.0, "q_policy": torch.tensor([3.0]), "q_data": torch.tensor([3.0])}
    torch.testing.assert_close(metrics, want)


def test_with_normalize_q_the_policys_gradient_does_not_depend_on_the_scale_of_q():
    gradients = {}
    for normalize in (True, False):
        for scale in (1.0, 100.0):
            learner, batch = make(normalize_q=normalize, alpha=0.3), series(tiny_problem(), 1)[0]
            for p in linear_part(learner.critic.constant)[-2:]:
                p.mul_(scale)
            gradients[normalize, scale] = learner.gradients(batch, *draws(batch))[2]
    for a, b in zip(gradients[True, 1.0], gradients[True, 100.0], strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(gradients[False, 1.0][0], gradients[False, 100.0][0])


def test_with_alpha_zero_only_q_moves_the_policy_and_outside_the_box_nothing_does():
    learner, batch = make(alpha=0.0), series(tiny_problem(), 1)[0]
    set_(learner.actor.params, 3.0, -3.0)
    assert not any(g.any() for g in learner.gradients(batch, *draws(batch))[2])


def test_the_box_of_the_environment_only_changes_units():
    """The same data in a box with half-ranges (1, 2) trains to the same weights; actions are scaled."""
    unit, wide = make(tiny_problem()), make(wide_problem())
    for a, b in zip(series(tiny_problem(), 4), series(wide_problem(), 4), strict=True):
        unit.update(a)
        wide.update(b)
    for name in ("critic", "flow", "actor"):
        for p, q in zip(getattr(unit, name).constant, getattr(wide, name).constant, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    x, z = torch.randn(5, 3), torch.randn(5, 2)
    ours, theirs = unit.policy().transport(x, z), wide.policy().transport(x, z)
    torch.testing.assert_close((LOW + HIGH) / 2 + ours * (HIGH - LOW) / 2, theirs, rtol=1e-4, atol=1e-4)


# Beside an independent implementation


class Net(nn.Sequential):
    def __init__(self, params, g, norms=()):
        layers, pairs = [], unstack(params, g)
        for i, (weight, bias) in enumerate(pairs):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
            if i < len(pairs) - 1:
                layers.append(nn.GELU(approximate="tanh"))
                layers += [nn.LayerNorm(len(bias), eps=1e-6)] if norms else []
        super().__init__(*layers)


class Plain:
    """One seed in plain modules: one loss, one Adam over all networks."""

    def __init__(self, learner, config):
        critic = linear_part(learner.critic.params)
        self.critics = nn.ModuleList(Net(critic, g, norms=(1,)) for g in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.flow, self.actor = Net(learner.flow.params, 0), Net(learner.actor.params, 0)
        self.config = config
        nets = nn.ModuleList([self.critics, self.flow, self.actor])
        self.adam = torch.optim.Adam(nets.parameters(), lr=config.lr)

    def q(self, critics, *inputs):
        return torch.stack([c(torch.cat(inputs, 1))[:, 0] for c in critics])

    def update(self, s, a, r, s2, d, noise, t):
        z2, x0, z = noise
        with torch.no_grad():
            a2 = self.actor(torch.cat([s2, z2], 1)).clamp(-1, 1)
            q2 = self.q(self.targets, s2, a2)
            y = r + self.config.discount * (1 - d) * (
                q2.min(0)[0] if self.config.q_agg == "min" else q2.mean(0)
            )
            x = z
            for i in range(self.config.flow_steps):
                time = torch.full((len(s), 1), i / self.config.flow_steps)
                x = x + self.flow(torch.cat([s, x, time], 1)) / self.config.flow_steps
            x = x.clamp(-1, 1)
        critic_loss = (self.q(self.critics, s, a) - y).square().mean()
        v = self.flow(torch.cat([s, (1 - t) * x0 + t * a, t], 1))
        flow_loss = (v - (a - x0)).square().mean()
        mu = self.actor(torch.cat([s, z], 1))
        frozen = copy.deepcopy(self.critics).requires_grad_(False)
        q = self.q(frozen, s, mu.clamp(-1, 1)).mean(0)
        lam = 1 / q.detach().abs().mean() if self.config.normalize_q else 1.0
        actor_loss = self.config.alpha * (mu - x).square().mean() - lam * q.mean()
        self.adam.zero_grad()
        (critic_loss + flow_loss + actor_loss).backward()
        with torch.no_grad():
            for p, target in zip(self.critics.parameters(), self.targets.parameters(), strict=True):
                target += self.config.tau * (p - target)
        self.adam.step()


@pytest.mark.parametrize(
    "settings", [{}, {"q_agg": "min", "normalize_q": True, "alpha": 0.5, "flow_steps": 3}]
)
def test_five_updates_equal_those_of_plain_modules(settings):
    """Also the targets, which follow the critics before their step."""
    config = FQLConfig(**SMALL, lr=1e-2, tau=0.2, **settings)
    learner = FQL(tiny_problem(), config)
    plain, twin = Plain(learner, config), FQL(tiny_problem(), config)
    for batch in series(tiny_problem(), 5):
        noise = torch.stack([torch.randn(3, 32, 2, generator=g) for g in twin.noise])[0]
        t = torch.rand(32, 1, generator=twin.noise[0])
        fields = (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminated)
        plain.update(*(x[0] for x in fields), noise, t)
        learner.update(batch)
    for ours, theirs in (
        *((unstack(linear_part(learner.critic.params), g), plain.critics[g]) for g in range(2)),
        *((unstack(linear_part(learner.critic.target), g), plain.targets[g]) for g in range(2)),
        (unstack(learner.flow.params, 0), plain.flow),
        (unstack(learner.actor.params, 0), plain.actor),
    ):
        layers = [m for m in theirs if isinstance(m, nn.Linear)]
        for (weight, bias), layer in zip(ours, layers, strict=True):
            torch.testing.assert_close(weight, layer.weight.detach(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(bias, layer.bias.detach(), rtol=1e-3, atol=1e-4)


# Known answers


def bandit_batch(actions, rewards):
    rows = len(actions)
    zeros = torch.zeros(1, rows, 3)
    return Batch(zeros, actions[None], rewards[None], zeros, torch.ones(1, rows), torch.arange(rows)[None])


def trained(alpha, sample):
    """400 updates on one state where the reward is the action; what flow and policy make of the same noise."""
    problem = dataclasses.replace(
        tiny_problem(), actions=torch.zeros(400, 1), action_low=-torch.ones(1), action_high=torch.ones(1)
    )
    learner = FQL(problem, FQLConfig(alpha=alpha, hidden=32, batch_size=128, lr=3e-3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        actions = sample(torch.rand(128, 1, generator=generator))
        learner.update(bandit_batch(actions, actions[:, 0]))
    noise = torch.randn(1, 2000, 1, generator=generator)
    clones = learner.flow_actions(torch.zeros(1, 2000, 3), noise)
    draws = learner.policy().transport(torch.zeros(2000, 3), noise[0]).detach()
    return clones.flatten(), draws.flatten()


def test_flow_and_policy_clone_two_modes_with_a_large_alpha():
    """Data near -0.6 and 0.6: a Gaussian would put its mean between them."""
    for x in trained(100.0, lambda u: torch.where(u < 0.5, -0.7 + 0.4 * u, 0.3 + 0.4 * u)):
        assert 0.35 < (x > 0).float().mean().item() < 0.65
        assert ((x.abs() - 0.6).abs() < 0.2).float().mean().item() > 0.75


def test_the_policy_leaves_the_flow_by_one_over_two_alpha_where_q_is_the_action():
    """alpha (mu - f)^2 - mu is lowest at mu = f + 1 / (2 alpha) = f + 0.25; the data are uniform in [-0.6, 0.6]."""
    clones, draws = trained(2.0, lambda u: 1.2 * u - 0.6)
    for share in (0.2, 0.5, 0.8):
        assert clones.quantile(share).item() == pytest.approx(1.2 * share - 0.6, abs=0.2)
    assert (draws - clones).mean().item() == pytest.approx(0.25, abs=0.05)
    assert (draws - clones - 0.25).abs().mean().item() < 0.08


# Settings


def test_the_presets_are_the_official_commands():
    def of(name):
        return preset(ALGORITHM, name)

    assert of("antmaze-umaze-diverse-v2") == of("antmaze-medium-play-v2") == {"alpha": 10, "reward_shift": -1}
    assert of("antmaze-large-diverse-v2") == {"alpha": 3.0, "reward_shift": -1.0}
    assert of("antmaze-large-navigate-singletask-task3-v0") == {"alpha": 10.0, "q_agg": "min"}
    assert of("humanoidmaze-large-navigate-singletask-v0") == {"alpha": 30.0, "discount": 0.995}
    assert of("puzzle-4x4-play-singletask-v0") == {"alpha": 1000.0}
    assert of("hammer-cloned-v1") == {"alpha": 1e4, "q_agg": "min"}
    assert of("pen-expert-v1") == {"alpha": 3e3, "q_agg": "min"}
    with pytest.raises(ConfigError, match="no preset for 'antmaze-medium-navigate"):
        of("antmaze-medium-navigate-singletask-v0")


def test_the_defaults_are_the_official_ones():
    config = FQLConfig()
    assert (config.lr, config.batch_size, config.hidden, config.tau) == (3e-4, 256, 512, 0.005)
    assert (config.discount, config.q_agg, config.alpha, config.flow_steps) == (0.99, "mean", 10.0, 10)
    assert not config.normalize_q
    assert not config.normalize_observations
    learner = FQL(tiny_problem(), config)
    assert [len(net.params) for net in (learner.critic, learner.flow, learner.actor)] == [18, 10, 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0"),
        ({"flow_steps": 0}, "flow_steps"),
        ({"q_agg": "max"}, "q_agg must be"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FQLConfig(**settings)

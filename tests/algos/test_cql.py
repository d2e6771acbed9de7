"""CQL: an independent implementation beside it, its limits, its Lagrange factor, its samples."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.cql import ALGORITHM, CQL, CQLConfig
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.training.check import batches, source_of, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32, "num_actions": 3}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


def own_box(seeds=(0,)):
    """The tiny problem with its actions moved to the box (-1, 1) x (0, 4)."""
    problem = tiny_problem(seeds)
    actions = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * problem.actions
    return dataclasses.replace(problem, actions=actions, action_low=LOW, action_high=HIGH)


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def sequential(params, g):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


class Reference:
    """CQL written again with torch's modules and Adam in double precision, one seed, row by row of samples."""

    def __init__(self, learner, config, seed):
        sac = learner.sac
        self.config, self.center, self.half = config, (LOW + HIGH) / 2, (HIGH - LOW) / 2
        self.actor = sequential(sac.actor.net.params[:-2], seed)
        self.scale = [nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.0, -1.0)]
        self.critics = [sequential(sac.critic.params, 2 * seed + j) for j in range(2)]
        self.targets = [sequential(sac.critic.params, 2 * seed + j) for j in range(2)]
        self.log_alpha = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_factor = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.adams = [
            torch.optim.Adam([*self.actor.parameters(), *self.scale, self.log_alpha], lr=config.actor_lr),
            torch.optim.Adam(
                [self.log_factor, *(p for c in self.critics for p in c.parameters())], lr=config.lr
            ),
        ]

    def act(self, s, eps):
        mean, log_std = self.actor(s).split(2, dim=1)
        std = (self.scale[0] * log_std + self.scale[1]).clip(-20, 2).exp()
        u = mean + std * eps
        log_prob = torch.distributions.Normal(mean, std).log_prob(u) - torch.log1p(-(u.tanh() ** 2))
        return self.center + self.half * u.tanh(), log_prob.sum(1)

    def q(self, nets, s, a):
        return torch.stack([net(torch.cat([s, a], 1))[:, 0] for net in nets])

    def gap(self, s, a, s2, draws):
        c, terms = self.config, []
        for j in range(c.num_actions):
            uniform = self.center + self.half * draws["uniform"][j]
            terms.append(self.q(self.critics, s, uniform) - math.log(0.25))
            for states, name in ((s2, "following"), (s, "current")):
                with torch.no_grad():
                    actions, log_pi = self.act(states, draws[name][j])
                terms.append(self.q(self.critics, s, actions) - log_pi)
        t = c.softmax_temperature
        gap = t * torch.logsumexp(torch.stack(terms) / t, dim=0) - self.q(self.critics, s, a)
        return gap if c.clip_min is None else gap.clip(min=c.clip_min)

    def update(self, s, a, r, s2, d, draws):
        c = self.config
        pi, log_pi = self.act(s, draws["actor"])
        alpha = self.log_alpha.exp().detach()
        for p in [p for net in self.critics for p in net.parameters()]:
            p.requires_grad_(False)
        actor_loss = (alpha * log_pi - self.q(self.critics, s, pi).min(0).values).mean()
        actor_loss = actor_loss - self.log_alpha * (log_pi.detach() - 2).mean()
        self.adams[0].zero_grad()
        actor_loss.backward()
        for p in [p for net in self.critics for p in net.parameters()]:
            p.requires_grad_(True)
        with torch.no_grad():
            following = [self.q(self.targets, s2, self.act(s2, e)[0]).min(0).values for e in draws["target"]]
            y = r + c.discount * (1 - d) * torch.stack(following).max(0).values
        loss = ((self.q(self.critics, s, a) - y) ** 2).mean(1).sum()
        gaps = self.gap(s, a, s2, draws).mean(1)
        if c.target_gap is None:
            loss = loss + c.cql_alpha * gaps.sum()
        else:
            factor, excess = self.log_factor.exp(), gaps - c.target_gap
            loss = loss + c.cql_alpha * (factor.detach() * gaps.sum() - 0.5 * factor * excess.detach().sum())
        self.adams[1].zero_grad()
        loss.backward()
        for adam in self.adams:
            adam.step()
        for target, online in zip(self.targets, self.critics, strict=True):
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - c.tau) * t.data + c.tau * o.data


def assert_equal_networks(params, net, g):
    for (weight, bias), linear in zip(unstack(params, g), net[::2], strict=True):
        torch.testing.assert_close(weight, linear.weight.data.float(), rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(bias, linear.bias.data.float(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_gap": 3.0, "max_target_backup": True, "critic_layers": 2, "actor_layers": 1},
        {"clip_min": 2.8, "softmax_temperature": 0.5, "cql_alpha": 1.0},
    ],
    ids=["plain", "lagrange", "clipped"],
)
def test_fifteen_updates_equal_an_independent_implementation(settings):
    """Two stacked seeds, box (-1, 1) x (0, 4); all gradients of an update are those of its first parameters."""
    config = CQLConfig(tau=0.1, discount=0.9, lr=1e-2, actor_lr=4e-3, **SMALL | settings)
    problem = own_box((0, 1))
    learner, twin = CQL(problem, config), CQL(problem, config)
    references = [Reference(learner, config, k) for k in range(2)]
    for batch in series(problem, 15):
        draws = vars(twin.sac.draw(torch.Size((32, 2))))
        for k, reference in enumerate(references):
            names = ("observations", "actions", "rewards", "next_observations", "terminated")
            fields = [getattr(batch, name)[k].double() for name in names]
            reference.update(*fields, {name: x[k].double() for name, x in draws.items()})
        learner.update(batch)
    sac = learner.sac
    for k, reference in enumerate(references):
        assert sac.actor.alpha[k].item() == pytest.approx(reference.log_alpha.exp().item(), rel=1e-4)
        assert sac.multiplier.constant[0][k].item() == pytest.approx(reference.log_factor.item(), rel=1e-4)
        assert_equal_networks(sac.actor.net.params[:-2], reference.actor, k)
        got = [p[k].item() for p in sac.actor.net.params[-2:]]
        assert got == pytest.approx([p.item() for p in reference.scale], abs=1e-4)
        for j in range(2):
            assert_equal_networks(sac.critic.params, reference.critics[j], 2 * k + j)
            assert_equal_networks(sac.critic.target, reference.targets[j], 2 * k + j)


def gradients(learner, batch, draws):
    return learner.sac.critic_gradients(batch, draws)


def one(config, problem=None):
    problem = problem or tiny_problem()
    learner, (batch,) = CQL(problem, config), series(problem, 1)
    return learner, batch, CQL(problem, config).sac.draw(torch.Size((32, 2)))


def test_a_weight_of_zero_is_soft_actor_critic_without_entropy_in_the_target():
    """Gradient of sum_k mean (Q_k - r - gamma (1 - d) min Q'(s', a'))^2 by autograd through torch's modules."""
    learner, batch, draws = one(CQLConfig(cql_alpha=0.0, **SMALL))
    sac = learner.sac
    next_actions, _ = sac.actor.sample(sac.actor.net.constant, batch.next_observations, draws.target[:, 0])
    nets = [sequential(sac.critic.params, j) for j in range(2)]
    following = torch.cat([batch.next_observations, next_actions], 2)[0].double()
    with torch.no_grad():
        y = batch.rewards[0] + 0.99 * (1 - batch.terminated[0]) * torch.minimum(
            *(net(following)[:, 0] for net in nets)
        )
    pairs = torch.cat([batch.observations, batch.actions], 2)[0].double()
    sum(((net(pairs)[:, 0] - y) ** 2).mean() for net in nets).backward()
    grads, _ = gradients(learner, batch, draws)
    for j, net in enumerate(nets):
        torch.testing.assert_close(grads[0][j], net[0].weight.grad.T.float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grads[-2][j], net[-1].weight.grad.float(), rtol=1e-4, atol=1e-6)


def test_the_gap_of_a_constant_q_is_its_importance_weights_alone():
    """Q = 5: the gap is log sum_j 1 / mu_j(a_j), 2^A for each uniform action, 1 / pi for the others, per seed."""
    problem = own_box((0, 1))
    learner, batch, draws = one(CQLConfig(**SMALL), problem)
    sac = learner.sac
    with torch.no_grad():
        sac.critic.params[-2].zero_()
        sac.critic.params[-1].fill_(5.0)
    following = sac.actor.sample(sac.actor.net.constant, batch.next_observations, draws.following)[1]
    current = sac.actor.sample(sac.actor.net.constant, batch.observations, draws.current)[1]
    want = (3 * 4.0 + (-following).exp().sum(1) + (-current).exp().sum(1)).log().mean(1)
    torch.testing.assert_close(gradients(learner, batch, draws)[1]["cql_gap"], want)


def test_a_constant_added_to_every_q_leaves_the_gap():
    learner, batch, draws = one(CQLConfig(**SMALL))
    _, before = gradients(learner, batch, draws)
    with torch.no_grad():
        learner.sac.critic.params[-1] += 3.0
    _, after = gradients(learner, batch, draws)
    torch.testing.assert_close(after["cql_gap"], before["cql_gap"])
    assert after["q_data"] > before["q_data"] + 2.9


def test_without_importance_sampling_the_data_action_is_one_of_the_terms():
    """A constant Q and 3 K + 1 plain terms: log(3 K + 1)."""
    learner, batch, draws = one(CQLConfig(importance_sampling=False, **SMALL))
    with torch.no_grad():
        learner.sac.critic.params[-2].zero_()
    assert gradients(learner, batch, draws)[1]["cql_gap"].item() == pytest.approx(math.log(10), abs=1e-5)


def test_a_gap_below_the_bound_has_no_gradient():
    """With clip_min above every gap the critics learn from the Bellman error alone."""
    config = CQLConfig(clip_min=1e4, **SMALL)
    learner, batch, draws = one(config)
    bare, _, _ = one(CQLConfig(cql_alpha=0.0, **SMALL))
    clipped, metrics = gradients(learner, batch, draws)
    assert metrics["cql_gap"].item() == 1e4
    torch.testing.assert_close(clipped, gradients(bare, batch, draws)[0])


def test_the_factor_rises_while_the_gap_is_too_wide_and_falls_while_it_is_too_narrow():
    """Adam's first step is lr; at first the factor is e. A factor of 1e6 is the largest, and no ascent passes it."""
    learner, _, _ = one(CQLConfig(target_gap=2.0, cql_alpha=5.0, lr=0.1, **SMALL), tiny_problem((0, 1, 2)))
    sac = learner.sac
    torch.testing.assert_close(sac.weight(), torch.full((3,), 5 * math.e))
    sac.multiplier.constant[0][2] = 20.0
    torch.testing.assert_close(sac.weight()[2], torch.tensor(5e6))
    sac.adapt_multiplier(torch.tensor([3.0, 1.0, 3.0]))
    torch.testing.assert_close(sac.multiplier.constant[0], torch.tensor([1.1, 0.9, 20.0]))


def test_a_fixed_weight_never_changes():
    learner = CQL(tiny_problem(), CQLConfig(cql_alpha=3.0, **SMALL))
    for batch in series(tiny_problem(), 3):
        assert learner.update(batch)["cql_weight"].item() == 3.0


def test_the_best_of_several_next_actions_is_never_below_the_first():
    """max over a' of min over critics: rows rise against one action's target, and terminated rows stay r."""
    config = CQLConfig(max_target_backup=True, **SMALL)
    learner, batch, draws = one(config)
    assert draws.target.shape == (1, 3, 32, 2)
    with torch.no_grad():
        learner.sac.critic.target[-2].mul_(1000.0)  # the first outputs are tiny
    best = learner.sac.target(batch, draws.target)
    single = torch.stack([learner.sac.target(batch, draws.target[:, j : j + 1]) for j in range(3)])
    torch.testing.assert_close(best, single.amax(0))
    assert (best > single[0]).any()
    ended = dataclasses.replace(batch, terminated=torch.ones(1, 32))
    assert torch.equal(learner.sac.target(ended, draws.target), batch.rewards)


def test_samples_are_ten_each_at_the_rows_own_state():
    """Order: data, uniform, pi(. | s'), pi(. | s); the policy's are squashed into the box, uniform ones fill it."""
    problem = own_box((0, 1))
    learner = CQL(problem, CQLConfig(hidden=8, batch_size=32))
    (batch,) = series(problem, 1)
    sac = learner.sac
    draws = sac.draw(torch.Size((32, 2)))
    actions, log_densities = sac.samples(batch, draws)
    assert actions.shape == (2, 31, 32, 2)
    assert torch.equal(actions[:, 0], batch.actions)
    uniform = (actions[:, 1:11] - torch.tensor([0.0, 2.0])) / torch.tensor([1.0, 2.0])
    assert uniform.abs().max() <= 1
    assert uniform.mean().abs() < 5 / (3 * uniform.numel()) ** 0.5  # variance 1/3
    assert uniform.var().item() == pytest.approx(1 / 3, abs=0.05)
    assert (log_densities[:, :10] == -2 * math.log(2)).all()
    for start, states, noise in (
        (10, batch.next_observations, draws.following),
        (20, batch.observations, draws.current),
    ):
        want, log_pi = sac.actor.sample(sac.actor.net.constant, states, noise)
        torch.testing.assert_close(actions[:, start + 1 : start + 11], want)
        torch.testing.assert_close(log_densities[:, start : start + 10], log_pi)


def test_the_networks_begin_orthogonal_with_tiny_outputs():
    """Rows of the output layers have length 0.01; log_std begins near -1 and may fall to -20."""
    learner = CQL(tiny_problem(), CQLConfig(critic_layers=5, hidden=16))
    assert [len(net.params) for net in (learner.sac.critic, learner.sac.actor.net)] == [12, 8 + 2]
    for output in (learner.sac.critic.params[-2], learner.sac.actor.net.params[6]):
        torch.testing.assert_close(output.norm(dim=2), torch.full_like(output[:, :, 0], 0.01))
    policy = learner.policy()
    assert policy.log_std_min == -20.0
    torch.testing.assert_close(
        policy.moments(torch.ones(1, 3))[1], torch.full((1, 2), math.exp(-1)), atol=0.05, rtol=0
    )


def test_a_stack_draws_what_its_seeds_draw_alone():
    config = CQLConfig(**SMALL)
    draw = lambda seeds: vars(CQL(tiny_problem(seeds), config).sac.draw(torch.Size((32, 2))))  # noqa: E731
    both, alone = draw((0, 1)), draw((1,))
    for name in both:
        assert torch.equal(both[name][1:], alone[name])
    assert len({round(x.flatten()[0].item(), 6) for x in both.values()}) == 5  # none is drawn twice


def test_the_presets_are_corls():
    assert preset(ALGORITHM, "hopper-medium-v2") == {"return_range_scaling": True}
    assert preset(ALGORITHM, "hopper-medium-replay-v2") == {"cql_alpha": 10.0}
    maze = CQLConfig(**preset(ALGORITHM, "antmaze-large-play-v2"))
    assert (maze.cql_alpha, maze.target_gap, maze.clip_min, maze.max_target_backup) == (
        5.0,
        0.8,
        -200.0,
        True,
    )
    assert (maze.actor_lr, maze.critic_layers, maze.reward_scale, maze.reward_shift) == (1e-4, 5, 10.0, -5.0)
    assert not maze.normalize_observations
    assert preset(ALGORITHM, "pen-human-v1") == {"cql_alpha": 1.0, "actor_lr": 1e-4}
    assert preset(ALGORITHM, "maze2d-umaze-v1") == {"target_gap": 5.0}
    default = CQLConfig()
    assert (default.cql_alpha, default.actor_lr, default.lr, default.target_gap) == (10.0, 3e-5, 3e-4, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cql_alpha": -1.0}, r"cql_alpha must be 0 or more, got -1.0"),
        ({"actor_lr": 0.0}, r"actor_lr must be in \(0, 1\), got 0.0"),
        ({"num_actions": 0}, "num_actions must be 1 or more, got 0"),
        ({"critic_layers": 0}, "critic_layers must be 1 or more, got 0"),
        ({"softmax_temperature": 0.0}, r"softmax_temperature must be above 0, got 0.0"),
        ({"clip_min": float("nan")}, "clip_min must be a finite number, got nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CQLConfig(**settings)


@pytest.mark.parametrize(("cql_alpha", "stays"), [(0.0, False), (10.0, True)])
def test_the_gap_keeps_the_policy_where_the_data_are(cql_alpha, stays):
    """One-step data on actions in [-1, 0] only, reward 3 a: without the gap the policy leaves them, on values that
    nobody has seen; with it the values fall outside. Over 8 seeds it ends at 0.31 to 0.39, or -0.53 to -0.49.
    """
    actions = torch.linspace(-1, 0, 200)[:, None]
    problem = dataclasses.replace(
        tiny_problem(rows=200),
        observations=torch.zeros(200, 3),
        actions=actions,
        rewards=3 * actions[:, 0],
        next_observations=torch.zeros(200, 3),
        terminated=torch.ones(200),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )
    config = CQLConfig(cql_alpha=cql_alpha, lr=5e-3, actor_lr=5e-3, hidden=16, batch_size=64)
    learner, source = CQL(problem, config), source_of(problem, 64)
    generators = problem.streams("data")
    for _ in range(150):
        learner.update(source.sample(generators))
    action = learner.policy()(torch.zeros(1, 3)).item()
    assert -0.8 < action < -0.2 if stays else action > 0.15

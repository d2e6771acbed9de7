"""O-DICE: its fixed points, its limits, the geometry of its gradient, an independent implementation; imitation."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from offrl.algos import odice, preset
from offrl.algos.odice import ALGORITHM, ODICE, ODICEConfig, demonstrations, policy_weights
from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import CheckpointError, ConfigError, DatasetError
from offrl.estimators.grad_surgery import flatten
from offrl.nn.mlp import unstack
from offrl.nn.normed import linear_part
from offrl.training.build import build
from offrl.training.check import batches, source_of, tiny_problem

SMALL = {"hidden": 8, "policy_hidden": 8, "batch_size": 32}
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


def own_box(seeds=(0,)):
    """The tiny problem with its actions moved to the box (-1, 1) x (0, 4)."""
    problem = tiny_problem(seeds)
    actions = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * problem.actions
    return dataclasses.replace(problem, actions=actions, action_low=LOW, action_high=HIGH)


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def moved(learner, scale=0.3):
    """The learner with its target elsewhere than its value network."""
    for i, p in enumerate(learner.value.target):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        p.add_(scale * noise)
    return learner


def gradients_of(learner, batch):
    grads, residuals, metrics = learner.value_gradients(batch, batch.rewards, batch.observations)
    return list(grads), residuals, metrics


# An independent implementation


def networks(params, g, normed):
    """Network g of a stack as torch modules."""
    linears = []
    for weight, bias in unstack(linear_part(params) if normed else params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        linears.append(linear)
    layers = [linears[0]]
    for linear in linears[1:]:
        layers += ([nn.LayerNorm(linear.in_features)] if normed else []) + [nn.ReLU(), linear]
    return nn.Sequential(*layers)


class Reference:
    """O-DICE written again with torch's modules, one backward pass after the other, one seed."""

    def __init__(self, learner, config, seed):
        self.config, members = config, 1 + config.twin
        at = range(members * seed, members * (seed + 1))
        self.value = nn.ModuleList(networks(learner.value.params, g, config.layer_norm) for g in at)
        self.target = nn.ModuleList(networks(learner.value.params, g, config.layer_norm) for g in at)
        self.actor = networks(learner.actor.params[:-1], seed, False)
        self.log_std = nn.Parameter(learner.actor.params[-1][seed, 0].detach().clone())
        self.v_adam = torch.optim.Adam(self.value.parameters(), lr=config.lr)
        actor = [*self.actor.parameters(), self.log_std]
        self.pi_adam = torch.optim.Adam(actor, lr=config.lr, weight_decay=config.weight_decay)

    def f_star(self, e):
        if self.config.divergence == "reverse_kl":
            return torch.exp(e - 1)
        return torch.where(e > -2, e + e**2 / 4, -torch.ones_like(e))

    def set_value_gradient(self, s, r, s2, d):
        c, parameters = self.config, list(self.value.parameters())
        nd = c.discount * (1 - d)
        both = lambda nets, x: torch.stack([net(x)[:, 0] for net in nets])  # noqa: E731
        v, v2 = both(self.value, s), both(self.value, s2)
        with torch.no_grad():
            t, t2 = both(self.target, s).min(0)[0], both(self.target, s2).min(0)[0]
        grad = lambda loss: torch.autograd.grad(loss, parameters, retain_graph=True)  # noqa: E731
        linear = grad(((1 - c.lam) * v).mean())
        if c.gradient == "true":
            residual = r + nd * v2 - v
            total = [a + b for a, b in zip(linear, grad(c.lam * self.f_star(residual).mean()), strict=True)]
        else:
            residual = r + nd * t2 - v
            g_f = grad((c.lam * self.f_star(residual)).mean())
            g_b = grad((c.lam * c.eta * self.f_star(r + nd * v2 - t)).mean())
            dot = lambda x, y: sum((a * b).sum() for a, b in zip(x, y, strict=True))  # noqa: E731
            k, keep = dot(g_f, g_b) / max(dot(g_f, g_f), 1e-10), c.gradient == "orthogonal"
            total = [a + (1 - k * keep) * b + keep * h for a, b, h in zip(linear, g_f, g_b, strict=True)]
        for parameter, g in zip(parameters, total, strict=True):
            parameter.grad = g
        return residual.detach()

    def update(self, s, a, r, s2, d):
        c = self.config
        residual = self.set_value_gradient(s, r, s2, d)
        self.v_adam.step()
        for t, o in zip(self.target.parameters(), self.value.parameters(), strict=True):
            t.data = (1 - c.tau) * t.data + c.tau * o.data
        weight = residual.clip(min=0) if c.weight == "relu_e" else residual / 2 + 1
        weight = torch.exp(residual - 1) if c.divergence == "reverse_kl" else weight.clip(min=0)
        mean, half = self.actor(s), (HIGH - LOW) / 2
        mean = mean.tanh() if c.tanh_mean else mean
        unit = (a - (LOW + HIGH) / 2) / half  # the likelihood in units of the half-range
        log_prob = (torch.distributions.Normal(mean, self.log_std.clip(-5, 2).exp()).log_prob(unit)).sum(1)
        log_prob = log_prob - half.log().sum()
        self.pi_adam.zero_grad()
        (weight.clip(max=100) * -log_prob).mean().backward()
        self.pi_adam.step()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient": "semi", "twin": False, "layer_norm": False},
        {"gradient": "true", "layer_norm": False, "weight": "ratio"},
        {"eta": 0.3, "twin": False, "divergence": "reverse_kl", "weight": "ratio", "tanh_mean": True},
    ],
    ids=["defaults", "semi", "true", "reverse-kl"],
)
def test_updates_equal_an_independent_implementation(changes):
    """Two stacked seeds, box (-1, 1) x (0, 4); lr 1e-2, tau .1 and weight decay .1, so that each of them shows."""
    settings = {"lam": 0.45, "tau": 0.1, "discount": 0.9, "lr": 1e-2, "weight_decay": 0.1}
    config = ODICEConfig(**settings | SMALL | changes)
    problem = own_box((0, 1))
    learner = ODICE(problem, config)
    references = [Reference(learner, config, k) for k in range(2)]
    for batch in series(problem, 12):
        learner.update(batch)
        for k, reference in enumerate(references):
            fields = (batch.observations, batch.actions, batch.rewards, batch.next_observations)
            reference.update(*(x[k] for x in (*fields, batch.terminated)))
    close = {"rtol": 1e-3, "atol": 2e-4}
    for k, reference in enumerate(references):
        inputs = problem.observations[:9]
        policy = learner.policy(k)
        mean = reference.actor(inputs).tanh() if config.tanh_mean else reference.actor(inputs)
        want = ((LOW + HIGH) / 2 + (HIGH - LOW) / 2 * mean).clamp(LOW, HIGH)
        torch.testing.assert_close(policy(inputs), want, **close)
        torch.testing.assert_close(learner.actor.params[-1][k, 0], reference.log_std, **close)
        pairs = [(learner.value.params, reference.value)]
        pairs += [(learner.value.target, reference.target)] if config.gradient != "true" else []
        for params, nets in pairs:
            got = learner.values(params, inputs.expand(2, -1, -1))[k]
            torch.testing.assert_close(got, torch.stack([net(inputs)[:, 0] for net in nets]), **close)


# The value


FIXED_POINTS = [
    (0.5, (0, 1), 0.5, None),
    (0.4, (0, 1), -0.5, (0.5, 1.5)),
    (0.6, (0, 1), 7 / 6, (0.0, 0.0)),
    (0.6, (1, 1), 5 / 3, (0.0, 0.0)),
    (0.6, (0, 10), 28 / 3, (0.0, 2 / 3)),
    (0.8, (0, 10), 11.0, (0.0, 0.0)),
    (0.98, (0, 10), 12 - 4 / 49, (0.0, 0.0)),  # the limit of lam 1 is the best reward and 2
]


@pytest.mark.parametrize(("lam", "rewards", "value", "weights"), FIXED_POINTS)
def test_in_a_terminal_bandit_the_value_stands_still_where_algebra_says(lam, rewards, value, weights):
    """1 - lam = lam mean w*(r - V) at V; above it the gradient is positive, below it negative.

    With lam 0.6 and rewards that differ little every weight of the code's policy is 0: the run is dead.
    """
    problem = tiny_problem()
    learner = ODICE(problem, ODICEConfig(lam=lam, **SMALL))
    (batch,) = series(problem, 1)
    pay = torch.tensor([rewards], dtype=torch.float32).repeat(1, 16)
    batch = dataclasses.replace(batch, rewards=pay, terminated=torch.ones(1, 32))
    bias = 5  # of the output layer, behind two hidden layers
    slopes = []
    for shift in (-0.1, 0.0, 0.1):
        with torch.no_grad():
            learner.value.params[4].zero_()
            learner.value.params[bias].fill_(value + shift)
        grads, residuals, _ = gradients_of(learner, batch)
        slopes.append(grads[bias].sum().item())
        if shift == 0.0 and weights is not None:
            got = policy_weights(residuals, learner.config)[0, 0, :2]
            assert got.tolist() == pytest.approx(weights, abs=1e-5)
    assert slopes[0] < -0.01
    assert slopes[1] == pytest.approx(0.0, abs=1e-6)
    assert slopes[2] > 0.01


def test_the_papers_weights_are_the_ratio():
    """lam 0.6, rewards 0 and 1: V = 7/6, w* = max(0, e / 2 + 1)."""
    e = torch.tensor([0.0, 1.0, -2.0]) - 7 / 6
    got = policy_weights(e, ODICEConfig(weight="ratio"))
    torch.testing.assert_close(got, torch.tensor([5 / 12, 11 / 12, 0.0]))
    config = ODICEConfig(weight="ratio", divergence="reverse_kl")
    torch.testing.assert_close(policy_weights(e, config), torch.exp(e - 1))
    assert policy_weights(torch.tensor([1e4, 250.0]), config).tolist() == [100.0, 100.0]


def test_without_the_backward_gradient_it_is_the_semi_gradient():
    """eta 0: bit for bit, over eight updates."""
    problem = tiny_problem((0, 1))
    zero = ODICE(problem, ODICEConfig(eta=0.0, lr=1e-2, **SMALL))
    semi = ODICE(problem, ODICEConfig(gradient="semi", lr=1e-2, **SMALL))
    other = ODICE(problem, ODICEConfig(lr=1e-2, **SMALL))
    for batch in series(problem, 8):
        for learner in (zero, semi, other):
            learner.update(batch)
    for net in ("actor", "value"):
        a, b, c = (getattr(learner, net).params for learner in (zero, semi, other))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize("eta", [0.2, 1.0, 5.0])
def test_what_the_backward_gradient_adds_is_orthogonal_to_the_forward_one(eta):
    """<g - g_f, g_f> = 0 for each seed, over all layers and both twins at once; not within a layer or a twin."""
    problem = tiny_problem((0, 1))
    (batch,) = series(problem, 1)
    full = moved(ODICE(problem, ODICEConfig(eta=eta, **SMALL)))
    semi = moved(ODICE(problem, ODICEConfig(gradient="semi", **SMALL)))
    total, _, metrics = gradients_of(full, batch)
    without, _, _ = gradients_of(semi, batch)
    added = [a - b for a, b in zip(total, without, strict=True)]
    forward, _, _ = semi.dual_gradients(batch, batch.rewards)
    dots = (flatten(added, 2) * flatten(forward, 2)).sum(1)
    assert (dots.abs() <= 1e-5 * metrics["forward_norm"] * metrics["backward_norm"]).all()
    torch.testing.assert_close(metrics["forward_norm"], flatten(forward, 2).norm(dim=1))
    slope = metrics["cosine"] * metrics["backward_norm"] / metrics["forward_norm"]
    torch.testing.assert_close(metrics["coefficient"], slope)
    assert metrics["cosine"].abs().min() > 0.05  # so that there was something to project out
    assert (added[0] * forward[0]).sum().abs() > 1e-4 * metrics["forward_norm"][0]
    twin = slice(0, 1)  # the first twin of seed 0
    assert sum((a[twin] * b[twin]).sum() for a, b in zip(added, forward, strict=True)).abs() > 1e-4


def test_without_the_projection_it_is_the_true_gradient(monkeypatch):
    """eta 1, one V, the target at the online values: g_f + g_b = grad lam mean f*(r + gamma nd V(s') - V(s))."""
    problem = tiny_problem((0, 1))
    (batch,) = series(problem, 1)
    monkeypatch.setattr(odice, "project_out", lambda v, d: (v, v.new_zeros(len(v))))
    settings = {"twin": False, **SMALL}
    full = ODICE(problem, ODICEConfig(**settings))  # a fresh target equals its network
    true = ODICE(problem, ODICEConfig(gradient="true", **settings))
    for a, b in zip(gradients_of(full, batch)[0], gradients_of(true, batch)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_terminated_row_has_no_backward_gradient_and_no_bootstrap():
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    learner = moved(ODICE(problem, ODICEConfig(**SMALL)))
    ended = dataclasses.replace(batch, terminated=torch.ones(1, 32))
    _, residuals, metrics = gradients_of(learner, ended)
    assert metrics["backward_norm"].item() == metrics["coefficient"].item() == 0.0
    values = learner.values(learner.value.constant, batch.observations)
    torch.testing.assert_close(residuals, batch.rewards[:, None] - values)


def test_the_target_is_the_smaller_of_the_twins_and_discounted():
    """Target twins lifted to 10 and 20 everywhere: e_f = r + .9 * 10 - V where the episode goes on."""
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    learner = ODICE(problem, ODICEConfig(discount=0.9, **SMALL))
    learner.value.target[4].zero_()
    learner.value.target[5].copy_(torch.tensor([20.0, 10.0])[:, None, None])
    _, residuals, metrics = gradients_of(learner, batch)
    values = learner.values(learner.value.constant, batch.observations)
    want = (batch.rewards + 9.0 * (1 - batch.terminated))[:, None] - values
    torch.testing.assert_close(residuals, want)
    torch.testing.assert_close(metrics["residual"], want.mean(dim=(1, 2)))
    torch.testing.assert_close(metrics["residual_max"], want.amax(dim=(1, 2)))


def test_the_true_gradient_has_no_target_and_the_others_follow_with_tau():
    problem = tiny_problem()
    assert ODICE(problem, ODICEConfig(gradient="true", **SMALL)).value.target is None
    learner = ODICE(problem, ODICEConfig(tau=0.25, lr=1e-2, **SMALL))
    for batch in series(problem, 2):
        old = [p.clone() for p in learner.value.target]
        learner.update(batch)
        for before, online, after in zip(old, learner.value.params, learner.value.target, strict=True):
            torch.testing.assert_close(after, 0.75 * before + 0.25 * online.detach())


# The policy


def test_the_policys_gradient_is_linear_in_the_weights_and_blind_to_rows_without():
    """Doubled residuals double it; rows with e <= 0 have no say, whatever their actions."""
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    learner = ODICE(problem, ODICEConfig(**SMALL))
    e = torch.linspace(-5, 5, 32).expand(1, 2, 32)
    once, _ = learner.actor_gradients(batch, e)
    twice, _ = learner.actor_gradients(batch, 2 * e)
    actions = torch.where((e[:, 0] > 0)[..., None], batch.actions, -batch.actions)
    blind, metrics = learner.actor_gradients(dataclasses.replace(batch, actions=actions), e)
    for a, b, c in zip(once, twice, blind, strict=True):
        torch.testing.assert_close(b, 2 * a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(c, a)
    assert metrics["zero_weights"].item() == 0.5


def test_a_weight_is_the_average_of_the_twins_each_cut_at_one_hundred():
    """Residuals 250 and 50: (100 + 50) / 2 = 75 times the gradient of weight 1."""
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    learner = ODICE(problem, ODICEConfig(**SMALL))
    plain, _ = learner.actor_gradients(batch, torch.ones(1, 2, 32))
    pair = torch.tensor([250.0, 50.0])[None, :, None].expand(1, 2, 32)
    cut, metrics = learner.actor_gradients(batch, pair)
    for a, b in zip(plain, cut, strict=True):
        torch.testing.assert_close(b, 75 * a, rtol=1e-4, atol=1e-5)
    assert metrics["capped_weights"].item() == 0.5


def test_the_policy_learns_from_the_residuals_before_the_value_step():
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    learner, twin = (ODICE(problem, ODICEConfig(lr=0.05, lam=0.3, **SMALL)) for _ in range(2))
    _, residuals, _ = gradients_of(twin, batch)
    grads, want = twin.actor_gradients(batch, residuals)
    twin.actor.apply(grads)
    got = learner.update(batch)
    assert torch.equal(got["actor_loss"], want["actor_loss"])
    assert all(torch.equal(a, b) for a, b in zip(learner.actor.params, twin.actor.params, strict=True))


def test_only_the_policy_decays():
    """Without residuals above 0 the policy's gradient is 0, and its weights shrink by Adam's step all the same."""
    problem = tiny_problem()
    (batch,) = series(problem, 1)
    for decay in (0.0, 0.1):
        learner = ODICE(problem, ODICEConfig(weight_decay=decay, lr=0.01, **SMALL))
        before = learner.actor.params[0].detach().clone()
        grads, _ = learner.actor_gradients(batch, -torch.ones(1, 2, 32))
        learner.actor.apply(grads)
        step = before - learner.actor.params[0].detach()
        torch.testing.assert_close(step, 0.01 * before.sign() * (decay > 0), rtol=1e-3, atol=1e-6)
        assert learner.value.weight_decay == 0.0


# Imitation


def labelled(seeds=(0,), rows=400):
    """Half of the rows are the expert's, at state 0, acting at 0.5 +- 0.1. The others act anywhere, every second
    one of them at a state (1, 1, 1) that the expert never sees. One step an episode.
    """
    g = torch.Generator().manual_seed(3)
    expert = (torch.arange(rows) % 2).float()
    actions = 2 * torch.rand(rows, 2, generator=g) - 1
    actions = torch.where(expert[:, None] > 0, 0.5 + 0.1 * actions, actions)
    states = (torch.arange(rows) % 4 == 0).float()[:, None].expand(rows, 3).contiguous()
    return dataclasses.replace(
        tiny_problem(seeds, rows),
        observations=states,
        next_observations=states,
        actions=actions,
        rewards=expert,
        terminated=torch.ones(rows),
    )


IMITATION = {"imitation": True, "expert_dataset": "demonstrations", "lam": 0.4, "layer_norm": False}


def test_the_learned_reward_is_the_log_ratio_and_the_policy_follows_the_expert():
    """Among the expert's actions d_E is 1/.04, d_O half of that and 1/16: the log ratio is log(25 / 12.56) = .69.

    Elsewhere it falls towards -10, the cut. At state 0 the data's mean action is 1/3, the expert's 0.5. At the other
    state nothing holds V down: it rises until e <= -2, the ratio is 0 there, and so is the policy's weight.
    """
    problem = labelled((0, 1))
    config = ODICEConfig(**IMITATION, hidden=32, policy_hidden=32, lr=5e-3, batch_size=128)
    learner = ODICE(problem, config)
    source, generators = source_of(problem, 128), problem.streams("data")
    for _ in range(400):
        learner.update(source.sample(generators))
    batch = source.sample(generators)
    rewards, starts, _ = learner.log_ratio.update(batch)
    _, residuals, _ = learner.value_gradients(batch, rewards, starts)
    weights = policy_weights(residuals, config)
    for seed in range(2):
        at = batch.observations[seed, :, 0] == 0
        near = at & ((batch.actions[seed] - 0.5).abs().amax(dim=1) < 0.05)
        assert rewards[seed][near].mean().item() == pytest.approx(0.69, abs=0.25)
        assert rewards[seed][(batch.actions[seed] - 0.5).abs().amax(dim=1) > 0.6].max().item() < -3
        assert learner.policy(seed)(torch.zeros(1, 3))[0].tolist() == pytest.approx([0.5, 0.5], abs=0.06)
        assert weights[seed][:, ~at].max() == 0
        assert weights[seed][:, near].min() > 0
    assert rewards.min() == -odice.LOG_RATIO_LIMIT


def test_labels_are_no_rewards_and_the_linear_term_is_on_demonstrated_states():
    """Labels mark rows and never reach V; the demonstrations' states stand in for the initial ones."""
    problem = dataclasses.replace(tiny_problem(), rewards=(torch.arange(400) % 2).float())
    learner, twin = (ODICE(problem, ODICEConfig(**IMITATION, **SMALL)) for _ in range(2))
    (batch,) = series(problem, 1)
    rewards, starts, _ = twin.log_ratio.update(batch)
    assert starts.shape == batch.observations.shape
    known = (starts[0][:, None] == problem.observations[None]).all(dim=2)
    assert known.any(dim=1).all()
    assert not known[:, ::2].any()  # rows with an even number are not the expert's
    _, _, want = twin.value_gradients(batch, rewards, starts)
    values = twin.values(twin.value.constant, starts)
    torch.testing.assert_close(want["value"], values.mean(dim=(1, 2)))
    got = learner.update(batch)
    assert torch.equal(got["residual"], want["residual"])
    assert torch.equal(got["value"], want["value"])


def test_stacked_imitation_equals_single_runs_and_resumes_bit_for_bit():
    config = ODICEConfig(**IMITATION, lr=1e-2, **SMALL)

    def run(seeds, count, learner=None, start=0):
        problem = labelled(seeds)
        learner = learner or ODICE(problem, config)
        for batch in series(problem, start + count)[start:]:
            learner.update(batch)
        return learner

    stack = run((0, 1), 10)
    for seed in (0, 1):
        single = run((seed,), 10)
        for name in ("actor", "value"):
            members = 2 if name == "value" else 1
            at = slice(members * seed, members * (seed + 1))
            for a, b in zip(stack.networks[name].params, single.networks[name].params, strict=True):
                torch.testing.assert_close(a[at], b, rtol=0, atol=1e-5)
    half = run((0, 1), 5)
    resumed = ODICE(labelled((0, 1)), config)
    resumed.load_state_dict(half.state_dict())
    run((0, 1), 5, resumed, 5)
    for name, net in stack.networks.items():
        assert all(torch.equal(a, b) for a, b in zip(net.params, resumed.networks[name].params, strict=True))


@pytest.mark.parametrize("changed", ["observations", "actions"])
def test_a_run_is_not_resumed_with_other_demonstrations(changed):
    config = ODICEConfig(**IMITATION, **SMALL)
    state = ODICE(labelled(), config).state_dict()
    problem = labelled()
    other = dataclasses.replace(problem, **{changed: getattr(problem, changed).flip(0)})
    with pytest.raises(
        CheckpointError, match="the demonstrations in expert_dataset changed since the run began"
    ):
        ODICE(other, config).load_state_dict(state)


def test_the_streams_of_demonstrations_are_restored_from_a_state_on_another_device(elsewhere):
    saved, restored = (ODICE(labelled((s,)), ODICEConfig(**IMITATION, **SMALL)).log_ratio for s in (0, 5))
    state = saved.streams_and_digest()
    restored.restore(state | {"streams": [elsewhere(s) for s in state["streams"]]})
    draws = [torch.randint(1000, (9,), generator=net.streams[0]) for net in (saved, restored)]
    assert torch.equal(*draws)


def test_demonstrations_without_a_transition_are_refused():
    problem = dataclasses.replace(labelled(), rewards=torch.zeros(400))
    with pytest.raises(DatasetError, match="no transition of the demonstrations is left"):
        ODICE(problem, ODICEConfig(**IMITATION, **SMALL))


def recorded(episodes, action, steps=4):
    """Episodes of 4 steps, the last one terminated; the reward is 7 everywhere."""
    n = episodes * steps
    ended = np.arange(n) % steps == steps - 1
    observations = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    actions = np.full((n, 1), action, dtype=np.float32) + np.arange(n, dtype=np.float32)[:, None] / 1000
    return OfflineDataset.from_arrays(observations, actions, np.full(n, 7.0), ended)


def test_demonstrations_are_marked_and_the_rest_is_unlabelled(tmp_path):
    """Five recorded demonstrations, of which 1 and 2 are used, join three unlabelled episodes; no reward is read."""
    write_d4rl(recorded(5, 0.5), tmp_path / "expert.hdf5")
    settings = {"imitation": True, "expert_dataset": str(tmp_path / "expert.hdf5")}
    config = ODICEConfig(**settings, expert_episodes=2, expert_first=1)
    data = demonstrations(recorded(3, -0.5), config)
    assert data.episode_starts.tolist() == [0, 4, 8, 12, 16, 20]
    assert data.fields["rewards"].tolist() == [0.0] * 12 + [1.0] * 8
    expected = [0.5 + i / 1000 for i in range(4, 12)]
    assert data.fields["actions"][12:, 0].tolist() == pytest.approx(expected)
    every = demonstrations(recorded(3, -0.5), dataclasses.replace(config, expert_episodes=0))
    assert every.fields["rewards"].sum() == 16  # from the first on


def test_demonstrations_alone_have_no_reward():
    config = ODICEConfig(imitation=True, expert_episodes=1, expert_first=2)
    data = demonstrations(recorded(5, 0.5), config)
    assert data.num_episodes == 1
    assert data.fields["actions"][0, 0].item() == pytest.approx(0.508)
    assert not data.fields["rewards"].any()
    untouched = recorded(5, 0.5)
    assert demonstrations(untouched, ODICEConfig()) is untouched


def test_demonstrations_that_do_not_exist_are_refused():
    with pytest.raises(DatasetError, match="no 2 demonstrations from episode 4 on: .* have 5 episodes"):
        demonstrations(recorded(5, 0.5), ODICEConfig(imitation=True, expert_episodes=2, expert_first=4))
    with pytest.raises(DatasetError, match="no 1 demonstrations from episode 5 on"):
        demonstrations(recorded(5, 0.5), ODICEConfig(imitation=True, expert_first=5))
    with pytest.raises(ConfigError, match="need --imitation"):
        demonstrations(recorded(5, 0.5), ODICEConfig(expert_episodes=2))


def test_a_whole_imitation_run_is_built_from_files(tmp_path):
    """The door of 'offrl train': labels go in, and the learner has a classifier for them."""
    write_d4rl(recorded(5, 0.5), tmp_path / "expert.hdf5")
    settings = dataclasses.replace(
        ODICEConfig(**preset(ALGORITHM, "imitation-hopper-expert-v2"), **SMALL),
        expert_dataset=str(tmp_path / "expert.hdf5"),
    )
    run = {"rows": "exact", "device": "cpu", "seed": 0, "steps": 10, "compile": False, "threads": 1}
    learner, source = build(ALGORITHM, settings, recorded(3, -0.5), None, run)
    assert len(source) == 8 * 4
    assert len(learner.log_ratio.actions) == 5 * 4
    generators = [torch.Generator().manual_seed(0)]
    metrics = learner.update(source.sample(generators))
    assert set(metrics) == set(learner.metrics)
    torch.testing.assert_close(source.table[:, :2].mean(0), torch.zeros(2), atol=1e-4, rtol=0)  # normalized


# The compiled form


@pytest.mark.parametrize("changes", [{}, {"gradient": "true"}, IMITATION], ids=["rl", "true", "imitation"])
def test_the_form_that_is_compiled_makes_the_same_updates(changes, monkeypatch):
    """Compiled, gradients come from torch.func and networks are plain compositions; both forms agree."""
    problem = labelled((0, 1)) if "imitation" in changes else own_box((0, 1))
    eager, other = (ODICE(problem, ODICEConfig(**changes, lr=1e-2, **SMALL)) for _ in range(2))
    for batch in series(problem, 3):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            metrics = other.update(batch)
        torch.testing.assert_close(metrics, eager.update(batch), rtol=1e-4, atol=1e-5)
    for name, net in eager.networks.items():
        for a, b in zip(net.params, other.networks[name].params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": 0.0}, r"lam must be in \(0, 1\), got 0.0"),
        ({"lam": 1.0}, r"lam must be in \(0, 1\), got 1.0"),
        ({"eta": -0.1}, "eta must be 0 or more, got -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay must be 0 or more"),
        ({"policy_hidden": 0}, "policy_hidden must be 1 or more, got 0"),
        (
            {"gradient": "orthogonal_true_g"},
            "gradient must be orthogonal or semi or true, got 'orthogonal_true_g'",
        ),
        ({"divergence": "kl"}, "divergence must be pearson or reverse_kl, got 'kl'"),
        ({"weight": "exp"}, "weight must be relu_e or ratio, got 'exp'"),
        ({"divergence": "reverse_kl"}, "reverse_kl goes with weight ratio"),
        ({"expert_episodes": -1}, "expert_episodes and expert_first must be 0 or more"),
        ({"imitation": True, "return_range_scaling": True}, "imitation reads no rewards"),
        ({"imitation": True, "reward_shift": -1.0}, "imitation reads no rewards"),
        ({"tau": 0.995}, "did you mean 0.005"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ConfigError, match=message):
        ODICEConfig(**settings)


def test_the_defaults_are_the_official_codes_for_locomotion():
    c = ODICEConfig()
    assert (c.lam, c.eta, c.gradient, c.divergence, c.weight) == (0.6, 1.0, "orthogonal", "pearson", "relu_e")
    assert (c.discount, c.tau, c.lr, c.weight_decay, c.batch_size) == (0.99, 0.005, 2e-4, 1e-4, 256)
    assert (c.hidden, c.policy_hidden, c.twin, c.layer_norm) == (256, 1024, True, True)
    assert (c.normalize_observations, c.tanh_mean, c.imitation) == (False, False, False)
    assert (odice.LOG_STD_RANGE, odice.WEIGHT_LIMIT) == ((-5.0, 2.0), 100.0)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("umaze", True),
        ("umaze-diverse", False),
        ("medium-play", True),
        ("medium-diverse", True),
        ("large-play", False),
    ],
)
def test_mazes_shift_rewards_and_the_hardest_have_one_value_network(name, twin):
    c = ODICEConfig(**preset(ALGORITHM, f"antmaze-{name}-v2"))
    assert c.twin is twin
    assert c.layer_norm is False
    assert [r * c.reward_scale + c.reward_shift for r in (0.0, 1.0)] == [-3.0, 0.0]


def test_the_presets_of_imitation_are_the_official_ones():
    for robot, decay in (("hopper", 1e-5), ("walker2d", 1e-3), ("halfcheetah", 1e-5)):
        c = ODICEConfig(**preset(ALGORITHM, f"imitation-{robot}-expert-v2"))
        assert (c.weight_decay, c.lam, c.lr) == (decay, 0.4, 1e-4)
        assert (c.imitation, c.layer_norm, c.tanh_mean, c.normalize_observations) == (True, False, True, True)
        assert c.twin
    assert preset(ALGORITHM, "hopper-medium-v2") == {"return_range_scaling": True}


def test_demonstrations_in_a_file_are_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "expert.hdf5").touch()
    monkeypatch.chdir(tmp_path)
    config = ODICEConfig(imitation=True, expert_dataset="expert.hdf5")
    assert config.expert_dataset == str(tmp_path / "expert.hdf5")
    assert ODICEConfig(imitation=True, expert_dataset="minari:x").expert_dataset == "minari:x"

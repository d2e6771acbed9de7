"""A2PR: gates, targets and losses by hand, its limits, and an independent implementation beside it."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.a2pr import A2PR, ALGORITHM, A2PRConfig, ActorInputs, actor_loss, choose_target, vae_loss
from offrl.algos.td3_bc import actor_loss as td3_bc_loss
from offrl.errors import ConfigError
from offrl.estimators.pathwise import normalized_q_loss
from offrl.nn.actor_critic import TD3, ActionBox
from offrl.nn.mlp import unstack
from offrl.nn.vae import encode
from offrl.training.check import batches, source_of, tiny_problem
from offrl.training.seeding import normal

SMALL = {"hidden": 8, "vae_hidden": 8, "batch_size": 32}


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def make(seeds=(0,), **settings):
    problem = tiny_problem(seeds)
    return A2PR(problem, A2PRConfig(**SMALL | settings)), series(problem, 1)[0]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(learner):
    nets = {
        "actor": learner.td3.actor,
        "critic": learner.td3.critic,
        "value": learner.value,
        "vae": learner.vae,
    }
    return {name: [p.clone() for p in net.constant] for name, net in nets.items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Gates and targets


def test_the_gate_is_an_or_its_weight_is_the_mask_once():
    """Indicators (0, 0), (1, 0), (0, 1), (1, 1) give weights 0, m, m, m: not 2 m where both hold.

    Errors (pi - t)^2 = 1 everywhere, so bc_loss is the mean weight: 0.4 * 3 / 4.
    """
    q_candidate, q_data = torch.tensor([[0.0, 2.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    target, _, is_open = choose_target(
        torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), q_candidate, q_data, torch.ones(1, 4)
    )
    assert is_open.tolist() == [[False, True, True, True]]
    _, parts = actor_loss(torch.ones(1, 4), target + 1.0, target, 0.4 * is_open, 2.5)
    torch.testing.assert_close(parts["bc_loss"], torch.tensor([0.3]))


def test_a_candidate_that_equals_the_value_opens_the_gate_and_an_action_that_does_does_not():
    """The candidate's indicator is >=, the data's >."""
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    pair = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
    assert choose_target(*pair, one, none, one)[2].item() is True
    assert choose_target(*pair, none, one, one)[2].item() is False


def test_the_target_is_whichever_is_nearer_the_oracles_best_and_the_candidate_in_a_tie():
    """Q(x) = -|x - 0.5|^2: of c = 0.6, 0, 0.25 and a = 0, 0.6, 0.75, the first, the second, the first (a tie)."""
    c, a = torch.tensor([[[0.6], [0.0], [0.25]]]), torch.tensor([[[0.0], [0.6], [0.75]]])
    q_c, q_a = (-(x - 0.5).square().sum(dim=2) for x in (c, a))
    target, is_candidate, _ = choose_target(c, a, q_c, q_a, torch.zeros(1, 3))
    assert target.flatten().tolist() == torch.tensor([0.6, 0.6, 0.25]).tolist()
    assert is_candidate.tolist() == [[True, False, True]]


def test_the_learner_asks_the_first_critic_about_its_candidate():
    """Q_1(s, c) against Q_1(s, a) and V as given: the fractions and distances that it reports follow."""
    learner, batch = make((0, 1))
    td3 = learner.td3
    pi = td3.act(td3.actor.constant, batch.observations)
    noise = draw(2, 32, 4)
    q = torch.stack(
        [
            sequential(td3.critic.params, 2 * s)(torch.cat([batch.observations[s], x[s]], 1))[:, 0]
            for s in range(2)
            for x in (learner.candidate(batch.observations, pi, noise),)
        ]
    ).detach()
    q_data, values = q + 0.01 * draw(2, 32, seed=1), q + 0.01 * draw(2, 32, seed=2)
    inputs = ActorInputs(batch.observations, batch.actions, q_data, values, noise)
    _, parts = learner.actor_loss(q, pi, inputs)
    opened, taken = (q >= values) | (q_data > values), q >= q_data
    torch.testing.assert_close(parts["gate_open_frac"], opened.float().mean(dim=1))
    torch.testing.assert_close(parts["frac_target_from_vae"], taken.float().mean(dim=1))
    candidate = learner.candidate(batch.observations, pi, noise)
    target = torch.where(taken[..., None], candidate, batch.actions)
    torch.testing.assert_close(parts["candidate_distance"], (candidate - pi).abs().mean(dim=(1, 2)))
    torch.testing.assert_close(parts["target_distance"], (target - batch.actions).abs().mean(dim=(1, 2)))
    want = (0.5 * opened[..., None] * (pi - target) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(parts["bc_loss"], want)


# The limits


def test_without_a_mask_it_is_td3_with_a_normalized_actor():
    """Same seed, same networks: all weights of actor, critics and targets are equal bit for bit."""
    learner, problem = make((0, 1), mask=0.0, policy_delay=2, lr=1e-2)[0], tiny_problem((0, 1))
    td3 = TD3(
        3,
        ActionBox(problem.action_low, problem.action_high),
        learner.config,
        lambda q, pi, anchor: (normalized_q_loss(q, 2.5)[0], {}),
        init=problem.streams("init"),
        noise=problem.streams("noise"),
        actor_layers=3,
        critic_layers=4,
    )
    for batch in series(problem, 10):
        learner.update(batch)
        td3.update(batch, batch.actions)
    for net in ("actor", "critic"):
        ours, theirs = getattr(learner.td3, net), getattr(td3, net)
        assert same(ours.params, theirs.params)
        assert same(ours.target, theirs.target)


def test_where_the_datas_action_is_better_and_the_gate_open_the_loss_is_td3_bcs():
    """Q_1(s, a) = 1, elsewhere 0, V = 0.5, mask 1: the target is a with weight 1."""
    pi, candidate, actions, q = draw(2, 8, 3), draw(2, 8, 3, seed=1), draw(2, 8, 3, seed=2), draw(2, 8)
    one = torch.ones(2, 8)
    target, _, is_open = choose_target(candidate, actions, 0 * one, one, 0.5 * one)
    ours, _ = actor_loss(q, pi, target, 1.0 * is_open, 2.5)
    torch.testing.assert_close(ours, td3_bc_loss(q, pi, actions, 2.5)[0], rtol=0, atol=0)


# The VAE


def test_closed_gates_leave_the_kl_term_alone():
    """KL of N(1, 1) from N(0, 1) is 1/2 a dimension, and its weight 0.5: loss 0.25, at N(0, 1) exactly 0."""
    args = torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    zero, closed = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    loss, parts = vae_loss(*args, zero + 1.0, zero, closed, 1.5)
    assert [loss.item(), parts["kl"].item(), parts["reconstruction_loss"].item()] == [0.25, 0.5, 0.0]
    mean, log_std = zero.clone().requires_grad_(), zero.clone().requires_grad_()
    loss, _ = vae_loss(*args, mean, log_std, closed, 1.5)
    assert loss.item() == 0.0
    for grad in torch.autograd.grad(loss.sum(), (mean, log_std)):
        assert (grad == 0).all()


def test_the_reconstruction_is_averaged_over_all_entries_also_the_gated_ones():
    """Two of four rows count, each with errors (1, 4): 1.5 * 2 * 5 / 8."""
    decoded, zero = torch.tensor([[[1.0, 2.0]]]).expand(1, 4, 2), torch.zeros(1, 4, 4)
    good = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    loss, _ = vae_loss(decoded, torch.zeros(1, 4, 2), zero, zero, good, 1.5)
    assert loss.item() == 1.5 * 10 / 8


def test_closed_gates_do_not_touch_the_decoder():
    learner, batch = make()
    grads, _ = learner.vae_gradients(batch, torch.zeros(1, 32), draw(1, 32, 4))
    assert all((g == 0).all() for g in grads[6:])
    assert any((g != 0).any() for g in grads[:6])


def test_the_prior_candidate_does_not_look_at_pi_and_its_latents_are_clipped():
    """Any draw beyond 0.5 acts like 0.5."""
    learner, batch = make(candidate="prior")
    s, big = batch.observations, torch.full((1, 32, 4), 0.5)
    one = learner.candidate(s, draw(1, 32, 2), big)
    assert torch.equal(one, learner.candidate(s, draw(1, 32, 2, seed=1), 20 * big))
    assert not torch.equal(one, learner.candidate(s, draw(1, 32, 2), 0.5 * big))


# The gradient of the pull


def pull(detach):
    """Loss as a function of p, in float64: alpha 0, gates open by half, candidates are every second target."""
    learner, batch = make(alpha=0.0, mask=1.0, detach_target=detach)
    learner.vae.constant = [3 * p.double() for p in learner.vae.constant]
    even, half = torch.arange(32) % 2 == 0, torch.arange(32) < 16
    learner.td3.values = lambda critic, s, a: even[None, None].double()  # Q_1(s, c)
    q_data = (~even).double()[None]
    values = torch.where(half, 0.5, 2.0).double()[None]
    inputs = ActorInputs(
        batch.observations.double(), batch.actions.double(), q_data, values, draw(1, 32, 4).double()
    )
    p = (0.5 * draw(1, 32, 2, seed=3)).double().requires_grad_()
    return learner, inputs, p, lambda x: learner.actor_loss(x.sum(dim=2) * 0 + 1, x, inputs)[0].sum()


def test_the_pull_differentiates_through_the_vae():
    """Finite differences, with the noise frozen: p also moves the target, by encoder and decoder."""
    *_, p, loss = pull(detach=False)
    (grad,) = torch.autograd.grad(loss(p), p)
    for row, dim in itertools.product((0, 1, 2, 15, 16, 31), (0, 1)):
        step = torch.zeros_like(p)
        step[0, row, dim] = 1e-5
        slope = (loss(p + step) - loss(p - step)).item() / 2e-5
        assert grad[0, row, dim].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert (grad[0, :16] != 0).all()
    assert (grad[0, 16:] == 0).all()


def test_with_a_detached_target_the_pull_is_that_of_a_constant():
    """dL/dp = 2 G (p - t) / (B A), which is not the gradient that the attached target gives."""
    learner, inputs, p, loss = pull(detach=True)
    (grad,) = torch.autograd.grad(loss(p), p)
    q_candidate = learner.td3.values(None, None, None)[:, 0]
    candidate = learner.candidate(inputs.observations, p, inputs.noise).detach()
    target, _, is_open = choose_target(candidate, inputs.actions, q_candidate, inputs.q_data, inputs.values)
    assert is_open.sum() == 16
    torch.testing.assert_close(grad, (2 * is_open[..., None] * (p - target) / 64).detach())
    *_, other, attached = pull(detach=False)
    assert not torch.allclose(torch.autograd.grad(attached(other), other)[0], grad, atol=1e-4)


# The update


def test_each_step_changes_its_own_network_alone():
    learner, batch = make(policy_delay=1)
    noise, latents, before = draw(1, 32, 2), draw(1, 32, 4), weights(learner)

    def changed():
        now = weights(learner)
        names = {name for name in now if not same(now[name], before[name])}
        before.update(now)
        return names

    grads, next_actions, target, _ = learner.critic_gradients(batch, noise)
    learner.td3.critic.apply(grads)
    assert changed() == {"critic"}
    grads, q_data, values, _ = learner.value_gradients(batch, next_actions, target)
    learner.value.apply(grads)
    assert changed() == {"value"}
    learner.vae.apply(learner.vae_gradients(batch, (q_data > values).float(), latents)[0])
    assert changed() == {"vae"}
    inputs = ActorInputs(batch.observations, batch.actions, q_data, values, latents)
    learner.td3.update_actor(batch.observations, inputs)
    assert changed() == {"actor"}


def two_action_bandit(rows=200):
    """One state, one step, actions -0.5 and 0.5 equally often, reward 1 for the second."""
    actions = torch.where(torch.arange(rows) % 2 == 0, -0.5, 0.5)[:, None]
    return dataclasses.replace(
        tiny_problem(rows=rows),
        observations=torch.zeros(rows, 3),
        actions=actions,
        rewards=(actions[:, 0] > 0).float(),
        next_observations=torch.zeros(rows, 3),
        terminated=torch.ones(rows),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )


def test_the_value_is_the_mean_reward_and_the_vae_decodes_the_good_action():
    """V = 1/2, so gates open on the second action alone, and whatever goes in, it comes out.

    The KL term holds little back at weight 20.
    """
    problem = two_action_bandit()
    config = A2PRConfig(vae_weight=20.0, lr=5e-3, vae_lr=5e-3, hidden=16, vae_hidden=16, policy_delay=10)
    learner, source = A2PR(problem, config), source_of(problem, 64)
    streams = problem.streams("data")
    for _ in range(400):
        metrics = learner.update(source.sample(streams))
    assert metrics["value"].item() == pytest.approx(0.5, abs=0.1)
    s, x = torch.zeros(1, 5, 3), torch.linspace(-0.9, 0.9, 5).view(1, 5, 1)
    decoded = learner.candidate(s, x, torch.zeros(1, 5, 2))
    torch.testing.assert_close(decoded, torch.full_like(decoded, 0.5), atol=0.15, rtol=0)
    batch = source.sample(streams)
    q = learner.td3.values(learner.td3.critic.constant, batch.observations, batch.actions)[:, 0]
    v = sequential(learner.value.params, 0)(batch.observations[0])[:, 0]
    assert torch.equal(q[0] > v, batch.actions[0, :, 0] > 0)


def sequential(params, g):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reference:
    """A2PR written again with torch's own modules and Adam, one seed, box [-1, 1], A = 2."""

    def __init__(self, learner, seed, config):
        self.c, self.step = config, 0
        td3, vae = learner.td3, learner.vae.params
        self.actor, self.actor_target = (sequential(td3.actor.params, seed) for _ in range(2))
        self.critics, self.critic_targets = (
            [sequential(td3.critic.params, 2 * seed + j) for j in range(2)] for _ in range(2)
        )
        self.value = sequential(learner.value.params, seed)
        self.encoder, self.decoder = sequential(vae[:6], seed), sequential(vae[6:], seed)
        self.adams = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.lr),
            "critic": torch.optim.Adam([p for q in self.critics for p in q.parameters()], lr=config.lr),
            "value": torch.optim.Adam(self.value.parameters(), lr=config.lr),
            "vae": torch.optim.Adam(
                [*self.encoder.parameters(), *self.decoder.parameters()], lr=config.vae_lr
            ),
        }

    def minimize(self, name, loss):
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()

    def reconstruct(self, s, a, z):
        out = self.encoder(torch.cat([s, a], 1))
        mean, std = out[:, :4], out[:, 4:].clip(-4, 15).exp()
        return torch.tanh(self.decoder(torch.cat([s, mean + std * z], 1))), mean, std

    def update(self, s, a, r, s2, d, noise, z_vae, z_actor):
        c = self.c

        def q(net, s, a):
            return net(torch.cat([s, a], 1))[:, 0]

        with torch.no_grad():
            eps = (c.policy_noise * noise).clip(-c.noise_clip, c.noise_clip)
            a2 = (torch.tanh(self.actor_target(s2)) + eps).clip(-1, 1)
            q2 = torch.minimum(*(q(net, s2, a2) for net in self.critic_targets))
            y_t = r + c.discount * (1 - d) * q2
        loss = sum(nn.functional.mse_loss(q(net, s, a), y_t) for net in self.critics)
        self.minimize("critic", loss)

        with torch.no_grad():
            q2 = torch.minimum(*(q(net, s2, a2) for net in self.critics))
            y_v = torch.minimum(r + c.discount * (1 - d) * q2, y_t)
            q_data = q(self.critics[0], s, a)
        v = self.value(s)[:, 0]
        self.minimize("value", nn.functional.mse_loss(v, y_v))
        v = v.detach()

        decoded, mean, std = self.reconstruct(s, a, z_vae)
        good = (q_data > v).float()[:, None]
        kl = -0.5 * (1 + (std**2).log() - mean**2 - std**2).mean()
        self.minimize("vae", (c.vae_weight * good * (decoded - a) ** 2).mean() + 0.5 * kl)

        self.step += 1
        if self.step % c.policy_delay:
            return
        p = torch.tanh(self.actor(s))
        c_hat, _, _ = self.reconstruct(s, p, z_actor)
        with torch.no_grad():
            adv_hat, adv = q(self.critics[0], s, c_hat) - v, q_data - v
        target = torch.where((adv_hat >= adv)[:, None], c_hat, a)
        weight = c.mask * ((adv_hat >= 0) | (adv > 0)).float()[:, None]
        q_pi = q(self.critics[0], s, p)
        lam = c.alpha / q_pi.abs().mean().detach()
        self.minimize("actor", -lam * q_pi.mean() + (weight * (p - target) ** 2).mean())
        for t, o in [(self.actor_target, self.actor), *zip(self.critic_targets, self.critics, strict=True)]:
            for x, y in zip(t.parameters(), o.parameters(), strict=True):
                x.data = (1 - c.tau) * x.data + c.tau * y.data


@pytest.mark.parametrize("policy_delay", [1, 2])
def test_updates_equal_an_independent_implementation(policy_delay):
    """20 updates of two stacked seeds against torch's modules, autograd and Adam on the same draws, to 1e-4.

    Settings are away from the defaults, so that a wrong order, sign, gate or schedule shows.
    """
    rates = {"lr": 3e-3, "vae_lr": 2e-3, "tau": 0.05, "discount": 0.9, "policy_delay": policy_delay}
    config = A2PRConfig(alpha=0.7, mask=0.8, vae_weight=1.5, **rates, **SMALL)
    problem = tiny_problem((0, 1))
    learner = A2PR(problem, config)
    references = [Reference(learner, seed, config) for seed in range(2)]
    noise, latent = problem.streams("noise"), problem.streams("latent")
    mixed = torch.zeros(2)
    for batch in series(problem, 20):
        draws = normal((32, 2), noise), normal((32, 4), latent), normal((32, 4), latent)
        fields = (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminated)
        for k, reference in enumerate(references):
            reference.update(*(x[k] for x in (*fields, *draws)))
        metrics = learner.update(batch)
        mixed += metrics.get("gate_open_frac", torch.zeros(2)) % 1 > 0
    assert (mixed >= 2).all(), "both sides of the gate must be seen"
    td3 = learner.td3
    for k, r in enumerate(references):
        for ours, theirs in (
            (td3.actor.params, [r.actor]),
            (td3.actor.target, [r.actor_target]),
            (td3.critic.params, r.critics),
            (td3.critic.target, r.critic_targets),
            (learner.value.params, [r.value]),
            (learner.vae.params[:6], [r.encoder]),
            (learner.vae.params[6:], [r.decoder]),
        ):
            for j, net in enumerate(theirs):
                for (weight, bias), linear in zip(unstack(ours, len(theirs) * k + j), net[::2], strict=True):
                    torch.testing.assert_close(weight, linear.weight.data, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(bias, linear.bias.data, rtol=1e-4, atol=1e-4)


def test_the_latents_of_a_resumed_run_go_on():
    """Its own stream is part of the state: the VAE after 4 updates equals that of a run resumed after 2."""
    problem = tiny_problem()
    four = series(problem, 4)
    whole, half, resumed = (make(seeds=(0,))[0] for _ in range(3))
    for batch in four:
        whole.update(batch)
    for batch in four[:2]:
        half.update(batch)
    resumed.load_state_dict(half.state_dict())
    for batch in four[2:]:
        resumed.update(batch)
    assert all(same(weights(whole)[name], net) for name, net in weights(resumed).items())


def test_the_policy_acts_on_raw_observations_inside_its_own_box():
    """Also the candidate is inside: the decoder's output is squashed as the actor's."""
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    problem = dataclasses.replace(tiny_problem((0, 1)), action_low=low, action_high=high)
    normalizer = dataclasses.replace(
        problem.normalizer, mean=torch.tensor([1.0, -2.0, 0.5]), std=torch.tensor([2.0, 0.1, 1.0])
    )
    learner = A2PR(dataclasses.replace(problem, normalizer=normalizer), A2PRConfig(**SMALL))
    for batch in series(problem, 4):
        learner.update(batch)
    raw = problem.observations[:9]
    observations = normalizer(raw).expand(2, -1, -1)
    want = learner.td3.act(learner.td3.actor.constant, observations)
    for k in range(2):
        torch.testing.assert_close(learner.policy(k).act(raw)[0], want[k])
    candidate = learner.candidate(observations, want, 99 * draw(2, 9, 4))
    assert ((candidate >= low) & (candidate <= high)).all()
    assert (candidate[..., 1] > 1.0).any()


# The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more, got -1.0"),
        ({"mask": -1.0}, "mask must be 0 or more, got -1.0"),
        ({"vae_weight": -1.0}, "vae_weight must be 0 or more, got -1.0"),
        ({"vae_lr": 3.0}, r"vae_lr must be in \(0, 1\), got 3.0"),
        ({"vae_hidden": 0}, "vae_hidden must be 1 or more, got 0"),
        ({"actor_layers": 0}, "actor_layers must be 1 or more, got 0"),
        ({"critic_layers": 0}, "critic_layers must be 1 or more, got 0"),
        ({"candidate": "recon_pi"}, "candidate must be 'reconstruction' or 'prior', got 'recon_pi'"),
        ({"tau": 0.995}, "did you mean 0.005"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ConfigError, match=message):
        A2PRConfig(**settings)


def test_the_defaults_are_those_of_the_official_code():
    c = A2PRConfig()
    assert (c.alpha, c.mask, c.vae_weight, c.candidate, c.detach_target) == (
        2.5,
        0.5,
        1.0,
        "reconstruction",
        False,
    )
    assert (c.lr, c.vae_lr, c.batch_size, c.normalize_observations) == (3e-4, 1e-3, 256, True)
    assert (c.discount, c.tau, c.policy_noise, c.noise_clip, c.policy_delay) == (0.99, 0.005, 0.2, 0.5, 2)
    learner = A2PR(tiny_problem(), c)
    shapes = {name: [tuple(p.shape) for p in net[::2]] for name, net in weights(learner).items()}
    assert shapes["actor"] == [(1, 3, 256), (1, 256, 256), (1, 256, 256), (1, 2, 256)]
    assert shapes["critic"] == [(2, 5, 256), *[(2, 256, 256)] * 3, (2, 1, 256)]
    assert shapes["value"] == [(1, 3, 256), *[(1, 256, 256)] * 3, (1, 1, 256)]
    assert shapes["vae"][:3] == [(1, 5, 750), (1, 750, 750), (1, 8, 750)]
    assert shapes["vae"][3:] == [(1, 7, 750), (1, 750, 750), (1, 2, 750)]
    assert encode(learner.vae.constant, torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))[0].shape == (1, 1, 4)


@pytest.mark.parametrize(
    ("name", "alpha", "vae_weight", "mask", "discount"),
    [
        ("halfcheetah-medium-v2", 40.0, 1.0, 1.0, 0.99),
        ("hopper-medium-v2", 2.5, 1.0, 0.4, 0.995),
        ("walker2d-medium-v2", 2.5, 1.5, 1.0, 0.99),
        ("halfcheetah-medium-replay-v2", 40.0, 1.5, 0.8, 0.995),
        ("halfcheetah-medium-expert-v2", 40.0, 1.0, 10.0, 0.99),
        ("hopper-random-v2", 2.5, 1.5, 1.5, 0.995),
        ("hopper-medium-replay-v2", 2.5, 1.5, 0.5, 0.99),
        ("hopper-medium-expert-v2", 2.5, 1.0, 4.0, 0.99),
        ("walker2d-medium-replay-v2", 2.5, 1.5, 1.2, 0.995),
        ("walker2d-medium-expert-v2", 2.5, 1.0, 0.8, 0.99),
    ],
)
def test_the_presets_are_those_of_the_official_readme(name, alpha, vae_weight, mask, discount):
    want = {"alpha": alpha, "vae_weight": vae_weight, "mask": mask, "discount": discount}
    assert preset(ALGORITHM, name) == want


def test_the_presets_that_nobody_published_are_borrowed():
    """Random data: the robot's medium-replay row; AntMaze: PRDC's alpha and rewards."""
    for robot in ("halfcheetah", "walker2d"):
        assert preset(ALGORITHM, f"{robot}-random-v2") == preset(ALGORITHM, f"{robot}-medium-replay-v2")
    want = {"alpha": 7.5, "reward_scale": 1e4, "reward_shift": -1.0}
    assert preset(ALGORITHM, "antmaze-umaze-v2") == want
    with pytest.raises(ConfigError, match="no preset for 'hopper-expert-v2'"):
        preset(ALGORITHM, "hopper-expert-v2")

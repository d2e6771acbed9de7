"""The mixture actors: isolation of the gate, exact densities of draws, one expert as the Gaussian actor."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from offrl.errors import ConfigError
from offrl.estimators import mixture as mx
from offrl.online.mixture import (
    MixtureActor,
    MixtureActorCriticPolicy,
    MixtureDistribution,
    SoftMixturePolicy,
)
from offrl.online.off_policy import SquashedActor

SEEN, BOX = gymnasium.spaces.Box(-9, 9, (3,)), gymnasium.spaces.Box(-1, 1, (2,))


def actor(experts=3, whole=False, kind=MixtureActor, detach=True):
    more = {"experts": experts, "whole": whole, "detach": detach} if kind is MixtureActor else {}
    made = kind(3, 2, 16, torch.Generator().manual_seed(0), **more)
    if kind is MixtureActor:
        with torch.no_grad():
            made.gate[0].copy_(torch.randn(made.gate[0].shape, generator=torch.Generator().manual_seed(1)))
    return made


def observations(n=50):
    return torch.randn(1, n, 3, generator=torch.Generator().manual_seed(2))


def test_one_expert_is_the_gaussian_actor_bit_for_bit():
    """Weights, draws, log pi, actions and random numbers taken."""
    ours, theirs, x = actor(1), actor(kind=SquashedActor), observations()
    assert all(torch.equal(a, b) for a, b in zip(ours.net, theirs.net, strict=True))
    found = []
    for a in (ours, theirs):
        torch.manual_seed(5)
        drawn = a.sample(list(a.parameters()), x)
        found.append(
            [*drawn, a.act(x[0], deterministic=True), a.act(x[0], deterministic=False), torch.rand(3)]
        )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_fresh_gate_is_uniform():
    made = MixtureActor(3, 2, 16, torch.Generator().manual_seed(0), experts=4, whole=False, detach=True)
    assert torch.equal(
        made.mixture(list(made.parameters()), observations()).weights, torch.full((1, 50, 4), 0.25)
    )


def quality(actions, x):
    """Q of actions (..., N, A) that differs from state to state, (..., N)."""
    return (x[..., None, :2] * actions).sum(-1) - (actions - 0.3).square().sum(-1)


def dense_gradients(made, x, noise, alpha):
    """Of sum_i w_i (alpha log pi(a_i) - Q(a_i)), state by state, from torch's layers and distributions alone."""
    leaves = [p.detach().clone().requires_grad_() for p in made.parameters()]
    first, first_bias, second, second_bias, last, last_bias, gate, offset = (p[0] for p in leaves)
    total = 0.0
    for state, eps in zip(x[0], noise[0], strict=True):
        h = ((state @ first + first_bias[0]).relu() @ second + second_bias[0]).relu()
        mean, log_std = (last @ h + last_bias[:, 0]).view(2, made.experts, made.act_dim)
        weights = torch.distributions.Categorical(logits=h @ gate + offset[0])
        normals = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        whole = torch.distributions.MixtureSameFamily(weights, normals)
        u = mean + log_std.exp() * eps
        log_pi = whole.log_prob(u) - (1 - u.tanh().square()).log().sum(-1)
        total = total + (weights.probs * (alpha * log_pi - quality(u.tanh(), state))).sum()
    return torch.autograd.grad(total / len(x[0]), leaves)


@pytest.mark.parametrize("detach", [False, True])
def test_the_trunk_learns_from_the_gate_unless_it_is_detached(detach):
    """The exact sum through the actor against a computation of its own: the whole gradient, or all but the trunk's."""
    made = actor(detach=detach).double()
    x = observations(20).double()
    noise, alpha = torch.randn(1, 20, 3, 2, dtype=x.dtype), torch.tensor([0.2], dtype=x.dtype)
    params = list(made.parameters())
    m = made.mixture(params, x)
    loss = mx.marginal(m, noise, noise, lambda a: quality(a, x), alpha).loss.sum()
    found, expected = torch.autograd.grad(loss, params), dense_gradients(made, x, noise, 0.2)
    equal = [torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(found, expected, strict=True)]
    assert equal == [not detach] * 4 + [True] * 4


def test_the_gate_sees_the_trunk_as_a_constant():
    """A loss of the weights moves the gate alone; a loss of the moments everything else."""
    made = actor()
    params = list(made.parameters())
    m = made.mixture(params, observations())
    of_gate = torch.autograd.grad(
        m.weights.square().sum(), params, allow_unused=True, materialize_grads=True, retain_graph=True
    )
    of_moments = torch.autograd.grad(
        (m.mean + m.log_std).square().sum(), params, allow_unused=True, materialize_grads=True
    )
    moved = [[bool(g.abs().sum() > 0) for g in grads] for grads in (of_gate, of_moments)]
    assert moved == [[False] * 6 + [True] * 2, [True] * 6 + [False] * 2]


@pytest.mark.parametrize("whole", [False, True])
def test_log_pi_of_draws_is_the_experts_or_the_mixtures(whole):
    made, x = actor(whole=whole), observations(300)
    params = list(made.parameters())
    noise = torch.randn(1, 300, 2)
    torch.manual_seed(7)
    actions, log_probs = made.sample(params, x, noise)
    torch.manual_seed(7)
    m = made.mixture(params, x)
    index = made.index(m)
    assert len(index.unique()) == 3
    mean, log_std = m.expert(index)
    u = mean + log_std.exp() * noise
    torch.testing.assert_close(actions, u.tanh())
    one = mx.mixture(torch.zeros(1, 300, 1), mean[..., None, :], log_std[..., None, :])
    torch.testing.assert_close(
        log_probs, mx.log_prob(m if whole else one, u, squash=True), rtol=1e-4, atol=1e-4
    )


def test_every_row_draws_its_own_expert():
    """Two states, each sure of another expert, in one batch."""
    made = actor()
    with torch.no_grad():
        made.gate[0].zero_()
        m = made.mixture(list(made.parameters()), observations(2))
        sure = mx.Mixture(
            torch.log(torch.tensor([[[1e-9, 1.0, 1e-9], [1e-9, 1e-9, 1.0]]])), m.mean, m.log_std
        )
    assert made.index(sure).tolist() == [[1, 2]]


def test_experts_are_drawn_with_their_weights():
    """For targets and exploration off policy, and for rollouts on policy: never the likeliest alone."""
    weights = torch.tensor([0.6, 0.3, 0.1])
    torch.manual_seed(0)
    many = mx.mixture(weights.log().expand(1, 20_000, 3), torch.zeros(1, 20_000, 3, 2), torch.zeros(3, 2))
    shares = torch.bincount(actor().index(many).flatten(), minlength=3) / 20_000
    torch.testing.assert_close(shares, weights, rtol=0, atol=0.02)
    means = torch.tensor([[0.0], [10.0], [20.0]]).expand(20_000, 3, 1)
    drawn = MixtureDistribution().proba_distribution(
        weights.log().expand(20_000, 3), means, torch.zeros(3, 1)
    )
    near = (drawn.sample() / 10).round().long().clamp(0, 2).flatten()
    torch.testing.assert_close(torch.bincount(near, minlength=3) / 20_000, weights, rtol=0, atol=0.02)


def test_the_policy_on_disk_plays_what_the_actor_plays():
    made, x = actor(), observations()
    low, high = -torch.ones(2), torch.ones(2)
    policy = made.acting_policy(low, high, None)
    torch.testing.assert_close(policy(x[0]), made.act(x[0], deterministic=True))
    ours, theirs = made.mixture(list(made.parameters()), x), policy.mixture(x[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[0], b)


def critic(experts, kind=MixtureActorCriticPolicy, **more):
    torch.manual_seed(0)
    arguments = {"experts": experts} if kind is MixtureActorCriticPolicy else {}
    return kind(SEEN, BOX, lambda _: 1e-3, net_arch=[8], **arguments | more)


def test_one_expert_is_the_actor_critic_of_stable_baselines3():
    ours, theirs, x = critic(1), critic(1, ActorCriticPolicy), observations()[0]
    for (name, a), b in zip(
        theirs.named_parameters(),
        [dict(ours.named_parameters())[n] for n, _ in theirs.named_parameters()],
        strict=True,
    ):
        assert torch.equal(a, b.view_as(a)), name
    found = []
    for policy in (ours, theirs):
        torch.manual_seed(3)
        actions, values, log_prob = policy(x)
        found.append([actions, values, log_prob, policy.evaluate_actions(x, actions + 0.1)[1]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_on_policy_gate_sees_the_observation_and_starts_uniform():
    policy, x = critic(4), observations()[0]
    m = policy.get_distribution(x).mixture
    assert torch.equal(m.weights, torch.full((50, 4), 0.25))
    (g,) = torch.autograd.grad(
        mx.frequency_loss(m.weights, torch.randn(50, 4)), policy.gate.weight, retain_graph=True
    )
    assert g.abs().max() > 0
    others = [p for n, p in policy.named_parameters() if not n.startswith("gate")]
    grads = torch.autograd.grad(m.weights.square().sum(), others, allow_unused=True)
    assert all(g is None for g in grads)


def test_mixture_distributions_serve_stable_baselines3():
    torch.manual_seed(0)
    gate, mean, log_std = (
        torch.randn(5000, 3),
        3 * torch.randn(1, 3, 2).expand(5000, -1, -1),
        torch.full((3, 2), -1.0),
    )
    d = MixtureDistribution()
    actions, log_prob = d.log_prob_from_params(gate, mean, log_std)
    assert actions.shape == (5000, 2)
    torch.testing.assert_close(log_prob, mx.log_prob(mx.mixture(gate, mean, log_std), actions, squash=False))
    assert d.entropy() is None
    assert torch.equal(d.mode(), mean[torch.arange(5000), gate.argmax(1)])
    expected = (gate.softmax(1)[..., None] * mean).sum(1).mean(0)
    torch.testing.assert_close(actions.mean(0), expected, rtol=0, atol=0.15)
    far = d.log_prob(torch.full((5000, 2), 1e4))
    assert torch.isfinite(far).all()
    with pytest.raises(NotImplementedError):
        d.proba_distribution_net()


def test_q_judges_each_action_on_its_state():
    policy, x = critic(3), observations(4)[0]
    actions = torch.randn(4, 3, 2)
    whole = policy.q(x, actions)
    for row in range(4):
        for k in range(3):
            torch.testing.assert_close(
                policy.q(x[row : row + 1], actions[row : row + 1, k : k + 1])[0, 0], whole[row, k]
            )


def test_what_a_mixture_cannot_do_is_refused():
    with pytest.raises(AssertionError, match="the action space must be a box"):
        MixtureActorCriticPolicy(SEEN, gymnasium.spaces.Discrete(2), lambda _: 1e-3)
    with pytest.raises(ConfigError, match="no state-dependent exploration"):
        critic(2, use_sde=True)


def test_the_actor_critic_on_disk_plays_its_mode():
    policy, x = critic(3), observations()[0]
    with torch.no_grad():
        policy.gate.weight.normal_()
        policy.log_std.normal_()
    low, high = -torch.ones(2), torch.ones(2)
    saved = policy.acting_policy(low, high, None)
    expected, _ = policy.predict(x.numpy(), deterministic=True)
    np.testing.assert_allclose(saved(x).detach(), expected, atol=1e-6)
    for a, b in zip(policy.get_distribution(x).mixture, saved.mixture(x), strict=True):
        torch.testing.assert_close(a, b)


def test_constructor_arguments_survive_saving(tmp_path):
    """Of both policies: their sizes, whose density counts, whether the gate is apart."""
    soft = SoftMixturePolicy(SEEN, BOX, hidden=8, experts=2, whole=True, detach=False)
    soft.save(tmp_path / "soft.pth")
    loaded = SoftMixturePolicy.load(tmp_path / "soft.pth", device="cpu")
    assert (loaded.experts, loaded.actor.experts, loaded.actor.whole) == (2, 2, True)
    assert loaded.actor.detach is False
    critic(3).save(tmp_path / "critic.pth")
    assert MixtureActorCriticPolicy.load(tmp_path / "critic.pth", device="cpu").experts == 3

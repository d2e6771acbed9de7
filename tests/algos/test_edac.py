"""EDAC: dQ/da against autograd, the limit that is SAC-N, the gradient of the similarity by double backward."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.edac import ALGORITHM, EDAC, EDACConfig, values_and_action_gradients
from offrl.algos.sac_n import SACN, SACNConfig
from offrl.errors import ConfigError
from offrl.nn.mlp import init_mlp, unstack
from offrl.nn.soft_actor_critic import values
from offrl.training.check import batches, tiny_problem
from offrl.training.seeding import streams

SMALL = {"hidden": 8, "batch_size": 32, "num_critics": 3}
HALF = torch.tensor([1.0, 2.0])


def own_box(seeds=(0,)):
    """The tiny problem with its actions moved to the box (-1, 1) x (0, 4)."""
    problem = tiny_problem(seeds)
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    actions = torch.tensor([0.0, 2.0]) + HALF * problem.actions
    return dataclasses.replace(problem, actions=actions, action_low=low, action_high=high)


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def sequential(params, g):
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_action_gradients_equal_a_loop_of_autograd_over_members(depth):
    """Two seeds of three critics: Q and dQ/da of each network by torch's own modules."""
    critic = init_mlp((5, *[8] * depth, 1), 3, streams((0, 1), "init"))
    s, a = torch.randn(2, 9, 3), torch.randn(2, 9, 2)
    q, slopes = values_and_action_gradients(critic, s, a)
    torch.testing.assert_close(q, values(critic, s, a))
    for k, j in itertools.product(range(2), range(3)):
        actions = a[k].clone().requires_grad_()
        own = sequential(critic, 3 * k + j)(torch.cat([s[k], actions], 1))
        torch.testing.assert_close(q[k, j], own[:, 0])
        torch.testing.assert_close(slopes[k, j], torch.autograd.grad(own.sum(), actions)[0])


def looped_loss(nets, s, a, y, eta):
    """EDAC's loss of one seed by torch's double backward and a loop over pairs."""
    actions = a.clone().requires_grad_()
    q = [net(torch.cat([s, actions], 1))[:, 0] for net in nets]
    grads = [HALF * torch.autograd.grad(x.sum(), actions, create_graph=True)[0] for x in q]
    pairs = [
        torch.cosine_similarity(grads[i], grads[j], dim=1).mean()
        for i, j in itertools.permutations(range(len(nets)), 2)
    ]
    return sum(((x - y) ** 2).mean() for x in q) + eta * sum(pairs) / (len(nets) - 1)


def test_the_critics_gradient_equals_a_double_backward_over_a_loop_of_members():
    """Loss and parameter gradients, two stacked seeds, eta 7, box (-1, 1) x (0, 4)."""
    problem = own_box((0, 1))
    learner, (batch,) = EDAC(problem, EDACConfig(eta=7.0, **SMALL)), series(problem, 1)
    sac, noise = learner.sac, torch.randn(2, 32, 2)
    with torch.no_grad():
        sac.critic.params[-2].mul_(300.0)  # outputs of size 1, as after training
    y = sac.target(batch, noise)
    grads, metrics = sac.critic_gradients(batch, noise)
    for k in range(2):
        nets = [sequential(sac.critic.params, 3 * k + j) for j in range(3)]
        loss = looped_loss(nets, batch.observations[k], batch.actions[k], y[k], 7.0)
        torch.testing.assert_close(metrics["critic_loss"][k], loss.detach())
        loss.backward()
        for j, net in enumerate(nets):
            for layer, linear in enumerate(net[::2]):
                weight = grads[2 * layer][3 * k + j]
                weight = weight if layer == 3 else weight.T
                torch.testing.assert_close(weight, linear.weight.grad, rtol=1e-3, atol=1e-5)
                bias = torch.zeros_like(linear.bias) if linear.bias.grad is None else linear.bias.grad
                torch.testing.assert_close(grads[2 * layer + 1][3 * k + j].flatten(), bias)


def test_an_eta_of_zero_is_sac_n():
    """Ten updates of N = 2: the same weights, to rounding (twin-critic SAC, with test_sac_n.py)."""
    problem, few = tiny_problem((0, 1)), SMALL | {"num_critics": 2}
    edac, sac_n = EDAC(problem, EDACConfig(eta=0.0, **few)), SACN(problem, SACNConfig(**few))
    for batch in series(problem, 10):
        edac.update(batch)
        sac_n.update(batch)
    for a, b in zip(edac.sac.critic.params, sac_n.sac.critic.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(edac.sac.actor.net.params, sac_n.sac.actor.net.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_large_eta_turns_the_critics_gradients_apart():
    """40 updates from the same weights: without the term the similarity of 3 critics stays above 1, with it not."""
    problem = tiny_problem()
    similarity = {}
    for eta in (0.0, 100.0):
        learner = EDAC(problem, EDACConfig(eta=eta, lr=3e-3, **SMALL))
        similarity[eta] = [learner.update(batch)["similarity"].item() for batch in series(problem, 40)]
    assert similarity[0.0][0] == similarity[100.0][0]
    assert similarity[100.0][-1] < min(0.5, similarity[0.0][-1] - 0.5)
    assert all(-1.5 - 1e-4 <= x <= 3 + 1e-4 for x in similarity[0.0] + similarity[100.0])  # -N/(N-1) .. N


def test_identical_critics_have_a_similarity_of_n():
    problem = tiny_problem()
    learner, (batch,) = EDAC(problem, EDACConfig(**SMALL)), series(problem, 1)
    with torch.no_grad():
        for p in learner.sac.critic.params:
            p.copy_(p[:1].expand_as(p))
    _, metrics = learner.sac.critic_gradients(batch, torch.randn(1, 32, 2))
    assert metrics["similarity"].item() == pytest.approx(3.0, abs=1e-4)
    assert metrics["q_std"].item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("halfcheetah-medium-v2", (10, 1.0)),
        ("halfcheetah-medium-expert-v2", (10, 5.0)),
        ("walker2d-medium-replay-v2", (10, 1.0)),
        ("walker2d-medium-expert-v2", (10, 5.0)),
        ("hopper-medium-expert-v2", (50, 1.0)),
        ("maze2d-umaze-v1", (10, 0.1)),
        ("antmaze-large-play-v2", (10, 1.0)),
        ("pen-human-v1", (20, 1000.0)),
        ("pen-cloned-v1", (20, 10.0)),
        ("pen-expert-v1", (20, 10.0)),
        ("door-cloned-v1", (50, 200.0)),
    ],
)
def test_the_presets_are_corls(name, settings):
    assert preset(ALGORITHM, name) == dict(zip(("num_critics", "eta"), settings, strict=True))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="num_critics must be 2 or more, got 1: one has no other"):
        EDACConfig(num_critics=1)
    with pytest.raises(ConfigError, match=r"eta must be 0 or more, got -1.0"):
        EDACConfig(eta=-1.0)

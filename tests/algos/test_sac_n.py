"""SAC-N: an independent implementation beside it, its limits, its target, its presets."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from offrl.algos import preset
from offrl.algos.sac_n import ALGORITHM, SACN, SACNConfig
from offrl.errors import ConfigError
from offrl.nn.mlp import unstack
from offrl.nn.soft_actor_critic import values
from offrl.training.check import batches, tiny_problem
from offrl.training.seeding import normal

SMALL = {"hidden": 8, "batch_size": 32, "num_critics": 3}
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
    """SAC with N critics written again with torch's modules and Adam in double precision, one seed."""

    def __init__(self, learner, config, seed):
        n, sac = config.num_critics, learner.sac
        self.config, self.center, self.half = config, (LOW + HIGH) / 2, (HIGH - LOW) / 2
        self.actor = sequential(sac.actor.net.params, seed)
        self.critics = [sequential(sac.critic.params, n * seed + j) for j in range(n)]
        self.targets = [sequential(sac.critic.params, n * seed + j) for j in range(n)]
        self.log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
        groups = {
            "alpha": [self.log_alpha],
            "actor": [*self.actor.parameters()],
            "critic": [p for c in self.critics for p in c.parameters()],
        }
        self.adams = {name: torch.optim.Adam(params, lr=config.lr) for name, params in groups.items()}

    def act(self, s, eps):
        mean, log_std = self.actor(s).split(2, dim=1)
        normal_ = torch.distributions.Normal(mean, log_std.clip(-5, 2).exp())
        u = mean + normal_.stddev * eps
        log_prob = normal_.log_prob(u) - torch.log1p(-(u.tanh() ** 2))
        return self.center + self.half * u.tanh(), log_prob.sum(1)

    def minimize(self, name, loss):
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()

    def smallest(self, critics, s, a):
        return torch.stack([q(torch.cat([s, a], 1))[:, 0] for q in critics]).min(0).values

    def update(self, s, a, r, s2, d, eps, eps2):
        c = self.config
        _, log_pi = self.act(s, eps)
        self.minimize("alpha", (-self.log_alpha * (log_pi.detach() - 2)).mean())
        alpha = self.log_alpha.exp().detach()
        pi, log_pi = self.act(s, eps)
        self.minimize("actor", (alpha * log_pi - self.smallest(self.critics, s, pi)).mean())
        with torch.no_grad():
            a2, log_pi2 = self.act(s2, eps2)
            y = r + c.discount * (1 - d) * (self.smallest(self.targets, s2, a2) - alpha * log_pi2)
        self.minimize("critic", self.critic_loss(torch.cat([s, a], 1), y))
        for target, online in zip(self.targets, self.critics, strict=True):
            for t, o in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - c.tau) * t.data + c.tau * o.data

    def critic_loss(self, pairs, y):
        return sum(((q(pairs)[:, 0] - y) ** 2).mean() for q in self.critics)


def assert_equal_networks(params, net, g):
    for (weight, bias), linear in zip(unstack(params, g), net[::2], strict=True):
        torch.testing.assert_close(weight, linear.weight.data.float(), rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(bias, linear.bias.data.float(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_twenty_updates_equal_an_independent_implementation(members):
    """Two stacked seeds, box (-1, 1) x (0, 4); with N = 2 the reference is twin-critic SAC.

    Temperature, actor with the new temperature, critics with the new actor, targets; lr 1e-2 and tau 0.1 so that
    the order shows.
    """
    config = SACNConfig(tau=0.1, discount=0.9, lr=1e-2, **SMALL | {"num_critics": members})
    problem = own_box((0, 1))
    learner = SACN(problem, config)
    references = [Reference(learner, config, k) for k in range(2)]
    noise = problem.streams("noise")
    for batch in series(problem, 20):
        eps = normal((2, 32, 2), noise)
        fields = (
            batch.observations,
            batch.actions,
            batch.rewards,
            batch.next_observations,
            batch.terminated,
            *eps.unbind(1),
        )
        for k, reference in enumerate(references):
            reference.update(*(f[k].double() for f in fields))
        learner.update(batch)
    sac = learner.sac
    for k, reference in enumerate(references):
        assert sac.actor.alpha[k].item() == pytest.approx(reference.log_alpha.exp().item(), rel=1e-4)
        assert_equal_networks(sac.actor.net.params, reference.actor, k)
        for j in range(members):
            assert_equal_networks(sac.critic.params, reference.critics[j], members * k + j)
            assert_equal_networks(sac.critic.target, reference.targets[j], members * k + j)


def test_further_critics_never_raise_the_target():
    """min over the first n critics falls (or stays) with n, row by row; here it does fall between 1 and 9."""
    problem = tiny_problem()
    learner, (batch,) = SACN(problem, SACNConfig(**SMALL | {"num_critics": 9})), series(problem, 1)
    sac, noise = learner.sac, torch.randn(1, 32, 2)
    everything, targets = sac.critic.target, []
    for n in range(1, 10):
        sac.critic.target = [p[:n] for p in everything]
        targets.append(sac.target(batch, noise))
    for fewer, more in itertools.pairwise(targets):
        assert (more <= fewer).all()
    assert (targets[-1] < targets[0]).float().mean() > 0.5


def test_the_target_stops_at_terminations_only_and_subtracts_the_log_density():
    """Q' = 10 everywhere: y = r + 0.9 (1 - d) (10 - alpha log pi(a' | s')), alpha = 1 at first."""
    problem = tiny_problem()
    learner, (batch,) = SACN(problem, SACNConfig(discount=0.9, **SMALL)), series(problem, 1)
    half = dataclasses.replace(batch, terminated=(torch.arange(32) % 2).float()[None])
    sac, noise = learner.sac, torch.randn(1, 32, 2)
    sac.critic.target[-2].zero_()
    sac.critic.target[-1].fill_(10.0)
    log_pi = sac.actor.sample(sac.actor.net.constant, batch.next_observations, noise)[1]
    want = half.rewards + 0.9 * (1 - half.terminated) * (10.0 - log_pi)
    torch.testing.assert_close(sac.target(half, noise), want)


def test_only_the_smallest_critic_moves_the_actor():
    """Raising all critics but one by 100 leaves the actor the gradient of that one alone."""
    problem = tiny_problem()
    learner, (batch,) = SACN(problem, SACNConfig(**SMALL)), series(problem, 1)
    sac, noise = learner.sac, torch.randn(1, 32, 2)
    alone = [p[1:2] for p in sac.critic.constant]
    want, _ = sac.actor.gradients(alone, batch.observations, noise)
    with torch.no_grad():
        sac.critic.params[-1][[0, 2]] += 100.0
    got, metrics = sac.actor.gradients(sac.critic.constant, batch.observations, noise)
    torch.testing.assert_close(got, want)
    actions, log_pi = sac.actor.sample(sac.actor.net.constant, batch.observations, noise)
    q = values(alone, batch.observations, actions)[:, 0]
    torch.testing.assert_close(metrics["actor_loss"], (log_pi - q).mean(1))
    torch.testing.assert_close(metrics["entropy"], -log_pi.mean(1))


def test_the_networks_begin_as_in_the_official_code():
    """Three hidden layers with biases 0.1; outputs within 0.003 (critics) and 0.001 (mean, log_std); log_std >= -5."""
    learner = SACN(tiny_problem(), SACNConfig(hidden=64))
    for net, bound in ((learner.sac.critic, 3e-3), (learner.sac.actor.net, 1e-3)):
        assert len(net.params) == 8
        assert all((bias == 0.1).all() for bias in net.params[1:-2:2])
        assert 0.9 * bound < net.params[-2].abs().max() <= bound
    assert learner.policy().log_std_min == -5.0
    assert learner.sac.actor.alpha.item() == 1.0


def test_evaluation_takes_the_squashed_mean():
    problem = own_box()
    learner = SACN(problem, SACNConfig(**SMALL))
    for batch in series(problem, 3):
        learner.update(batch)
    x = problem.observations[:5]
    mean = learner.sac.actor.moments(learner.sac.actor.net.constant, x[None])[0][0]
    center, half = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    torch.testing.assert_close(learner.policy()(x), center + half * mean.tanh())


@pytest.mark.parametrize(
    ("name", "critics"),
    [
        ("halfcheetah-medium-v2", 10),
        ("walker2d-medium-replay-v2", 20),
        ("hopper-medium-v2", 500),
        ("hopper-medium-replay-v2", 200),
        ("hopper-medium-expert-v2", 200),
        ("pen-human-v1", 100),
        ("antmaze-umaze-v2", 25),
        ("maze2d-large-v1", 25),
    ],
)
def test_the_presets_are_corls(name, critics):
    assert preset(ALGORITHM, name) == {"num_critics": critics}


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="num_critics must be 1 or more, got 0"):
        SACNConfig(num_critics=0)
    with pytest.raises(ConfigError, match=r"did you mean 0.005"):
        SACNConfig(tau=0.995)

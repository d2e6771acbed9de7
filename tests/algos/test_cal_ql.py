"""Cal-QL: CQL where the bound does not bind, no push below the data's returns where it does, the returns themselves."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from offrl.algos import preset
from offrl.algos.cal_ql import ALGORITHM, CalQL, CalQLConfig, calibrated
from offrl.algos.cql import CQL, CQLConfig
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.nn.mlp import member
from offrl.nn.soft_actor_critic import values
from offrl.training.build import build, returns_to_go
from offrl.training.check import batches, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32, "num_actions": 3}


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def one(seeds=(0,), **settings):
    problem = tiny_problem(seeds)
    learner, (batch,) = CalQL(problem, CalQLConfig(**SMALL | settings)), series(problem, 1)
    return learner, batch, CalQL(problem, CalQLConfig(**SMALL | settings)).sac.draw(torch.Size((32, 2)))


def with_returns(batch, value):
    return dataclasses.replace(batch, returns_to_go=torch.full_like(batch.rewards, value))


def test_returns_far_below_every_value_give_cql():
    """Ten updates, bit for bit, with Cal-QL's settings put into CQL; nothing is bounded."""
    problem = dataclasses.replace(tiny_problem((0, 1)), returns_to_go=torch.full((400,), -1e9))
    config = CalQLConfig(**SMALL)
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(CQLConfig)}
    cal, cql = CalQL(problem, config), CQL(problem, CQLConfig(**shared))
    for batch in series(problem, 10):
        metrics = cal.update(batch)
        assert (metrics.pop("bound_rate") == 0).all()
        other = cql.update(batch)
        assert metrics.keys() == other.keys()
        assert all(torch.equal(metrics[name], other[name]) for name in other)


def test_where_the_bound_binds_the_policys_actions_are_not_pushed():
    """G far above Q: the policy's terms are constants and outweigh the uniform ones, so that the gap's gradient is
    that of -Q(s, a) alone: the critics' gradient is the Bellman part minus cql_alpha dQ(s, a).
    """
    learner, batch, draws = one()
    high = with_returns(batch, 1e4)
    grads, metrics = learner.sac.critic_gradients(high, draws)
    assert metrics["bound_rate"].item() == 1.0
    critic, target = learner.sac.critic.params, learner.sac.target(batch, draws.target)
    q = values(critic, batch.observations, batch.actions)
    loss = ((q - target[:, None]) ** 2).mean(2).sum() - 5.0 * q.mean(2).sum()
    torch.testing.assert_close(grads, torch.autograd.grad(loss, critic), rtol=1e-4, atol=1e-5)


def test_uniform_actions_are_not_bounded():
    """The gap with G = 10 on a critic that is 0 everywhere: 3 terms 4 exp(0), 6 terms exp(10) / pi, by hand."""
    learner, batch, draws = one(seeds=(0, 1))
    sac = learner.sac
    with torch.no_grad():
        sac.critic.params[-2].zero_()
    log_following = sac.actor.sample(sac.actor.net.constant, batch.next_observations, draws.following)[1]
    log_current = sac.actor.sample(sac.actor.net.constant, batch.observations, draws.current)[1]
    policy = (10 - torch.cat((log_following, log_current), dim=1)).exp().sum(1)
    _, metrics = sac.critic_gradients(with_returns(batch, 10.0), draws)
    torch.testing.assert_close(metrics["cql_gap"], (12 + policy).log().mean(1))


def test_each_row_has_its_own_bound():
    """max(Q, G) of (S, 2, J, B) against G (S, B): the same for every critic and sample of a row."""
    _, batch, _ = one(seeds=(0, 1))
    bounds = torch.linspace(-1, 1, 64).view(2, 32)
    q = torch.zeros(2, 2, 5, 32)
    got = calibrated(q, dataclasses.replace(batch, returns_to_go=bounds))
    assert torch.equal(got, bounds.clamp(min=0)[:, None, None].expand(2, 2, 5, 32))


def test_the_bound_rate_is_the_share_of_values_below_the_returns():
    """Critic 0 is 0 everywhere and critic 1 is 2: G = 1 binds half of all."""
    learner, batch, draws = one()
    critic = learner.sac.critic.params
    with torch.no_grad():
        critic[-2].zero_()
        member(critic, 1, 2)[-1].fill_(2.0)
    assert learner.sac.critic_gradients(with_returns(batch, 1.0), draws)[1]["bound_rate"].item() == 0.5


# Returns-to-go


def test_returns_are_discounted_sums_within_each_episode():
    """Episodes (1, 2, 3) and (4, 5) at gamma 1/2: 1 + 1 + 3/4 = 2.75, 2 + 1.5, 3; 4 + 2.5, 5."""
    got = returns_to_go(np.array([1, 2, 3, 4, 5], np.float32), np.array([0, 0, 0, 3, 3]), 0.5)
    assert got.tolist() == [2.75, 3.5, 3.0, 6.5, 5.0]
    assert got.dtype == np.float32


def test_a_failed_sparse_episode_returns_its_reward_for_ever():
    """Only an episode of nothing but the lowest reward: -5 / (1 - 0.9) = -50; the others are sums."""
    rewards, episode = np.array([-5, -5, -5, 5, 5, 5, 5], np.float32), np.array([0, 0, 1, 1, 2, 3, 3])
    got = returns_to_go(rewards, episode, 0.9, lowest=-5.0)
    np.testing.assert_allclose(got, [-50, -50, -0.5, 5, 5, 9.5, 5], rtol=1e-6)
    assert returns_to_go(rewards, episode, 0.9)[0] == pytest.approx(-9.5)


def test_the_learner_gets_the_returns_of_its_own_rewards():
    """Scaled, shifted and discounted as the settings say, by the file's episodes; 'exact' rows keep the terminal."""
    n = 12
    ends = np.zeros(n, bool)
    ends[[4, 11]] = True
    rewards = np.arange(n, dtype=np.float32)
    data = OfflineDataset.from_arrays(
        np.random.default_rng(0).normal(size=(n, 3)), np.zeros((n, 2)), rewards, ends
    )
    settings = CalQLConfig(discount=0.8, reward_scale=2.0, reward_shift=-1.0, **SMALL)
    config = {"rows": "exact", "device": "cpu", "seed": 0, "steps": 1, "compile": False, "threads": 1}
    _, source = build(ALGORITHM, settings, data, None, config)
    batch = source.sample([torch.Generator().manual_seed(0)])
    for row, got in zip(batch.rows[0].tolist(), batch.returns_to_go[0].tolist(), strict=True):
        last = 4 if row <= 4 else 11
        want = sum(0.8 ** (t - row) * (2.0 * t - 1.0) for t in range(row, last + 1))
        assert got == pytest.approx(want, rel=1e-5)


def test_with_sparse_rewards_it_gets_the_lowest_one_for_ever_where_an_episode_failed():
    """Rewards of 0 and 1 become -5 and 5: the first episode returns -5 / (1 - 0.9), the second its sums."""
    ends, rewards = np.isin(np.arange(8), (3, 7)), np.eye(8)[7]
    data = OfflineDataset.from_arrays(
        np.random.default_rng(0).normal(size=(8, 3)), np.zeros((8, 2)), rewards, ends
    )
    settings = CalQLConfig(discount=0.9, reward_scale=10.0, reward_shift=-5.0, sparse_rewards=True, **SMALL)
    config = {"rows": "exact", "device": "cpu", "seed": 0, "steps": 1, "compile": False, "threads": 1}
    _, source = build(ALGORITHM, settings, data, None, config)
    batch = source.sample([torch.Generator().manual_seed(0)])
    assert set(batch.rows[0].tolist()) == set(range(8))
    for row, got in zip(batch.rows[0].tolist(), batch.returns_to_go[0].tolist(), strict=True):
        want = -50.0 if row < 4 else sum(0.9 ** (t - row) * (5.0 if t == 7 else -5.0) for t in range(row, 8))
        assert got == pytest.approx(want, rel=1e-5)


def test_the_presets_are_the_official_scripts():
    maze = CalQLConfig(**preset(ALGORITHM, "antmaze-medium-play-v2"))
    assert (maze.cql_alpha, maze.target_gap, maze.max_target_backup, maze.sparse_rewards) == (
        5.0,
        0.8,
        True,
        True,
    )
    assert (maze.actor_layers, maze.critic_layers, maze.hidden, maze.actor_lr) == (2, 4, 256, 1e-4)
    assert (maze.reward_scale, maze.reward_shift, maze.normalize_observations) == (10.0, -5.0, False)
    kitchen = CalQLConfig(**preset(ALGORITHM, "kitchen-mixed-v0"))
    assert (kitchen.importance_sampling, kitchen.hidden, kitchen.target_gap) == (False, 512, None)
    hand = CalQLConfig(**preset(ALGORITHM, "pen-binary-v0"))
    assert (hand.cql_alpha, hand.critic_layers, hand.reward_scale, hand.reward_shift) == (1.0, 3, 10.0, 5.0)


def test_a_reward_for_ever_needs_a_discount():
    with pytest.raises(ConfigError, match="sparse_rewards needs a discount below 1"):
        CalQLConfig(sparse_rewards=True, discount=1.0)

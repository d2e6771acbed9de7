"""Rollouts of on-policy methods: advantages of the core, time limits, parts of a rollout."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from offrl.algos.ppo import PPO
from offrl.online.on_policy import Buffer


def test_advantages_are_those_of_the_plain_recursion():
    """As stable-baselines3 computes them, from random steps, ends and values of three environments."""
    rng = np.random.default_rng(0)
    spaces = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(-1, 1, (1,))
    ours, theirs = (
        kind(50, *spaces, gamma=0.97, gae_lambda=0.9, n_envs=3) for kind in (Buffer, RolloutBuffer)
    )
    fields = {name: rng.normal(size=(50, 3)).astype(np.float32) for name in ("rewards", "values")}
    fields["episode_starts"] = (rng.random((50, 3)) < 0.2).astype(np.float32)
    last, dones = torch.from_numpy(rng.normal(size=(3, 1)).astype(np.float32)), np.array([True, False, True])
    for buffer in (ours, theirs):
        for name, value in fields.items():
            setattr(buffer, name, value.copy())
        buffer.compute_returns_and_advantage(last, dones)
    np.testing.assert_allclose(ours.advantages, theirs.advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-4, atol=1e-5)


class Ones(gymnasium.Env):
    """Reward 1 for ever; observation: steps since the start."""

    observation_space = gymnasium.spaces.Box(-1e3, 1e3, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, end):
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        done = self.steps == 4
        return np.full(1, self.steps, np.float32), 1.0, done and self.end, done and not self.end, {}


@pytest.mark.parametrize("end", [False, True])
def test_a_time_limit_bootstraps_from_the_last_observation_and_an_end_does_not(end):
    """V(s) = 10 + steps and lambda 1, discount 0.5: targets are discounted sums, with V(4) = 14 behind a cut."""
    model = PPO(
        "MlpPolicy", DummyVecEnv([lambda: Ones(end)]), rollout=8, discount=0.5, gae_lambda=1.0, batch_size=8
    )
    model.policy.predict_values = lambda obs: obs.float() + 10.0
    forward = model.policy.forward

    def with_values(obs, deterministic=False):
        actions, _, log_probs = forward(obs, deterministic)
        return actions, obs.float() + 10.0, log_probs

    model.policy.forward = with_values
    model.train = lambda: None
    model.learn(8)
    beyond = 0.0 if end else 14.0
    want = [sum(0.5**k for k in range(n)) + 0.5**n * beyond for n in (4, 3, 2, 1)]
    np.testing.assert_allclose(model.rollout_buffer.returns.flatten(), [*want, *want], rtol=1e-5)


def test_parts_of_a_rollout():
    """Every step once; a smaller last part is left out on request; one step alone always."""
    model = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), rollout=33, batch_size=16, hidden=4)
    train, model.train = model.train, lambda: None
    model.learn(33)

    def sizes(*arguments, **more):
        return [len(s.advantages) for s in model.minibatches(*arguments, **more)]

    assert sizes(16) == [16, 16]
    assert sizes(20) == [20, 13]
    assert sizes(20, whole=True) == [20]
    assert sizes(50, whole=True) == [33]
    assert sizes(None) == [33]
    returns = torch.cat([s.returns for s in model.minibatches(20)])
    np.testing.assert_allclose(returns.sort()[0], np.sort(model.rollout_buffer.returns.flatten()))
    train()
    assert model._n_updates == 10


def test_the_policy_judges_again_after_a_rollout_and_after_one_that_fails():
    """Within a rollout it only acts; whoever calls it afterwards gets values and likelihoods."""
    model = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), rollout=8, batch_size=8, hidden=4)
    seen = []

    def looked(local, _global):
        seen.append(bool(local["values"].isnan().all()))
        if len(seen) == 10:
            raise KeyError("a callback's own")
        return True

    model.learn(8, callback=looked)
    with pytest.raises(KeyError):
        model.learn(8, callback=looked)
    assert seen == [True] * 10
    _, values, log_probs = model.policy(torch.zeros(3, 3))
    assert values.isfinite().all()
    assert log_probs.isfinite().all()


@pytest.mark.parametrize(("limit", "length"), [(None, 5.0), (8.0, 5.0), (0.5, 0.5)])
def test_long_gradients_are_cut_and_short_ones_stay(limit, length):
    model = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), rollout=8, batch_size=8, hidden=4)
    bias, log_std = model.policy.action_net.bias, model.policy.log_std
    model.step(3.0 * bias.sum() - 4.0 * log_std.sum(), [bias, log_std], limit)
    torch.testing.assert_close(bias.grad, torch.tensor([3.0 * length / 5]), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_std.grad, torch.tensor([-4.0 * length / 5]), rtol=1e-5, atol=0)
    assert model.policy.value_net.bias.grad is None

"""Datasets in replay buffers and back: what was recorded is what is learned from."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env

from offrl.algos import sac
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.online.replay import fill_replay_buffer, replay_dataset

SIZES = {"buffer_size": 300, "learning_starts": 0, "batch_size": 16, "device": "cpu"}


def model(kind=SAC, env="TinyPendulum-v0", **more):
    own = {"hidden": 8} if kind is sac.SAC else {"policy_kwargs": {"net_arch": [8]}}
    return kind("MlpPolicy", gymnasium.make(env) if isinstance(env, str) else env, **SIZES | own | more)


def played(steps=50, environments=1, size=300):
    """A model that has acted at random, learning nothing."""
    made = model(
        env=make_vec_env("TinyPendulum-v0", environments), learning_starts=10_000, buffer_size=size, seed=0
    )
    return made.learn(steps)


FIELDS = ("observations", "next_observations", "actions", "rewards", "terminated", "truncated")


def test_what_was_played_comes_back_step_by_step():
    """Episodes of 20 steps: two and a half; actions in torque, which a fresh environment answers in the same way."""
    made = played(50)
    data = replay_dataset(made, "TinyPendulum-v0")
    assert data.episode_lengths.tolist() == [20, 20, 10]
    assert data.fields["truncated"].nonzero()[0].tolist() == [19, 39, 49]
    assert not data.fields["terminated"].any()
    assert np.abs(data.fields["actions"]).max() > 1.0
    assert data.metadata["env_id"] == "TinyPendulum-v0"
    env = gymnasium.make("TinyPendulum-v0").unwrapped
    for row in range(50):
        cos, sin, speed = data.fields["observations"][row]
        env.reset()
        env.state = np.array([np.arctan2(sin, cos), speed])
        seen, reward, *_ = env.step(data.fields["actions"][row])
        np.testing.assert_allclose(seen, data.fields["next_observations"][row], atol=1e-4)
        assert reward == pytest.approx(float(data.fields["rewards"][row]), abs=1e-3)


def test_environments_follow_each_other_and_a_ring_is_read_from_its_oldest_step():
    two = replay_dataset(played(100, environments=2), "TinyPendulum-v0")
    assert two.episode_lengths.tolist() == [20, 20, 10] * 2
    ring = played(70, size=50)
    assert ring.replay_buffer.full
    data = replay_dataset(ring, "TinyPendulum-v0")
    assert data.episode_lengths.tolist() == [20, 20, 10]  # steps 20 .. 69
    np.testing.assert_array_equal(data.fields["rewards"][-20:], ring.replay_buffer.rewards[:20, 0])
    following = data.fields["next_observations"][:19]
    np.testing.assert_array_equal(following, data.fields["observations"][1:20])


@pytest.mark.parametrize("kind", [SAC, TD3, sac.SAC])
def test_a_dataset_fills_a_buffer_and_comes_back(kind):
    data = replay_dataset(played(50), "TinyPendulum-v0")
    made = model(kind)
    assert fill_replay_buffer(made, data) == 50
    back = replay_dataset(made, "TinyPendulum-v0")
    for name in FIELDS:
        np.testing.assert_allclose(back.fields[name], data.fields[name], atol=1e-6, err_msg=name)
    samples = made.replay_buffer.sample(200)
    assert samples.dones.max() == 0  # cut, not ended: targets go on
    assert samples.actions.abs().max() <= 1.0
    made.learn(20)
    assert made._n_updates > 0
    assert all(torch.isfinite(p).all() for p in made.policy.parameters())


def ended(next_observations=True):
    """Two episodes of three steps: the first terminates, the second is cut."""
    rng = np.random.default_rng(0)
    fields = {
        "observations": rng.normal(size=(6, 3)).astype(np.float32),
        "actions": np.linspace(-2, 2, 6, dtype=np.float32)[:, None],
        "rewards": np.arange(6, dtype=np.float32),
        "terminated": np.array([0, 0, 1, 0, 0, 0], bool),
        "truncated": np.array([0, 0, 1, 0, 0, 1], bool),  # an end at the time limit is an end
    }
    if next_observations:
        fields["next_observations"] = fields["observations"] + 1.0
    return OfflineDataset.from_fields(fields)


def test_ends_cuts_and_actions_are_told_apart():
    made = model()
    assert fill_replay_buffer(made, ended()) == 6
    buffer = made.replay_buffer
    assert buffer.dones[:6, 0].tolist() == [0, 0, 1, 0, 0, 1]
    assert buffer.timeouts[:6, 0].tolist() == [0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(buffer.actions[:6, 0, 0], np.linspace(-1, 1, 6), atol=1e-6)
    np.testing.assert_allclose(buffer.next_observations[:6, 0], buffer.observations[:6, 0] + 1.0)
    assert (buffer.pos, buffer.full) == (6, False)


def test_a_cut_step_without_successor_is_left_out_and_data_go_behind_what_is_there():
    made = model()
    assert [fill_replay_buffer(made, ended(False)) for _ in range(2)] == [5, 5]
    assert made.replay_buffer.pos == 10
    assert made.replay_buffer.rewards[:10, 0].tolist() == [0, 1, 2, 3, 4] * 2
    assert made.replay_buffer.timeouts[:10, 0].tolist() == [0, 0, 0, 0, 1] * 2  # the last that is kept
    assert made.replay_buffer.dones[:10, 0].tolist() == [0, 0, 1, 0, 1] * 2


def test_episodes_without_their_last_step_do_not_grow_together():
    """Nor do they where the buffer held half an episode before, or where 'learn' began anew."""
    rng = np.random.default_rng(0)
    fields = {
        "observations": rng.normal(size=(12, 3)).astype(np.float32),
        "actions": np.zeros((12, 1), np.float32),
        "rewards": np.ones(12, np.float32),
        "terminated": np.zeros(12, bool),
        "truncated": np.arange(12) % 4 == 3,
    }
    made = played(10)
    fill_replay_buffer(made, OfflineDataset.from_fields(fields))
    assert made.replay_buffer.dones[9, 0] == made.replay_buffer.timeouts[9, 0] == 1
    assert replay_dataset(made, "TinyPendulum-v0").episode_lengths.tolist() == [10, 3, 3, 3]
    again = played(30, environments=2).learn(10)
    assert replay_dataset(again, "TinyPendulum-v0").episode_lengths.tolist() == [15, 5] * 2
    assert again.replay_buffer.dones.sum() == 0  # reading changes nothing


def test_a_buffer_may_be_filled_to_the_brim_and_no_further():
    made = model(buffer_size=12)
    fill_replay_buffer(made, ended())
    fill_replay_buffer(made, ended())
    assert (made.replay_buffer.pos, made.replay_buffer.full) == (0, True)
    with pytest.raises(ConfigError, match=r"6 transitions do not fit into the 0 free places of the buffer"):
        fill_replay_buffer(made, ended())
    small = model(buffer_size=11)
    fill_replay_buffer(small, ended())
    with pytest.raises(ConfigError, match="into the 5 free places"):
        fill_replay_buffer(small, ended())


def test_what_cannot_be_filled_or_read_is_refused():
    with pytest.raises(ConfigError, match="a buffer of 2 environments"):
        fill_replay_buffer(model(env=make_vec_env("TinyPendulum-v0", 2)), ended())
    with pytest.raises(ConfigError, match="O=3, A=1, the model's environment O=4, A=1"):
        fill_replay_buffer(model(env="InvertedPendulum-v5"), ended())
    with pytest.raises(ConfigError, match="keeps no true successors"):
        kind = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
        fill_replay_buffer(model(**kind), ended())
    with pytest.raises(ConfigError, match="actions must be a box"):
        fill_replay_buffer(model(DQN, "CartPole-v1"), ended())
    with pytest.raises(ConfigError, match="PPO has no replay buffer"):
        replay_dataset(PPO("MlpPolicy", gymnasium.make("TinyPendulum-v0"), device="cpu"), "TinyPendulum-v0")
    with pytest.raises(ConfigError, match="the buffer has O=3, A=1, but InvertedPendulum-v5 has O=4, A=1"):
        replay_dataset(played(5), "InvertedPendulum-v5")
    with pytest.raises(ConfigError, match="is empty"):
        replay_dataset(model(), "TinyPendulum-v0")

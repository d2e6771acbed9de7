"""Episodes under way that are played again."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from offrl.online.replayable import Replayable, episodes, play_again, replayable


def make(env="TinyPendulum-v0", count=2):
    return DummyVecEnv([lambda: Replayable(Monitor(gymnasium.make(env))) for _ in range(count)])


def walk(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    box = env.action_space
    found = []
    for _ in range(steps):
        observations, rewards, dones, infos = env.step(
            rng.uniform(box.low, box.high, (env.num_envs, *box.shape)).astype(np.float32)
        )
        found += [observations, rewards, dones, [info.get("episode", {}).get("r") for info in infos]]
    return found


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["TinyPendulum-v0", "Hopper-v5", "Ant-v5", "Reacher-v5"])
@pytest.mark.parametrize("steps", [0, 7, 63])
def test_it_comes_to_the_same_state(name, steps):
    """After the first reset with its seed, in later episodes, and for the returns that Monitor adds up."""
    one, other = make(name), make(name)
    one.seed(5)
    one.reset()
    other.reset()
    walk(other, 3)
    walk(one, steps)
    assert play_again(other, episodes(one))
    assert np.array_equal(one.buf_obs[None], other.buf_obs[None])
    assert same(walk(one, 80, 1), walk(other, 80, 1))


def test_another_environment_is_noticed():
    one, other = make(), make()
    one.seed(0)
    one.reset()
    walk(one, 5)
    saved = episodes(one)
    saved[1]["observation"][0] += 1e-6
    assert not play_again(other, saved)
    saved = episodes(one)
    saved[0]["actions"] = saved[0]["actions"].new_zeros(30, 1)  # longer than an episode lasts
    assert not play_again(other, saved)


def test_only_environments_that_remember_can_be_played_again():
    env = make()
    assert replayable(VecNormalize(env)) is env
    plain = DummyVecEnv([lambda: Monitor(gymnasium.make("TinyPendulum-v0"))])
    assert replayable(plain) is None
    assert replayable(None) is None

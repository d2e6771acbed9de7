"""Episodes under way that are played again."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from offrl.data.environments import EnvSpec
from offrl.evaluation.environments import env_spec, make_env
from offrl.online.replayable import Replayable, episodes, play_again, replayable


def make(env="TinyPendulum-v0", count=2):
    return DummyVecEnv([lambda: Replayable(Monitor(make_env(env))) for _ in range(count)])


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


@pytest.mark.parametrize("name", ["pusht-state", "fetch-push-state", "offrl/one_store_lost-v1", "ogbench"])
def test_environments_with_streams_of_their_own_come_to_it_too(name):
    """In the second episode, which no seed was given for."""
    spec = EnvSpec("pointmaze-medium-singletask-v0", horizon=30) if name == "ogbench" else env_spec(name)
    one, other = make(spec, 1), make(spec, 1)
    one.seed(5)
    one.reset()
    one.reset()
    walk(one, 12)
    assert play_again(other, episodes(one))
    assert same(walk(one, 40, 1), walk(other, 40, 1))


def test_episodes_of_a_seed_begin_alike_and_differ_from_each_other():
    """Episode 0 is that of gymnasium; the next ones depend on it and on how many there were, not on what was done."""
    box = gymnasium.make("TinyPendulum-v0")
    begun = []
    for seed in (0, 0, 1):
        env = Replayable(gymnasium.make("TinyPendulum-v0"))
        begun.append([env.reset(seed=seed)[0]])
        assert np.array_equal(begun[-1][0], box.reset(seed=seed)[0])
        env.step(np.zeros(1, np.float32))
        begun[-1] += [env.reset()[0] for _ in range(3)]
    assert np.array_equal(begun[0], begun[1])
    starts = [tuple(start) for start in begun[0] + begun[2]]
    assert len(set(starts)) == 8
    env.reset(seed=1)  # anew
    assert np.array_equal(env.reset()[0], begun[2][1])
    unseeded = [tuple(Replayable(gymnasium.make("TinyPendulum-v0")).reset()[0]) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_another_environment_is_noticed():
    one, other = make(), make()
    one.seed(0)
    one.reset()
    walk(one, 5)
    saved = episodes(one)
    saved[1]["observation"][0] += 1e-6
    assert not play_again(other, saved)
    saved = episodes(one)
    saved[1]["rewards"] += 1e-9
    assert not play_again(other, saved)
    saved = episodes(one)
    saved[0]["actions"] = saved[0]["actions"].new_zeros(30, 1)  # longer than an episode lasts
    assert not play_again(other, saved)


def test_where_it_comes_elsewhere_the_next_episodes_begin():
    one, other = make(count=3), make(count=3)
    one.seed(0)
    one.reset()
    walk(one, 45)
    saved = episodes(one)
    saved[0]["rewards"] += 1.0
    assert not play_again(other, saved)
    other.reset()
    assert [(e["first"], e["number"]) for e in episodes(other)] == [(0, 3), (1, 3), (2, 3)]


def test_only_environments_that_remember_can_be_played_again():
    env = make()
    assert replayable(VecNormalize(env)) is env
    plain = DummyVecEnv([lambda: Monitor(gymnasium.make("TinyPendulum-v0"))])
    assert replayable(plain) is None
    assert replayable(None) is None

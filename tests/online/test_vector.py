"""Stepping and normalizing as stable-baselines3 does, to the bit."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from offrl.online.vector import Moments, RunningNormalize, SerialEnvs


def made(kind, name, count):
    env = kind([lambda: Monitor(gymnasium.make(name)) for _ in range(count)])
    env.seed(3)
    return env


def walk(env, steps):
    """All that steps return; infos without the time that Monitor took."""
    rng, box = np.random.default_rng(0), env.action_space
    found = [env.reset().copy()]
    for _ in range(steps):
        draws = rng.uniform(box.low, box.high, (env.num_envs, *box.shape)).astype(np.float32)
        observations, rewards, dones, infos = env.step(draws)
        found += [observations, rewards, dones]
        for info in infos:
            episode = info.pop("episode", {})
            found += [*(np.asarray(info[key]) for key in sorted(info)), np.asarray(episode.get("r", 0.0))]
    return found


def same(one, other):
    return [(x.dtype, x.tobytes()) for x in one] == [(x.dtype, x.tobytes()) for x in other]


class Both(gymnasium.Env):
    """The third step ends the episode in both ways."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, float(action[0]), self.steps == 3, self.steps == 3, {"steps": self.steps}


gymnasium.register("Both-v0", entry_point=Both)


@pytest.mark.parametrize("name", ["TinyPendulum-v0", "Hopper-v5", "InvertedPendulum-v5", "Both-v0"])
@pytest.mark.parametrize("count", [1, 3])
def test_steps_are_those_of_dummy_vec_env(name, count):
    assert same(walk(made(SerialEnvs, name, count), 70), walk(made(DummyVecEnv, name, count), 70))


def test_what_was_returned_stays(tiny):
    """The next steps change neither arrays nor infos that a step gave."""
    env = made(SerialEnvs, tiny, 2)
    env.reset()
    first = env.step(np.ones((2, 1), np.float32))
    kept = [x.copy() for x in first[:3]], [dict(info) for info in first[3]]
    assert kept[1][0]["TimeLimit.truncated"] is False
    for _ in range(19):
        _, _, dones, _ = env.step(np.zeros((2, 1), np.float32))
    assert dones.all()  # with other infos
    assert all(np.array_equal(a, b) for a, b in zip(first[:3], kept[0], strict=True))
    assert first[3] == kept[1]


class Reusing(gymnasium.Env):
    """Fills the same array and the same dict at every step."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    seen, info = np.zeros(1, np.float32), {}

    def reset(self, *, seed=None, options=None):
        self.seen[:] = 0.0
        return self.seen, self.info

    def step(self, action):
        self.seen += 1.0
        return self.seen, 1.0, bool(self.seen[0] == 3), False, self.info


def test_environments_may_reuse_what_they_return():
    env = SerialEnvs([lambda: Monitor(Reusing())])
    env.reset()
    ended = []
    for _ in range(7):
        _, _, dones, infos = env.step(np.zeros((1, 1), np.float32))
        ended.append("episode" in infos[0])
        if dones[0]:
            assert infos[0]["terminal_observation"].tolist() == [3.0]
    assert ended == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("observations", "rewards"), [(True, True), (True, False), (False, True)])
def test_normalized_steps_are_those_of_vec_normalize(count, observations, rewards):
    given = {"norm_obs": observations, "norm_reward": rewards, "gamma": 0.97, "clip_obs": 2.0}
    ours = RunningNormalize(made(SerialEnvs, "Hopper-v5", count), **given)
    theirs = VecNormalize(made(DummyVecEnv, "Hopper-v5", count), **given)
    assert same(walk(ours, 90), walk(theirs, 90))
    assert np.array_equal(ours.get_original_obs(), theirs.get_original_obs())
    assert np.array_equal(ours.returns, theirs.returns)
    names = ["ret_rms"] + ["obs_rms"] * observations
    for name in names:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (np.asarray(a.mean).tobytes(), np.asarray(a.var).tobytes(), a.count) == (
            np.asarray(b.mean).tobytes(),
            np.asarray(b.var).tobytes(),
            b.count,
        )
    frozen = np.full((count, 11), 3.0)
    ours.training = False
    assert np.array_equal(ours.normalize_obs(frozen), theirs.normalize_obs(frozen))


def test_moments_of_rows_that_come_alone():
    rows = np.random.default_rng(0).normal(2.0, 3.0, (400, 5))
    moments = Moments(shape=(5,))
    for row in rows:
        moments.update(row[None])
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, rows.var(0), rtol=1e-3)

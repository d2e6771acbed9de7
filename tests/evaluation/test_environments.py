"""What wrappers do to environments that depend on more than their seed."""

import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest

from offrl.data.environments import environment_for
from offrl.data.load import load_dataset
from offrl.errors import MissingExtraError
from offrl.evaluation.environments import SelfContained, describe_environment, env_spec, make_env
from offrl.training.build import dataset_env


class Leaky(gymnasium.Env):
    """As OGBench's: NumPy's global generator in reset and step, spaces made (and the state lost) at every look."""

    looks = 0

    @property
    def action_space(self):
        warnings.warn("a new space", UserWarning, stacklevel=1)
        return gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    @property
    def observation_space(self):
        self.looks += 1
        return gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([np.random.uniform()], np.float32), {}  # noqa: NPY002

    def step(self, action):
        return np.array([np.random.uniform()], np.float32), 0.0, False, False, {}  # noqa: NPY002


def episode(env, seed, disturb=lambda: None):
    seen = [env.reset(seed=seed)[0]]
    for _ in range(3):
        disturb()
        seen.append(env.step(np.zeros(2))[0])
    return np.concatenate(seen).tolist()


def test_an_episode_depends_on_its_seed_alone():
    env, other = SelfContained(Leaky()), SelfContained(Leaky())
    np.random.seed(0)  # noqa: NPY002
    alone = episode(env, 7)
    np.random.seed(1)  # noqa: NPY002
    assert episode(env, 7, disturb=lambda: episode(other, 3)) == alone
    assert len(set(alone)) == 4
    assert episode(env, 8) != alone
    going_on = env.reset()[0]  # without a seed the stream goes on
    assert going_on not in (alone[0], env.reset()[0])


def test_the_global_generator_is_left_as_it_was():
    env = SelfContained(Leaky())
    np.random.seed(0)  # noqa: NPY002
    wanted = np.random.uniform()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    episode(env, 7)
    assert np.random.uniform() == wanted  # noqa: NPY002


def test_spaces_are_made_once_without_warnings():
    base = Leaky()
    env = SelfContained(base)
    env.action_space.seed(3)
    first = env.action_space.sample()
    env.action_space.seed(3)
    np.testing.assert_array_equal(env.action_space.sample(), first)
    assert [env.observation_space.shape for _ in range(3)] == [(1,)] * 3
    assert base.looks == 1


def test_single_tasks_are_made_self_contained():
    gymnasium.register("toy-leaky-singletask-v0", Leaky, max_episode_steps=5)
    try:
        env = make_env("toy-leaky-singletask-v0")
        assert episode(env, 7) == episode(env, 7)
    finally:
        del gymnasium.registry["toy-leaky-singletask-v0"]


def test_a_missing_ogbench_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ogbench", None)
    for env_id in [name for name in gymnasium.registry if "-singletask" in name]:
        monkeypatch.delitem(gymnasium.registry, env_id)
    with pytest.raises(MissingExtraError, match=r"pip install 'offrl\[ogbench\]'"):
        make_env(environment_for("ogbench:cube-single-play-singletask-v0"))


@pytest.mark.parametrize("env_id", ["Hopper-v5", "fetch-pick-state"])
def test_a_rendering_library_that_mujoco_cannot_load_is_one_line(env_id):
    command = [sys.executable, "-m", "offrl", "eval", "random", "--env", env_id, "--episodes", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MUJOCO_GL": "bogus"}, check=False
    )
    assert done.returncode == 1
    assert "MuJoCo cannot be loaded with MUJOCO_GL=bogus" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("view", "size"), [("", 5), ("/keypoints", 18)])
def test_pusht_is_made_as_its_demonstrations_name_it(view, size):
    """Of the state view, which is an array, the order of parts is a name and nothing to take apart."""
    spec = dataset_env(load_dataset(f"builtin:pusht-demo{view}"), None)
    env = make_env(spec)
    assert env.observation_space.shape == (size,)
    assert env.reset(seed=0)[0].shape == (size,)
    env.close()


@pytest.mark.parametrize(
    ("name", "pair", "label"),
    [
        ("pusht-state", [0.0, 1.0], "success rate"),
        ("fetch-push-state", [0.0, 1.0], "success rate"),
        ("Hopper-v5", [-20.272305, 3234.3], "v5 env, D4RL reference"),
        ("Pendulum-v1", None, None),
    ],
)
def test_what_is_recorded_in_an_environment_knows_what_scores_are(name, pair, label):
    spec = env_spec(name)
    env = make_env(spec)
    facts = describe_environment(env, spec)
    env.close()
    assert (facts.get("reference_returns"), facts.get("reference")) == (pair, label)

"""Collecting whole episodes: how many, from where, and what is kept of them."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from offrl.algos.harpg import HARPG
from offrl.algos.n_pg_igt import NPGIGT
from offrl.algos.policy_gradient import PolicyGradient
from offrl.errors import ConfigError


class Count(gymnasium.Env):
    """Episodes of 1 to 5 steps, drawn at reset; observation = (episode's length, step); reward = step + 1."""

    observation_space = gymnasium.spaces.Box(-100, 100, (2,))
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,))
    taken: list = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.step_number = int(self.np_random.integers(1, 6)), 0
        return np.array([self.length, 0], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.step_number += 1
        done = self.step_number == self.length
        return np.array([self.length, self.step_number], np.float32), float(self.step_number), done, False, {}


def collect(count, envs, **settings):
    """The first batch of a model with ``count`` trajectories."""
    defaults = {"trajectories": count, "hidden": 4, "discount": 0.5, "baseline": False}
    model = PolicyGradient(
        "MlpPolicy", DummyVecEnv([Count] * envs), seed=0, device="cpu", **defaults | settings
    )
    _, callback = model._setup_learn(100)
    return model, model._collect(model.theta(), 0, callback)


@pytest.mark.parametrize(("count", "envs"), [(5, 1), (7, 3), (2, 4)])
def test_whole_episodes_as_many_as_asked(count, envs):
    """Each is complete and in order, whichever environment played it; short ones are not preferred."""
    model, batch = collect(count, envs)
    assert int(batch.episode[-1]) + 1 == count
    for number in range(count):
        seen = batch.features[batch.episode == number]
        length = int(seen[0, 0])
        assert seen[:, 1].tolist() == list(range(length))
        rewards = [0.5**t * (t + 1) for t in range(length)]
        expected = [sum(rewards[t:]) for t in range(length)]
        torch.testing.assert_close(batch.psi[batch.episode == number], torch.tensor(expected))
    assert model.num_timesteps >= len(batch.psi)
    assert model.num_timesteps % envs == 0
    assert model._episode_num == count


def test_likelihoods_are_of_the_actions_before_clipping():
    _, batch = collect(5, 1)
    assert batch.actions.abs().max() > 0.2


def test_every_iteration_has_episodes_of_its_own():
    """Its starts and its noise; one environment, so that rows are in the order of the draws."""
    model, first = collect(6, 1)
    _, callback = model._setup_learn(100)
    same = model._collect(model.theta(), 0, callback)
    other_kind = model._collect(model.theta(), 1, callback)
    model._n_updates += 1
    later = model._collect(model.theta(), 0, callback)

    def noise(batch):
        return (batch.actions - model.policy.net(batch.features)).detach()[:5]

    assert torch.equal(first.actions, same.actions)
    for batch in (other_kind, later):
        assert not torch.equal(batch.features, first.features)
        assert not torch.allclose(noise(batch), noise(first), atol=1e-3)


def test_the_baseline_is_that_of_the_other_episodes():
    _, raw = collect(4, 1)
    _, centred = collect(4, 1, baseline=True)
    start = [int((raw.episode == k).nonzero()[0]) for k in range(4)]
    values = raw.psi[start]
    torch.testing.assert_close(centred.psi[start], values - (values.sum() - values) / 3)
    _, alone = collect(1, 1, baseline=True)
    assert (alone.psi > 0).all()


def test_a_stop_in_the_middle_of_an_episode_changes_nothing():
    class Stop(BaseCallback):
        def _on_step(self):
            return False

    model, _ = collect(4, 1)
    before = model.theta()
    model.learn(100, callback=Stop())
    assert torch.equal(model.theta(), before)
    assert model._n_updates == 0


def test_a_step_to_infinity_is_an_error():
    model, _ = collect(4, 1, step_size=1e38)
    with pytest.raises(ConfigError, match="not finite after iteration .*: lower step_size"):
        model.learn(1000)


class Width(gymnasium.Env):
    """One step an episode, nothing to see: r = pays a^2, so that log_std and the mean's bias matter."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-20, 20, (1,))
    pays = -1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.pays * float(action[0]) ** 2, True, False, {}


METHODS = pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (NPGIGT, {"step_size": 1.0}),
        (HARPG, {"normalize": True, "step_size": 1.0}),
        (HARPG, {"step_size": 0.1}),
        (PolicyGradient, {"update": "plain", "step_size": 0.3}),
        (PolicyGradient, {"update": "momentum", "step_size": 1.0}),
        (PolicyGradient, {"update": "storm", "step_size": 0.1}),
    ],
)
FLOOR = -0.1


def pressed(kind, settings, iterations=8):
    """A model on the floor, because noise costs; and theta before and after each of its iterations."""
    env = DummyVecEnv([Width] * 16)
    common = {"trajectories": 32, "hidden": 4, "log_std": 0.0, "log_std_min": FLOOR}
    model = kind("MlpPolicy", env, seed=0, device="cpu", **common | settings)
    return model, iterate(model, iterations)


def iterate(model, count):
    """Theta before and after each of ``count`` iterations."""
    _, callback = model._setup_learn(10**9, reset_num_timesteps=False)
    path = []
    for _ in range(count):
        before = model.theta()
        model._iterate(callback)
        path.append((before, model.theta()))
    return path


@METHODS
def test_log_std_leaves_its_floor_when_noise_pays(kind, settings):
    """It is pressed on the floor first, exactly on it, and turns with the reward."""
    model, _ = pressed(kind, settings)
    assert model.policy.net.log_std.item() == np.float32(FLOOR)
    model.env.set_attr("pays", 1.0)
    iterate(model, 10)
    assert model.policy.net.log_std.item() > FLOOR + 0.2


@METHODS
def test_a_step_is_projected_and_so_is_where_episodes_are_played(kind, settings, monkeypatch):
    """theta = the projection of theta + step, with the direction as it was; never longer than the step without it."""
    seen = []
    monkeypatch.setattr(kind, "_collect", recorded(kind._collect, seen))
    model, path = pressed(kind, settings)
    model._n_updates -= 1  # what the last iteration saw
    before, after = path[-1]
    size, direction = model.step_size(), model.direction
    step = size * (direction / direction.norm() if model.normalizes() else direction)
    free = model.policy.floored(torch.full_like(before, -99.0)) == np.float32(FLOOR)
    torch.testing.assert_close(after[~free], (before + step)[~free], rtol=0, atol=1e-6)
    assert (before + step)[free] < FLOOR
    assert (after - before).norm() < step.norm()
    assert torch.equal(model.previous, before)
    played = torch.cat([point[free] for point in seen])
    assert (played >= np.float32(FLOOR)).all()
    assert (played == np.float32(FLOOR)).sum() > 3


def recorded(collect, seen):
    """``collect``, which writes down the points."""

    def wrapped(self, point, number, callback):
        seen.append(point.clone())
        return collect(self, point, number, callback)

    return wrapped


@METHODS
def test_a_model_saved_on_the_floor_goes_on_as_if_it_had_not_been(kind, settings, tmp_path):
    model, _ = pressed(kind, settings)
    model.save(tmp_path / "model.zip")
    loaded = kind.load(tmp_path / "model.zip", env=DummyVecEnv([Width] * 16), device="cpu")
    assert torch.equal(loaded.theta(), model.theta())
    for each in (model, loaded):
        each.env.set_attr("pays", 1.0)
        iterate(each, 3)
    assert torch.equal(loaded.theta(), model.theta())


def test_without_a_seed_two_models_differ_and_a_saved_one_keeps_its_streams(tmp_path):
    first, second = (PolicyGradient("MlpPolicy", Count(), hidden=4, device="cpu") for _ in range(2))
    assert first.stream_seed != second.stream_seed
    first.save(tmp_path / "model.zip")
    assert PolicyGradient.load(tmp_path / "model.zip").stream_seed == first.stream_seed


@pytest.mark.parametrize("updates", [0, 2])
def test_weights_from_elsewhere_are_where_transport_begins(updates, tmp_path):
    """With eta below 1 the first look ahead would be along the way from the random weights to those."""
    source = NPGIGT("MlpPolicy", Count(), device="cpu", seed=1, eta=0.5)
    source.save(tmp_path / "model.zip")
    model = NPGIGT("MlpPolicy", Count(), device="cpu", seed=0, eta=0.5, trajectories=2)
    while model._n_updates < updates:
        model.learn(1, reset_num_timesteps=False)
    model.set_parameters(tmp_path / "model.zip")
    (point,) = model.points(model.theta())
    assert torch.equal(point, source.theta())


def test_policy_kwargs_win_over_settings():
    model = PolicyGradient("MlpPolicy", Count(), device="cpu", policy_kwargs={"net_arch": [3, 3, 3]})
    assert [layer.out_features for layer in model.policy.net.layers] == [3, 3, 3, 1]


def test_returns_in_the_log_are_those_of_the_environment():
    """VecNormalize divides the rewards that are learned from, not what is said to have been earned."""
    env = VecNormalize(make_vec_env("TinyPendulum-v0", n_envs=2), norm_obs=False)
    model = NPGIGT("MlpPolicy", env, trajectories=2, hidden=8, seed=0, device="cpu")
    logged = {}
    model.set_logger(Logger(None, [Written(logged)]))
    model.learn(1)
    earned = [episode["r"] for episode in model.ep_info_buffer]
    assert len(earned) == 2
    assert logged["train/episode_return"] == pytest.approx(np.mean(earned), rel=1e-4)


class Written(KVWriter):
    """Keeps what a logger dumps."""

    def __init__(self, into):
        self.into = into

    def write(self, key_values, key_excluded, step=0):
        self.into.update(key_values)

    def close(self):
        pass

"""N-PG-IGT as it runs: where it samples, what it averages, how far it steps."""

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from offrl.algos.n_pg_igt import NPGIGT
from offrl.errors import ConfigError
from offrl.estimators import hvp
from offrl.online.policy_gradient import Episodes, PolicyGradientConfig


class Target(gymnasium.Env):
    """One step an episode: r = scale (1 - (a - goal)^2), best at a = goal."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-3, 3, (1,))

    def __init__(self, scale=1.0, goal=0.7):
        self.scale, self.goal = scale, goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), self.scale * (1 - float(action[0] - self.goal) ** 2), True, False, {}


def targets(count=16):
    """As many of them side by side."""
    return DummyVecEnv([Target] * count)


def pendulum(length=12):
    return gymnasium.make("Pendulum-v1", max_episode_steps=length)


def make(env=None, seed=0, **settings):
    defaults = {"trajectories": 3, "hidden": 8}
    return NPGIGT("MlpPolicy", env or pendulum(), seed=seed, device="cpu", **defaults | settings)


def iterate(model, count):
    """``count`` iterations; yields theta before and after each."""
    _, callback = model._setup_learn(10**9)
    for _ in range(count):
        before = model.theta()
        model._iterate(callback)
        yield before, model.theta()


def on_quadratic(model, count):
    """Run ``count`` iterations on a noise-free quadratic in place of an environment; yields (d, grad J(theta))."""
    size = len(model.theta())
    g = torch.Generator().manual_seed(0)
    root = torch.randn(size, size, generator=g) / size**0.5
    hessian, center = -(root @ root.T + torch.eye(size)), torch.randn(size, generator=g)

    def grad(point):
        return hessian @ (point - center)

    empty = Episodes(*(torch.zeros(0) for _ in range(4)))
    model._collect = lambda point, number, callback: empty
    model.gradient = lambda point, batch, weights=None: grad(point)
    model.hessian_vector = lambda point, vector, batch: hessian @ vector
    model.log_likelihood = lambda point, batch: torch.zeros(1)
    for theta, _ in iterate(model, count):
        yield model.direction, grad(theta)


def test_without_noise_the_direction_is_the_gradient_at_theta():
    """The eta of the transport is that of the average; with the one before it, iteration 2 would be off by a tenth."""
    for direction, exact in on_quadratic(make(hidden=2, step_size=0.3), 25):
        assert (direction - exact).norm() < 2e-5 * exact.norm()


def test_episodes_are_sampled_and_differentiated_at_the_transported_point():
    """Recomputed from outside: theta~, the gradient there of what was recorded, the average, the step."""
    model, seen = make(step_size=0.3), []
    collect = model._collect

    def record(point, number, callback):
        seen.append((point.clone(), collect(point, number, callback)))
        assert torch.equal(torch.nn.utils.parameters_to_vector(model.sampler.parameters()), point)
        return seen[-1][1]

    model._collect = record
    previous, direction = model.theta(), None
    for t, (theta, after) in enumerate(iterate(model, 4)):
        eta = (2 / (t + 2)) ** 0.8
        (point, batch), expected = seen[-1], theta + (1 - eta) / eta * (theta - previous)
        torch.testing.assert_close(point, expected, rtol=0, atol=1e-6)

        def log_probs(parameters, batch=batch):
            return model.policy.log_probs(parameters, batch.features, batch.actions)

        g = hvp.policy_gradient(log_probs, point, batch.psi, batch.episode)
        direction = g if t == 0 else (1 - eta) * direction + eta * g
        size = 0.3 * 2 / (t + 2)
        torch.testing.assert_close(after, theta + size * direction / direction.norm(), rtol=0, atol=1e-5)
        previous = theta
    assert (seen[-1][0] - theta).norm() > 0.01


def test_steps_have_length_gamma():
    model = make(step_size=0.2)
    for t, (before, after) in enumerate(iterate(model, 5)):
        assert float((after - before).norm()) == pytest.approx(0.2 * 2 / (t + 2), rel=1e-4)


def test_the_scale_of_rewards_does_not_matter():
    """Powers of two scale floating-point numbers without rounding."""
    ends = [list(iterate(make(Target(scale)), 6))[-1][1] for scale in (1.0, 4.0)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_theta_acts_while_the_transported_point_samples():
    """What callbacks evaluate and save during a rollout is theta."""

    class Watch(BaseCallback):
        apart = 0.0

        def _on_rollout_start(self):
            self.theta = self.model.theta()

        def _on_step(self):
            assert torch.equal(self.model.theta(), self.theta)
            sampler = torch.nn.utils.parameters_to_vector(self.model.sampler.parameters())
            self.apart = max(self.apart, float((sampler.detach() - self.theta).norm()))
            return True

    watch = Watch()
    make(step_size=0.3).learn(150, callback=watch)
    assert watch.apart > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_action(seed):
    """Optimum of the one-step problem: mean action 0.7."""
    model = make(targets(), seed=seed, step_size=0.3, trajectories=16, fixed_std=True, log_std=-1.0)
    model.learn(1600)
    action, _ = model.predict(np.ones((1, 1), np.float32), deterministic=True)
    assert abs(action.item() - 0.7) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 1.5}, r"eta must be in \(0, 1\], got 1.5"),
        ({"eta": 0.0}, "eta must be"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"discount": 1.01}, "discount must be in"),
        ({"trajectories": 0}, "trajectories and hidden"),
        ({"log_std": -4.0}, "log_std -4.0 is below log_std_min -3.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PolicyGradientConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        make(**settings)

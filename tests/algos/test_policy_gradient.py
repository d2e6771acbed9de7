"""The baselines as they run."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from offrl.algos.policy_gradient import PolicyGradient
from offrl.errors import ConfigError
from offrl.estimators import hvp

spec = importlib.util.spec_from_file_location("igt_tests", Path(__file__).with_name("test_n_pg_igt.py"))
igt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(igt)


def make(env=None, seed=0, **settings):
    defaults = {"trajectories": 3, "hidden": 8, "step_size": 1e-3}
    return PolicyGradient("MlpPolicy", env or igt.pendulum(), seed=seed, device="cpu", **defaults | settings)


def test_momentum_lags_where_the_others_are_exact():
    """On a quadratic without noise: REINFORCE and STORM-PG (w = 1) have the gradient, N-MPG has an old one."""
    far = {}
    for update, size in (("plain", 0.02), ("storm", 0.02), ("momentum", 0.3)):
        *_, (direction, exact) = igt.on_quadratic(make(hidden=2, step_size=size, update=update), 25)
        far[update] = float((direction - exact).norm() / exact.norm())
    assert far["plain"] == 0
    assert far["storm"] < 1e-4
    assert far["momentum"] > 1e-2


@pytest.mark.parametrize(("update", "exponent"), [("plain", 2 / 3), ("storm", 1 / 3), ("momentum", 1.0)])
def test_step_sizes_fall_as_stated(update, exponent):
    model = make(step_size=0.01, update=update)
    for t, (before, after) in enumerate(igt.iterate(model, 4)):
        length = 1.0 if update == "momentum" else float(model.direction.norm())
        assert float((after - before).norm()) == pytest.approx(
            0.01 * (2 / (t + 2)) ** exponent * length, rel=2e-3
        )


def test_storm_reweights_the_same_episodes():
    """d = g + (1 - eta)(d' - w g'), w_i = p(tau_i | theta') / p(tau_i | theta) of whole episodes."""
    model, seen = make(step_size=0.005, update="storm"), []
    collect = model._collect
    model._collect = lambda *given: seen.append(collect(*given)) or seen[-1]
    previous = direction = None
    for t, (theta, _) in enumerate(igt.iterate(model, 4)):
        batch, eta = seen[-1], (2 / (t + 2)) ** (2 / 3)

        def log_probs(parameters, batch=batch):
            return model.policy.log_probs(parameters, batch.features, batch.actions)

        g = hvp.policy_gradient(log_probs, theta, batch.psi, batch.episode)
        if t:
            with torch.no_grad():
                ratio = hvp.per_trajectory(log_probs(previous) - log_probs(theta), batch.episode).exp()
            assert (ratio - 1).abs().max() > 1e-3
            before = hvp.policy_gradient(log_probs, previous, batch.psi * ratio[batch.episode], batch.episode)
            g = g + (1 - eta) * (direction - before)
        torch.testing.assert_close(model.direction, g, rtol=1e-3, atol=1e-3)
        previous, direction = theta, model.direction


def test_one_unlikely_episode_makes_no_infinite_direction():
    model, seen = make(step_size=0.005, update="storm"), []
    collect = model._collect
    model._collect = lambda *given: seen.append(collect(*given)) or seen[-1]
    list(igt.iterate(model, 2))
    model.log_likelihood = lambda point, batch: torch.full((3,), 1e3 * torch.equal(point, model.previous))
    assert model.new_direction([model.theta()], [seen[-1]]).isfinite().all()


@pytest.mark.parametrize(("update", "size"), [("plain", 0.05), ("momentum", 0.3), ("storm", 0.02)])
def test_it_finds_the_best_action(update, size):
    model = make(igt.targets(), update=update, step_size=size, trajectories=16, fixed_std=True, log_std=-1.0)
    model.learn(1600)
    action, _ = model.predict(np.ones((1, 1), np.float32), deterministic=True)
    assert abs(action.item() - 0.7) < 0.12


def test_an_unknown_update_is_refused():
    with pytest.raises(ConfigError, match="update must be plain or momentum or storm, got 'adam'"):
        make(update="adam")

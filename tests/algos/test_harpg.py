"""HARPG and N-HARPG as they run."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from offrl.algos.harpg import HARPG
from offrl.algos.n_pg_igt import NPGIGT
from offrl.algos.policy_gradient import PolicyGradient
from offrl.estimators import hvp

spec = importlib.util.spec_from_file_location("igt_tests", Path(__file__).with_name("test_n_pg_igt.py"))
igt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(igt)


def make(env=None, seed=0, kind=HARPG, **settings):
    defaults = {"trajectories": 3, "hidden": 8}
    return kind("MlpPolicy", env or igt.pendulum(), seed=seed, device="cpu", **defaults | settings)


@pytest.mark.parametrize("normalize", [True, False])
def test_without_noise_the_direction_is_the_gradient_at_theta(normalize):
    """Whatever the share between the two thetas: a constant Hessian carries d over exactly."""
    model = make(hidden=2, step_size=0.3 if normalize else 0.05, normalize=normalize)
    for direction, exact in igt.on_quadratic(model, 25):
        assert (direction - exact).norm() < 2e-5 * exact.norm()


@pytest.mark.parametrize("normalize", [True, False])
def test_an_iteration_recomputed_from_outside(normalize):
    """Where each set of episodes is sampled, the correction, the average, the step and its size."""
    size = 0.2 if normalize else 0.002
    model, seen = make(step_size=size, normalize=normalize), []
    collect = model._collect

    def record(point, number, callback):
        seen.append((point.clone(), collect(point, number, callback)))
        return seen[-1][1]

    model._collect = record
    previous, direction, shares = None, None, []
    for t, (theta, after) in enumerate(igt.iterate(model, 5)):
        (point, batch), eta = seen[0], 2 / (t + 2)
        assert torch.equal(point, theta)

        def log_probs(parameters, batch):
            return model.policy.log_probs(parameters, batch.features, batch.actions)

        g = hvp.policy_gradient(lambda x, b=batch: log_probs(x, b), theta, batch.psi, batch.episode)
        if t == 0:
            assert len(seen) == 1
            direction = g
        else:
            (between, other) = seen[1]
            assert not torch.equal(other.features[0], batch.features[0])  # independent episodes
            move = theta - previous
            share = float((between - previous) @ move / (move @ move))
            shares.append(share)
            torch.testing.assert_close(between, previous + share * move, rtol=0, atol=1e-5)
            v = hvp.hessian_vector_product(
                lambda x, b=other: log_probs(x, b), between, move, other.psi, other.episode
            )
            direction = (1 - eta) * (direction + v) + eta * g
        gamma = size * eta if normalize else size * eta**0.5
        step = gamma * (direction / direction.norm() if normalize else direction)
        torch.testing.assert_close(after, theta + step, rtol=1e-4, atol=1e-5)
        previous = theta
        seen.clear()
    assert all(0 < share < 1 for share in shares)
    assert len(set(shares)) == 4


def test_the_episodes_of_both_kinds_are_counted():
    """12 steps an episode, three an iteration and kind; the first iteration has one kind."""
    model = make()
    list(igt.iterate(model, 4))
    assert model.num_timesteps == 12 * 3 * (1 + 2 * 3)


def test_with_eta_one_the_normalized_methods_are_one(monkeypatch):
    """N-PG-IGT = N-HARPG = normalized REINFORCE, iterate by iterate, for the same episodes."""
    for kind in (HARPG, NPGIGT, PolicyGradient):
        monkeypatch.setattr(kind, "eta", lambda self: 1.0)
    models = [make(normalize=True), make(kind=NPGIGT), make(kind=PolicyGradient, update="momentum")]
    runs = [[after for _, after in igt.iterate(model, 4)] for model in models]
    for ours, *others in zip(*runs, strict=True):
        for other in others:
            torch.testing.assert_close(other, ours, rtol=0, atol=1e-6)


def test_with_eta_one_the_plain_methods_are_reinforce(monkeypatch):
    """HARPG = STORM-PG = REINFORCE with equal step sizes."""
    monkeypatch.setattr(HARPG, "eta", lambda self: 1.0)
    monkeypatch.setattr(PolicyGradient, "eta", lambda self: 1.0)
    for kind in (HARPG, PolicyGradient):
        monkeypatch.setattr(kind, "step_size", lambda self: 1e-3)
    models = [make(), make(kind=PolicyGradient), make(kind=PolicyGradient, update="storm")]
    runs = [[after for _, after in igt.iterate(model, 4)] for model in models]
    for ours, *others in zip(*runs, strict=True):
        for other in others:
            torch.testing.assert_close(other, ours, rtol=0, atol=1e-6)


def test_the_scale_of_rewards_matters_only_without_normalization():
    def ends(normalize):
        size = 0.1 if normalize else 1e-3
        runs = [igt.iterate(make(igt.Target(s), normalize=normalize, step_size=size), 4) for s in (1.0, 4.0)]
        return [list(run)[-1][1] for run in runs]

    torch.testing.assert_close(*ends(True), rtol=0, atol=1e-5)
    plain = ends(False)
    assert (plain[0] - plain[1]).norm() > 1e-3


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_it_finds_the_best_action(seed, normalize):
    """Optimum of the one-step problem: mean action 0.7."""
    settings = {"step_size": 0.3 if normalize else 0.02, "normalize": normalize}
    model = make(igt.targets(), seed=seed, trajectories=16, fixed_std=True, log_std=-1.0, **settings)
    model.learn(3200)
    action, _ = model.predict(np.ones((1, 1), np.float32), deterministic=True)
    assert abs(action.item() - 0.7) < 0.12

"""Moving averages of gradients: exact on quadratics where the theory says so, and steps of the stated length."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offrl.estimators import transforms as tf

torch.manual_seed(0)
A = torch.randn(4, 4, dtype=torch.float64)
HESSIAN, CENTER = -(A @ A.T) / 4 - torch.eye(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


def grad(theta):
    """Of a quadratic J with constant Hessian."""
    return (theta - CENTER) @ HESSIAN


def run(method, steps=30, eta_of=lambda t: (2 / (t + 2)) ** 0.8, lag=0, normalized=True):
    """Noise-free iterations; yields direction, exact gradient, theta and the theta before, at every t."""
    theta = previous = torch.zeros(4, dtype=torch.float64)
    direction = grad(theta)
    for t in range(steps):
        eta = eta_of(t)
        if t:
            if method == "igt":
                point = tf.transported(theta, previous, eta_of(t - lag) if t > lag else 1.0)
                direction = tf.momentum(direction, grad(point), eta)
            elif method == "momentum":
                direction = tf.momentum(direction, grad(theta), eta)
            elif method == "storm":
                direction = tf.storm(direction, grad(theta), grad(previous), eta)
            else:
                correction = tf.difference(theta, previous) @ HESSIAN
                direction = tf.harpg(direction, grad(theta), correction, eta)
        yield t, direction, grad(theta), theta, previous
        move = tf.normalized_step if normalized else tf.step
        previous, theta = theta, move(theta, direction, 0.3 / (t + 2))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("method", ["igt", "harpg", "storm"])
def test_the_direction_is_the_gradient_on_a_quadratic_without_noise(method, normalized):
    """Transport and recursion undo the lag of the average exactly; d_t = grad J(theta_t) for every t."""
    for _, direction, exact, *_ in run(method, normalized=normalized):
        torch.testing.assert_close(direction, exact, rtol=0, atol=1e-12)


def test_plain_momentum_lags_behind_the_gradient():
    *_, (_, direction, exact, *_) = run("momentum")
    assert (direction - exact).norm() > 0.05


def test_transport_with_the_eta_of_the_iteration_before_is_not_exact():
    """Iteration 2 starts exact; then the residual is Hess (theta - theta') (1 - eta_t / eta_{t-1}) up to sign.

    eta_t (1 - eta')/eta' (theta - theta') against (1 - eta_t)(theta - theta'): the difference is eta_t/eta' - 1.
    """
    for t, direction, exact, theta, previous in run("igt", lag=1):
        if t == 1:
            eta, before = (2 / 3) ** 0.8, 1.0
            expected = (theta - previous) @ HESSIAN * (eta / before - 1)
            torch.testing.assert_close(direction - exact, expected, rtol=1e-9, atol=1e-12)
            assert expected.norm() > 0.01


@pytest.mark.parametrize("method", ["igt", "harpg", "momentum", "storm"])
def test_eta_one_forgets_everything(method):
    """Every method is then gradient ascent: d = g of this iteration at theta."""
    for _, direction, exact, *_ in run(method, eta_of=lambda t: 1.0):
        torch.testing.assert_close(direction, exact, rtol=0, atol=0)


def test_normalized_steps_have_their_length_whatever_the_direction():
    theta, direction = torch.zeros(3, 5), torch.randn(3, 5) * torch.tensor([[1e-6], [1.0], [1e6]])
    moved = tf.normalized_step(theta, direction, 0.25)
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((3,), 0.25))
    torch.testing.assert_close(tf.normalized_step(theta, 7.0 * direction, 0.25), moved)
    assert not torch.allclose(tf.step(theta, 7.0 * direction, 0.25), tf.step(theta, direction, 0.25))


def test_no_direction_no_step():
    theta = torch.ones(2, 3)
    direction = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    moved = tf.normalized_step(theta, direction, 1.0)
    torch.testing.assert_close(moved, theta + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))


def test_a_dict_is_one_vector():
    """The norm is that of all tensors together, not one a tensor."""
    flat = [torch.randn(6) for _ in range(4)]
    trees = [{"w": x[:4].view(2, 2), "b": x[4:]} for x in flat]

    def joined(tree):
        return torch.cat([tree["w"].flatten(), tree["b"]])

    eta = 0.3
    for function, count in (
        (tf.momentum, 2),
        (tf.transported, 2),
        (tf.interpolated, 2),
        (tf.harpg, 3),
        (tf.storm, 3),
    ):
        ours, theirs = function(*trees[:count], eta), function(*flat[:count], eta)
        torch.testing.assert_close(joined(ours), theirs)
    torch.testing.assert_close(
        joined(tf.normalized_step(*trees[:2], 0.1)), tf.normalized_step(*flat[:2], 0.1)
    )
    torch.testing.assert_close(tf.norm(trees[0]), tf.norm(flat[0]))


def test_interpolation_runs_from_the_point_before_to_the_present_one():
    theta, previous = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(tf.interpolated(theta, previous, q)) for q in (0.0, 0.25, 1.0)] == [1.0, 1.25, 2.0]


@pytest.fixture(scope="module")
def rates():
    """The benchmark's script as a module."""
    path = Path(__file__).parents[2] / "scripts/bench_rates.py"
    spec = importlib.util.spec_from_file_location("bench_rates", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_transport_beats_momentum_beats_plain_steps_where_the_theory_is_tight(rates):
    """exp(-x), 400 runs, 3000 iterations: mean gaps in the order of the rates, apart by standard errors.

    Plain steps and momentum meet the same noise: there the error is that of the difference run by run.
    """
    gaps = {
        name: rates.exponential(rates.METHODS[name], 400, np.array([3000]), 0)[0] for name in rates.METHODS
    }
    saved = gaps["vanilla PG"] - gaps["N-MPG"]
    assert float(saved.mean()) > 3 * float(saved.std()) / 400**0.5
    worse = gaps["N-MPG"]
    for name in ("N-PG-IGT", "HARPG", "N-HARPG"):
        error = float((gaps[name].var() / 400 + worse.var() / 400).sqrt())
        assert float(worse.mean() - gaps[name].mean()) > 2 * error, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vanilla PG", "N-MPG", "N-PG-IGT", "N-HARPG", "HARPG"])
def test_rates_are_those_of_the_theory(rates, name):
    """Slopes of the mean of 2000 runs within 0.08 of -1/3, -1/3, -2/5, -1/2, -1/2 up to 1e5 iterations."""
    marks = np.unique(np.geomspace(100, 1e5, 13).round().astype(int))
    gaps = rates.exponential(rates.METHODS[name], 2000, marks, list(rates.METHODS).index(name))
    slope = rates.slope(marks, torch.stack(gaps).mean(dim=1).numpy())
    assert abs(slope - rates.METHODS[name].slope) < 0.08


@pytest.mark.parametrize("name", ["N-MPG", "N-PG-IGT"])
def test_the_methods_reach_the_optimum_of_a_linear_quadratic_problem(rates, name):
    """Medians of 40 runs of sampled trajectories fall faster than t^-0.35, as far as here one can tell."""
    marks = np.unique(np.geomspace(50, 1000, 9).round().astype(int))
    gaps = torch.stack(rates.quadratic(rates.METHODS[name], 40, marks, 0)).median(dim=1).values.numpy()
    assert rates.slope(marks, gaps) < -0.35
    assert gaps[-1] < 0.02


def test_the_estimates_of_the_linear_quadratic_problem_are_unbiased(rates):
    """At theta = -1, where J' = -0.430915 and J'' = -1.592446, within 4.5 standard errors; alone and times a vector."""
    theta = torch.full((3000, 1), -1.0, dtype=torch.float64)
    gradient, product = rates.sampled(1)
    for exact, found in (
        (-0.430915, gradient(theta)),
        (2 * -1.592446, product(theta, 2 * torch.ones_like(theta))),
    ):
        assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / 3000**0.5
        assert float(found.std()) > 1.0, "a constant would be unbiased too"
    assert float(rates.curvature(theta[:1], torch.ones(1, 1))) == pytest.approx(-1.592446, rel=1e-4)


def test_with_the_exact_curvature_n_harpg_finds_the_optimum(rates):
    """Its recursion is right: no run leaves the stable region, where with the sampled product some do."""
    marks = np.unique(np.geomspace(50, 1000, 9).round().astype(int))
    gaps = torch.stack(rates.quadratic(rates.METHODS["N-HARPG"], 40, marks, 0, exact=True))
    assert rates.slope(marks, gaps.median(dim=1).values.numpy()) < -0.35
    assert gaps[-1].median() < 0.02
    assert gaps.max() < 3.0, "at the edge of stability it is about 7"


def test_intervals_of_slopes_are_narrower_for_more_runs(rates):
    marks = np.unique(np.geomspace(100, 10_000, 9).round().astype(int))
    noise = np.random.default_rng(0).lognormal(0, 1, (len(marks), 64))
    values = marks[:, None] ** -0.5 * noise
    few, many = (rates.bootstrap(marks, values, runs) for runs in (8, 64))
    assert len(few) == rates.DRAWS
    assert few == sorted(few)
    assert few[-1] - few[0] > 2 * (many[-1] - many[0])
    assert many[0] < rates.slope(marks, values.mean(1)) < many[-1]

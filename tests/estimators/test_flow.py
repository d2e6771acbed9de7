"""Flow matching: the straight line, Euler's steps against closed forms."""

import pytest
import torch

from offrl.estimators.flow import euler_flow, interpolate


def test_the_path_starts_at_the_noise_and_ends_at_the_data_at_constant_velocity():
    noise, data = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]])
    for t, x in ((0.0, [1.0, -2.0]), (0.25, [1.5, -1.5]), (1.0, [3.0, 0.0])):
        got, velocity = interpolate(noise, data, torch.tensor([[t]]))
        assert got.tolist() == [x]
        assert velocity.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_multiplies_by_one_plus_h_a_step(steps):
    """dx/dt = x: (1 + 1/M)^M."""
    x = euler_flow(lambda x, t: x, torch.ones(2, 1), steps)
    torch.testing.assert_close(x, torch.full((2, 1), (1 + 1 / steps) ** steps))


def test_euler_takes_the_velocity_at_the_start_of_each_step():
    """dx/dt = t in 4 steps: (0 + 1 + 2 + 3) / 16, not 1/2."""
    assert euler_flow(lambda x, t: t.expand_as(x), torch.zeros(1, 3), 4).tolist() == [[0.375] * 3]


def test_the_exact_velocity_of_a_point_mass_carries_any_noise_there():
    """All data at a: v = (a - x) / (1 - t), and Euler's steps are exact on straight lines."""
    x = euler_flow(lambda x, t: (0.7 - x) / (1 - t), torch.randn(5, 2), 10)
    torch.testing.assert_close(x, torch.full((5, 2), 0.7))

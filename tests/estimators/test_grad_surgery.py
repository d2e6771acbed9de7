"""Gradient surgery: the projection in closed form, seed by seed, and what it does to a linear value function."""

import pytest
import torch

from offrl.estimators.dice import ratio
from offrl.estimators.grad_surgery import flatten, project_out, unflatten


def test_the_rest_is_orthogonal_and_only_the_part_along_the_direction_is_gone():
    """v = (3, 4), d = (2, 0): c = 6 / 4, the rest is (0, 4)."""
    rest, coefficient = project_out(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    assert rest.tolist() == [[0.0, 4.0]]
    assert coefficient.tolist() == [1.5]


def test_in_many_dimensions_nothing_along_the_direction_is_left():
    g = torch.Generator().manual_seed(0)
    v, d = torch.randn(3, 5000, generator=g), torch.randn(3, 5000, generator=g)
    v = v - 0.7 * d * torch.tensor([[1.0], [-3.0], [0.0]])
    rest, coefficient = project_out(v, d)
    assert ((rest * d).sum(1).abs() <= 1e-5 * v.norm(dim=1) * d.norm(dim=1)).all()
    torch.testing.assert_close(rest + coefficient[:, None] * d, v)
    again, none = project_out(rest, d)
    torch.testing.assert_close(again, rest)
    assert none.abs().max() < 1e-5


def test_each_seed_is_projected_by_itself():
    """Seed 1's vectors change, seed 0's result does not; a joint inner product would couple them."""
    v, d = torch.tensor([[1.0, 1.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rest, coefficient = project_out(v, d)
    assert rest.tolist() == [[0.0, 1.0], [2.5, -2.5]]
    assert coefficient.tolist() == [1.0, 2.5]


def test_a_vanishing_direction_leaves_the_vector_whole():
    v = torch.tensor([[1.0, -2.0]])
    rest, coefficient = project_out(v, torch.zeros(1, 2))
    assert torch.equal(rest, v)
    assert coefficient.tolist() == [0.0]
    tiny = torch.tensor([[1e-6, 0.0]])  # <d, d> = 1e-12 counts as 1e-10: c = 1e-6 / 1e-10
    assert project_out(v, tiny)[1].item() == pytest.approx(1e4)


def test_flat_vectors_hold_all_parameters_of_a_seed_and_come_back():
    """Two seeds of two members (seed-major): seed 1's vector is its members' numbers of every layer."""
    weights, biases = torch.arange(24.0).view(4, 3, 2), 100 + torch.arange(8.0).view(4, 1, 2)
    flat = flatten([weights, biases], 2)
    assert flat.shape == (2, 16)
    assert flat[1].tolist() == [*range(12, 24), 104.0, 105.0, 106.0, 107.0]
    for back, own in zip(unflatten(flat, [weights, biases]), (weights, biases), strict=True):
        assert torch.equal(back, own)


def linear_gradients(phi, next_phi, theta, reward=1.5, discount=0.9, lam=0.6):
    """V = theta . phi of one transition, target = theta: g_f = -lam w phi(s), g_b = lam w gamma phi(s')."""
    w = lam * ratio(reward + discount * next_phi @ theta - phi @ theta, "pearson")
    return (-w * phi)[None], (discount * w * next_phi)[None]


def test_features_at_right_angles_are_left_alone():
    g_f, g_b = linear_gradients(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.3, 0.1]))
    rest, coefficient = project_out(g_b, g_f)
    assert torch.equal(rest, g_b)
    assert coefficient.item() == 0.0


def test_parallel_features_lose_the_whole_backward_gradient():
    """What is left is the semi-gradient."""
    phi = torch.tensor([1.0, -0.5, 2.0])
    g_f, g_b = linear_gradients(phi, 3 * phi, torch.tensor([0.1, 0.2, 0.0]))
    rest, coefficient = project_out(g_b, g_f)
    assert rest.abs().max() <= 1e-6 * g_b.norm()
    assert coefficient.item() == pytest.approx(-2.7)  # gamma 3, against the forward one

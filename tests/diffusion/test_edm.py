"""EDM's preconditioning and loss against their definitions and on data of known law."""

import pytest
import torch

from offrl.diffusion import edm


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_a_network_the_sample_is_scaled_by_c_skip():
    """F = 0: D = u sd^2 / (rho^2 + sd^2)."""
    u, rho = draws(1, 3, 4), torch.tensor([[0.1, 1.0, 20.0]], dtype=torch.float64)
    got = edm.denoise(lambda x, c: torch.zeros_like(x), u, rho, 0.5)
    torch.testing.assert_close(got, u * (0.25 / (rho.square() + 0.25))[..., None])


def test_the_network_sees_unit_variance_and_a_quarter_of_the_log():
    u, rho = draws(1, 3, 4), torch.tensor([[0.1, 1.0, 20.0]], dtype=torch.float64)
    seen = []
    edm.denoise(lambda x, c: seen.append((x, c)) or x, u, rho, 0.5)
    torch.testing.assert_close(seen[0][0], u / (rho.square() + 0.25).sqrt()[..., None])
    torch.testing.assert_close(seen[0][1], rho.log() / 4)


def test_the_loss_is_the_weighted_error_of_the_denoiser():
    """(rho^2 + sd^2) / (rho sd)^2 mean (D - x0)^2, for a network that is not 0."""
    x0, n, rho = draws(2, 3, 4), draws(2, 3, 4, seed=1), draws(2, 3, seed=2).exp()
    net = lambda x, c: torch.tanh(x) * c[..., None]  # noqa: E731
    sd = 0.7
    d = edm.denoise(net, x0 + rho[..., None] * n, rho, sd)
    weight = ((rho.square() + sd**2) / (rho * sd).square())[..., None]
    wanted = (weight * (d - x0).square()).mean(dim=(1, 2))
    torch.testing.assert_close(edm.loss(net, x0, rho, n, sd), wanted)


@pytest.mark.parametrize("rho", [0.01, 0.3, 1.0, 10.0])
def test_on_standard_normal_data_the_best_network_is_zero_and_costs_one(rho):
    """D = u / (1 + rho^2) is optimal, E (1 / rho^2 + 1) (D - x0)^2 = 1 for every rho (pgd sheet 12.1)."""
    x0, n = draws(1, 200_000), draws(1, 200_000, seed=1)
    level = torch.full((1, 200_000), rho, dtype=torch.float64)
    assert edm.loss(lambda x, c: torch.zeros_like(x), x0, level, n).item() == pytest.approx(1.0, abs=0.012)
    for shift in (-0.2, 0.2):
        assert edm.loss(lambda x, c, s=shift: s * x, x0, level, n) > 1.02


def test_seeds_are_not_mixed():
    """Seed 1's clean samples change: seed 0's loss and gradient do not."""
    x0, n, rho = draws(2, 3, 4), draws(2, 3, 4, seed=1), draws(2, 3, seed=2).exp()
    other = torch.stack((x0[0], x0[1] + 1))
    one, two = (edm.loss(lambda x, c: x, data, rho, n) for data in (x0, other))
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_levels_are_log_normal_and_each_seeds_own():
    generators = [torch.Generator().manual_seed(k) for k in (3, 4)]
    levels = edm.draw_levels(20_000, generators)
    assert levels.shape == (2, 20_000)
    assert levels.log().mean(1).tolist() == pytest.approx([-1.2, -1.2], abs=0.03)
    assert levels.log().std(1).tolist() == pytest.approx([1.2, 1.2], abs=0.03)
    torch.testing.assert_close(levels[1:], edm.draw_levels(20_000, [torch.Generator().manual_seed(4)]))

"""The hint from denoising errors against planted errors."""

import numpy as np
import pytest
import torch

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.schedules import VP
from offrl.errors import ConfigError
from offrl.policies.composition import Composition, Denoiser
from offrl.policies.diagnosis import best_weights, error_products, hint


def planted(a, b, c):
    return np.array([[a, c], [c, b]])


@pytest.mark.parametrize("c", [-0.3, 0.0, 0.4, 0.9])
def test_two_policies_have_the_closed_form(c):
    a, b = 1.0, 2.0
    w = best_weights(planted(a, b, c))
    assert w[0] == pytest.approx((b - c) / (a + b - 2 * c))
    assert w @ planted(a, b, c) @ w == pytest.approx((a * b - c**2) / (a + b - 2 * c))


@pytest.mark.parametrize("c", [1.0, 1.2])
def test_aligned_errors_leave_the_better_policy_alone(c):
    np.testing.assert_allclose(best_weights(planted(1.0, 2.0, c)), [1, 0], atol=1e-9)
    assert hint(planted(1.0, 2.0, c)[None, None].repeat(4, 1), np.arange(4)).gain == pytest.approx(
        0, abs=1e-9
    )


def test_three_policies_against_a_fine_grid():
    g = np.random.default_rng(0).normal(size=(3, 5))
    matrix = g @ g.T
    grid = [np.array([i, j, 200 - i - j]) / 200 for i in range(201) for j in range(201 - i)]
    least = min(w @ matrix @ w for w in grid)
    w = best_weights(matrix)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    assert w @ matrix @ w <= least + 1e-12


def test_what_nobody_can_predict_changes_neither_weights_nor_gain():
    before, after = (
        hint((planted(1.0, 1.5, 0.2) + v)[None, None].repeat(4, 1), np.arange(4)) for v in (0.0, 7.0)
    )
    np.testing.assert_allclose(before.weights, after.weights)
    assert before.gain == pytest.approx(after.gain)
    assert after.share < before.share


def test_planted_errors_of_denoisers_are_found_at_every_level():
    """D_i = A + rho b_i with constant b: G_ij = <b_i, b_j> / entries, whatever the level; rows of both only."""
    b = [torch.tensor([0.3, 0.0]), torch.tensor([0.0, 0.6])]
    chunks = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    levels, units = VP.cosine(100), AffineNormalizer.identity(2)
    long = Denoiser(lambda u, rho, _: chunks + rho * b[0], 4, 1, units, levels)
    short = Denoiser(lambda u, rho, _: chunks[:, 1:3] + rho * b[1], 2, 0, units, levels)
    both = Composition([long, short], steps=20)
    products = error_products(both, [None, None], chunks, torch.Generator().manual_seed(1), levels=5)
    assert products.shape == (5, 6, 2, 2)
    np.testing.assert_allclose(
        products, np.broadcast_to(planted(0.045, 0.18, 0.0), products.shape), atol=1e-5
    )
    found = hint(products, np.array([0, 0, 1, 1, 2, 2]))
    assert found.weights[0] == pytest.approx(0.8, abs=1e-4)
    assert found.gain == pytest.approx(0.045 - 0.036, abs=1e-5)
    np.testing.assert_allclose(found.gain_interval, found.gain, atol=1e-5)


def test_a_policy_that_is_not_asked_has_no_errors():
    """Its zeros would count as its clean chunks."""
    chunks, units = torch.ones(2, 4, 2), AffineNormalizer.identity(2)
    parents = [Denoiser(lambda u, rho, _: chunks, 4, 0, units, VP.cosine(100)) for _ in range(2)]
    for weights in ([1.0, 0.0], [0.0, 1.0]):
        with pytest.raises(ConfigError, match="weight 0 are not known: leave --weights out"):
            error_products(Composition(parents, weights=weights), [None] * 2, chunks, torch.Generator())


def test_all_noise_comes_from_the_given_stream():
    """Also what top_up adds where the units differ in each dim."""
    chunks, levels = torch.ones(2, 4, 2), VP.cosine(100)
    skewed = AffineNormalizer.build(np.zeros(2), np.array([1.0, 0.25]))
    parents = [
        Denoiser(lambda u, rho, _: u / (1 + rho**2), 4, 0, units, levels)
        for units in (AffineNormalizer.identity(2), skewed)
    ]
    both = Composition(parents, allow_anisotropic=True, matching="top_up")
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(error_products(both, [None] * 2, chunks, torch.Generator().manual_seed(7)))
    np.testing.assert_array_equal(*found)


def test_the_interval_takes_episodes_not_chunks():
    """Two episodes of many equal chunks: the interval spans both, however many chunks they have."""
    one, other = planted(1.0, 2.0, 0.0), planted(1.0, 0.5, 0.0)
    products = np.array([[one] * 50 + [other] * 50])
    low, high = hint(products, np.repeat([0, 1], 50)).weight_interval[0]
    assert low == pytest.approx(best_weights(other)[0])
    assert high == pytest.approx(best_weights(one)[0])

"""Observation normalization: the convention (x - mean) / (std + 1e-3), with the population's std."""

import numpy as np
import pytest
import torch

from offrl.data.normalize import ObservationNormalizer


def rows(n=200, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, 3)) * [1.0, 5.0, 0.01] + [0.0, -7.0, 3.0]).astype(
        np.float32
    )


def test_normalized_data_have_mean_zero_and_std_almost_one():
    """The constant is added to the std: the result's std is s / (s + 1e-3), 0.909 at s = 0.01."""
    data = rows()
    out = ObservationNormalizer.fit(data)(torch.from_numpy(data)).double().numpy()
    s = data.astype(np.float64).std(axis=0)
    np.testing.assert_allclose(out.mean(axis=0), 0.0, atol=2e-5)
    np.testing.assert_allclose(out.std(axis=0), s / (s + 1e-3), rtol=1e-4)


def test_the_std_is_the_populations():
    """Of {0, 2} it is 1 (the sample's would be sqrt 2)."""
    normalizer = ObservationNormalizer.fit(np.array([[0.0], [2.0]], np.float32))
    assert normalizer.mean.item() == 1.0
    assert normalizer.std.item() == pytest.approx(1.001)


def test_a_constant_column_becomes_zero():
    """(c - c) / (0 + 1e-3) = 0, not NaN."""
    data = np.full((50, 1), 0.3, np.float32)
    assert torch.equal(ObservationNormalizer.fit(data)(torch.from_numpy(data)), torch.zeros(50, 1))


def test_the_epsilon_is_a_setting():
    assert ObservationNormalizer.fit(np.zeros((4, 1), np.float32), eps=0.5).std.item() == 0.5


def test_statistics_are_summed_in_float64():
    """A million rows of 4096 +- 1: float32 sums of 4e9 have steps of 256, float64 ones give mean and std
    exactly.
    """
    data = np.full((1_000_000, 1), 4096.0, np.float32)
    data[::2] += 1.0
    data[1::2] -= 1.0
    normalizer = ObservationNormalizer.fit(data, eps=0.0)
    assert normalizer.mean.item() == 4096.0
    assert normalizer.std.item() == 1.0
    assert normalizer.mean.dtype == normalizer.std.dtype == torch.float32


def test_it_can_be_inverted():
    data = torch.from_numpy(rows())
    normalizer = ObservationNormalizer.fit(data.numpy())
    torch.testing.assert_close(normalizer(data) * normalizer.std + normalizer.mean, data)


def test_leading_axes_do_not_matter():
    data = torch.from_numpy(rows(24))
    normalizer = ObservationNormalizer.fit(data.numpy())
    assert torch.equal(normalizer(data.view(2, 3, 4, 3)).view(24, 3), normalizer(data))


def test_the_identity_changes_nothing():
    data = torch.from_numpy(rows())
    assert torch.equal(ObservationNormalizer.identity(3)(data), data)

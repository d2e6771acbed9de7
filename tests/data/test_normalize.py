"""Observation normalization: the convention (x - mean) / (std + 1e-3), with the population's std."""

import numpy as np
import pytest
import torch

from offrl.data.normalize import AffineNormalizer, ObservationNormalizer
from offrl.errors import ConfigError, DatasetError


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


# --- affine normalizers -----------------------------------------------------------------------------------


def columns():
    """A column from -3 to 5, a constant one, and one of tiny range."""
    return np.array([[-3.0, 7.0, 0.0], [5.0, 7.0, 5e-5], [1.0, 7.0, 2e-5]], dtype=np.float32)


def test_limits_map_the_range_to_minus_one_and_one_and_a_constant_to_the_middle():
    """z = 2 (x - min) / (max - min) - 1; a range below 1e-4 is a constant, and only shifted."""
    z = AffineNormalizer.limits(columns())(torch.from_numpy(columns())).numpy()
    np.testing.assert_allclose(z[:, 0], [-1.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(z[:, 1], 0.0)
    np.testing.assert_allclose(z[:, 2], [0.0, 5e-5, 2e-5], atol=1e-9)
    z = AffineNormalizer.limits(columns(), 0.0, 1.0)(torch.from_numpy(columns())).numpy()
    np.testing.assert_allclose(z[:, 0], [0.0, 1.0, 0.5], atol=1e-6)
    np.testing.assert_array_equal(z[:, 1], 0.5)


def test_lerobot_maps_a_constant_to_minus_one_or_zero_and_back():
    """MIN_MAX: 2 (x - min) / 1e-8 - 1 is -1 at the constant; MEAN_STD: 0 / 1e-8. Both come back as the constant."""
    statistics = {name: getattr(columns(), name)(axis=0) for name in ("min", "max", "mean", "std")}
    x = torch.from_numpy(columns())
    for mode, constant in (("MIN_MAX", -1.0), ("MEAN_STD", 0.0)):
        normalizer = AffineNormalizer.lerobot(mode, statistics)
        z = normalizer(x)
        np.testing.assert_array_equal(z[:, 1].numpy(), constant)
        np.testing.assert_allclose(normalizer.inverse(z).numpy(), columns(), atol=1e-6)
    z = AffineNormalizer.lerobot("MIN_MAX", statistics)(x).numpy()
    np.testing.assert_allclose(z[:, 0], [-1.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(z[:, 2], [-1.0, 1.0, -0.2], atol=1e-5)  # not treated as a constant


def test_lerobots_mean_std_is_not_its_own_inverse():
    """(x - mean) / (std + 1e-8) and z std + mean: where std is 0, every z comes back as the mean."""
    normalizer = AffineNormalizer.lerobot("MEAN_STD", {"mean": [0.0, 0.0], "std": [0.0, 0.5]})
    z = normalizer(torch.tensor([1.0, 1.0]))
    assert z.tolist() == pytest.approx([1e8, 2.0])
    assert normalizer.inverse(torch.tensor([1.0, 2.0])).tolist() == [0.0, 1.0]


def test_quantiles_replace_the_extremes():
    statistics = {"q01": [-1.0], "q99": [3.0], "q10": [0.0], "q90": [1.0]}
    assert AffineNormalizer.lerobot("QUANTILES", statistics)(torch.tensor([3.0])).tolist() == [1.0]
    assert AffineNormalizer.lerobot("QUANTILE10", statistics)(torch.tensor([3.0])).tolist() == [5.0]


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_a_missing_statistic_is_an_error(mode):
    with pytest.raises(ConfigError, match=f"{mode} of action needs '.*', which was not stored"):
        AffineNormalizer.lerobot(mode, {"count": [3]}, "action")


def test_wrong_statistics_are_errors():
    with pytest.raises(ConfigError, match="finite and of one shape"):
        AffineNormalizer.lerobot("MIN_MAX", {"min": [0.0], "max": [np.inf]})
    with pytest.raises(ConfigError, match="finite and of one shape"):
        AffineNormalizer.lerobot("MIN_MAX", {"min": [0.0], "max": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="'NONE'; known are MEAN_STD"):
        AffineNormalizer.lerobot("NONE", {})
    with pytest.raises(DatasetError, match="finite rows"):
        AffineNormalizer.limits(np.array([[np.nan]]))


def test_gauss_divides_by_the_sample_deviation_and_only_centers_a_constant():
    z = AffineNormalizer.gauss(columns())(torch.from_numpy(columns())).numpy()
    np.testing.assert_allclose(z[:, 0], np.array([-4.0, 4.0, 0.0]) / 4.0, atol=1e-6)  # sqrt(32 / 2) = 4
    np.testing.assert_array_equal(z[:, 1], 0.0)
    np.testing.assert_allclose(z[:, 2], columns()[:, 2] - columns()[:, 2].mean(), atol=1e-9)


def test_one_largest_absolute_value_divides_all_columns():
    z = AffineNormalizer.max_abs(columns())(torch.from_numpy(columns())).numpy()
    np.testing.assert_allclose(z, columns() / 7.0, rtol=1e-6)


def test_parts_side_by_side_and_every_kind_comes_back():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    parts = [AffineNormalizer.limits(rows), AffineNormalizer.identity(2)]
    both = AffineNormalizer.concatenate(parts)
    x = torch.from_numpy(np.concatenate([rows, rows[:, :2]], 1))
    assert torch.equal(both(x)[:, 3:], x[:, 3:])
    torch.testing.assert_close(both.inverse(both(x)), x)
    assert both(x)[:, :3].abs().max() <= 1 + 1e-6


def test_all_of_it_goes_to_a_device():
    moved = AffineNormalizer.build(np.zeros(2), np.ones(2)).to(torch.device("meta"))
    assert [t.device.type for t in vars(moved).values()] == ["meta"] * 4

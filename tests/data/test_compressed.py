"""Compressed copies read back as they were, and are the same bytes every time."""

import numpy as np
import pytest

from offrl.data.compressed import write_compressed
from offrl.data.d4rl import read_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError


def dataset():
    parts = {"agent_pos": np.zeros((500, 2)), "keypoint": {"left": np.ones((500, 16))}}
    end = np.arange(500) % 50 == 49
    return OfflineDataset.from_arrays(
        parts, np.zeros((500, 2)), np.arange(500.0), end, metadata={"env_id": "x"}
    )


def test_a_compressed_file_reads_back_smaller_and_with_the_same_bytes(tmp_path):
    size = write_compressed(dataset(), tmp_path / "a.hdf5", 100_000)
    assert size == (tmp_path / "a.hdf5").stat().st_size < 500 * 18 * 4
    again = read_d4rl(tmp_path / "a.hdf5")
    assert again.sha256 == dataset().sha256
    assert again.metadata["env_id"] == "x"
    write_compressed(dataset(), tmp_path / "b.hdf5", 100_000)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_a_file_that_would_be_too_large_is_not_written(tmp_path):
    with pytest.raises(DatasetError, match="more than 100: keep fewer episodes"):
        write_compressed(dataset(), tmp_path / "a.hdf5", 100)
    assert list(tmp_path.iterdir()) == []

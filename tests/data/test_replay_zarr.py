"""Zarr data in diffusion_policy's layout, written by the test (format 2, as the public file is)."""

import json
import pickle

import numpy as np
import pytest
import zarr

from offrl.data.load import load_dataset
from offrl.data.replay_zarr import read_zarr
from offrl.errors import DatasetError

ROWS, ENDS = 9, [4, 9]


def write(path, store=None, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "data/action": rng.uniform(0, 512, (ROWS, 2)).astype(np.float32),
        "data/state": rng.uniform(0, 512, (ROWS, 5)).astype(np.float32),
        "data/keypoint": rng.uniform(0, 512, (ROWS, 9, 2)).astype(np.float32),
        "data/img": rng.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.float32),
        "data/n_contacts": np.ones((ROWS, 1), np.float32),
        "meta/episode_ends": np.array(ENDS, dtype=np.int64),
    } | changes
    root = zarr.open_group(store or str(path), mode="w", zarr_format=2)
    for name, array in arrays.items():
        if array is not None:
            root.create_array(name, data=array)
    return arrays


def test_pushts_file_becomes_a_dataset_with_both_published_views(tmp_path):
    """State of five numbers; keypoints: nine, then the agent's position, 20 in all."""
    arrays = write(tmp_path / "pusht.zarr")
    data = load_dataset(f"zarr:{tmp_path / 'pusht.zarr'}")
    assert data.episode_lengths.tolist() == [4, 5]
    np.testing.assert_array_equal(data.flat_observations(), arrays["data/state"])
    np.testing.assert_array_equal(data.fields["actions"], arrays["data/action"])
    assert data.fields["truncated"].nonzero()[0].tolist() == [3, 8]
    assert data.metadata["env_id"] == "gym_pusht/PushT-v0"
    keypoints = load_dataset(f"zarr:{tmp_path / 'pusht.zarr'}#keypoints")
    expected = np.concatenate([arrays["data/keypoint"].reshape(ROWS, 18), arrays["data/state"][:, :2]], 1)
    np.testing.assert_array_equal(keypoints.flat_observations(), expected)
    assert keypoints.metadata["env_id"] is None  # gym-pusht has other keypoints


def test_images_of_whole_numbers_become_bytes(tmp_path):
    arrays = write(tmp_path / "x.zarr")
    image = read_zarr(tmp_path / "x.zarr").fields["observations.img"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, arrays["data/img"])


def test_images_of_fractions_stay_as_they_are(tmp_path):
    """Black frames first: they alone do not say that the others hold whole numbers."""
    image = np.linspace(0, 1, 12 * 8 * 8 * 3, dtype=np.float32).reshape(12, 8, 8, 3)
    image[:8] = 0
    rows = np.zeros((12, 2), np.float32)
    changes = {"data/action": rows, "data/state": rows, "data/keypoint": None, "data/n_contacts": None}
    write(tmp_path / "x.zarr", **changes, **{"data/img": image, "meta/episode_ends": np.array([12])})
    np.testing.assert_array_equal(read_zarr(tmp_path / "x.zarr").fields["observations.img"], image)


def test_a_zip_file_is_read_too(tmp_path):
    store = zarr.storage.ZipStore(tmp_path / "x.zarr.zip", mode="w")
    write(None, store)
    store.close()
    assert read_zarr(tmp_path / "x.zarr.zip").num_steps == ROWS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/action": None}, "lacks data/action; it holds data/img"),
        ({"meta/episode_ends": None}, "lacks meta/episode_ends"),
        ({"meta/episode_ends": np.array([4, 8])}, "must rise to the number of rows, 9"),
        ({"meta/episode_ends": np.array([9, 4, 9])}, "must rise"),
        ({"meta/episode_ends": np.array([4.0, 9.0])}, "a list of integers"),
        ({"data/state": np.zeros((4, 5), np.float32)}, "has 4 rows"),
        ({"data/action": np.full((ROWS, 2), np.inf, np.float32)}, "not finite"),
        ({"data/action": np.float32(1)}, "data/action is a single number; it needs one row per step"),
        ({"data/keypoint": np.zeros((0, 9, 2), np.float32)}, "'observations.keypoint' has 0 rows"),
        ({"data/name": np.array(["a"] * ROWS)}, "'data/name' holds <U1 values; take it out"),
    ],
)
def test_malformed_layouts_give_one_clear_line(tmp_path, changes, message):
    write(tmp_path / "x.zarr", **changes)
    with pytest.raises(DatasetError, match=message) as caught:
        read_zarr(tmp_path / "x.zarr")
    assert "\n" not in str(caught.value)


def test_damaged_and_hostile_data_are_refused(tmp_path):
    path = tmp_path / "x.zarr"
    write(path)
    (chunk,) = (path / "data/action").glob("0.0")
    chunk.write_bytes(b"\xff" * 20)
    with pytest.raises(DatasetError, match="not readable zarr data"):
        read_zarr(path)
    root = zarr.open_group(str(tmp_path / "y.zarr"), mode="w", zarr_format=2)
    root.create_array("data/action", shape=(1 << 40, 2), chunks=(1024, 2), dtype="f4")
    with pytest.raises(DatasetError, match="claims .* bytes, but only"):
        read_zarr(tmp_path / "y.zarr")
    (tmp_path / "z.zarr").mkdir()
    with pytest.raises(DatasetError, match="not readable zarr data"):
        read_zarr(tmp_path / "z.zarr")
    (tmp_path / "w.zarr.zip").write_bytes(b"PK no")
    with pytest.raises(DatasetError, match="not readable zarr data"):
        read_zarr(tmp_path / "w.zarr.zip")
    with pytest.raises(FileNotFoundError):
        read_zarr(tmp_path / "none")


def test_pickled_objects_are_not_loaded_whatever_numcodecs_allows(tmp_path, monkeypatch):
    """Its codec 'pickle' runs code from the file; older versions have no switch against it."""
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True)
    write(tmp_path / "x.zarr", **{"data/extra": np.zeros(ROWS, np.float32)})
    folder, trace = tmp_path / "x.zarr/data/extra", tmp_path / "trace"
    layout = json.loads((folder / ".zarray").read_text())
    layout |= {"dtype": "|O", "fill_value": None, "compressor": None}
    layout["filters"] = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]
    (folder / ".zarray").write_text(json.dumps(layout))
    (folder / "0").write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(DatasetError, match="'data/extra' holds .* only numbers are read"):
        read_zarr(tmp_path / "x.zarr")
    assert not trace.exists()


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")

"""D4RL's HDF5 files: what is read, what is written, and every way in which a file can be bad."""

import json
import time

import h5py
import numpy as np
import pytest

from offrl.data import d4rl
from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError


def arrays(steps=8):
    """A file of two episodes: one terminated at row 2, one cut at row 6, and a last step left over."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(steps, 3)).astype("f4"),
        "actions": generator.uniform(-1, 1, (steps, 2)).astype("f4"),
        "rewards": np.arange(steps, dtype="f4"),
        "terminals": np.arange(steps) == 2,
        "timeouts": np.arange(steps) == 6,
    }


def make(path, content):
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is not None:
                file[key] = value
    return path


def test_a_file_is_read_by_its_flags(tmp_path):
    content = arrays()
    data = read_d4rl(make(tmp_path / "x.hdf5", content))
    assert data.episode_starts.tolist() == [0, 3, 7, 8]
    np.testing.assert_array_equal(data.fields["observations"], content["observations"])
    np.testing.assert_array_equal(data.fields["truncated"], content["timeouts"])
    assert data.transitions("qlearning").step.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.transitions("exact").step.tolist() == [0, 1, 2, 3, 4, 5]
    content["next_observations"] = content["observations"] + 1
    data = read_d4rl(make(tmp_path / "y.hdf5", content))
    assert len(data.transitions("exact")) == 8
    assert data.transitions("qlearning").step.tolist() == [0, 1, 2, 3, 4, 5]  # the file's own are not used
    np.testing.assert_array_equal(
        data.transitions("qlearning").next_observations, content["observations"][1:7]
    )


def test_shapes_and_types_of_old_files(tmp_path):
    """(N, 1) rewards and flags, float flags, float64, both flags at once, big-endian numbers."""
    content = arrays()
    content["rewards"] = content["rewards"][:, None].astype(">f8")
    content["terminals"] = content["terminals"][:, None].astype("f4")
    content["timeouts"][2] = True
    content["observations"] = content["observations"].astype("f8")
    data = read_d4rl(make(tmp_path / "x.hdf5", content))
    assert data.fields["rewards"].shape == (8,)
    assert data.fields["rewards"].dtype == data.fields["observations"].dtype == np.dtype("<f4")
    assert (data.fields["terminated"][2], data.fields["truncated"][2]) == (True, True)
    assert data.transitions("exact").terminated.tolist() == [0, 0, 1, 0, 0, 0]
    assert 2 not in data.transitions("qlearning").step


def test_infos_and_metadata(tmp_path):
    content = arrays() | {
        "infos/qpos": np.ones((8, 4)),
        "infos/nested/x": np.arange(8),
        "infos/names": np.array([b"a"] * 8),
        "infos/short": np.arange(3),
        "extra": np.zeros(8),
        "metadata/algorithm": "SAC",
        "metadata/iteration": 40,
        "metadata/policy/fc0/weight": np.zeros((4, 4)),
        "metadata/policy/nonlinearity": np.bytes_(b"relu"),
    }
    data = read_d4rl(make(tmp_path / "x.hdf5", content))
    assert sorted(k for k in data.fields if k.startswith("infos")) == ["infos.nested.x", "infos.qpos"]
    assert data.fields["infos.qpos"].dtype == np.float64
    assert data.metadata["left_out"] == ["extra", "infos/names", "infos/short"]
    assert data.metadata["file_metadata"] == {
        "algorithm": "SAC",
        "iteration": 40,
        "policy/nonlinearity": "relu",
    }


def test_a_kitchen_file_has_no_timeouts_and_plain_infos(tmp_path):
    content = arrays() | {"timeouts": None, "infos": np.arange(8)}
    path = make(tmp_path / "x.hdf5", content)
    assert read_d4rl(path).fields["infos.index"].tolist() == list(range(8))
    assert read_d4rl(path).num_episodes == 2
    with pytest.raises(DatasetError, match="max_episode_steps"):
        read_d4rl(path).transitions("qlearning")
    known = read_d4rl(path, {"max_episode_steps": 3})
    assert known.episode_starts.tolist() == [0, 3, 6, 8]
    assert known.transitions("qlearning").step.tolist() == [0, 1, 3, 4, 6]  # the terminated row is a cut


def test_round_trip(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    keyed = {"camera": images, "state": {"xy": arrays()["observations"]}}
    content = arrays()
    for observations in (content["observations"], keyed):
        data = OfflineDataset.from_arrays(
            observations,
            content["actions"],
            content["rewards"],
            content["terminals"],
            content["timeouts"],
            next_observations=observations,
            infos={"t": np.arange(8)},
            metadata={"env_id": "Hopper-v5", "reference_returns": [-20.27, 3234.3], "seed": 1},
        )
        path = tmp_path / "x.hdf5"
        write_d4rl(data, path)
        again = read_d4rl(path)
        assert again.metadata == data.metadata | {"sha256": data.sha256}
        assert list(again.fields) == list(data.fields)
        for name, array in data.fields.items():
            assert again.fields[name].dtype == array.dtype
            np.testing.assert_array_equal(again.fields[name], array)
        assert again.sha256 == data.sha256
        assert again.reference_returns == (-20.27, 3234.3)
    with h5py.File(path) as file:  # what other readers of the format expect
        assert {"terminals", "timeouts", "rewards", "actions", "observations/camera"} <= set(_names(file))


def _names(file):
    names = []
    file.visit(names.append)
    return names


def test_a_written_file_keeps_the_row_rule_of_a_file_without_timeouts(tmp_path):
    source = make(tmp_path / "x.hdf5", arrays() | {"timeouts": None})
    data = read_d4rl(source, {"max_episode_steps": 3})
    write_d4rl(data, tmp_path / "y.hdf5")
    again = read_d4rl(tmp_path / "y.hdf5")
    np.testing.assert_array_equal(again.transitions("qlearning").step, data.transitions("qlearning").step)
    np.testing.assert_array_equal(again.episode_starts, data.episode_starts)


def test_same_content_same_bytes(tmp_path):
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()), {"b": 1, "a": 2})
    write_d4rl(data, tmp_path / "y.hdf5")
    data.metadata = dict(reversed(data.metadata.items()))
    time.sleep(1.1)  # HDF5 counts in seconds
    write_d4rl(data, tmp_path / "z.hdf5")
    assert (tmp_path / "y.hdf5").read_bytes() == (tmp_path / "z.hdf5").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()))
    before = (tmp_path / "x.hdf5").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        write_d4rl(data, tmp_path / "x.hdf5")
    assert (tmp_path / "x.hdf5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_large_arrays_are_mapped(tmp_path, monkeypatch):
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()))
    write_d4rl(data, tmp_path / "y.hdf5")
    monkeypatch.setattr(d4rl, "MEMORY_MAP_BYTES", 64)
    mapped = read_d4rl(tmp_path / "y.hdf5")
    assert isinstance(mapped.fields["observations"].base, np.memmap)
    assert mapped.sha256 == data.sha256


def test_too_much_metadata_is_refused(tmp_path):
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()), {"note": "x" * 70_000})
    with pytest.raises(DatasetError, match="at most 60000 fit"):
        write_d4rl(data, tmp_path / "y.hdf5")
    assert not (tmp_path / "y.hdf5").exists()


# --- bad files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "lacks terminals; it holds actions, observations, rewards, timeouts"),
        ({"observations": None, "rewards": None}, "lacks observations, rewards"),
        ({"rewards": np.zeros(7)}, "'rewards' has 7 rows, 'actions' have 8"),
        ({"observations": np.full((8, 3), np.nan)}, "'observations' is not finite .* at row 0"),
        ({"actions": np.zeros((8, 2), int)}, "'actions' are integers"),
        ({"actions": np.array([[b"x"]] * 8)}, r"'actions' holds \|S1 values"),
        ({"actions": 1.0}, "'actions' is a single number"),
        ({"terminals": np.arange(8)}, "'terminated' is 2 at row 2"),
        ({"observations": np.zeros((8, 3), [("x", "f4")])}, "'observations' holds"),
    ],
)
def test_bad_arrays_are_refused_with_the_file_named(tmp_path, changes, message):
    path = make(tmp_path / "x.hdf5", arrays() | changes)
    with pytest.raises(DatasetError, match=message) as caught:
        read_d4rl(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "no.hdf5")):
        read_d4rl(tmp_path / "no.hdf5")
    with pytest.raises(FileNotFoundError):
        read_d4rl(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 500, -200])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = make(tmp_path / "x.hdf5", arrays(2000))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DatasetError, match="not a readable HDF5 file") as caught:
        read_d4rl(path)
    assert "\n" not in str(caught.value)


def test_no_damage_gets_past_the_checks(tmp_path):
    """Random bytes of a written file are overwritten: it loads unchanged, or one DatasetError says why."""
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()), {"name": "x"})
    path = tmp_path / "y.hdf5"
    write_d4rl(data, path)
    whole = path.read_bytes()
    note = whole.index(b'{"')  # with its checksum destroyed a file counts as foreign
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        damaged = bytearray(whole)
        for at in generator.integers(len(whole), size=3):
            if not note - 64 <= at < note + 200:
                damaged[at] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_d4rl(path).sha256 == data.sha256
        except DatasetError:
            refused += 1
    assert refused > 20


def test_edited_content_is_noticed(tmp_path):
    data = read_d4rl(make(tmp_path / "x.hdf5", arrays()))
    write_d4rl(data, tmp_path / "y.hdf5")
    with h5py.File(tmp_path / "y.hdf5", "r+") as file:
        file["rewards"][3] = 99
    with pytest.raises(DatasetError, match="does not match the checksum"):
        read_d4rl(tmp_path / "y.hdf5")
    with h5py.File(tmp_path / "y.hdf5", "r+") as file:
        del file.attrs["offrl"]
    assert read_d4rl(tmp_path / "y.hdf5").fields["rewards"][3] == 99


@pytest.mark.parametrize("note", ["{", "[1]", 5])
def test_a_bad_attribute_is_refused(tmp_path, note):
    path = make(tmp_path / "x.hdf5", arrays())
    with h5py.File(path, "r+") as file:
        file.attrs["offrl"] = note
    with pytest.raises(DatasetError, match="'offrl' is not a JSON object"):
        read_d4rl(path)


def test_a_small_file_that_claims_much_is_refused(tmp_path):
    path = make(tmp_path / "x.hdf5", arrays() | {"observations": None})
    with h5py.File(path, "r+") as file:
        file.create_dataset("observations", (10**10, 100), "f4", chunks=(1000, 100))
    with pytest.raises(
        DatasetError, match="'observations' claims 4000000000000 bytes, but only 0 are stored; write all"
    ):
        read_d4rl(path)


def test_links_to_other_files_are_not_followed(tmp_path):
    other = make(tmp_path / "other.hdf5", arrays())
    path = make(tmp_path / "x.hdf5", arrays() | {"rewards": None})
    with h5py.File(path, "r+") as file:
        file["rewards"] = h5py.ExternalLink(other, "rewards")
    with pytest.raises(DatasetError, match="lacks rewards"):
        read_d4rl(path)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file.create_dataset("rewards", (8,), "f4", external=[(tmp_path / "secret", 0, 32)])
    with pytest.raises(DatasetError, match="'rewards' keeps its data in another file"):
        read_d4rl(path)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        layout = h5py.VirtualLayout((8,), "f4")
        layout[:] = h5py.VirtualSource(other, "rewards", (8,))
        file.create_virtual_dataset("rewards", layout)
    with pytest.raises(DatasetError, match="'rewards' keeps its data in another file"):
        read_d4rl(path)


def test_too_many_arrays_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl, "MAX_ARRAYS", 4)
    with pytest.raises(DatasetError, match="more than 4 arrays"):
        read_d4rl(make(tmp_path / "x.hdf5", arrays()))


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "x.hdf5"
    content = arrays(5000) | {"rewards": np.zeros(5000)}  # a constant array shrinks most
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value, compression="gzip", compression_opts=9)
    assert json.loads(json.dumps(read_d4rl(path).describe())).startswith("5 000 transitions")


def test_keys_with_a_slash_survive(tmp_path):
    rng = np.random.default_rng(0)
    seen = {"arm/joints": rng.normal(size=(4, 2)), "arm": {"speed": rng.normal(size=(4, 1))}}
    steps = (rng.uniform(-1, 1, (4, 1)), np.zeros(4), [0, 0, 0, 1])
    data = OfflineDataset.from_arrays(seen, *steps, infos={"a/b": np.arange(4)}, next_observations=seen)
    write_d4rl(data, tmp_path / "a.hdf5")
    again = read_d4rl(tmp_path / "a.hdf5")
    assert sorted(again.fields) == sorted(data.fields)
    assert again.sha256 == data.sha256
    np.testing.assert_array_equal(again.fields["observations.arm/joints"], seen["arm/joints"].astype("f4"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "a.b"], r"cannot hold 'observations\.a' beside 'observations\.a\.b'; rename that key"),
        ([""], "cannot hold 'observations.'; rename"),
        (["a..b"], "cannot hold"),
        (["a%2Fb"], "cannot hold"),
        (["a\0b"], "cannot hold"),
    ],
)
def test_keys_that_would_not_read_back_are_refused(tmp_path, keys, message):
    seen = {key: np.zeros((3, 2)) for key in keys}
    data = OfflineDataset.from_arrays(seen, np.zeros((3, 1)), np.zeros(3), [0, 0, 1])
    with pytest.raises(DatasetError, match=message):
        write_d4rl(data, tmp_path / "x.hdf5")
    assert not list(tmp_path.iterdir())

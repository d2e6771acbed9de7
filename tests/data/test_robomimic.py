"""robomimic files, written by the test in exactly their layout."""

import json

import h5py
import numpy as np
import pytest

from offrl.cli import main
from offrl.data.load import load_dataset
from offrl.data.robomimic import is_robomimic, read_robomimic
from offrl.errors import DatasetError

KEYS = {
    "object": 10,
    "robot0_eef_pos": 3,
    "robot0_eef_quat": 4,
    "robot0_gripper_qpos": 2,
    "robot0_joint_pos": 7,
}
LENGTHS = {0: 3, 1: 5, 10: 2, 2: 4}  # demo_10 comes after demo_2


def write(path, *, images=False, done=True):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
        )
        data.attrs["total"] = sum(LENGTHS.values())
        for number, length in LENGTHS.items():
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = length, "<mujoco/>"
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["rewards"] = np.eye(length)[-1]
            demo["dones"] = (np.eye(length)[-1] if done else np.zeros(length)).astype(np.int64)
            demo["states"] = rng.normal(size=(length, 32))
            for key, width in KEYS.items():
                demo[f"obs/{key}"] = np.full((length, width), float(number)) + np.arange(length)[:, None]
                demo[f"next_obs/{key}"] = (
                    np.full((length, width), float(number)) + 1 + np.arange(length)[:, None]
                )
            if images:
                demo["obs/agentview_image"] = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
                demo["next_obs/agentview_image"] = demo["obs/agentview_image"][()]
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
        file["mask/valid"] = np.array([b"demo_1"])
    return path


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    data = read_robomimic(write(tmp_path / "low_dim.hdf5"))
    assert data.episode_lengths.tolist() == [3, 5, 4, 2]
    assert data.fields["observations.object"][data.episode_starts[:-1], 0].tolist() == [0, 1, 2, 10]
    assert data.metadata["robomimic_env"] == "Lift"
    assert data.has_next_observations


def test_the_flat_view_is_that_of_the_published_low_dimensional_policies(tmp_path):
    """object, position, quaternion, fingers: 19 numbers for Lift; joints and images stay outside."""
    data = read_robomimic(write(tmp_path / "x.hdf5", images=True))
    assert data.metadata["flatten"] == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert data.obs_dim == 19
    assert data.fields["observations.agentview_image"].dtype == np.uint8
    assert data.fields["infos.states"].shape == (14, 32)


def test_dones_at_the_last_step_terminate_and_nothing_else_does(tmp_path):
    data = read_robomimic(write(tmp_path / "x.hdf5"))
    assert data.fields["terminated"][data.episode_starts[1:] - 1].all()
    assert not data.fields["truncated"].any()
    data = read_robomimic(write(tmp_path / "y.hdf5", done=False))
    assert data.fields["truncated"][data.episode_starts[1:] - 1].all()
    assert not data.fields["terminated"].any()


def test_both_uris_and_the_splits(tmp_path):
    path = write(tmp_path / "x.hdf5")
    assert is_robomimic(path)
    whole = load_dataset(str(path))
    assert whole.sha256 == load_dataset(f"robomimic:{path}").sha256
    assert load_dataset(f"robomimic:{path}#train").episode_lengths.tolist() == [3, 2]
    with pytest.raises(DatasetError, match="no split 'test'; it has train, valid"):
        load_dataset(f"robomimic:{path}#test")


def test_what_only_some_demonstrations_have_is_left_out_and_named(tmp_path):
    path = write(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/next_obs/object"]
        del file["data/demo_2/states"]
        file["data/demo_1/obs/extra"] = np.zeros((5, 2))
    data = read_robomimic(path)
    assert {"infos.states", "next_observations.object", "observations.extra"} <= set(
        data.metadata["left_out"]
    )
    assert not data.has_next_observations


def remove(name):
    def spoil(file):
        del file[name]

    return spoil


def put(name, value):
    def spoil(file):
        del file[name]
        file[name] = value

    return spoil


def empty(file, demo):
    names = []
    file[f"data/{demo}"].visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    for name in names:
        put(f"data/{demo}/{name}", file[f"data/{demo}/{name}"][:0])(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("data/demo_2/actions"), "demo_2 lacks 'actions'"),
        (
            lambda f: f["data"].create_group("demo_11"),
            "demo_11 lacks 'actions'",
        ),  # cut off while it was recorded
        (remove("data/demo_2/rewards"), "demo_2 lacks 'rewards'"),  # the others' would be lost
        (remove("data/demo_2/dones"), "demo_2 lacks 'dones'"),
        (
            put("data/demo_2/rewards", np.zeros(9)),
            r"'rewards' of demo_2 has shape \(9,\), its actions have 4 rows",
        ),
        (put("data/demo_2/actions", np.zeros((4, 3))), "rows of different shapes"),
        (lambda f: empty(f, "demo_1"), "demo_1 has no steps; take it out of the file"),
        (lambda f: [empty(f, name) for name in list(f["data"])], "demo_0 has no steps"),
        (put("data/demo_2/actions", np.full((4, 7), np.nan)), "'actions' is not finite"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{"), "not a JSON object"),
        (put("mask/train", np.array([b"demo_77"])), "split 'train' names 'demo_77'"),
    ],
)
def test_malformed_files_give_one_clear_line(tmp_path, spoil, message):
    path = write(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(DatasetError, match=message) as caught:
        read_robomimic(path, "train" if "split" in message else None)
    assert "\n" not in str(caught.value)


def test_other_files_are_not_taken_for_robomimic(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    (tmp_path / "y.hdf5").write_bytes(b"no")
    assert not is_robomimic(tmp_path / "x.hdf5")
    assert not is_robomimic(tmp_path / "y.hdf5")
    with pytest.raises(DatasetError, match="not in robomimic's layout"):
        read_robomimic(tmp_path / "x.hdf5")
    with pytest.raises(DatasetError, match="not a readable HDF5"):
        read_robomimic(tmp_path / "y.hdf5")
    with pytest.raises(FileNotFoundError):
        read_robomimic(tmp_path / "z.hdf5")


def test_a_cut_file_and_a_claimed_size_are_refused(tmp_path):
    path = write(tmp_path / "x.hdf5")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DatasetError, match="not a readable HDF5"):
        read_robomimic(path)
    path = write(tmp_path / "y.hdf5")
    with h5py.File(path, "a") as file:
        file.create_dataset("data/demo_0/obs/huge", (1 << 40, 8), dtype="f4", chunks=(1024, 8))
    with pytest.raises(DatasetError, match="claims .* bytes, but only 0 are stored"):
        read_robomimic(path)


def test_a_run_knows_its_data_from_any_folder(tmp_path, monkeypatch):
    write(tmp_path / "lift.hdf5")
    options = ["--steps", "1", "--hidden", "4", "--batch-size", "2", "--out", str(tmp_path / "runs"), "-q"]
    monkeypatch.chdir(tmp_path)
    mixed = ["--mix", "robomimic:lift.hdf5#valid:0.5"]
    assert main(["train", "bc", "--dataset", "robomimic:lift.hdf5#train", *mixed, *options]) == 0
    (path,) = (tmp_path / "runs").glob("**/config.json")
    config = json.loads(path.read_text())
    monkeypatch.chdir("/")
    for uri, episodes in ((config["dataset"], 2), (config["mix"]["uri"], 1)):
        assert load_dataset(uri).num_episodes == episodes

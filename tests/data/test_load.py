"""``load_dataset``: which reader gets which uri, and what the tables add."""

from pathlib import Path

import h5py
import numpy as np
import polars
import pytest

import offrl.data
from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.load import absolute_uri, load_dataset
from offrl.data.minari import write_minari
from offrl.errors import DatasetError


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFRL_DATA", str(tmp_path / "d4rl"))
    (tmp_path / "d4rl").mkdir()


def dataset(obs_dim=11, act_dim=3, **metadata):
    generator = np.random.default_rng(0)
    end = np.arange(12) % 4 == 3
    chain = generator.normal(size=(3, 5, obs_dim)).astype("f4")
    return OfflineDataset.from_arrays(
        chain[:, :4].reshape(12, obs_dim),
        generator.uniform(-1, 1, (12, act_dim)),
        np.arange(12.0),
        end & (np.arange(12) == 3),
        end & (np.arange(12) != 3),
        next_observations=chain[:, 1:].reshape(12, obs_dim),
        metadata=metadata,
    )


def plain_d4rl(path, obs_dim, act_dim, terminals, timeouts=None):
    """A file without notes, as D4RL's own are."""
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((len(terminals), obs_dim), "f4")
        file["actions"] = np.zeros((len(terminals), act_dim), "f4")
        file["rewards"] = np.zeros(len(terminals), "f4")
        file["terminals"] = terminals
        if timeouts is not None:
            file["timeouts"] = timeouts


def test_a_dataset_passes_through():
    data = dataset()
    assert load_dataset(data) is data


@pytest.mark.parametrize("suffix", [".hdf5", ".h5", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", [str, Path])
def test_files_by_suffix(tmp_path, suffix, kind):
    data, path = dataset(), tmp_path / f"my-log{suffix}"
    if suffix in (".hdf5", ".h5"):
        write_d4rl(data, path)
    elif suffix == ".npz":
        np.savez(path, **data.fields)
    else:
        fields = data.fields
        columns = {f"observations_{k}": fields["observations"][:, k] for k in range(11)}
        columns |= {f"actions_{k}": fields["actions"][:, k] for k in range(3)}
        columns |= {"reward": fields["rewards"], "episode": np.arange(12) // 4}
        columns |= {"terminated": fields["terminated"].astype(int)}
        frame = polars.DataFrame(columns)
        (frame.write_csv if suffix == ".csv" else frame.write_parquet)(path)
    got = load_dataset(kind(path))
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(got.fields[name], data.fields[name])
    assert (got.metadata["name"], got.metadata["source"]) == ("my-log", str(path))
    assert got.metadata["rows_default"] == "exact"


def test_nothing_is_guessed_from_a_file_name(tmp_path):
    for name in ("hopper_medium-v2.hdf5", "hopper-medium-v2.hdf5"):
        write_d4rl(dataset(), tmp_path / name)
        data = load_dataset(tmp_path / name)
        assert "env_id" not in data.metadata
        assert data.reference_returns is None


def test_a_file_of_ours_knows_its_environment_and_score(tmp_path):
    about = {"env_id": "Hopper-v5", "env_kwargs": {}, "reference_returns": [1.0, 2.0], "name": "mine"}
    write_d4rl(dataset(**about), tmp_path / "x.hdf5")
    assert about.items() <= load_dataset(str(tmp_path / "x.hdf5")).metadata.items()


@pytest.mark.parametrize("uri", ["d4rl:hopper-medium-v2", "hopper-medium-v2"])
def test_d4rl_names_bring_environment_score_and_row_rule(tmp_path, uri):
    end = np.arange(8) % 4 == 3
    plain_d4rl(tmp_path / "d4rl" / "hopper-medium-v2.hdf5", 11, 3, np.zeros(8, bool), end)
    data = load_dataset(uri)
    assert data.metadata["name"] == "hopper-medium-v2"
    assert data.metadata["source"] == "d4rl:hopper-medium-v2"
    assert data.metadata["rows_default"] == "qlearning"
    assert data.metadata["env_id"].startswith("Hopper-v")
    assert data.reference_returns == (-20.272305, 3234.3)


def test_old_files_are_cut_at_the_horizon_but_kitchen_demonstrations_are_not(tmp_path):
    plain_d4rl(tmp_path / "d4rl" / "halfcheetah-medium-v0.hdf5", 17, 6, np.zeros(2500, bool))
    assert load_dataset("halfcheetah-medium-v0").episode_lengths.tolist() == [1000, 1000, 500]
    plain_d4rl(tmp_path / "d4rl" / "kitchen-mixed-v0.hdf5", 60, 9, np.arange(700) % 350 == 349)
    data = load_dataset("kitchen-mixed-v0")
    assert data.episode_lengths.tolist() == [350, 350]
    assert len(data.transitions("exact")) == 700
    assert 279 not in data.transitions("qlearning").step  # D4RL's own rule does cut them


def test_minari_names_bring_the_tables_where_the_set_is_silent():
    write_minari(dataset(), "zoo/hopper-medium-v0")
    data = load_dataset("minari:zoo/hopper-medium-v0")
    assert data.metadata["name"] == "zoo/hopper-medium-v0"
    assert data.metadata["env_id"] == "Hopper-v5"
    assert data.metadata["rows_default"] == "exact"
    assert data.reference_returns == (-20.272305, 3234.3)
    write_minari(dataset(reference_returns=[1, 2]), "zoo/hopper-expert-v0")
    assert load_dataset("minari:zoo/hopper-expert-v0").reference_returns == (1, 2)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hoper-medium-v2", r"unknown dataset 'hoper-medium-v2'; did you mean 'hopper-medium-v2'\?"),
        ("d4rl:hoper-medium-v2", "did you mean 'hopper-medium-v2'"),
        ("zzz", r"unknown dataset 'zzz' \('offrl data list' shows all\)"),
        (
            "hub:cube",
            "unknown scheme 'hub' in 'hub:cube'; known are builtin:NAME, d4rl:NAME, minari:NAME, ogbench:NAME, robomimic",
        ),
        ("builtin:nothing", "no built-in dataset 'nothing'"),
        ("minari:zoo/none-v0", "no Minari dataset 'zoo/none-v0'"),
        ("data/log.xlsx", r"'data/log.xlsx' is not a dataset file; it must end in \.hdf5, \.h5, \.npz"),
        ("folder/", "is not a dataset file"),
        ("", "unknown dataset ''"),
    ],
)
def test_unknown_places_are_refused_in_one_line(uri, message):
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(uri)
    assert "\n" not in str(caught.value)


def test_a_table_with_other_columns_is_sent_to_convert(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="offrl data convert"):
        load_dataset(tmp_path / "x.csv")


@pytest.mark.parametrize("suffix", ["hdf5", "npz", "csv"])
def test_a_missing_file_is_named_in_full(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / f"no.{suffix}")):
        load_dataset(f"no.{suffix}")


def test_robot_demonstrations_load_in_every_view():
    """State and keypoints of the same rows; the view names what its policies are evaluated in."""
    whole, keypoints = (load_dataset(f"builtin:pusht-demo{view}") for view in ("", "/keypoints"))
    assert (whole.obs_dim, keypoints.obs_dim) == (5, 18)
    assert whole.num_episodes >= 100
    assert whole.fields["terminated"][whole.episode_starts[1:] - 1].all()
    assert whole.metadata["env_kwargs"] == {"obs_type": "state"}
    assert keypoints.metadata["env_kwargs"] == {"obs_type": "environment_state_agent_pos"}
    for task in ("pick", "push"):
        state, positions = (
            load_dataset(f"builtin:fetch-{task}-demo/{view}") for view in ("state", "positions")
        )
        assert (state.obs_dim, positions.obs_dim) == (28, 11)
        assert state.num_episodes >= 100
    with pytest.raises(DatasetError, match="no view 'pixel' of these data; there are: keypoints, state"):
        load_dataset("builtin:pusht-demo/pixel")


def test_bundled_files_are_small_together():
    files = list(Path(offrl.data.__file__).parent.glob("builtin/*demo.hdf5"))
    assert sum(f.stat().st_size for f in files if "double" not in f.name) < 5_000_000


def test_every_built_in_dataset_loads():
    files = list(Path(offrl.data.__file__).parent.glob("builtin/*.hdf5"))
    assert files
    for file in files:
        data = load_dataset(f"builtin:{file.stem}")
        assert data.metadata["env_id"]
        assert data.metadata["source"] == f"builtin:{file.stem}"


def test_paths_in_uris_are_made_absolute_and_names_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").touch()
    for folder in ("d", "hopper-medium-v2"):  # the second is a dataset's name all the same
        (tmp_path / folder).mkdir()
    named = [
        "hopper-medium-v2",
        "builtin:pusht-demo/keypoints",
        "minari:d",
        "d4rl:d",
        "lerobot:none",
        "none.npz",
    ]
    assert [absolute_uri(uri) for uri in named] == named
    here = tmp_path.resolve()
    assert absolute_uri("a.npz") == f"{here}/a.npz"
    assert absolute_uri("zarr:d#keypoints") == f"zarr:{here}/d#keypoints"
    assert absolute_uri("lerobot:d") == f"lerobot:{here}/d"
    assert absolute_uri("robomimic:a.npz#train") == f"robomimic:{here}/a.npz#train"

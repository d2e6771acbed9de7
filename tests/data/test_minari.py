"""Minari sets, written and read in all formats, and what is repaired or refused on the way."""

import json
import warnings

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.cli import app
from minari.data_collector import EpisodeBuffer
from typer.testing import CliRunner

from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.minari import read_minari, write_minari
from offrl.errors import ConfigError, DatasetError

FORMATS = ("hdf5", "arrow", "parquet")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty Minari root."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def episodes(*, successors=True, observation=None, **metadata):
    """Three episodes of 4 steps: terminated, cut, and both."""
    generator = np.random.default_rng(0)
    chains = generator.normal(size=(3, 5, 11)).astype("f4")
    wrap = observation or (lambda x: x)
    end = np.arange(12) % 4 == 3
    return OfflineDataset.from_arrays(
        wrap(chains[:, :4].reshape(12, 11)),
        generator.uniform(-1, 1, (12, 3)),
        generator.normal(size=12),
        end & (np.arange(12) != 7),
        end & (np.arange(12) > 4),
        next_observations=wrap(chains[:, 1:].reshape(12, 11)) if successors else None,
        infos={"t": np.arange(12), "state": {"qpos": generator.normal(size=(12, 6))}},
        metadata=metadata,
    )


def keyed(x):
    return {"observation": x[:, :7], "goals": {"desired": x[:, 7:9], "achieved": x[:, 9:]}}


def create(dataset_id, observations, *, space=None, terminations=None, truncations=None, infos=None, **more):
    """A set made by Minari itself, one EpisodeBuffer for each entry of ``observations``."""
    buffers = []
    for k, chain in enumerate(observations):
        steps = len(next(iter(chain.values())) if isinstance(chain, dict) else chain) - 1
        last = [False] * (steps - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                observations=chain,
                actions=np.zeros((steps, 2), np.float32),
                rewards=np.ones(steps),
                terminations=terminations[k] if terminations else [False] * steps,
                truncations=truncations[k] if truncations else last,
                infos=infos[k] if infos else None,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of notes that a toy set does not need
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=space or Box(-np.inf, np.inf, (3,)),
            action_space=Box(-1, 1, (2,)),
            **more,
        )


# --- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("observation", [None, keyed], ids=["box", "dict"])
def test_what_is_written_is_read_bit_for_bit(data_format, observation):
    data = episodes(observation=observation, env_id="Hopper-v5", env_kwargs={"frame_skip": 2}, seed=3)
    write_minari(data, "zoo/toy-v0", data_format=data_format)
    again = read_minari("zoo/toy-v0")
    assert sorted(again.fields) == sorted(data.fields)
    for name, array in data.fields.items():
        assert again.fields[name].dtype == array.dtype
        np.testing.assert_array_equal(again.fields[name], array, err_msg=name)
    assert again.sha256 == data.sha256
    assert again.metadata == data.metadata | {"name": "zoo/toy-v0"}


@pytest.mark.parametrize("data_format", FORMATS)
def test_d4rl_file_to_minari_and_back(tmp_path, data_format):
    """Same rows except one more for each cut with a known successor; terminated rows differ in nothing."""
    write_d4rl(episodes(), tmp_path / "x.hdf5")
    source = read_d4rl(tmp_path / "x.hdf5")
    write_minari(source, "zoo/toy-v0", data_format=data_format)
    target = read_minari("zoo/toy-v0")
    old, new = source.transitions("qlearning"), target.transitions("exact")
    kept = np.isin(new.step, old.step)
    assert len(new) == len(old) + source.fields["truncated"].sum()
    inside = old.terminated == 0
    for name in ("observations", "actions", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(new, name)[kept], getattr(old, name))
    np.testing.assert_array_equal(new.next_observations[kept][inside], old.next_observations[inside])
    np.testing.assert_array_equal(target.transitions("qlearning").step, old.step)
    write_d4rl(target, tmp_path / "y.hdf5")
    assert read_d4rl(tmp_path / "y.hdf5").sha256 == source.sha256


def test_without_successors_the_last_step_of_a_cut_episode_becomes_the_final_observation():
    data = episodes(successors=False)
    whole = write_minari(data, "toy-v0")
    again = read_minari("toy-v0")
    assert again.sha256 == whole.sha256
    assert again.episode_lengths.tolist() == [4, 3, 4]
    assert again.fields["infos.t"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert np.flatnonzero(again.fields["truncated"]).tolist() == [6, 10]
    assert again.metadata["dropped_steps"] == 1
    before, after = data.transitions("exact"), again.transitions("exact")
    np.testing.assert_array_equal(before.next_observations, after.next_observations)
    np.testing.assert_array_equal(before.actions, after.actions)


def test_single_cut_steps_without_successor_vanish():
    cut = np.array([1, 0, 1, 1, 0])  # episodes of 1, 2, 1 and an unfinished 1 step
    data = OfflineDataset.from_arrays(
        np.arange(5.0)[:, None], np.zeros((5, 1)), np.arange(5), np.zeros(5), cut
    )
    assert write_minari(data, "toy-v0").fields["rewards"].tolist() == [1]
    assert read_minari("toy-v0").fields["truncated"].tolist() == [True]
    with pytest.raises(DatasetError, match="no step has a known successor"):
        write_minari(data.select([0, 2]), "toy-v1")


def test_images_stay_what_they_are(root):
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    data = OfflineDataset.from_arrays(images, np.zeros((6, 1)), np.zeros(6), np.arange(6) == 5)
    for data_format in ("hdf5", "arrow"):
        write_minari(data, "toy-v0", data_format=data_format, overwrite=True)
        np.testing.assert_array_equal(read_minari("toy-v0").fields["observations"], images)


# --- what Minari's own tools see ---------------------------------------------------------------------------


def test_minari_shows_and_loads_the_set():
    data = episodes(env_id="Hopper-v5", collector="sac", reference_returns=[-20.0, 3234.0])
    write_minari(data, "zoo/hopper-toy-v0")
    shown = CliRunner().invoke(app, ["show", "zoo/hopper-toy-v0"])
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("Hopper-v5", "12", "sac", "written by offrl"))
    assert list(minari.list_local_datasets()) == ["zoo/hopper-toy-v0"]
    own = minari.load_dataset("zoo/hopper-toy-v0")
    assert own[0].observations.shape == (5, 11)
    assert minari.get_normalized_score(own, np.array(3234.0)) == 1.0
    env = own.recover_environment()
    assert env.spec.id == "Hopper-v5"
    assert own.action_space == env.action_space
    env.close()


def test_an_environment_that_is_not_installed_does_not_matter():
    write_minari(episodes(env_id="Nowhere-v0"), "toy-v0")
    assert read_minari("toy-v0").metadata["env_id"] == "Nowhere-v0"


# --- sets made by others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_foreign_set(data_format):
    """float64 observations, an episode that ends with no flag, one with both, infos of T + 1 rows."""
    chains = [np.random.default_rng(k).normal(size=(k + 2, 3)) for k in range(3)]
    create(
        "toy-v0",
        chains,
        space=Box(-np.inf, np.inf, (3,), np.float64),
        data_format=data_format,
        terminations=[[False], [False, False], [False, False, True]],
        truncations=[[False], [False, True], [False, False, True]],
        infos=[
            {"x": np.full((k + 2, 1), k), "y": [1.0] * (k + 2)} | {"z": [0.0] * (k + 2)} for k in range(3)
        ],
    )
    data = read_minari("toy-v0")
    assert data.episode_lengths.tolist() == [1, 2, 3]
    assert data.fields["truncated"].tolist() == [True, False, True, False, False, True]
    assert data.fields["terminated"].tolist() == [False] * 5 + [True]
    assert data.fields["infos.x"][:, 0].tolist() == [0, 1, 1, 2, 2, 2]
    want = np.concatenate([c[1:] for c in chains]).astype("f4")
    np.testing.assert_array_equal(data.transitions().next_observations, want)
    assert data.metadata == {"name": "toy-v0"}


def test_metadata_of_the_set_win_over_the_tables():
    defaults = {"env_id": "A-v0", "env_kwargs": {"a": 1}, "reference_returns": [0.0, 1.0], "flatten": ["x"]}
    write_minari(episodes(), "toy-v0")
    assert read_minari("toy-v0", defaults=defaults).metadata == defaults | {"name": "toy-v0"}
    own = {"env_id": "Hopper-v5", "reference_returns": [5.0, 6.0]}
    write_minari(episodes(**own), "toy-v1")
    assert read_minari("toy-v1", defaults=defaults).metadata == own | {"name": "toy-v1"}


def test_the_recording_environment_is_used_if_nothing_else_is_known(root):
    about = {"env_id": "Hopper-v5", "env_kwargs": {"frame_skip": 2}, "reference_returns": [1.0, 2.0]}
    write_minari(episodes(**about), "toy-v0")
    path = root / "toy-v0" / "data" / "metadata.json"
    raw = json.loads(path.read_text())
    del raw["offrl"]
    path.write_text(json.dumps(raw))
    data = read_minari("toy-v0", defaults={"reference_returns": [3.0, 4.0]})
    assert data.metadata["env_id"] == "Hopper-v5"
    assert data.metadata["env_kwargs"]["frame_skip"] == 2
    assert data.reference_returns == (1.0, 2.0)  # those of the set itself win
    path.write_text(json.dumps(raw | {"env_spec": "{}"}))
    with pytest.raises(DatasetError, match="toy-v0"):
        read_minari("toy-v0")


@pytest.mark.parametrize(
    ("told", "wanted"), [({}, {}), ({"max_episode_steps": 77}, {"max_episode_steps": 77})]
)
def test_the_time_limit_of_the_recording_environment_is_kept_where_it_is_not_the_registered_one(
    root, told, wanted
):
    write_minari(episodes(), "toy-v0")
    path = root / "toy-v0" / "data" / "metadata.json"
    raw = json.loads(path.read_text())
    raw["env_spec"] = gymnasium.make("Pendulum-v1", g=9.0, **told).spec.to_json()
    path.write_text(json.dumps({k: v for k, v in raw.items() if k != "offrl"}))
    assert read_minari("toy-v0").metadata["env_kwargs"] == {"g": 9.0} | wanted


def test_the_first_goal_of_a_point_maze_episode_is_repaired():
    """Row 0 carries the goal of the episode before; only the first two of these three do."""
    goals = np.array([[9, 1, 1, 1], [1, 2, 2, 2], [2, 2, 2, 2]], dtype=float)
    chains = [{"observation": np.zeros((4, 3)), "desired_goal": np.stack([g, g], axis=1)} for g in goals]
    space = Dict(observation=Box(-1, 1, (3,), np.float64), desired_goal=Box(-9, 9, (2,), np.float64))
    create("D4RL/pointmaze/toy-v0", chains, space=space)
    create("other-v0", chains, space=space)
    data = read_minari("D4RL/pointmaze/toy-v0")
    assert data.metadata["goal_repairs"] == 2
    assert data.fields["observations.desired_goal"][:, 0].tolist() == [1] * 3 + [2] * 6
    assert (
        read_minari("D4RL/pointmaze/toy-v0", repair_goals=False).fields["observations.desired_goal"][0, 0]
        == 9
    )
    assert "goal_repairs" not in read_minari("other-v0").metadata
    assert read_minari("other-v0", repair_goals=True).sha256 == data.sha256


# --- refused -----------------------------------------------------------------------------------------------


def test_an_unknown_id_is_refused_with_the_way_to_get_it():
    write_minari(episodes(), "zoo/hopper-medium-v0")
    with pytest.raises(
        DatasetError, match=r"did you mean 'zoo/hopper-medium-v0'\?.*minari download zoo/hoper-med"
    ):
        read_minari("zoo/hoper-medium-v0")
    for malformed in ("hopper", "../etc-v0", "/etc/x-v0", ""):
        with pytest.raises(DatasetError, match="has the form"):
            read_minari(malformed)


@pytest.mark.parametrize("lengths", [(3, 3), (3, 5)])
def test_observations_that_are_not_t_plus_one_are_refused(root, lengths):
    create("toy-v0", [np.zeros((4, 3)), np.zeros((4, 3))])
    import h5py

    with h5py.File(root / "toy-v0" / "data" / "main_data.hdf5", "r+") as file:
        for k, length in enumerate(lengths):
            file[f"episode_{k}/observations"].resize((length, 3))
    with pytest.raises(DatasetError, match="episode 0: 'observations' has 3 rows for 3 steps; it needs T"):
        read_minari("toy-v0")


def test_an_end_inside_an_episode_is_refused():
    create("toy-v0", [np.zeros((4, 3))], terminations=[[False, True, False]])
    with pytest.raises(DatasetError, match="minari:toy-v0: 'terminated' is set at row 1, inside episode 0"):
        read_minari("toy-v0")


def test_discrete_actions_are_refused():
    buffer = EpisodeBuffer(None, None, None, np.zeros((3, 3)), [0, 1], [0.0, 0.0], [False] * 2, [False, True])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of notes that a toy set does not need
        minari.create_dataset_from_buffers(
            "toy-v0", [buffer], observation_space=Box(-1, 1, (3,)), action_space=Discrete(2)
        )
    with pytest.raises(DatasetError, match="'actions' are integers"):
        read_minari("toy-v0")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_damaged_sets_are_refused(root, data_format):
    write_minari(episodes(), "toy-v0", data_format=data_format)
    folder = root / "toy-v0" / "data"
    name = "main_data.hdf5" if data_format == "hdf5" else "1/part-0.arrow"
    whole, notes = (folder / name).read_bytes(), (folder / "metadata.json").read_text()
    for kept in (0, 300, len(whole) // 2):
        (folder / name).write_bytes(whole[:kept])
        with pytest.raises(
            DatasetError, match=r"toy-v0(: .* is not a readable HDF5 file| cannot be read)"
        ) as caught:
            read_minari("toy-v0")
        assert "\n" not in str(caught.value)
    (folder / name).write_bytes(whole)
    for old, new in (
        ('"total_steps": 12', '"total_steps": 13'),
        ("0.5.4", "9.9.9"),
        ("{", ""),
        ("Box", "Bag"),
    ):
        assert old in notes
        (folder / "metadata.json").write_text(notes.replace(old, new, 1))
        with pytest.raises(DatasetError, match="minari:toy-v0"):
            read_minari("toy-v0")


def test_successors_that_minari_cannot_hold_are_refused():
    data = episodes()
    data.fields["next_observations"][5, 2] += 1
    with pytest.raises(DatasetError, match="'next_observations' at row 5 is not the observation at row 6"):
        write_minari(data, "toy-v0")


def test_existing_sets_stay_unless_told_otherwise(root, monkeypatch):
    write_minari(episodes(), "zoo/toy-v0")
    with pytest.raises(ConfigError, match="exists; choose another version"):
        write_minari(episodes(), "zoo/toy-v0")
    write_minari(episodes().select([0]), "zoo/toy-v0", overwrite=True)
    assert read_minari("zoo/toy-v0").num_steps == 4

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", full)
    with pytest.raises(OSError, match="No space left"):
        write_minari(episodes(), "zoo/toy-v0", overwrite=True)
    assert read_minari("zoo/toy-v0").num_steps == 4
    assert sorted(p.name for p in (root / "zoo").iterdir()) == ["namespace_metadata.json", "toy-v0"]


@pytest.mark.parametrize("bad", ["toy", "a b-v0", "../x-v0", "zoo//x-v0", "z/x-v0"])
def test_malformed_ids_are_not_written(bad):
    with pytest.raises(ConfigError, match="has the form"):
        write_minari(episodes(), bad)


def test_unwritable_content_is_refused():
    with pytest.raises(ConfigError, match="one of hdf5, arrow, parquet"):
        write_minari(episodes(), "toy-v0", data_format="csv")
    counts = OfflineDataset.from_arrays(np.ones((4, 2), int), np.zeros((4, 1)), np.zeros(4), [0, 0, 0, 1])
    with pytest.raises(DatasetError, match="not int64"):
        write_minari(counts, "toy-v0")


def test_an_environment_that_takes_other_arguments_today_is_left_out_of_the_set():
    data = episodes(env_id="Pendulum-v1", env_kwargs={"of_old": 1})
    write_minari(data, "test/old-v0")
    assert read_minari("test/old-v0").metadata["env_kwargs"] == {"of_old": 1}


def sparse(group):
    group.create_dataset("actions", (1 << 36, 2), "f4", chunks=(1024, 2))


def elsewhere(group):
    group.create_dataset("actions", (4, 2), "f4", external=[("/etc/hostname", 0, 32)])


def linked(group):
    group["actions"] = h5py.ExternalLink("other.hdf5", "actions")


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (sparse, "'episode_1/actions' claims 549755813888 bytes, but only 0 are stored"),
        (elsewhere, "'episode_1/actions' keeps its data in another file"),
        (linked, "'episode_1/actions' is a link; copy what it leads to"),
    ],
)
def test_arrays_that_are_not_in_the_file_are_refused_before_minari_reads_them(root, replace, message):
    create("test/odd-v0", [np.zeros((5, 3), np.float32)] * 2)
    with h5py.File(root / "test/odd-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
        replace(file["episode_1"])
    with pytest.raises(DatasetError, match=f"^minari:test/odd-v0: .*{message}"):
        read_minari("test/odd-v0")


def test_a_key_that_minari_would_not_read_back_is_refused(root):
    data = episodes(observation=lambda x: {"a/b": x})
    with pytest.raises(DatasetError, match="a Minari set cannot hold 'observations.a/b'; rename that key"):
        write_minari(data, "test/slash-v0")
    assert not (root / "test/slash-v0").exists()

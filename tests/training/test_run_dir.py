"""The files of a run directory: names, exact numbers, formats, locks."""

import json
import math
import re

import numpy as np
import pytest

from offrl.errors import CheckpointError, ConfigError
from offrl.training import run_dir
from offrl.training.run_dir import RunDir, Table, versions

CONFIG = {
    "algorithm": "td3_bc",
    "algorithm_file": None,
    "algorithm_sha256": None,
    "settings": {"lr": 3e-4},
    "preset": None,
    "dataset": None,
    "dataset_name": "tiny",
    "dataset_sha256": "0" * 64,
    "dataset_return_mean": 1.0,
    "rows": "exact",
    "env_id": None,
    "env_kwargs": {},
    "env_flatten": [],
    "reference_returns": None,
    "seed": 3,
    "steps": 10,
    "log_every": 1,
    "eval_every": 0,
    "eval_episodes": 1,
    "final_episodes": 0,
    "checkpoint_every": 5,
    "workers": 1,
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
    "compile": False,
    "tensorboard": False,
    "wandb": False,
}


def test_a_run_lies_under_algorithm_and_dataset(tmp_path):
    run = RunDir.create(tmp_path, CONFIG)
    assert run.path.parent == tmp_path / "td3_bc" / "tiny"
    assert re.fullmatch(r"seed3-\d{8}T\d{6}", run.path.name)
    assert sorted(p.name for p in run.path.iterdir()) == ["command.txt", "config.json", "versions.json"]
    assert run.config == {"format": 1, **CONFIG}
    assert not run.finished


def test_a_setting_that_no_file_can_keep_leaves_no_folder(tmp_path):
    for value in (math.inf, math.nan):
        with pytest.raises(ConfigError, match="clip must be a finite number, got"):
            RunDir.create(tmp_path, CONFIG | {"settings": {"alpha": 2.5, "clip": value}})
    assert list(tmp_path.iterdir()) == []


def test_runs_of_the_same_second_get_their_own_folders(tmp_path):
    runs = {RunDir.create(tmp_path, CONFIG).path for _ in range(5)}
    assert len(runs) == 5


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "data"),
        ("a b\nc", "a-b-c"),
        ("données", "donn-es"),
    ],
)
def test_a_dataset_name_never_leaves_its_folder(tmp_path, name, folder):
    run = RunDir.create(tmp_path / "runs", CONFIG | {"dataset_name": name})
    assert run.path.parent == tmp_path / "runs" / "td3_bc" / folder


def test_numbers_in_a_table_are_exact(tmp_path):
    """repr of a float64 reads back as the same float64; a missing cell is empty."""
    values = [0.1, 1 / 3, 1e-300, float(np.float32(0.1)), -0.0, float("nan"), float("inf")]
    table = Table(tmp_path / "t.csv", ["step", "value", "other"])
    for step, value in enumerate(values):
        table.append({"step": step, "value": value})
    table.append({"step": 9, "other": np.float64(0.1)})
    lines = [line.split(",") for line in table.path.read_text().splitlines()]
    assert lines[0] == ["step", "value", "other"]
    for line, value in zip(lines[1:], values, strict=False):
        np.testing.assert_equal(float(line[1]), value)  # also the sign of zero, and nan for nan
        assert line[2] == ""
    assert lines[-1] == ["9", "", "0.1"]


def test_every_row_is_on_disk_when_append_returns(tmp_path):
    table = Table(tmp_path / "t.csv", ["step"])
    table.append({"step": 1})
    assert (tmp_path / "t.csv").read_text() == "step\n1\n"


def test_a_table_forgets_the_rows_after_a_size(tmp_path):
    table = Table(tmp_path / "t.csv", ["step"])
    table.append({"step": 1})
    size = table.sync()
    table.append({"step": 2})
    table.truncate(size)
    assert table.path.read_text() == "step\n1\n"
    assert Table(tmp_path / "t.csv", ["step"]).sync() == size  # opening it again adds no header
    for other in (["step", "new"], ["steps"]):
        with pytest.raises(CheckpointError, match=r"t\.csv has other columns"):
            Table(tmp_path / "t.csv", other)
    (tmp_path / "u.csv").touch()  # killed before its header
    assert Table(tmp_path / "u.csv", ["step"]).path.read_text() == "step\n"
    table.clear()
    assert table.path.read_text() == "step\n"
    with pytest.raises(CheckpointError, match="shorter than its checkpoint says"):
        table.truncate(size)


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run directory: it has no config"):
        RunDir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object, not list"),
        ("{}", "names no algorithm"),
        ("\x00\xff", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"algorithm": "bc"}', "has format None, this version reads 1"),
        ('{"algorithm": "bc", "format": 2}', "has format 2, this version reads 1; upgrade"),
        ('{"algorithm": "bc", "format": 1}', "is damaged: 'dataset_name' is None"),
        (json.dumps({"format": 1, **CONFIG, "seed": True}), "'seed' is True"),
        (json.dumps({"format": 1, **CONFIG, "steps": 1.5}), "'steps' is 1.5"),
        (json.dumps({"format": 1, **CONFIG, "settings": None}), "'settings' is None"),
        (json.dumps({"format": 1, **CONFIG, "reference_returns": [1, 2, 3]}), "'reference_returns' is"),
        (json.dumps({"format": 1, **CONFIG, "reference_returns": ["a", 2]}), "'reference_returns' is"),
        ('{"x": "' + "y" * (1 << 20) + '"}', "larger than 1048576 bytes"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        RunDir(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_finishing_writes_the_raw_returns(tmp_path):
    run = RunDir.create(tmp_path, CONFIG)
    run.finish(np.array([1.5, 2.5]), np.array([10, 20]))
    assert run.finished
    with np.load(run.path / "final_returns.npz", allow_pickle=False) as final:
        assert final["returns"].tolist() == [1.5, 2.5]
        assert final["lengths"].tolist() == [10, 20]


def test_a_lock_is_free_again_after_the_block(tmp_path):
    run = RunDir.create(tmp_path, CONFIG)
    with run.locked(), pytest.raises(CheckpointError, match="by another process"), RunDir(run.path).locked():
        pass
    with run.locked():
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    run = RunDir.create(tmp_path, CONFIG)

    def unsupported(file, flags):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_dir.fcntl, "flock", unsupported)
    with run.locked():
        run.finish(np.ones(1), np.ones(1, dtype=np.int64))
    assert (run.path / "final_returns.npz").exists()


def test_versions_say_what_the_numbers_depend_on():
    found = versions("cpu", 2)
    for name in ("offrl", "torch", "numpy", "gymnasium", "python", "platform", "cpu", "device", "threads"):
        assert found[name], name
    assert found["threads"] == 2
    assert json.loads(json.dumps(found)) == found
    if found["commit"] is not None:
        assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", found["commit"])


def test_damaged_versions_are_named(tmp_path):
    run = RunDir.create(tmp_path, CONFIG)
    (run.path / "versions.json").write_text("?")
    with pytest.raises(CheckpointError, match=r"versions\.json is not valid JSON"):
        run.recorded_versions()

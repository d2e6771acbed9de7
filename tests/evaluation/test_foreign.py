"""Results of other toolkits are read as data: a recorded d3rlpy log, and files in the layouts of CORL and unifloral."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation import foreign
from offrl.evaluation.foreign import read_foreign

RECORDED = Path(__file__).parent / "foreign" / "TD3PlusBC_pendulum-demo_3_20261125221839"  # by d3rlpy 2.8.1
NAME = "TD3_BC-hopper-medium-v2-1a2b3c4d"


def corl(folder, *, seed="7", wandb=False, name=NAME, env="hopper-medium-v2"):
    """A config.yaml as CORL dumps it beside checkpoints, or as W&B keeps it."""
    facts = {
        "alpha": "2.5",
        "env": env,
        "n_episodes": "10",
        "name": name,
        "group": "TD3_BC-D4RL",
        "seed": seed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    plain = "".join(f"{key}: {value}\n" for key, value in facts.items())
    nested = "".join(f"{key}:\n    desc: null\n    value: {value}\n" for key, value in facts.items())
    (folder / "config.yaml").write_text("wandb_version: 1\n\n" + nested if wandb else plain)
    return folder


def test_a_log_that_d3rlpy_wrote():
    (run,) = read_foreign(str(RECORDED))
    assert (run.toolkit, run.algorithm, run.dataset, run.seed) == (
        "d3rlpy",
        "td3_plus_bc",
        "pendulum-demo",
        3,
    )
    np.testing.assert_allclose(run.values, [-128.48479905, -205.33263415, -242.22947252, -224.58218903])
    assert not run.scored
    assert run.unknown == ["environment version", "episodes of an evaluation"]


def test_a_folder_of_logs_is_searched_and_a_name_given_wins(tmp_path):
    for number in (1, 2):
        folder = tmp_path / "d3rlpy_logs" / f"mine_{number}"
        folder.mkdir(parents=True)
        for name in ("params.json", "environment.csv"):
            (folder / name).write_bytes((RECORDED / name).read_bytes())
    with pytest.raises(ConfigError, match=r"does not say which data.*--with DATASET=.*mine_1"):
        read_foreign(str(tmp_path))
    runs = read_foreign(f"d4rl:hopper-medium-v2={tmp_path}")
    assert [(run.dataset, run.seed) for run in runs] == [("hopper-medium-v2", None)] * 2
    assert "seed" in runs[0].unknown


@pytest.mark.parametrize("wandb", [False, True])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("history.csv", ",_step,critic_loss,d4rl_normalized_score\n0,1,3.5,\n1,2,3.0,40.5\n2,4,2.5,41.5\n"),
        ("eval.json", '[{"d4rl_normalized_score": 40.5}, {"loss": 1}, {"d4rl_normalized_score": 41.5}]'),
        ("eval.jsonl", '{"eval/normalized_score_mean": 40.5}\n{"eval/normalized_score_mean": 41.5}\n'),
        (
            "output.log",
            "Time steps: 5000\n---\nEvaluation over 10 episodes: 1290.1 , D4RL score: 40.5\n"
            "Time steps: 10000\nEvaluation over 10 episodes: 1322.9 , D4RL score: 41.5\n",
        ),
    ],
)
def test_corl_keeps_settings_and_scores_in_one_folder(tmp_path, file, text, wandb):
    folder = corl(tmp_path / "run", wandb=wandb)
    (folder / file).write_text(text)
    (folder / "checkpoint_4999.pt").write_bytes(b"never opened")
    (run,) = read_foreign(str(tmp_path))
    assert (run.toolkit, run.algorithm, run.dataset) == ("CORL", "TD3_BC", "hopper-medium-v2")
    assert (run.seed, run.episodes, run.scored) == (7, 10, True)
    np.testing.assert_array_equal(run.values, [40.5, 41.5])


def test_the_best_target_of_a_decision_transformer_counts(tmp_path):
    folder = corl(tmp_path / "run", name=NAME.replace("TD3_BC", "DT"))
    keys = ("eval/1800.0_normalized_score_mean", "eval/3600.0_normalized_score_mean")
    (folder / "h.csv").write_text(f"_step,{keys[0]},{keys[1]}\n1,10,20\n2,30,40\n")
    np.testing.assert_array_equal(read_foreign(str(folder))[0].values, [20, 40])


def test_a_summary_has_the_last_score_and_a_checkpoint_alone_has_none(tmp_path):
    folder = corl(tmp_path / "run")
    assert len(read_foreign(str(folder))[0].values) == 0
    (folder / "wandb-summary.json").write_text(json.dumps({"d4rl_normalized_score": 41.5, "_step": 5}))
    np.testing.assert_array_equal(read_foreign(str(folder))[0].values, [41.5])


def test_a_table_that_the_wandb_page_exports_has_a_column_a_run(tmp_path):
    other = NAME.replace("hopper-medium", "hopper-medium-replay").replace("1a2b", "9f9f")
    key = "d4rl_normalized_score"
    columns = [f'"{name} - {key}{end}"' for name in (NAME, other) for end in ("", "__MIN", "__MAX")]
    file = tmp_path / "export.csv"
    file.write_text(
        f'"Step",{",".join(columns)}\n"1","40","0","99","50","0","99"\n"2","41","0","99","","",""\n'
    )
    one, two = read_foreign(str(file))
    assert (one.algorithm, one.dataset, one.values.tolist()) == ("TD3_BC", "hopper-medium-v2", [40.0, 41.0])
    assert (two.algorithm, two.dataset, two.values.tolist()) == ("TD3_BC", "hopper-medium-replay-v2", [50.0])
    assert one.seed is None


def unifloral(folder, values, name="td3_bc_hopper-medium-v2_2025-04-01_10-11-12.npz", key="final_scores"):
    """As its scripts write them: numbers beside pickled settings."""
    folder.mkdir(exist_ok=True)
    arrays = {key: np.array(values, dtype=np.float32), "args": np.array({"seed": 3}, dtype=object)}
    np.savez_compressed(folder / name, **arrays, allow_pickle=True)
    return folder / name


def test_unifloral_s_final_scores_are_read_and_its_pickled_settings_are_not(tmp_path):
    (run,) = read_foreign(str(unifloral(tmp_path / "final_returns", [50.0, 60.0]).parent))
    assert (run.toolkit, run.algorithm, run.dataset) == ("unifloral", "td3_bc", "hopper-medium-v2")
    assert (run.values.tolist(), run.episodes, run.seed, run.scored) == ([55.0], 2, None, True)
    (raw,) = read_foreign(str(unifloral(tmp_path / "raw", [1.0, 3.0], key="final_returns")))
    assert (raw.values.tolist(), raw.scored) == ([2.0], False)


def test_a_wandb_folder_of_unifloral(tmp_path):
    folder = corl(tmp_path / "run", wandb=True)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text + "algorithm:\n    value: iql\nnum_updates:\n    value: 100\n")
    (folder / "h.csv").write_text("num_updates,return,score,score_std\n100,900,33.5,2\n")
    (run,) = read_foreign(str(folder))
    assert (run.toolkit, run.algorithm, run.seed, run.values.tolist()) == ("unifloral", "iql", 7, [33.5])


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("suffix", foreign.REFUSED)
def test_pickles_and_checkpoints_are_never_opened(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"offline_scores{suffix}"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="never opened"):
        read_foreign(f"hopper-medium-v2={file}")
    assert not Path("exploded").exists()


def test_pickled_scores_are_refused_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "td3_bc_hopper-medium-v2_2025-04-01_10-11-12.npz"
    np.savez(file, final_scores=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_foreign(str(file))
    assert not Path("exploded").exists()


def npz_with(path, member, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, payload)
    return path


def test_damaged_files_are_named(tmp_path):
    folder = corl(tmp_path / "run")
    csv = folder / "h.csv"
    buffer = io.BytesIO()
    np.save(buffer, np.array([np.nan]))
    cases = [
        (lambda: csv.write_text("d4rl_normalized_score\nhigh\n"), folder, "not a number"),
        (lambda: csv.write_text("d4rl_normalized_score\nnan\n"), folder, "not a finite number"),
        (lambda: csv.write_bytes(b"\xff\xfe\x00"), folder, "not text"),
        (lambda: csv.write_text('a,"b\n'), folder, "not a CSV file"),
        (
            lambda: npz_with(tmp_path / "a.npz", "final_scores.npy", b"x"),
            tmp_path / "a.npz",
            "cannot be read",
        ),
        (lambda: npz_with(tmp_path / "b.npz", "loss.npy", b"x"), tmp_path / "b.npz", "no final_scores"),
        (
            lambda: npz_with(tmp_path / "c.npz", "final_scores.npy", buffer.getvalue()),
            tmp_path / "c.npz",
            "finite numbers",
        ),
    ]
    for damage, place, message in cases:
        damage()
        with pytest.raises(CheckpointError, match=message):
            read_foreign(f"hopper-medium-v2={place}")
    csv.write_text("")
    (folder / "e.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_foreign(str(folder))


def test_sizes_are_limited(tmp_path, monkeypatch):
    folder = corl(tmp_path / "run")
    monkeypatch.setattr(foreign, "MAX_BYTES", 20)
    with pytest.raises(CheckpointError, match="is larger than"):
        read_foreign(str(folder))
    monkeypatch.setattr(foreign, "MAX_ARRAY_BYTES", 4)
    with pytest.raises(CheckpointError, match="too large"):
        read_foreign(str(unifloral(tmp_path / "u", [1.0, 2.0])))


def test_what_is_not_there_or_holds_nothing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_foreign(str(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "loss.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(CheckpointError, match="holds no results"):
        read_foreign(str(tmp_path))
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not d3rlpy's"):
        read_foreign(str(tmp_path))
    (tmp_path / "params.json").write_bytes((RECORDED / "params.json").read_bytes())
    (tmp_path / "environment.csv").write_text("1,2\n")
    with pytest.raises(CheckpointError, match="epoch,step,value"):
        read_foreign(f"x={tmp_path}")

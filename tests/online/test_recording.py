"""What a run records: raw steps as they happened, episodes whole, the same after a power cut."""

import numpy as np
import pytest

from offrl.algos.n_pg_igt import NPGIGT
from offrl.algos.sac import ALGORITHM as SAC
from offrl.cli import main
from offrl.data.d4rl import read_d4rl
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.environments import make_env
from offrl.online import runner
from offrl.online.recording import Recording, recorded
from offrl.online.runner import resume, start
from offrl.training.run_dir import RunDir
from tests.online.test_runner import SETTINGS, PowerCutError, cut_off, options

SOFT = SAC.config(hidden=8, learning_starts=10, batch_size=4)


def replayed(data):
    """The rewards and observations that Pendulum itself gives for the recorded actions, from each recorded state."""
    env = make_env("TinyPendulum-v0")
    env.reset(seed=0)
    rows = zip(data.fields["observations"], data.fields["actions"], strict=True)
    found = []
    for observation, action in rows:
        env.unwrapped.state = np.array(
            [np.arctan2(observation[1], observation[0]), observation[2]], np.float64
        )
        successor, reward, *_ = env.unwrapped.step(action)
        found.append((successor, reward))
    return np.array([s for s, _ in found]), np.array([r for _, r in found])


@pytest.mark.parametrize(
    "more", [{}, {"num_envs": 2, "normalize_observations": True, "normalize_rewards": True}]
)
def test_recorded_steps_are_what_the_environment_does(tmp_path, more):
    """Raw observations and rewards whatever is normalized; executed actions; successors that are not resets."""
    target = tmp_path / "all.hdf5"
    start("sac", SOFT, options(tmp_path, steps=60, record=str(target), **more))
    data = read_d4rl(target)
    assert data.num_steps == 60
    successors, rewards = replayed(data)
    assert np.allclose(data.fields["next_observations"], successors, atol=1e-4)
    assert np.allclose(data.fields["rewards"], rewards, atol=1e-3)
    assert not data.fields["terminated"].any()
    whole = data.episode_lengths == 20
    assert whole.all() or (more and list(data.episode_lengths) == [20, 10, 20, 10])
    assert np.abs(data.fields["actions"]).max() > 1.0  # in the box [-2, 2], not scaled to [-1, 1]
    assert data.metadata["env_id"] == "TinyPendulum-v0"
    assert data.metadata["max_episode_steps"] == 20
    assert data.metadata["collector"] == "sac, all of its training"


def test_a_run_that_died_records_what_an_undisturbed_one_does(tmp_path, monkeypatch):
    """Steps after the last checkpoint are forgotten and made again; the parts go when the dataset is written."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = str(tmp_path / "whole.hdf5"), str(tmp_path / "cut.hdf5")
    start("n_pg_igt", SETTINGS, options(tmp_path / "whole", record=whole))
    died = cut_off(monkeypatch, 4, options(tmp_path / "cut", record=cut))
    assert list((died / "recorded").iterdir())
    resume(died)
    assert not (died / "recorded").exists()
    a, b = read_d4rl(whole), read_d4rl(cut)
    assert a.num_steps == 400
    for name in a.fields:
        assert np.array_equal(a.fields[name], b.fields[name])
    assert a.fields["truncated"].sum() == 20


def test_a_relative_file_stays_where_the_run_began(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    died = cut_off(monkeypatch, 4, options(tmp_path / "runs", record="steps.hdf5"))
    monkeypatch.chdir(tmp_path / "there")
    resume(died)
    assert read_d4rl(tmp_path / "here" / "steps.hdf5").num_steps == 400


def test_what_another_run_wrote_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    """The run keeps its steps and goes on when the file is out of the way; its own half-written file is no obstacle."""
    target = tmp_path / "steps.hdf5"
    died = cut_off(monkeypatch, 4, options(tmp_path, record=str(target)))
    target.write_text("of another run")
    with pytest.raises(ConfigError, match=f"exists by now, .* move it away, then offrl resume {died}"):
        resume(died)
    assert target.read_text() == "of another run"
    target.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "finish", lambda *_: (_ for _ in ()).throw(PowerCutError))
        with pytest.raises(PowerCutError):
            resume(died)
    resume(died)
    assert read_d4rl(target).num_steps == 400


def test_a_reset_cuts_the_episode_under_way(tmp_path):
    """Three steps, a reset, two steps: two episodes, each cut where it ended."""
    config = {"algorithm": "sac", "seed": 0, "env_id": "TinyPendulum-v0", "env_kwargs": {}, "env_flatten": []}
    env = runner.vector_env("TinyPendulum-v0", options(tmp_path), 0.99, record=True)
    assert isinstance(env, Recording)
    number = 0
    for steps in (3, 2):
        env.reset()
        for _ in range(steps):
            env.step(np.ones((1, 1), np.float32))
            number = env.save(tmp_path, number)
    data = recorded(tmp_path, number, config)
    assert number == 5
    assert list(data.episode_lengths) == [3, 2]
    assert list(np.flatnonzero(data.fields["truncated"])) == [2, 4]
    (tmp_path / "recorded/part000003.npz").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="part000003.npz is missing or damaged"):
        recorded(tmp_path, number, config)


def test_a_recorded_run_is_learnt_from_offline_and_written_to_minari(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    command = [
        "train",
        "sac",
        "--env",
        "TinyPendulum-v0",
        "--steps",
        "40",
        "--hidden",
        "8",
        "--out",
        str(tmp_path),
    ]
    command += ["--learning-starts", "10", "--eval-episodes", "1"]
    assert main([*command, "--record", "minari:tiny/sac-v0"]) == 0
    assert "40 transitions, 2 episodes" in capsys.readouterr().out
    data = load_dataset("minari:tiny/sac-v0")
    assert data.num_steps == 40
    successors, rewards = replayed(data)
    assert np.allclose(data.fields["next_observations"], successors, atol=1e-4)
    assert np.allclose(data.fields["rewards"], rewards, atol=1e-3)
    assert list(np.flatnonzero(data.fields["truncated"])) == [19, 39]
    assert not data.fields["terminated"].any()
    assert np.abs(data.fields["actions"]).max() > 1.0
    learn = [
        "train",
        "bc",
        "--dataset",
        "minari:tiny/sac-v0",
        "--steps",
        "2",
        "--hidden",
        "8",
        "--eval-episodes",
        "1",
    ]
    assert main([*learn, "--env", "TinyPendulum-v0", "--out", str(tmp_path), "-q"]) == 0
    assert main([*command, "--record", "minari:tiny/sac-v0"]) == 1
    assert "exists already; choose another version\n" in capsys.readouterr().err
    assert main([*command, "--seeds", "0", "1", "--record", "x.hdf5"]) == 1
    assert "--record names one dataset" in capsys.readouterr().err


def test_a_target_that_cannot_be_written_is_refused_before_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(NPGIGT, "step_size", lambda self: (_ for _ in ()).throw(PowerCutError))
    with pytest.raises(ConfigError, match=r"--record must be FILE.hdf5 or minari:ID"):
        start("n_pg_igt", SETTINGS, options(tmp_path, record="data.csv"))
    assert not list(tmp_path.glob("*/*"))

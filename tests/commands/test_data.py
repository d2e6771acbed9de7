"""``offrl data`` as a user meets it: through the command line's own door."""

import h5py
import numpy as np
import pytest

from offrl.cli import main
from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec, named_environment
from offrl.data.load import load_dataset
from offrl.evaluation.environments import make_env
from offrl.training.build import dataset_env


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No dataset of the machine is seen, no address is asked."""
    monkeypatch.setenv("OFFRL_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFRL_DATA_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *argv):
    """Exit code, standard output with single blanks, and the one line of standard error."""
    code = main(["data", *map(str, argv)])
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= 1
    return code, " ".join(captured.out.split()), captured.err.strip()


def hopper(steps=80, seed=0):
    """A short recording of random actions in Hopper-v5, with simulator states."""
    env = make_env("Hopper-v5")
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rows, states = [], {"qpos": [], "qvel": []}
    for _ in range(steps):
        for name, values in states.items():
            values.append(getattr(env.unwrapped.data, name).copy())
        action = env.action_space.sample()
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, after, terminated, truncated))
        observation = env.reset()[0] if terminated or truncated else after
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    arrays = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    infos = {name: np.array(values) for name, values in states.items()}
    return OfflineDataset.from_arrays(**arrays, infos=infos, metadata={"env_id": "Hopper-v5"})


def write_csv(path, episodes=3, length=5):
    """Columns ep, x1, x2, x10, u1, u2, r, done, cut; every episode but the last terminates."""
    lines = ["ep,x10,x1,x2,u1,u2,r,done,cut"]
    for episode in range(episodes):
        for step in range(length):
            last, final = step == length - 1, episode == episodes - 1
            flags = f"{int(last and not final)},{int(last and final)}"
            lines.append(f"{episode},{step * 10},{step},{step * 2},0.5,-0.5,{step / 10},{flags}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_list_names_everything_that_can_be_loaded(home, capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "halfcheetah random, medium, expert, medium-replay, medium-expert, full-replay v0 v1 v2" in out
    assert "v0 v1 v2 HalfCheetah-v4 drifted" in out
    assert "kitchen complete, partial, mixed v0 - none" in out
    write_d4rl(hopper(), home / "mine.hdf5")
    assert run(capsys, "add", home / "mine.hdf5", "--as", "d4rl:hopper-random-v2")[0] == 0
    assert run(capsys, "convert", home / "mine.hdf5", "--out", "minari:own/hopper-v0")[0] == 0
    code, out, _ = run(capsys, "list", "--installed")
    assert "HalfCheetah-v4" not in out
    assert f"D4RL files in {home / 'home'} (d4rl:NAME) hopper-random-v2" in out
    assert f"Minari sets in {home / 'minari'} (minari:ID) own/hopper-v0" in out


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "hopper-medium-v2",
            [
                "on disk no (offrl data download hopper-medium-v2)",
                "environment Hopper-v4",
                "horizon 1000 steps",
                "verdict drifted: recorded with Gym v2",
                "reference random -20.2723, expert 3234.3 (D4RL reference)",
            ],
        ),
        (
            "d4rl:antmaze-umaze-v2",
            [
                "environment none installed today",
                "verdict none: D4RL's ant is another robot",
                "random 0, expert 1",
            ],
        ),
        (
            "minari:D4RL/antmaze/umaze-v1",
            [
                "flatten order achieved_goal + observation + desired_goal",
                "goal within 0.45 m of the goal",
                "horizon 700 steps",
                "verdict same",
                "maze_map=[[1, 1, 1, 1, 1], [1, 'g',",
                "minari download D4RL/antmaze/umaze-v1",
            ],
        ),
        (
            "minari:mujoco/humanoid/expert-v0",
            ["Humanoid-v5", "O=348, A=17", "reference none: results are plain returns"],
        ),
        ("zoo/hopper-medium-v0", ["scripts/make_zoo.py", "(v5 env, D4RL reference)"]),
    ],
)
def test_show_tells_the_table_without_the_data(capsys, name, lines):
    code, out, _ = run(capsys, "show", name)
    assert code == 0
    for line in lines:
        assert line in out


def test_show_describes_what_is_here(home, capsys):
    write_d4rl(hopper(), home / "mine.hdf5")
    code, out, _ = run(capsys, "show", "mine.hdf5")
    assert code == 0
    assert "80 transitions" in out
    assert "environment Hopper-v5" in out
    run(capsys, "add", "mine.hdf5", "--as", "hopper-random-v2")
    _, out, _ = run(capsys, "show", "hopper-random-v2")
    assert f"on disk {home / 'home' / 'hopper-random-v2.hdf5'} content 80 transitions" in out


def test_check_of_healthy_data_with_replay(home, capsys):
    write_d4rl(hopper(), home / "mine.hdf5")
    code, out, _ = run(capsys, "check", "mine.hdf5", "--replay", 20)
    assert code == 0
    assert "replayed 20 steps in Hopper-v5: next observation off by" in out
    assert "verdict same" in out
    assert "nothing is wrong with these data" in out


def test_check_of_sick_data_fails(home, capsys):
    dataset = hopper()
    dataset.fields["actions"][7, 1] = -1.5
    write_d4rl(OfflineDataset(dataset.fields, dataset.episode_starts, dataset.metadata), home / "sick.hdf5")
    code, out, err = run(capsys, "check", "sick.hdf5")
    assert code == 1
    assert "ERROR action 1 goes from -1.5 .." in out
    assert "these data need repair" in out
    assert err == ""


def test_the_name_of_a_file_is_no_evidence(home, capsys):
    """A file that happens to be called like a D4RL set is judged by what it says itself."""
    write_d4rl(hopper(), home / "walker2d-medium-v2.hdf5")
    code, out, _ = run(capsys, "check", "walker2d-medium-v2.hdf5")
    assert code == 0
    assert "environment Hopper-v5" in out


def test_replay_without_simulator_state_says_so(home, capsys):
    dataset = hopper()
    fields = {name: array for name, array in dataset.fields.items() if not name.startswith("infos.")}
    write_d4rl(OfflineDataset(fields, dataset.episode_starts, dataset.metadata), home / "bare.hdf5")
    code, _, err = run(capsys, "check", "bare.hdf5", "--replay", 5)
    assert code == 1
    assert "no simulator state (infos.qpos, infos.qvel)" in err


def test_a_log_becomes_a_dataset(home, capsys):
    """x1, x2, x10 in natural order; two terminated episodes, one cut; returns 0 + .1 + .2 + .3 + .4."""
    write_csv(home / "logs.csv")
    argv = ["convert", "logs.csv", "--obs", "x*", "--action", "u*", "--reward", "r", "--episode", "ep"]
    code, out, _ = run(capsys, *argv, "--terminated", "done", "--truncated", "cut", "--out", "log.hdf5")
    assert code == 0
    assert "15 transitions, 3 episodes, O=3, A=2" in out
    dataset = read_d4rl(home / "log.hdf5")
    np.testing.assert_array_equal(dataset.fields["observations"][1], [1, 2, 10])
    np.testing.assert_array_equal(np.flatnonzero(dataset.fields["terminated"]), [4, 9])
    np.testing.assert_array_equal(np.flatnonzero(dataset.fields["truncated"]), [14])
    np.testing.assert_allclose(dataset.episode_returns, 1.0, rtol=1e-6)
    code, _, _ = run(capsys, *argv, "--terminated", "none", "--out", "cut.hdf5")
    assert code == 0
    assert not read_d4rl(home / "cut.hdf5").fields["terminated"].any()


@pytest.mark.parametrize("out", ["copy.hdf5", "copy.npz", "minari:own/copy-v0"])
def test_conversion_keeps_every_transition(home, capsys, out):
    write_d4rl(hopper(), home / "mine.hdf5")
    code, text, _ = run(capsys, "convert", "mine.hdf5", "--out", out)
    assert code == 0
    assert f"written to {out}" in text
    ours, theirs = load_dataset("mine.hdf5").transitions("exact"), load_dataset(out).transitions("exact")
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert load_dataset(out).sha256 == load_dataset("mine.hdf5").sha256
    before = [p.read_bytes() for p in sorted(home.rglob("*copy*")) if p.is_file()]
    code, _, err = run(capsys, "convert", "mine.hdf5", "--out", out)
    assert code == 1
    assert "exists" in err
    assert [p.read_bytes() for p in sorted(home.rglob("*copy*")) if p.is_file()] == before
    assert run(capsys, "convert", "mine.hdf5", "--out", out, "--overwrite")[0] == 0


def test_an_environment_can_be_named_and_must_fit(home, capsys):
    write_csv(home / "logs.csv")
    columns = ["--obs", "x*", "--action", "u*", "--reward", "r", "--episode", "ep", "--terminated", "done"]
    code, _, err = run(capsys, "convert", "logs.csv", *columns, "--env", "Hopper-v5", "--out", "log.hdf5")
    assert code == 1
    assert "the data have O=3, A=2, but Hopper-v5 has observations of shape (11,)" in err
    assert not (home / "log.hdf5").exists()
    code, _, err = run(capsys, "convert", "logs.csv", *columns, "--env", "Hoper-v5", "--out", "log.hdf5")
    assert code == 1
    assert "Hoper" in err
    columns[1], columns[3] = "x1", "u1"
    columns[2:2] = ["x2", "x10"]
    code, _, err = run(capsys, "convert", "logs.csv", *columns, "--env", "Pendulum-v1", "--out", "log.hdf5")
    assert (code, err) == (0, "")
    assert load_dataset("log.hdf5").metadata["env_id"] == "Pendulum-v1"


@pytest.mark.parametrize(
    ("env", "sizes", "parts"),
    [
        ("Pendulum-v1", (3, 1), ()),
        ("AntMaze_UMaze-v4", (31, 8), ("achieved_goal", "observation", "desired_goal")),
        ("pusht-keypoints", (18, 2), ("agent_pos", "environment_state")),
    ],
)
def test_a_named_environment_is_stored_as_it_is_made(home, capsys, env, sizes, parts):
    """In place of the recorded one, with its own arguments and the order of its parts (gymnasium's is another)."""
    own = {"env_id": "Hopper-v5", "env_kwargs": {"healthy_reward": 2.0}, "flatten": ["a"]}
    rows = [np.zeros((4, width), np.float32) for width in sizes]
    ends = np.array([0, 0, 0, 1])
    write_d4rl(OfflineDataset.from_arrays(*rows, np.zeros(4), ends, metadata=own), home / "own.hdf5")
    assert run(capsys, "convert", "own.hdf5", "--env", env, "--out", "new.hdf5")[0] == 0
    assert dataset_env(load_dataset("new.hdf5"), None) == EnvSpec(
        named_environment(env).env_id, named_environment(env).kwargs, parts
    )


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["lst"], 2, "unknown command 'data lst'; did you mean 'list'?"),
        (["check"], 2, "offrl data check --help"),
        (["check", "x.hdf5", "--replya", "3"], 2, "did you mean --replay?"),
        (["check", "x.hdf5", "--replay", "-3"], 2, "--replay"),
        (["check", "missing.hdf5"], 1, "no dataset file"),
        (["check", "hoper-medium-v2"], 1, "did you mean 'hopper-medium-v2'?"),
        (["show", "minari:own/nothing-v0"], 1, "no Minari dataset"),
        (["check", "junk.hdf5"], 1, "not a readable HDF5 file"),
        (["check", "nan.hdf5"], 1, "'rewards' is not finite (in float32) at row 3"),
        (["convert", "logs.csv", "--out", "x.txt"], 1, "--out must be FILE.hdf5, FILE.npz or minari:ID"),
        (["convert", "logs.csv", "--out", "x.hdf5", "--obs", "q*"], 1, "has no column 'q*'"),
        (["convert", "nan.hdf5", "--out", "x.hdf5", "--obs", "q*"], 2, "column options are for tables"),
        (["convert", "logs.csv", "--out", "/proc/nowhere/x.hdf5", "--obs", "x*", "--action", "u*"], 1, ""),
        (["download", "hopper-medium-v2"], 1, "could not download hopper-medium-v2: http://127.0.0.1:9"),
        (["download", "hopper-medium-v9"], 1, "unknown dataset 'hopper-medium-v9'"),
        (["download", "minari:D4RL/door/human-v2"], 1, "minari download D4RL/door/human-v2"),
        (["add", "nan.hdf5", "--as", "d4rl:hopper-medium-v2"], 1, "'rewards' is not finite"),
        (["add", "missing.hdf5", "--as", "d4rl:hopper-medium-v2"], 1, "missing.hdf5"),
        (["add", "junk.hdf5"], 2, "offrl data add --help"),
    ],
)
def test_misuse_gives_one_line_and_leaves_nothing_behind(home, capsys, argv, code, message):
    write_csv(home / "logs.csv")
    (home / "junk.hdf5").write_bytes(b"not hdf5 at all")
    with h5py.File(home / "nan.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((10, 11), np.float32), np.zeros((10, 3), np.float32)
        file["rewards"] = np.where(np.arange(10) == 3, np.nan, 1.0).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(10, bool), np.arange(10) == 9
    before = sorted(home.rglob("*"))
    got, _, err = run(capsys, *argv)
    assert got == code
    assert err.startswith("offrl: ")
    assert message in err
    assert "Traceback" not in err
    left = [p for p in sorted(home.rglob("*")) if p not in before and p.suffix != ".lock" and not p.is_dir()]
    assert left == []


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("list", "show", "check", "convert", "download", "add"):
        assert f" {name} " in out
    assert run(capsys)[0] == 2


def test_ogbench_names_are_listed_shown_added_and_checked(home, capsys):
    name = "ogbench:pointmaze-medium-navigate-singletask-task2-v0"
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "puzzle-4x6 play, noisy 115 5 1000" in out
    code, out, _ = run(capsys, "show", name)
    assert code == 0
    for line in (
        "on disk no (offrl data download ogbench:pointmaze-medium-navigate-singletask-task2-v0)",
        "environment pointmaze-medium-singletask-task2-v0",
        "goal task 2: within 1 of the goal; pays -1 a step until then",
        "reference random 0, expert 1 (success rate)",
    ):
        assert line in out
    number = np.arange(6.0)
    np.savez(
        "mine.npz",
        observations=np.stack([number, number**2], axis=1),
        actions=np.linspace(-0.9, 0.9, 12).reshape(6, 2),
        terminals=number % 3 == 2,
        rewards=np.where(number == 4, 0.0, -1.0),
        masks=number != 4,
    )
    code, out, _ = run(capsys, "add", "mine.npz", "--as", name)
    assert code == 0
    assert f"use it with --dataset {name}" in out
    code, out, _ = run(capsys, "check", name)
    assert code == 0
    assert "episodes 2 (1 terminated, 2 cut, 0 unfinished)" in out
    assert "goal task 2: within 1 of the goal" in out  # from the table, by the data's name
    assert "reference random 0, expert 1 (success rate)" in out
    code, out, _ = run(capsys, "list", "--installed")
    assert name.removeprefix("ogbench:") in out
    code, out, err = run(capsys, "show", "ogbench:pointmaze-medium-navigate-v0")
    assert code == 1
    assert "has no rewards: name a task of it" in err


@pytest.mark.parametrize("option", ["--reward", "--episode"])
def test_only_flags_can_be_none(home, capsys, option):
    write_csv(home / "logs.csv")
    columns = ["--obs", "x*", "--action", "u*", "--reward", "r", "--episode", "ep", "--terminated", "done"]
    code, _, err = run(capsys, "convert", "logs.csv", *columns, option, "none", "--out", "x.hdf5")
    assert code == 1
    assert "has no column 'none'" in err


def test_what_minari_cannot_hold_is_told(home, capsys):
    write_csv(home / "logs.csv")  # the last of three episodes is cut, its successor unknown
    columns = ["--obs", "x*", "--action", "u*", "--reward", "r", "--episode", "ep", "--terminated", "done"]
    code, out, _ = run(capsys, "convert", "logs.csv", *columns, "--out", "minari:own/logs-v0")
    assert code == 0
    assert out.startswith("14 transitions, 3 episodes")
    assert "became final observations of cut episodes, as Minari stores them: 1" in out
    assert load_dataset("minari:own/logs-v0").num_steps == 14
    assert "became" not in run(capsys, "convert", "minari:own/logs-v0", "--out", "minari:own/again-v0")[1]

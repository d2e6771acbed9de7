"""A run that is stopped or killed at any moment and resumed leaves what the uninterrupted run leaves, bit for bit."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl.data.dataset import OfflineDataset
from offrl.data.source import UniformSource
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.training import runner, session
from offrl.training.checkpoint import load_checkpoint
from offrl.training.progress import Reporter
from offrl.training.runner import RunOptions, make_settings, resume, start

TINY = {"hidden": 8, "batch_size": 8}
STEPS = 24
OPTIONS = {
    "steps": STEPS,
    "log_every": 3,
    "eval_every": 10,
    "eval_episodes": 1,
    "checkpoint_every": 7,
    "threads": 1,
}
ALGORITHMS = ("td3_bc", "iql", "bc", "prdc")


def begin(
    out: Path, data: OfflineDataset, algorithm: str = "td3_bc", reporter=None, **options
) -> runner.RunResult:
    run_options = RunOptions(out=out, **OPTIONS | options)
    return start(algorithm, make_settings(algorithm, TINY), run_options, dataset=data, reporter=reporter)


def only_run(out: Path) -> Path:
    (config,) = out.glob("*/*/seed*/config.json")
    return config.parent


def left(directory: Path) -> dict[str, object]:
    """Everything of a run that must not depend on interruptions."""
    files: dict[str, object] = {name: (directory / name).read_text() for name in ("metrics.csv", "eval.csv")}
    files["weights"] = {
        name: value.numpy().tobytes()
        for name, value in safetensors.torch.load_file(directory / "policy.safetensors").items()
    }
    with np.load(directory / "final_returns.npz") as final:
        files["final"] = {name: final[name].tobytes() for name in final.files}
    state, _ = load_checkpoint(directory)
    files["learner"] = flat(state["learner"])
    return files


def flat(state: object) -> object:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """A killed process loses nothing that it handed to the system: only a power cut needs the flush."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def quiet_data(pendulum) -> OfflineDataset:
    """The tiny dataset without an environment: a run of it takes milliseconds."""
    facts = {k: v for k, v in pendulum.metadata.items() if k != "env_id"}
    facts |= {"action_low": [-2.0], "action_high": [2.0]}
    return OfflineDataset(pendulum.fields, pendulum.episode_starts, facts)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, pendulum, signal_at, algorithm):
    """Stopped twice, at steps drawn anew in every run of this test; any of them must do."""
    whole = begin(tmp_path / "whole", pendulum, algorithm)
    first = random.randrange(1, STEPS - 1)
    second = random.randrange(1, STEPS - first)
    signal_at(first, signal.SIGTERM)
    with pytest.raises(Stopped, match=f"stopped at step {first}; go on with: offrl resume") as stopped:
        begin(tmp_path / "cut", pendulum, algorithm)
    assert stopped.value.exit_code == 143
    directory = only_run(tmp_path / "cut")
    signal_at(second, signal.SIGINT)
    with pytest.raises(Stopped, match=f"stopped at step {first + second}") as stopped:
        resume(directory, dataset=pendulum)
    assert stopped.value.exit_code == 130
    signal_at(0)
    resumed = resume(directory, dataset=pendulum)
    assert left(directory) == left(whole.directory), (first, second)
    np.testing.assert_array_equal(resumed.returns, whole.returns)
    np.testing.assert_array_equal(resumed.scores, whole.scores)


def test_a_stop_at_the_last_step_finishes_the_run(tmp_path, pendulum, signal_at):
    signal_at(STEPS)
    assert len(begin(tmp_path, pendulum).returns) == 1
    assert (only_run(tmp_path) / "final_returns.npz").exists()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_killed_at_a_random_moment_resumes_bit_for_bit(tmp_path, pendulum, in_child, algorithm):
    """kill -9 of the real process, again and again until the run has come to its end."""
    whole = begin(tmp_path / "whole", pendulum, algorithm)

    def go_on() -> None:
        found = list((tmp_path / "cut").glob("*/*/seed*/config.json"))
        if found:
            resume(found[0].parent, dataset=pendulum)
        else:
            begin(tmp_path / "cut", pendulum, algorithm)

    for _ in range(2):
        child = in_child(go_on, kill_after=random.uniform(0.01, 0.3))
        assert child.code in (0, -signal.SIGKILL), child.err
    go_on()
    assert left(only_run(tmp_path / "cut")) == left(whole.directory)


def dies_before(operation: int, function) -> int:
    """Run ``function`` in this (forked) process, which kills itself before its n-th change of a file."""
    count = 0

    def watch(event: str, args: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.truncate", "os.remove", "os.mkdir", "os.chmod"):
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(watch)
    function()
    return 7  # it has done everything without reaching that operation


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_a_run_killed_before_any_of_its_file_operations_resumes_bit_for_bit(
    tmp_path, quiet_data, in_child, stride
):
    """The gaps between two changes on disk, from the run directory's making to the mark of a finished run.

    The slow variant visits every gap, the fast one every ninth from a random start.
    """
    settings = {"algorithm": "bc", "steps": 4, "log_every": 1, "checkpoint_every": 2}
    whole = begin(tmp_path / "whole", quiet_data, **settings)
    operation, codes = random.randrange(stride), []
    while 7 not in codes:
        out = tmp_path / str(operation)
        child = in_child(lambda n=operation, o=out: dies_before(n, lambda: begin(o, quiet_data, **settings)))
        codes.append(child.code)
        assert child.code in (7, -signal.SIGKILL), child.err
        found = list(out.glob("*/*/seed*/config.json"))
        if found:
            resume(found[0].parent, dataset=quiet_data)
            assert left(found[0].parent) == left(whole.directory), operation
            assert not list(found[0].parent.glob(".*")), "temporary files were left behind"
        else:
            assert not list(out.glob("*/*/seed*/*.csv")), "a run without config.json must not have begun"
        shutil.rmtree(out, ignore_errors=True)
        operation += stride
    assert operation > 40


def test_a_run_that_dies_in_the_middle_of_a_row_forgets_the_half_row(tmp_path, pendulum, signal_at):
    whole = begin(tmp_path / "whole", pendulum)
    signal_at(9)
    with pytest.raises(Stopped):
        begin(tmp_path / "cut", pendulum)
    directory = only_run(tmp_path / "cut")
    for name in ("metrics.csv", "eval.csv", "timing.csv"):
        with open(directory / name, "a") as file:
            file.write("12,0.3")
    signal_at(0)
    resume(directory, dataset=pendulum)
    assert left(directory) == left(whole.directory)


@pytest.mark.parametrize("checkpoints", ["damaged", "none"])
def test_the_mirror_has_each_row_of_the_table_once(tmp_path, quiet_data, signal_at, checkpoints):
    """Steps 15 and 16 are made twice: the last checkpoint cannot be read, or all of them are made again."""
    signal_at(16)
    with pytest.raises(Stopped):
        begin(tmp_path, quiet_data, tensorboard=True, log_every=1)
    signal_at(0)
    directory = only_run(tmp_path)
    if checkpoints == "damaged":
        flip_a_bit(directory / "checkpoint.pt")
    else:
        for path in directory.glob("checkpoint*"):
            path.unlink()
    resume(directory, dataset=quiet_data)
    lines = (directory / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    name = next(column for column in rows[0] if column != "step")
    seen = EventAccumulator(str(directory / "tensorboard")).Reload().Scalars(f"train/{name}")
    assert [(e.step, e.value) for e in seen] == [(int(r["step"]), np.float32(r[name])) for r in rows]


@pytest.fixture
def stopped_run(tmp_path, quiet_data, signal_at) -> Path:
    """A run that was stopped at step 16, with two checkpoints (14 and 16)."""
    signal_at(16)
    with pytest.raises(Stopped):
        begin(tmp_path / "stopped", quiet_data)
    signal_at(0)
    return only_run(tmp_path / "stopped")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path, quiet_data, stopped_run, capsys
):
    flip_a_bit(stopped_run / "checkpoint.pt")
    resume(stopped_run, dataset=quiet_data, reporter_mode="text")
    out = capsys.readouterr().out
    assert "at step 14" in out
    assert "checkpoint.pt is damaged" in out
    assert left(stopped_run) == left(begin(tmp_path / "whole", quiet_data).directory)


def test_two_damaged_checkpoints_are_refused_and_nothing_is_touched(stopped_run, quiet_data):
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        flip_a_bit(stopped_run / name)
    before = {p.name: p.read_bytes() for p in stopped_run.iterdir()}
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        resume(stopped_run, dataset=quiet_data)
    assert {p.name: p.read_bytes() for p in stopped_run.iterdir()} == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, quiet_data, stopped_run, capsys):
    for path in stopped_run.glob("checkpoint*"):
        path.unlink()
    resume(stopped_run, dataset=quiet_data, reporter_mode="text")
    assert "no checkpoint yet: starting over" in capsys.readouterr().out
    assert left(stopped_run) == left(begin(tmp_path / "whole", quiet_data).directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "bc"}, "its algorithm is bc"),
        ({"seed": 5}, "its seed is 5"),
        ({"steps": 99}, "its steps is 99"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    tmp_path, quiet_data, stopped_run, signal_at, change, message
):
    signal_at(16)
    with pytest.raises(Stopped):
        begin(tmp_path / "other", quiet_data, **change)
    other = only_run(tmp_path / "other")
    for path in other.glob("checkpoint*"):
        shutil.copy(path, stopped_run)
    with pytest.raises(CheckpointError, match=message):
        resume(stopped_run, dataset=quiet_data)


def test_edited_settings_do_not_fit_the_checkpoint(stopped_run, quiet_data):
    settings = json.loads((stopped_run / "config.json").read_text())["settings"]
    edit_json(stopped_run / "config.json", settings=settings | {"lr": 0.5})
    with pytest.raises(CheckpointError, match="is of another run: its settings"):
        resume(stopped_run, dataset=quiet_data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99, this version reads 1"),
        ({"format": None}, "has format None"),
        ({"steps": "many"}, "'steps' is 'many'"),
        ({"steps": -4}, "steps must be 1 or more, got -4"),
        ({"settings": {"hiden": 8}}, "there is no setting 'hiden'"),
        ({"settings": {"hidden": "wide"}}, "hidden is 'wide', it must be of the kind of its default 256"),
        ({"settings": {"tau": 0.995}}, "did you mean 0.005"),
        ({"settings": [1]}, "'settings' is"),
        ({"env_id": 3}, "'env_id' is 3"),
        ({"device": "tpu:7"}, "device 'tpu:7' cannot be used"),
        ({"algorithm": "td3_cb"}, "unknown algorithm 'td3_cb'; did you mean 'td3_bc'"),
    ],
)
def test_a_damaged_config_is_refused_with_the_reason(stopped_run, quiet_data, change, message):
    edit_json(stopped_run / "config.json", **change)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        resume(stopped_run, dataset=quiet_data)


def test_other_data_are_refused(stopped_run, pendulum, quiet_data):
    rewards = quiet_data.fields["rewards"].copy()
    rewards[5] += 1
    fields = quiet_data.fields | {"rewards": rewards}
    other = OfflineDataset(fields, quiet_data.episode_starts, quiet_data.metadata)
    with pytest.raises(CheckpointError, match=r"the data .* changed"):
        resume(stopped_run, dataset=other)


def test_data_in_memory_must_be_given_again(stopped_run):
    with pytest.raises(ConfigError, match="trained from data in memory"):
        resume(stopped_run)


@pytest.mark.parametrize("fact", runner.MUST_MATCH)
def test_another_machine_is_refused_unless_allowed(tmp_path, quiet_data, stopped_run, fact):
    recorded = json.loads((stopped_run / "versions.json").read_text())[fact]
    edit_json(stopped_run / "versions.json", **{fact: 64 if fact == "threads" else "another"})
    with pytest.raises(
        CheckpointError, match=f"not be exact .{fact}: .* -> {re.escape(str(recorded))}.*--allow-inexact"
    ):
        resume(stopped_run, dataset=quiet_data)
    resume(stopped_run, dataset=quiet_data, allow_inexact=True)


def test_libraries_of_the_environment_matter_where_there_is_one(
    tmp_path, pendulum, quiet_data, signal_at, stopped_run
):
    edit_json(stopped_run / "versions.json", mujoco="1.50")
    resume(stopped_run, dataset=quiet_data)
    signal_at(2)
    with pytest.raises(Stopped):
        begin(tmp_path, pendulum)
    signal_at(0)
    edit_json(only_run(tmp_path) / "versions.json", mujoco="1.50")
    with pytest.raises(CheckpointError, match=r"mujoco: 1\.50 -> "):
        resume(only_run(tmp_path), dataset=pendulum)


def test_a_finished_run_is_returned_as_it_is(tmp_path, pendulum):
    whole = begin(tmp_path, pendulum)
    before = {p.name: p.read_bytes() for p in whole.directory.iterdir()}
    again = resume(whole.directory)
    assert again.already_finished
    np.testing.assert_array_equal(again.returns, whole.returns)
    assert torch.equal(again.policy.head.weight, whole.policy.head.weight)
    assert {p.name: p.read_bytes() for p in whole.directory.iterdir()} == before


def test_a_run_whose_end_mark_was_lost_or_damaged_is_completed_again(tmp_path, pendulum):
    """Killed after the last checkpoint: nothing is left to train, the last evaluation is made again, not recorded."""
    whole = begin(tmp_path, pendulum)
    expected = left(whole.directory)
    end = whole.directory / "final_returns.npz"
    end.write_bytes(end.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"damaged.*delete it and resume"):
        resume(whole.directory)
    end.unlink()
    for name in ("policy.json", "policy.safetensors"):
        (whole.directory / name).unlink()
    again = resume(whole.directory, dataset=pendulum)
    assert not again.already_finished
    assert left(whole.directory) == expected


def test_two_processes_cannot_train_one_run(stopped_run, quiet_data):
    with runner.RunDir(stopped_run).locked(), pytest.raises(CheckpointError, match="by another process"):
        resume(stopped_run, dataset=quiet_data)
    resume(stopped_run, dataset=quiet_data)


def test_a_run_moves_to_another_folder(tmp_path, pendulum_npz, signal_at, monkeypatch):
    """The data's path is stored absolute: a resume works from any folder, and for a moved run."""
    monkeypatch.chdir(pendulum_npz.parent)
    options = RunOptions(out=tmp_path / "a", dataset=pendulum_npz.name, env="Pendulum-v1", **OPTIONS)
    signal_at(16)
    with pytest.raises(Stopped):
        start("bc", make_settings("bc", TINY), options)
    signal_at(0)
    monkeypatch.chdir("/")
    moved = tmp_path / "b"
    shutil.move(only_run(tmp_path / "a"), moved)
    assert resume(moved).steps == STEPS


def test_a_full_disk_costs_nothing(tmp_path, quiet_data, in_child):
    """A file-size limit just below the checkpoint's stands for the full disk; the run then goes on without it."""
    whole = begin(tmp_path / "whole", quiet_data)
    out = tmp_path / "cut"
    begin_size = (whole.directory / "checkpoint.pt").stat().st_size

    def limited() -> int:
        limits = (begin_size - 100, resource.RLIM_INFINITY)

        class Late(Reporter):
            def progress(self, step, rate, *, force=False):
                if step >= 7:  # one checkpoint is written
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        with pytest.raises(OSError, match="too large") as full:
            begin(out, quiet_data, reporter=Late("quiet", STEPS))
        assert full.value.errno == errno.EFBIG
        assert Path(full.value.filename).name == "checkpoint-next.pt"
        assert full.value.__notes__ == [f"go on with: offrl resume {only_run(out)}"]
        return 0

    child = in_child(limited)
    assert child.code == 0, child.err
    state, _ = load_checkpoint(only_run(out))
    assert state["step"] == 7
    resume(only_run(out), dataset=quiet_data)
    assert left(only_run(out)) == left(whole.directory)


GLOBAL_STREAMS = '''
import random
import numpy as np
import torch
from offrl.algos.bc import BC, BCConfig
from offrl.training.problem import Algorithm

class Noisy(BC):
    """A method that draws from the global streams, in its making and in its updates."""
    def __init__(self, problem, config):
        super().__init__(problem, config)
        with torch.no_grad():
            self.actor.params[0].add_(torch.rand(()) + np.random.rand() + random.random())

    def update(self, batch):
        with torch.no_grad():
            self.actor.params[0].add_(0.01 * (torch.randn(()) + np.random.randn() + random.gauss(0, 1)))
        return super().update(batch)

ALGORITHM = Algorithm(BCConfig, Noisy)
'''


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_method_of_ones_own_may_draw_from_the_global_streams(tmp_path, quiet_data, signal_at, checkpoints):
    file = tmp_path / "noisy.py"
    file.write_text(GLOBAL_STREAMS)
    whole = begin(tmp_path / "whole", quiet_data, str(file))
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002 - whatever the process did before
    signal_at(11)
    with pytest.raises(Stopped):
        begin(tmp_path / "cut", quiet_data, str(file))
    directory = only_run(tmp_path / "cut")
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    signal_at(0)
    if not checkpoints:
        for path in directory.glob("checkpoint*"):
            path.unlink()
    resume(directory, dataset=quiet_data)
    assert left(directory) == left(whole.directory)


def test_an_edited_method_is_not_resumed_silently(tmp_path, quiet_data, signal_at):
    file = tmp_path / "noisy.py"
    file.write_text(GLOBAL_STREAMS)
    signal_at(11)
    with pytest.raises(Stopped):
        begin(tmp_path / "cut", quiet_data, str(file))
    signal_at(0)
    file.write_text(GLOBAL_STREAMS.replace("0.01", "0.02"))
    with pytest.raises(CheckpointError, match=r"noisy\.py was edited"):
        resume(only_run(tmp_path / "cut"), dataset=quiet_data)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"noisy\.py"):
        resume(only_run(tmp_path / "cut"), dataset=quiet_data)


@pytest.fixture
def usual_ctrl_c():
    """Python's own handler, also where the suite runs in the background and Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_a_second_signal_ends_at_once(tmp_path, quiet_data, monkeypatch):
    """The first Ctrl-C is obeyed after the update; the second acts as usual."""
    sample = UniformSource.sample

    def twice(self, generators):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return sample(self, generators)

    monkeypatch.setattr(UniformSource, "sample", twice)
    with pytest.raises(
        Stopped, match="stopped at once; go on from the last checkpoint with: offrl resume"
    ) as stopped:
        begin(tmp_path, quiet_data)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rewards_at_the_end_come_from_the_last_policy(tmp_path, pendulum):
    """The last rows of eval.csv are the returns of the result and of final_returns.npz."""
    result = begin(tmp_path, pendulum, final_episodes=3)
    rows = [line.split(",") for line in (result.directory / "eval.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["10", "20", "24", "24", "24"]
    assert [float(row[2]) for row in rows[-3:]] == result.returns.tolist()
    scores = (result.returns + 1500) / (1500 - 150) * 100
    np.testing.assert_allclose(result.scores, scores)
    np.testing.assert_allclose([float(row[3]) for row in rows[-3:]], scores)
    assert session.RunResult is type(result)

"""Many seeds at once: each run of a stack is its single run, no seed touches another, a stack resumes exactly."""

import csv
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from offrl.algos import ALGORITHMS
from offrl.data.source import UniformSource
from offrl.errors import CheckpointError, ConfigError, PolicyError, Stopped
from offrl.evaluation.runs import read_run
from offrl.training import many
from offrl.training.checkpoint import load_checkpoint
from offrl.training.many import at_once, choose_mode, resume_runs, train_seeds
from offrl.training.options import RunOptions, SeedOptions, make_settings
from offrl.training.progress import Reporter
from offrl.training.runner import resume, start

TINY = {"hidden": 8, "batch_size": 8}
SMALLER = {
    "a2pr": {"vae_hidden": 8},
    "odice": {"policy_hidden": 8},
    "sac_n": {"critics": 3},
    "edac": {"critics": 3},
}
STEPS = 20
OPTIONS = {"steps": STEPS, "log_every": 3, "eval_every": 10, "eval_episodes": 2, "checkpoint_every": 7}
SEEDS = (4, 0, 7)


def settings_of(algorithm: str):
    known = make_settings(algorithm, {})
    small = {k: v for k, v in (TINY | SMALLER.get(algorithm, {})).items() if hasattr(known, k)}
    return make_settings(algorithm, small)


def stacked(out, data, algorithm="td3_bc", seeds=SEEDS, reporter=None, **options):
    return train_seeds(
        algorithm,
        settings_of(algorithm) if not algorithm.endswith(".py") else make_settings(algorithm, TINY),
        RunOptions(out=out, **OPTIONS | options),
        SeedOptions(seeds=seeds),
        dataset=data,
        reporter=reporter,
    )


def single(out, data, seed, algorithm="td3_bc", **options):
    run_options = RunOptions(out=out, **OPTIONS | options, seed=seed)
    return start(algorithm, settings_of(algorithm), run_options, dataset=data)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "policy.safetensors")


def table(directory: Path, name: str) -> tuple[list[str], np.ndarray]:
    with open(directory / name, newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])


def left(directory: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on other seeds or interruptions."""
    names = ("metrics.csv", "eval.csv", "policy.json", "policy.safetensors", "final_returns.npz")
    return {name: (directory / name).read_bytes() for name in names}


def left_by_stack(out: Path) -> dict[str, object]:
    runs = sorted(path.parent for path in out.glob("*/*/seed*/config.json"))
    found: dict[str, object] = {run.name.partition("-")[0]: left(run) for run in runs}
    (holder,) = (run for run in runs if (run / "checkpoint.pt").exists())
    state, _ = load_checkpoint(holder)
    return found | {"learner": repr(flat(state["learner"])), "data": repr(flat(state["data"]))}


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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_run_of_a_stack_is_its_single_run(tmp_path, pendulum, algorithm):
    """Weights, metrics and evaluations after 20 steps, by the same door that a user takes."""
    results = stacked(tmp_path / "stack", pendulum, algorithm)
    assert [result.seed for result in results] == list(SEEDS)
    for result in results:
        alone = single(tmp_path / "single", pendulum, result.seed, algorithm)
        ours, theirs = weights(result.directory), weights(alone.directory)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=name)
        for name in ("metrics.csv", "eval.csv"):
            (header, values), (expected_header, expected) = (
                table(r.directory, name) for r in (result, alone)
            )
            assert header == expected_header
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5, err_msg=f"{algorithm} {name}")
        np.testing.assert_allclose(result.returns, alone.returns, rtol=1e-4)
        np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-3, atol=1e-3)
        configs = [json.loads((r.directory / "config.json").read_text()) for r in (result, alone)]
        assert configs[0].pop("stack") == [r.directory.name for r in results]
        assert configs[0] == configs[1]
    matrices = [max(weights(r.directory).values(), key=lambda w: w.dim()) for r in results]
    assert len({tuple(w.flatten()[:3].tolist()) for w in matrices}) == 3
    assert len({tuple(r.returns) for r in results}) == 3


def test_a_run_of_a_stack_is_read_and_reported_as_any_run(tmp_path, pendulum):
    for result in stacked(tmp_path, pendulum):
        record = read_run(result.directory)
        assert record.finished
        assert record.seed == result.seed
        assert [e.step for e in record.evaluations] == [10, 20]
        np.testing.assert_array_equal(record.final_returns, result.returns)
        names = {path.name for path in result.directory.iterdir()}
        assert {"command.txt", "versions.json", "timing.csv", "policy.json"} <= names
        assert ("checkpoint.pt" in names) == (result.seed == SEEDS[0])


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql", "prdc", "cql"])
def test_another_seed_in_the_stack_leaves_the_others_bit_equal(tmp_path, pendulum, algorithm):
    one = stacked(tmp_path / "a", pendulum, algorithm, (0, 1, 2))
    two = stacked(tmp_path / "b", pendulum, algorithm, (0, 9, 2))
    for k, same in ((0, True), (1, False), (2, True)):
        assert (left(one[k].directory) == left(two[k].directory)) == same, k


def test_the_data_order_of_one_seed_leaves_the_others_bit_equal(tmp_path, pendulum, monkeypatch):
    one = stacked(tmp_path / "a", pendulum)
    sample = UniformSource.sample

    def sampling(self, generators):
        torch.randint(5, (), generator=generators[1])
        return sample(self, generators)

    monkeypatch.setattr(UniformSource, "sample", sampling)
    two = stacked(tmp_path / "b", pendulum)
    assert [left(a.directory) == left(b.directory) for a, b in zip(one, two, strict=True)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql", "prdc", "sac_n"])
def test_a_stopped_stack_resumes_bit_for_bit_by_any_of_its_runs(tmp_path, pendulum, signal_at, algorithm):
    stacked(tmp_path / "whole", pendulum, algorithm)
    first = random.randrange(1, STEPS - 1)
    second = random.randrange(1, STEPS - first)
    signal_at(first)
    with pytest.raises(Stopped, match=f"stopped at step {first}; go on with: offrl resume"):
        stacked(tmp_path / "cut", pendulum, algorithm)
    runs = sorted(path.parent for path in (tmp_path / "cut").glob("*/*/seed*/config.json"))
    assert len(runs) == 3
    signal_at(second)
    with pytest.raises(Stopped, match=f"stopped at step {first + second}"):
        resume(random.choice(runs), dataset=pendulum)
    signal_at(0)
    picked = random.choice(runs)
    result = resume(picked, dataset=pendulum)
    assert result.directory == picked
    assert result.seed == int(picked.name[4:].partition("-")[0])
    assert left_by_stack(tmp_path / "cut") == left_by_stack(tmp_path / "whole"), (first, second)
    assert all(resume(run).already_finished for run in runs)


def test_a_stack_killed_at_a_random_moment_resumes_bit_for_bit(tmp_path, pendulum, in_child):
    stacked(tmp_path / "whole", pendulum)

    def go_on() -> None:
        found = sorted((tmp_path / "cut").glob("*/*/seed*/config.json"))
        if len(found) < len(SEEDS):  # killed while the folders were made: nothing was begun
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            stacked(tmp_path / "cut", pendulum)
        else:
            resume(random.choice(found).parent, dataset=pendulum)

    for _ in range(3):
        child = in_child(go_on, kill_after=random.uniform(0.02, 0.3))
        assert child.code in (0, -signal.SIGKILL), child.err
    go_on()
    assert left_by_stack(tmp_path / "cut") == left_by_stack(tmp_path / "whole")


@pytest.fixture
def stopped(tmp_path, pendulum, signal_at) -> list[Path]:
    """The runs of a stack that was stopped at step 12, in the order of its seeds."""
    signal_at(12)
    with pytest.raises(Stopped):
        stacked(tmp_path / "stopped", pendulum)
    signal_at(0)
    runs = [path.parent for path in (tmp_path / "stopped").glob("*/*/seed*/config.json")]
    return sorted(runs, key=lambda run: SEEDS.index(read_run(run).seed))


def edit(run: Path, **changes) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_stack_with_a_lost_run_is_refused(stopped, pendulum):
    shutil.rmtree(stopped[2])
    with pytest.raises(CheckpointError, match=f"in one stack with {stopped[2].name}, which is not beside it"):
        resume(stopped[1], dataset=pendulum)


def test_a_run_moved_out_of_its_stack_is_refused_and_the_whole_may_move(tmp_path, stopped, pendulum):
    shutil.copytree(stopped[0].parent, tmp_path / "elsewhere")
    moved = tmp_path / "lonely"
    shutil.move(stopped[1], moved)
    with pytest.raises(CheckpointError, match=r"lonely was trained in one stack with seed4-.* not beside it"):
        resume(moved, dataset=pendulum)
    assert resume(tmp_path / "elsewhere" / stopped[1].name, dataset=pendulum).steps == STEPS


def test_a_renamed_run_is_refused(stopped, pendulum):
    shutil.copytree(stopped[0], stopped[0].with_name("copy"))
    with pytest.raises(CheckpointError, match="copy was renamed: its stack is seed4-"):
        resume(stopped[0].with_name("copy"), dataset=pendulum)


@pytest.mark.parametrize("names", ["seed0", [3], ["../seed0-1"], ["seed0-1/../.."], [".."], [""]])
def test_a_damaged_stack_is_refused(stopped, names):
    edit(stopped[0], stack=names)
    with pytest.raises(CheckpointError, match="damaged: 'stack' is"):
        resume(stopped[0])


def test_edited_runs_of_a_stack_are_refused(stopped, pendulum):
    edit(stopped[2], steps=99)
    with pytest.raises(CheckpointError, match="of its stack differ in 'steps'"):
        resume(stopped[0], dataset=pendulum)
    edit(stopped[2], steps=STEPS, seed=8)
    with pytest.raises(CheckpointError, match=r"its seeds is \[4, 0, 7\], config.json says \[4, 0, 8\]"):
        resume(stopped[0], dataset=pendulum)


def test_two_processes_cannot_train_one_stack(stopped, pendulum):
    from offrl.training.run_dir import RunDir

    with RunDir(stopped[2]).locked(), pytest.raises(CheckpointError, match="by another process"):
        resume(stopped[0], dataset=pendulum)
    resume(stopped[0], dataset=pendulum)


def test_a_stack_killed_before_its_first_checkpoint_starts_over(stopped, tmp_path, pendulum):
    stacked(tmp_path / "whole", pendulum)
    for path in stopped[0].glob("checkpoint*"):
        path.unlink()
    resume(stopped[2], dataset=pendulum)
    assert left_by_stack(tmp_path / "stopped") == left_by_stack(tmp_path / "whole")


def test_a_stack_killed_between_two_end_marks_is_completed(stopped, tmp_path, pendulum):
    stacked(tmp_path / "whole", pendulum)
    resume(stopped[0], dataset=pendulum)
    for run in stopped[1:]:
        (run / "final_returns.npz").unlink()
    resume(stopped[0], dataset=pendulum)
    assert left_by_stack(tmp_path / "stopped") == left_by_stack(tmp_path / "whole")


def test_a_resumed_stack_clears_up_and_remembers_the_best_of_each_run(tmp_path, pendulum, stopped, capsys):
    stacked(tmp_path / "whole", pendulum, reporter=Reporter("json", STEPS))
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for run in stopped:
        (run / ".policy.json.x.tmp.json").write_text("{")
    resume(stopped[0], dataset=pendulum, reporter_mode="json")
    resumed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert resumed == whole[3:]
    assert any(late["best"] == early["best"] for early, late in zip(whole, resumed, strict=False))
    assert not [path for run in stopped for path in run.glob(".*")]


def test_what_is_reported_is_the_mean_and_each_evaluation_names_its_seed(tmp_path, pendulum):
    class Kept(Reporter):
        records: list = []

        def evaluation(self, record, last, best, unit):
            super().evaluation(record, last, best, unit)
            self.records.append((record, last))

    reporter = Kept("quiet", STEPS)
    results = stacked(tmp_path, pendulum, reporter=reporter)
    assert [r["seed"] for r, _ in reporter.records] == [*SEEDS, *SEEDS]
    assert reporter.records[-1][1] == pytest.approx(np.mean([r.scores.mean() for r in results]))
    last_rows = [table(r.directory, "metrics.csv")[1][-1] for r in results]
    assert reporter.metrics["critic_loss"] == pytest.approx(
        np.mean(
            [row[table(results[0].directory, "metrics.csv")[0].index("critic_loss")] for row in last_rows]
        )
    )


def test_a_seed_that_diverges_is_named_and_the_others_go_on(tmp_path, pendulum, capsys, monkeypatch):
    whole = stacked(tmp_path / "whole", pendulum)
    sample = UniformSource.sample

    def sampling(self, generators):
        batch = sample(self, generators)
        batch.rewards[1] = torch.inf
        return batch

    monkeypatch.setattr(UniformSource, "sample", sampling)
    with pytest.raises(PolicyError, match=r"2 of 3 runs are finished; not seed 0 in .*not finite"):
        stacked(tmp_path / "ill", pendulum, reporter=Reporter("text", STEPS))
    lines = [line for line in capsys.readouterr().out.splitlines() if "diverged" in line]
    assert len(lines) == 1
    assert lines[0].endswith(": seed 0 has diverged")
    ill = sorted(path.parent for path in (tmp_path / "ill").glob("*/*/seed*/config.json"))
    assert [(run / "final_returns.npz").exists() for run in ill] == [False, True, True]
    assert [left(ill[1]), left(ill[2])] == [left(whole[0].directory), left(whole[2].directory)]


def test_a_stack_that_diverges_as_a_whole_ends_as_a_run_does(tmp_path, pendulum, monkeypatch):
    sample = UniformSource.sample

    def sampling(self, generators):
        batch = sample(self, generators)
        batch.rewards.fill_(torch.inf)
        return batch

    monkeypatch.setattr(UniformSource, "sample", sampling)
    for seeds in ((0,), (0, 1)):
        with pytest.raises(PolicyError, match="the policy's action is not finite"):
            stacked(tmp_path, pendulum, seeds=seeds)


@pytest.mark.parametrize("seeds", [(1, 1), (0, -1)])
def test_impossible_seeds_are_refused(seeds):
    with pytest.raises(ConfigError, match="seeds must be different and 0 or more"):
        SeedOptions(seeds=seeds)


def test_one_seed_is_the_plain_run(tmp_path, pendulum):
    (result,) = stacked(tmp_path, pendulum, seeds=(5,))
    config = json.loads((result.directory / "config.json").read_text())
    assert config["seed"] == 5
    assert "stack" not in config


@pytest.mark.parametrize(
    ("hidden", "device", "cores", "asked", "in_memory", "mode"),
    [
        (64, "cpu", 2, "auto", False, "stacked"),
        (127, "cpu", 2, "auto", False, "stacked"),
        (128, "cpu", 2, "auto", False, "processes"),
        (256, "cpu", 2, "auto", True, "stacked"),
        (256, "cpu", 1, "auto", False, "stacked"),
        (256, "cuda", 2, "auto", False, "stacked"),
        (256, "cpu", 2, "stacked", False, "stacked"),
        (64, "cpu", 2, "processes", False, "processes"),
    ],
)
def test_the_choice(monkeypatch, hidden, device, cores, asked, in_memory, mode):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(many, "resolve_device", lambda name: name)
    settings, options = make_settings("iql", {"hidden": hidden}), RunOptions(device=device)
    chosen = SeedOptions(seeds=(0, 1), seed_mode=asked)
    assert choose_mode("iql", settings, options, chosen, in_memory=in_memory)[0] == mode


def test_processes_at_once_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [at_once(20, 1), at_once(3, 1), at_once(20, 3), at_once(20, 0), at_once(20, 16)] == [8, 3, 2, 2, 1]


MIXING = '''
from offrl.algos.bc import BC, BCConfig
from offrl.training.problem import Algorithm

class Mixing(BC):
    """A method whose seeds learn from one another."""
    def update(self, batch):
        batch.actions.copy_(batch.actions.mean(dim=0, keepdim=True).expand_as(batch.actions))
        return super().update(batch)

ALGORITHM = Algorithm(BCConfig, Mixing)
'''


def test_a_method_that_does_not_stack_says_so(tmp_path, pendulum):
    file = tmp_path / "mixing.py"
    file.write_text(MIXING)
    settings, options = make_settings(str(file), TINY), RunOptions(out=tmp_path, **OPTIONS)
    with pytest.raises(
        ConfigError, match=r"cannot be stacked: mixing does not stack \(seed 0 of the stack is"
    ):
        train_seeds(
            str(file), settings, options, SeedOptions(seeds=(0, 1), seed_mode="stacked"), dataset=pendulum
        )
    auto = choose_mode(str(file), settings, options, SeedOptions(seeds=(0, 1)), in_memory=False)
    assert auto[0] == "processes"
    assert auto[1].startswith("mixing does not stack")
    with pytest.raises(ConfigError, match="data in memory cannot be handed .* because mixing does not stack"):
        stacked(tmp_path, pendulum, str(file))
    assert not list(tmp_path.glob("mixing/*"))


def test_a_method_of_ones_own_that_stacks_is_stacked(tmp_path, pendulum):
    file = tmp_path / "mine.py"
    file.write_text(MIXING.replace("batch.actions.mean(dim=0, keepdim=True)", "batch.actions"))
    assert len(stacked(tmp_path, pendulum, str(file))) == 3


def test_wandb_takes_one_run_a_process():
    options = RunOptions(wandb=True)
    settings = make_settings("bc", TINY)
    assert choose_mode("bc", settings, options, SeedOptions(seeds=(0, 1)), in_memory=False)[0] == "processes"
    with pytest.raises(ConfigError, match="cannot be stacked: W&B takes one run a process"):
        choose_mode("bc", settings, options, SeedOptions(seeds=(0, 1), seed_mode="stacked"), in_memory=False)


def in_processes(folder: Path, monkeypatch, seeds=(3, 1), reporter=None, **options):
    monkeypatch.chdir(folder)
    settings = make_settings("bc", TINY)
    run_options = RunOptions(dataset="tiny.npz", env="Pendulum-v1", out=Path("out"), **OPTIONS | options)
    asked = SeedOptions(seeds=seeds, seed_mode="processes")
    return train_seeds("bc", settings, run_options, asked, reporter=reporter)


def test_processes_make_the_runs_that_one_process_makes(tmp_path, pendulum_npz, monkeypatch, capsys):
    results = in_processes(tmp_path, monkeypatch, reporter=Reporter("text", STEPS))
    out = capsys.readouterr().out
    assert "2 seeds in processes of their own, " in out
    assert [result.seed for result in results] == [3, 1]
    for result in results:
        options = RunOptions(
            dataset="tiny.npz", env="Pendulum-v1", out=Path("alone"), seed=result.seed, **OPTIONS
        )
        alone = start("bc", make_settings("bc", TINY), options)
        assert left(result.directory) == left(alone.directory)
        assert (result.directory / "config.json").read_text() == (alone.directory / "config.json").read_text()
        assert "run directory" in (result.directory / "process.log").read_text()
    assert not any(result.already_finished for result in results)
    directories = [result.directory for result in results]
    assert all(r.already_finished for r in resume_runs(directories))
    (directories[0] / "final_returns.npz").unlink()
    assert [r.already_finished for r in resume_runs(directories)] == [False, True]


def test_processes_report_each_evaluation_with_its_seed(tmp_path, pendulum_npz, monkeypatch, capsys):
    """Other lines of a log are no records."""
    in_processes(tmp_path, monkeypatch, reporter=Reporter("json", STEPS))
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted((r["seed"], r["step"]) for r in records) == [(1, 10), (1, 20), (3, 10), (3, 20)]
    assert all(record["directory"].rsplit("seed", 1)[1][0] == str(record["seed"]) for record in records)
    assert all({"return", "best"} <= set(r) for r in records)
    assert "final" not in set().union(*records)
    assert many._evaluation(b"{1: 2}") == many._evaluation(b"[1]") == many._evaluation(b'{"step": 1}') == {}


def test_a_process_that_fails_is_named_with_its_last_line(tmp_path, pendulum_npz, monkeypatch):
    create = many.RunDir.create
    made = []

    def damaged(root, config):
        run = create(root, config)
        made.append(run)
        if config["seed"] == 1:
            edit(run.path, dataset_sha256="0" * 64)
        return run

    monkeypatch.setattr(many.RunDir, "create", damaged)
    with pytest.raises(
        ChildProcessError, match=r"1 of 2 failed; out/.*seed1-.*: offrl: the data of .* changed"
    ):
        in_processes(tmp_path, monkeypatch)
    assert made[0].finished


def test_stacks_and_single_runs_go_on_together(tmp_path, pendulum_npz, monkeypatch):
    """A stack is one process, whichever of its runs are named and whichever lack their end mark."""
    monkeypatch.chdir(tmp_path)
    settings = make_settings("bc", TINY)
    options = RunOptions(dataset="tiny.npz", env="Pendulum-v1", out=Path("out"), seed=5, **OPTIONS)
    first, last = train_seeds("bc", settings, options, SeedOptions(seeds=(0, 1)))
    alone = start("bc", settings, options)
    before = left(last.directory)
    (last.directory / "final_returns.npz").unlink()
    results = resume_runs([r.directory for r in (last, first, alone)])
    assert sorted(result.seed for result in results) == [0, 1, 5]
    assert left(last.directory) == before


def test_a_signal_is_passed_on_and_the_runs_go_on_together(tmp_path, pendulum_npz, monkeypatch, in_child):
    """SIGTERM to the parent alone: its processes write their checkpoints; one command resumes both."""
    started = lambda: len(list((tmp_path / "out").glob("*/*/*/checkpoint.pt"))) == 2  # noqa: E731
    monkeypatch.setattr(many, "at_once", lambda runs, threads: 2)

    def begin() -> int:
        with pytest.raises(Stopped, match=r"stopped; go on with: offrl resume out/\S+ out/\S+$") as stopped:
            in_processes(
                tmp_path, monkeypatch, steps=30_000, log_every=1000, eval_every=0, checkpoint_every=50
            )
        return stopped.value.exit_code

    child = in_child(begin, kill_when=started, number=signal.SIGTERM)
    assert child.code == 143, child.err
    runs = [path.parent for path in (tmp_path / "out").glob("*/*/*/config.json")]
    for run in runs:
        assert "stopped at step" in (run / "process.log").read_text()
        state = load_checkpoint(run)[0]
        assert state["step"] > 0

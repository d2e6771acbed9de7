"""``offrl sweep`` as a user types it: real processes, stopped, repeated, failing."""

import csv
import json
import signal

import pytest

from offrl.cli import main
from offrl.evaluation.runs import find_runs, read_run

SMALL = ["--datasets", "tiny.npz", "--env", "Pendulum-v1", "--eval-every", "0", "--eval-episodes", "1"]
GRID = ["--grid", "hidden=8", "batch_size=8", "--jobs", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch, pendulum_npz):
    monkeypatch.chdir(pendulum_npz.parent)
    return pendulum_npz.parent


def sweep(*more: str) -> int:
    return main(["sweep", *SMALL, *GRID, *more])


def test_a_dry_run_lists_the_cells_and_writes_nothing(folder, capsys):
    assert sweep("--algos", "bc", "td3_bc", "--seeds", "0", "1", "--steps", "2000", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        "expected: 4 runs (2 of algorithm, dataset and settings x 2 seeds) of 2,000 updates, 4 of them to do; "
        "2 at once, in sweep"
    )
    assert "bc on tiny (hidden=8, batch_size=8): " in lines[2]
    assert "updates/s (measured, " in lines[3]
    assert lines[4].startswith("expected: 0.0")
    assert "core-hours on this machine" in lines[4]
    assert [line.rpartition("-")[0] for line in lines[5:]] == [
        f"{algorithm}-tiny-hidden=8-batch_size=8-seed{seed}"
        for algorithm in ("bc", "td3_bc")
        for seed in (0, 1)
    ]
    assert len(lines) == 9
    assert not (folder / "sweep").exists()


def test_a_sweep_fills_its_table_and_is_not_run_again(folder, capsys):
    typed = ["--algos", "bc", "--seeds", "0", "1", "--steps", "12", "--seed-mode", "processes"]
    assert sweep(*typed) == 0
    out = capsys.readouterr().out
    assert "training: 0 of 2 cells are done, 2 to run" in out
    assert "2 of 2 runs are finished." in out
    with open(folder / "sweep/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = [read_run(run) for run in find_runs((folder / "sweep/runs").iterdir())]
    assert {int(row["seed"]): float(row["last"]) for row in rows} == {
        record.seed: record.final_returns.mean() for record in records
    }
    before = {p: p.stat().st_mtime_ns for p in (folder / "sweep/raw").iterdir()}
    assert sweep(*typed) == 0
    assert "2 of 2 cells are done, 0 to run" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (folder / "sweep/raw").iterdir()} == before


def test_a_cell_that_fails_is_reported_and_the_others_are_finished(folder, capsys):
    code = "import sys\nfrom offrl.algos.bc import ALGORITHM\n"
    code += "if sys.argv[-1].endswith('cell.json'): raise OSError('no')\n"
    (folder / "broken.py").write_text(code)
    assert sweep("--algos", "bc", "broken.py", "--steps", "12") == 1
    out, err = capsys.readouterr()
    assert "1 of 2 runs are finished" in out
    assert err.startswith("offrl: 1 of 2 cells failed twice: broken-tiny-")
    assert " (OSError: no); see sweep/logs" in err


def test_a_stopped_sweep_goes_on_with_the_same_command(folder, in_child):
    """SIGTERM while a cell trains: it checkpoints; the second call resumes it, to what an undisturbed run leaves."""
    typed = ["-q", "--algos", "bc", "--steps", "2000", "--checkpoint-every", "100"]
    child = in_child(
        lambda: sweep(*typed),
        kill_when=lambda: list(folder.glob("sweep/runs/*/*/*/*/checkpoint.pt")),
        number=signal.SIGTERM,
    )
    assert child.code == 143, child.err
    assert child.err.splitlines()[-1].endswith("runs finished; give the same command to go on")
    assert not list(folder.glob("sweep/raw/*"))
    assert sweep(*typed) == 0
    (raw,) = folder.glob("sweep/raw/*.json")
    assert sweep(*typed, "--out", "whole") == 0
    (whole,) = folder.glob("whole/raw/*.json")
    ours, theirs = json.loads(raw.read_text()), json.loads(whole.read_text())
    assert ours["evaluations"] == theirs["evaluations"]
    assert ours["last_metrics"] == theirs["last_metrics"]
    assert len(list(folder.glob("sweep/runs/*/*/*/seed*"))) == 1


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--algos", "bc", "--steps", "0"], "steps must be 1 or more"),
        (["--algos", "bc", "--jobs", "-1"], "jobs, retries, random, search_seed and seeds must be 0 or more"),
        (
            ["--algos", "bc", "--seeds", "-1"],
            "jobs, retries, random, search_seed and seeds must be 0 or more",
        ),
        (["--algos"], "name at least one algorithm"),
        (["--algos", "bc", "--random", "3"], "--random N and --space FILE go together"),
        (["--algos", "bc", "--space", "x.toml"], "--random N and --space FILE go together"),
        (["--algos", "bc", "--select", "bandit"], "--select bandit needs --budget N"),
        (["--algos", "bc", "--budget", "3"], "--select bandit needs --budget N"),
        (["--algos", "bc", "--address", "auto"], "--address and --gpus belong to --workers ray"),
        (["--algos", "bc", "--preset", "atari"], "unknown preset 'atari'; there is d4rl-locomotion"),
        (["--algos", "bc", "--fqe-steps", "0"], "fqe_steps 1 or more"),
        (["--algos", "bc", "--steps", "2000000000"], "steps and budget must be below"),
        (["--algos", "bc", "--select", "best"], "--select"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(folder, capsys, typed, message):
    assert sweep(*typed) == 2
    assert message in capsys.readouterr().err


def test_the_help_teaches(capsys):
    assert main(["sweep", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "log_uniform = [1e-4, 1e-3]",
        "UCB over --budget online episodes",
        "core-hours",
        "d4rl-locomotion",
        "offrl sweep --algos mdpo_on ppo --envs Hopper-v5",
    ):
        assert words in text


def test_seeds_in_a_stack_stop_and_go_on(folder, in_child):
    """A stop while two stacked seeds train; the same command ends as an undisturbed one."""
    typed = ["-q", "--algos", "bc", "--seeds", "0", "1", "--steps", "1500", "--checkpoint-every", "100"]
    typed += ["--seed-mode", "stacked"]
    cells = folder / "sweep/runs"
    child = in_child(
        lambda: sweep(*typed),
        kill_when=lambda: list(cells.glob("*/*/*/*/checkpoint.pt")),
        number=signal.SIGTERM,
    )
    assert child.code == 143, child.err
    assert [path.name.endswith("+1") for path in cells.iterdir()] == [True]
    assert sweep(*typed) == 0
    assert len(list(cells.glob("*/*/*/seed*"))) == 2
    assert sweep(*typed, "--out", "whole") == 0
    names = sorted(path.name for path in (folder / "sweep/raw").iterdir())
    assert [name.rpartition("-")[0][-5:] for name in names] == ["seed0", "seed1"]
    for name in names:
        ours, theirs = (json.loads((folder / out / "raw" / name).read_text()) for out in ("sweep", "whole"))
        assert ours["evaluations"] == theirs["evaluations"]
        assert ours["last_metrics"] == theirs["last_metrics"]

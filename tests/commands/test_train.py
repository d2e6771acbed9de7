"""``offrl train`` and ``offrl resume`` as a user types them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offrl.cli import main

SMALL = [
    "--hidden",
    "8",
    "--batch-size",
    "8",
    "--env",
    "Pendulum-v1",
    "--eval-every",
    "0",
    "--eval-episodes",
    "1",
]
STEPS = ["--steps", "20", "--log-every", "5", "--checkpoint-every", "8"]


@pytest.fixture
def folder(tmp_path, monkeypatch, pendulum_npz):
    """A working folder with tiny.npz."""
    monkeypatch.chdir(pendulum_npz.parent)
    return pendulum_npz.parent


def run_of(folder: Path) -> Path:
    (config,) = folder.glob("runs/*/*/*/config.json")
    return config.parent


def train(*more: str, algorithm: str = "td3_bc") -> int:
    return main(["train", algorithm, "--dataset", "tiny.npz", *SMALL, *STEPS, *more])


def test_a_run_prints_what_it_trains_where_it_is_and_what_is_next(folder, capsys):
    assert train() == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    run = run_of(folder).relative_to(folder)
    assert lines[0].startswith("td3_bc on tiny: 160 transitions, 4 episodes, O=3, A=1, return ")
    assert lines[1] == f"156 rows (exact), device cpu, 1 thread, 20 steps, run directory {run}"
    assert re.match(r"20/20  100%  .* left  return -\d+\.\d \(last\) -\d+\.\d \(best\)  ", lines[2])
    assert re.fullmatch(r"last return -\d+\.\d \(one episode\)", lines[3])
    assert lines[4:] == [f"run directory {run}", f"next: offrl report {run} --out report.html"]


def test_quiet_prints_nothing(folder, capsys):
    assert train("-q") == 0
    assert capsys.readouterr() == ("", "")


def test_json_prints_one_object_an_evaluation_and_one_at_the_end(folder, capsys):
    assert train("--json", "--eval-every", "10") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["step"], r.get("final")) for r in records] == [(10, None), (20, None), (20, True)]
    assert records[-1]["directory"] == str(run_of(folder).relative_to(folder))
    assert records[-1]["return"] == records[-2]["return"]


def test_a_config_repeats_a_run_and_options_win(folder, capsys):
    assert train("-q", "--seed", "3", "--alpha", "1.5", "--no-normalize-observations") == 0
    first = run_of(folder)
    again = ["train", "td3_bc", "--config", str(first / "config.json"), "-q"]
    assert main([*again, "--out", "again"]) == 0
    (config,) = folder.glob("again/*/*/*/config.json")
    assert (config.parent / "metrics.csv").read_bytes() == (first / "metrics.csv").read_bytes()
    assert (config.parent / "eval.csv").read_bytes() == (first / "eval.csv").read_bytes()
    capsys.readouterr()
    assert main([*again, "--dry-run", "--alpha", "9", "--normalize-observations", "--seed", "0"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["alpha"].startswith("9.0")
    assert shown["normalize_observations"] == "True"
    assert shown["seed"] == "0"
    assert shown["hidden"].startswith("8")
    assert shown["steps"].startswith("20")


def test_a_dry_run_marks_what_differs_and_writes_nothing(folder, capsys):
    assert train("--dry-run", "--preset", "antmaze-umaze-v2", "--alpha", "4") == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert lines["reward_shift"] == "-1.0  (default 0.0)"
    assert lines["alpha"] == "4.0  (default 2.5)"
    assert lines["lr"] == "0.0003"
    assert lines["dataset"] == "tiny.npz  (default None)"
    assert not (folder / "runs").exists()


def test_an_option_can_undo_a_preset(folder, capsys):
    assert train("--dry-run", "--preset", "antmaze-umaze-v2", "--normalize-observations") == 0
    assert re.search(r"normalize_observations +True\n", capsys.readouterr().out)


def test_options_are_checked_with_the_preset_or_config_that_they_add_to(folder, capsys):
    """Not with the defaults: there, both of these are impossible."""
    tiny = ["--dataset", "tiny.npz", "--dry-run"]
    assert main(["train", "odice", *tiny, "--preset", "hopper-medium-v2", "--legacy-chunking"]) == 0
    assert re.search(r"return_range_scaling +True ", capsys.readouterr().out)
    small = ["--hidden", "6", "--layers", "1", "--context", "2", "--steps", "2", "-q", *SMALL[4:]]
    assert main(["train", "decision_transformer", "--dataset", "tiny.npz", *small]) == 0
    (config,) = folder.glob("runs/decision_transformer/*/*/config.json")
    again = ["train", "decision_transformer", "--config", str(config), "--dry-run"]
    assert main([*again, "--heads", "3"]) == 0
    assert re.search(r"heads +3 ", capsys.readouterr().out)
    assert main([*again, "--heads", "4"]) == 2
    assert "heads must divide hidden, got 4 and 6" in capsys.readouterr().err
    assert main([*again, "--config", "none.json", "--help"]) == 0
    assert "Attention heads" in capsys.readouterr().out
    assert main([*again, "--config"]) == 2  # no value
    assert "--config" in capsys.readouterr().err


def test_help_groups_the_options_and_explains_each(capsys):
    assert main(["train", "td3_bc", "--help"]) == 0
    page = capsys.readouterr().out
    for part in (
        "run options",
        "algorithm options",
        "start options",
        "output options",
        "--dataset URI",
        "--alpha",
    ):
        assert part in page
    assert "Weight of the Q term" in page
    assert page.index("--dataset URI") < page.index("--alpha")
    assert "{None}" not in page


def test_without_an_algorithm_the_names_are_shown(capsys):
    assert main(["train"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "td3_bc" in err
    assert main(["train", "--help"]) == 0
    assert "td3_bc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["--stepz", "3"],
            "unknown option --stepz; did you mean --steps? ('offrl train td3_bc --help' shows all",
        ),
        (["--alfa", "3"], "unknown option --alfa; did you mean --alpha?"),
        (["--steps", "many"], "--steps needs an integer, got 'many'"),
        (["--alpha", "big"], "--alpha needs a number, got 'big'"),
        (["--steps"], "missing value for argument '--steps'"),
        (["--rows", "some"], "invalid choice 'some' for argument '--rows'"),
        (["--steps", "-3"], "steps must be 1 or more, got -3"),
        (["--tau", "0.995"], "tau must be in (0, 0.5], got 0.995"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_mistyped_command_is_one_line_and_exit_code_2(folder, capsys, typed, message):
    assert train(*typed) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"offrl: {message}")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_names_the_resume_command(folder, capsys, signal_at, number, code):
    signal_at(6, number)
    assert train() == code
    run = run_of(folder).relative_to(folder)
    out, err = capsys.readouterr()
    assert err == f"offrl: stopped at step 6; go on with: offrl resume {run}\n"
    assert "Traceback" not in out
    signal_at(0)
    assert main(["resume", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == f"resuming {run} at step 6"
    assert out.splitlines()[-2:] == [f"run directory {run}", f"next: offrl report {run} --out report.html"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_another_process_is_obeyed(folder, in_child, number, code):
    child = in_child(
        lambda: train("--steps", "1000000"),
        kill_when=lambda: list(folder.glob("runs/*/*/*/checkpoint.pt")),
        number=number,
    )
    assert child.code == code
    run = run_of(folder).relative_to(folder)
    assert re.fullmatch(rf"offrl: stopped at step \d+; go on with: offrl resume {run}\n", child.err)
    assert not (run / "final_returns.npz").exists()


def test_resuming_a_finished_run_says_so_and_exits_0(folder, capsys):
    assert train("-q") == 0
    run = str(run_of(folder))
    assert main(["resume", run]) == 0
    assert capsys.readouterr().out.startswith(f"{run} is already finished\nlast return ")
    assert main(["resume", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["final"]
    assert main(["resume", run, "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_resume_has_its_own_usage(capsys):
    assert main(["resume"]) == 2
    assert capsys.readouterr().err.startswith("offrl: name at least one run directory, e.g. ")
    assert main(["resume", "--help"]) == 0
    page = capsys.readouterr().out
    assert "usage: offrl resume" in page
    assert "--allow-inexact" in page


def test_many_seeds_print_how_they_are_trained_and_what_came_out(folder, capsys):
    assert train("--seeds", "0", "2") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    runs = [path.parent.relative_to(folder) for path in sorted(folder.glob("runs/*/*/*/config.json"))]
    assert [re.sub("-.*", "", run.name) for run in runs] == ["seed0", "seed2"]
    assert lines[0] == "2 seeds stacked in one process: width 8 is below 128"
    assert lines[2].endswith(f", 20 steps, run directories {runs[0]}, {runs[1]}")
    assert lines[5::2] == [f"run directory {runs[0]}", f"run directory {runs[1]}", lines[-1]]
    assert re.fullmatch(r"last return -\d+\.\d \+- \d+\.\d \(std over 2 seeds\)", lines[-2])
    assert lines[-1] == f"next: offrl report {runs[0]} {runs[1]} --out report.html"
    assert main(["resume", *map(str, runs)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{runs[0]} is already finished"


def test_only_seeds_of_one_experiment_have_a_mean(folder, capsys):
    assert train("-q", "--seed", "0") == 0
    assert train("-q", "--seed", "1", "--alpha", "5") == 0
    assert train("-q", "--seed", "2") == 0
    runs = [str(path.parent) for path in sorted(folder.glob("runs/*/*/*/config.json"))]
    capsys.readouterr()
    assert main(["resume", *runs]) == 0
    assert "seeds)" not in capsys.readouterr().out
    assert main(["resume", runs[0], runs[2]]) == 0
    assert "(std over 2 seeds)" in capsys.readouterr().out


def test_many_seeds_as_json(folder, capsys):
    assert train("--json", "--eval-every", "10", "--seeds", "0", "2") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r.get("seed") for r in records] == [0, 2, 0, 2, 0, 2]
    assert [r.get("final", False) for r in records] == [False] * 4 + [True] * 2


def test_seeds_that_make_no_sense_are_wrong_usage(folder, capsys):
    assert train("--seeds", "1", "1") == 2
    assert capsys.readouterr().err.startswith("offrl: seeds must be different and 0 or more, got 1 1 (")


def test_kill_9_and_resume_in_fresh_processes(folder):
    """The whole way as a user goes it: the command, SIGKILL after the first checkpoint, the resume command."""
    more = ["--steps", "400", "--checkpoint-every", "20", "-q"]
    assert train(*more, "--out", "whole", algorithm="bc") == 0
    (whole,) = folder.glob("whole/*/*/*")
    offrl = [sys.executable, "-m", "offrl.cli"]
    command = [*offrl, "train", "bc", "--dataset", "tiny.npz", *SMALL, *STEPS, *more]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/*/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    run = run_of(folder)
    assert not (run / "final_returns.npz").exists()
    assert main(["resume", str(run), "-q"]) == 0
    for name in ("metrics.csv", "eval.csv", "policy.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_on_a_terminal(folder):
    """A pseudo-terminal sends SIGINT to the process group; the message starts on its own line."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "offrl.cli", "train", "bc", "--dataset", "tiny.npz", *SMALL],
        )
    seen = b""
    while b"steps/s" not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    text = seen.decode().replace("\r\n", "\n")
    assert "Traceback" not in text
    last = text.rstrip("\n").rsplit("\n", 1)[-1]
    assert re.fullmatch(r"offrl: stopped at step \d+; go on with: offrl resume runs/bc/tiny/seed0-\S+", last)

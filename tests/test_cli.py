"""The ``offrl`` command itself: overview, exit codes, one line an error, no traceback for users, fast start."""

import errno
import os
import re
import subprocess
import sys
import time

import pytest

import offrl
from offrl import cli
from offrl.commands import arguments
from offrl.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    MissingExtraError,
    PolicyError,
    Stopped,
    UsageError,
)

FORBIDDEN = ["torch", "numpy", "gymnasium", "h5py", "scipy", "matplotlib", "mujoco", "minari"]


def test_the_overview_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for name, (_, about) in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", page, re.MULTILINE)
    assert "exit codes: 0 done" in page
    assert max(map(len, page.splitlines())) < 100


def test_without_a_command_the_overview_is_shown_and_the_code_is_2(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: offrl COMMAND")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(capsys, flag):
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"offrl {offrl.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help_page(capsys, name):
    assert cli.main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: offrl ")
    assert err == ""


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("trian", "; did you mean 'train'?"), ("evla", "; did you mean 'eval'?"), ("xyzzy", ""), ("--foo", "")],
)
def test_an_unknown_command_names_the_nearest(capsys, typed, hint):
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err == f"offrl: unknown command {typed!r}{hint} ('offrl --help' lists all)\n"


class Command:
    """A stand-in for a command's module: it raises what it is told to."""

    def __init__(self, error: BaseException | None = None, code: int = 0) -> None:
        self.error, self.code = error, code

    def main(self, argv):
        if self.error:
            raise self.error
        return self.code


def noted(error: BaseException, note: str) -> BaseException:
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DatasetError("bad\n  rows"), 1, "bad rows"),
        (CheckpointError("x"), 1, "x"),
        (ConfigError("x"), 1, "x"),
        (PolicyError("x"), 1, "x"),
        (ConfigError(), 1, "ConfigError"),
        (MissingExtraError("wandb", "wandb"), 1, "this needs wandb, which is not installed; run: pip install "
         "'offrl[wandb]'"),
        (FileNotFoundError("no such file: /a/b"), 1, "no such file: /a/b"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), 1, "No such file or directory: /a/b"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), 1, "Invalid cross-device link: /a -> /b"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (noted(OSError(errno.ENOSPC, "No space left on device", "/a"), "go on with: offrl resume R"), 1,
         "No space left on device: /a; go on with: offrl resume R"),
        (ChildProcessError("a worker died"), 1, "a worker died"),
        (Stopped("stopped at step 3", 143), 143, "stopped at step 3"),
        (KeyboardInterrupt(), 130, "stopped"),
        (UsageError("unknown option --x"), 2, "unknown option --x"),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command(error))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr() == ("", f"offrl: {line}\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("x"), RuntimeError("x"), ValueError("x")])
def test_a_program_error_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command(error))
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_the_exit_code_is_the_commands(monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command(code=7))
    assert cli.main(["doctor"]) == 7
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command(SystemExit(0)))
    assert cli.main(["doctor"]) == 0
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command(SystemExit(2)))
    assert cli.main(["doctor"]) == 2


def test_a_reader_that_goes_away_is_no_error_message():
    """``offrl algos | head -0``: the pipe is closed before anything is written."""
    code = "import sys; from offrl.cli import main; sys.exit(main(['algos']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import offrl"],
        ["-m", "offrl.cli", "--help"],
        ["-m", "offrl.cli", "--version"],
        ["-m", "offrl.cli", "algos"],
    ],
)
def test_it_starts_fast_and_loads_no_heavy_library(arguments):
    """Under 0.5 s on an idle machine: measured as processor time, the best of three, with a margin for slow ones."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n"
        f"sys.argv = {['offrl', *arguments[2:]]!r}\n"
    )
    code += (
        "import offrl"
        if arguments[0] == "-c"
        else "import runpy; runpy.run_module('offrl.cli', run_name='__main__')"
    )
    costs = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = os.times()
        costs.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
        if costs[-1] < 0.5:
            break
        time.sleep(0.1)
    loaded = set(done.stderr.split())
    assert "offrl" in loaded
    assert loaded.isdisjoint(FORBIDDEN), loaded.intersection(FORBIDDEN)
    assert min(costs) < 1.0, costs


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("terminal", [True, False])
def test_usage_errors_are_one_line_whatever_the_terminal_can_show(monkeypatch, encoding, terminal):
    """The frame that tyro draws depends on the terminal; nothing of it is left."""

    class Stream:
        def __init__(self):
            self.encoding, self.text = encoding, ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return terminal

    from offrl.commands.algos import Check
    from offrl.commands.train import ResumeOptions

    monkeypatch.setattr(sys, "stdout", Stream())
    for typed, message in {
        "": "name at least one run directory, e.g. offrl resume runs/td3_bc/DATASET/seed0-TIME",
        "run --workers many": "--workers needs an integer, got 'many'",
        "run --alow-inexact": "unknown option --alow-inexact; did you mean --allow-inexact?",
        "run --workers": "missing value for argument '--workers'",
    }.items():
        with pytest.raises(UsageError) as caught:
            arguments.parse(ResumeOptions, "offrl resume", typed.split())
        assert str(caught.value) == f"{message} ('offrl resume --help' shows all options)"
    with pytest.raises(UsageError, match="^missing: STR Name or path of the algorithm \\("):
        arguments.parse(Check, "offrl algos check", [])

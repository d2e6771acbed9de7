"""``offrl algos``: the list and the check."""

import subprocess
import sys
from importlib import metadata

import pytest

from offrl import algos
from offrl.algos import ALGORITHMS, CHUNKS, ELSEWHERE, MODELS, ONLINE, load_algorithm
from offrl.cli import main
from offrl.errors import ConfigError


def test_every_algorithm_is_listed_with_what_it_is(capsys):
    assert main(["algos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*ALGORITHMS, *CHUNKS, *MODELS, *ONLINE, *ELSEWHERE]
    assert all(len(line.split()) > 2 for line in lines)
    width = len("policy_guided_diffusion")  # the longest name: what they are begins in one column
    assert all(line[width] == " " and line[width + 1] != " " for line in lines)


def test_the_list_loads_no_torch():
    code = "import sys; from offrl.cli import main; main(['algos']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_check_of_a_good_method_says_ok(capsys):
    assert main(["algos", "check", "bc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("ok      ") for line in lines)


def test_the_check_of_a_bad_method_says_what_is_wrong_and_exits_1(tmp_path, capsys):
    file = tmp_path / "forgetful.py"
    file.write_text(
        "from offrl.algos.bc import BC, BCConfig\n"
        "from offrl.training.problem import Algorithm\n"
        "class Forgetful(BC):\n"
        "    def load_state_dict(self, state): pass\n"
        "ALGORITHM = Algorithm(BCConfig, Forgetful)\n"
    )
    assert main(["algos", "check", str(file)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(lines) == 1
    assert "is it in state_dict()?" in lines[0]


@pytest.mark.parametrize("typed", [["--help"], ["-h"]])
def test_help_is_asked_for(capsys, typed):
    assert main(["algos", *typed]) == 0
    assert capsys.readouterr().out.startswith("usage: offrl algos")


def test_wrong_usage_is_refused(capsys):
    assert main(["algos", "chekc"]) == 2
    assert capsys.readouterr().err.startswith("usage: offrl algos")
    assert main(["algos", "check"]) == 2
    assert capsys.readouterr().err == (
        "offrl: missing: STR Name or path of the algorithm ('offrl algos check --help' shows all options)\n"
    )


def test_an_unknown_name_names_the_nearest(capsys):
    assert main(["algos", "check", "td3-bc"]) == 1
    assert capsys.readouterr().err == (
        "offrl: unknown algorithm 'td3-bc'; did you mean 'td3_bc'? ('offrl algos' lists all; a file ends in .py)\n"
    )


def test_a_file_must_declare_an_algorithm(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no algorithm file .*missing\.py"):
        load_algorithm(str(tmp_path / "missing.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="declares no ALGORITHM"):
        load_algorithm(str(tmp_path / "empty.py"))
    (tmp_path / "other.py").write_text("ALGORITHM = 3")
    with pytest.raises(ConfigError, match="declares no ALGORITHM"):
        load_algorithm(str(tmp_path / "other.py"))


def test_a_file_that_is_not_python_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def (\n")
    assert main(["algos", "check", str(tmp_path / "broken.py")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"offrl: {tmp_path / 'broken.py'} cannot be loaded: SyntaxError: ")
    assert err.count("\n") == 1


def test_plug_ins_are_found_by_their_entry_point(monkeypatch, capsys):
    """An installed package offers 'mine' in the group offrl.algos; its value may be the module or the object."""
    points = {
        name: metadata.EntryPoint(name, f"offrl.algos.{value}", "offrl.algos")
        for name, value in (("mine", "bc"), ("mine_too", "bc:ALGORITHM"))
    }
    monkeypatch.setattr(algos, "plugins", lambda: points)
    for name in points:
        assert load_algorithm(name) == (name, load_algorithm("bc")[1])
    monkeypatch.setattr("offrl.commands.algos.plugins", lambda: points)
    assert main(["algos"]) == 0
    assert ["mine", "plug-in", "offrl.algos.bc"] in [s.split() for s in capsys.readouterr().out.splitlines()]

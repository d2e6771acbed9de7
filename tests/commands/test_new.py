"""``offrl new algo NAME``: the file trains, resumes and passes the checks as it is."""

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
    "--steps",
    "10",
    "-q",
]


def test_the_new_file_passes_its_check_and_trains(tmp_path, monkeypatch, pendulum_npz, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "algo", "my_method"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "wrote my_method.py"
    assert [line.strip().split(" --dataset")[0] for line in said[1:]] == [
        "offrl algos check my_method.py",
        "offrl train ./my_method.py",
    ]
    assert main(["algos", "check", "my_method.py"]) == 0
    assert main(["train", "./my_method.py", "--dataset", pendulum_npz.name, *SMALL]) == 0
    (policy,) = tmp_path.glob("runs/my_method/tiny/*/policy.json")
    assert main(["resume", str(policy.parent), "-q"]) == 0
    text = (tmp_path / "my_method.py").read_text()
    assert text.startswith('"""my_method: ')
    assert "my_algo" not in text


def test_its_settings_are_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "algo", "mine"]) == 0
    assert main(["train", "mine.py", "--help"]) == 0
    assert "How much better rewards count more." in capsys.readouterr().out


def test_a_folder_may_be_given(tmp_path, capsys):
    assert main(["new", "algo", "mine", "--folder", str(tmp_path / "sub")]) == 0
    assert (tmp_path / "sub" / "mine.py").exists()
    assert f"offrl train {tmp_path / 'sub' / 'mine.py'} " in capsys.readouterr().out


def test_an_existing_file_is_never_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("precious")
    assert main(["new", "algo", "mine"]) == 1
    assert capsys.readouterr().err == "offrl: file exists, choose another name: mine.py\n"
    assert (tmp_path / "mine.py").read_text() == "precious"


@pytest.mark.parametrize("name", ["My-Method", "3d", "a b", "../up", "Upper", "class", "bc", "ppo", "hdpo"])
def test_a_name_that_cannot_be_a_module_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "algo", name]) == 1
    assert capsys.readouterr().err.startswith(f"offrl: {name!r} ")
    assert list(tmp_path.iterdir()) == []

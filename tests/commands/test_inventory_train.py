"""``offrl inventory train | resume | eval`` as a user types them."""

import json

import pytest

from offrl.cli import main
from offrl.training import inventory


@pytest.fixture(autouse=True)
def _small_tests(monkeypatch):
    monkeypatch.setattr(inventory, "QUICK", (32, 60))


SMALL = [
    "--scenarios",
    "64",
    "--dev-scenarios",
    "16",
    "--batch-size",
    "32",
    "--steps",
    "4",
    "--eval-every",
    "2",
]


def run(*words):
    return main(["inventory", *words])


def test_train_resume_and_eval(tmp_path, capsys):
    words = [
        "train",
        "one_store_lost",
        "--set",
        "lead_time=2",
        "underage_cost=4",
        "--policy",
        "mlp_one_store",
        *SMALL,
    ]
    assert run(*words, "--out", str(tmp_path), "--json") == 0
    *evaluations, final = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["step"] for e in evaluations] == [2, 4]
    assert final["final"]
    directory = final["directory"]
    assert run("resume", directory) == 0
    assert "is already finished" in capsys.readouterr().out
    assert run("eval", directory, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == {"lead_time": 2, "underage_cost": 4}
    assert found["cost"] == pytest.approx(final["cost"])
    assert found["gap"]["reference"]["cost"] == pytest.approx(4.3953, abs=1e-3)
    assert found["gap"]["gap"] > 0


def test_classical_policies_without_training(capsys):
    assert run("eval", "base_stock", "--setting", "one_store_backlogged", "--with", "levels=29.59") == 0
    out = capsys.readouterr().out
    assert "optimum, base-stock at 29.59: 6.2769; gap" in out
    assert "(paired)" in out
    assert run("eval", "just_in_time", "--setting", "one_store_lost") == 0
    assert "no policy that sees the past alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "name a setting"),
        (["train", "one_stor_lost"], "did you mean"),
        (["train", "one_store_lost", "--set", "lead_time"], "KEY=NUMBER"),
        (["train", "one_store_lost", "--policy", "gauss"], "unknown policy 'gauss'"),
        (["train", "one_store_lost", "--policy", "myopic_2"], "nothing to train"),
        (["train", "serial_system", "--policy", "mlp_one_store"], "for one store"),
        (["eval", "base_stock"], "which setting"),
        (["eval", "base_stok", "--setting", "one_store_lost"], "unknown policy"),
        (["eval", "base_stock", "--setting", "one_store_lost", "--with", "levels=x"], "NUMBER"),
        (["resume", "nowhere"], "not a run directory"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert run(*words) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_other_train_command_points_here(capsys):
    assert main(["train", "hdpo", "--dataset", "builtin:double-pendulum-demo"]) == 1
    assert "offrl inventory train" in capsys.readouterr().err

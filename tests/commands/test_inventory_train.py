"""``offrl inventory train | resume | eval`` as a user types them."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from offrl.cli import main
from offrl.envs.inventory.policies import DemandFacts, load_policy
from offrl.envs.inventory.sales import FIRST_WEEK, look_alike
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import load_setting
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
    assert main(["resume", directory]) == 1
    assert "is a run of an inventory policy: use offrl inventory resume" in capsys.readouterr().err
    assert run("eval", directory, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == {"lead_time": 2, "underage_cost": 4}
    assert found["cost"] == pytest.approx(final["cost"])
    assert found["gap"]["reference"]["cost"] == pytest.approx(4.3953, abs=1e-3)
    assert found["gap"]["gap"] > 0


def test_costs_are_not_those_of_the_penalty_and_levels_not_given_to_a_run(tmp_path, capsys):
    words = ["one_store_backlogged", *SMALL, "--penalty", "4", "--out", str(tmp_path)]
    assert run("train", *words) == 0
    assert "; underage costs x 4, as trained\n" in capsys.readouterr().out
    (directory,) = tmp_path.glob("hdpo/*/seed0*")
    assert run("eval", str(directory), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    test = load_setting("one_store_backlogged").resized(test=32, periods={"test": 60}).draw("test")
    want = evaluate(load_policy(directory), test, ignore=36).mean()
    assert found["cost"] == pytest.approx(float(want))
    assert found["gap"]["reference"]["cost"] == pytest.approx(6.2769, abs=1e-3)
    assert run("eval", str(directory), "--with", "levels=9") == 1
    assert "takes no --with, which is for" in capsys.readouterr().err


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
        (["eval", "base_stok", "--setting", "one_store_lost"], "did you mean 'base_stock'?"),
        (["eval", "seed0"], "unknown policy 'seed0', and no run directory of that name"),
        (["eval", "runs/hdpo/seed0"], "no such run directory: runs/hdpo/seed0"),
        (["eval", "."], "is no run of an inventory policy"),
        (["eval", "base_stock", "--setting", "one_store_lost", "--paths", "-1"], "--paths must be 0 or more"),
        (["eval", "base_stock", "--setting", "one_store_lost", "--with", "levels=x"], "NUMBER"),
        (
            ["eval", "base_stock", "--setting", "serial_system", "--with", "levels=1,2,3"],
            "levels has 3 numbers for 4 nodes; give one a node",
        ),
        (
            ["eval", "echelon_base_stock", "--setting", "serial_system", "--with", "levels=80"],
            "levels has 1 numbers for 4 nodes; give one a node",
        ),
        (
            ["eval", "gnn", "--setting", "one_store_lost", "--with", "hidden=4,4"],
            "--with takes levels, caps, reorder_points, amounts",
        ),
        (
            ["eval", "base_stock", "--setting", "one_store_lost", "--with", "normalize=0"],
            "--with takes levels, caps, reorder_points, amounts",
        ),
        (
            ["eval", "just_in_time", "--setting", "one_store_lost", "--with", "levels=9"],
            "just_in_time takes no --with",
        ),
        (["resume", "nowhere"], "not a run directory"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert run(*words) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("form", ["pt", "csv"])
def test_weekly_sales_from_public_files_to_a_profit(tmp_path, capsys, form):
    """A small file in the public layout: train, resume after the file changed (refused), eval on the same data."""
    sales = look_alike(items=5, seed=3)
    dates = [FIRST_WEEK + timedelta(weeks=k) for k in range(171)]
    if form == "pt":
        torch.save(torch.from_numpy(sales.values), tmp_path / "weekly_sales.pt")
        rows = [f"{day},{days}" for day, days in zip(dates, sales.days_from_christmas, strict=True)]
        (tmp_path / "dates_with_info.csv").write_text("\n".join(["date,days_from_christmas", *rows]))
    else:
        places = [(i, s, t) for i in range(5) for s in range(21) for t in range(171)]
        rows = [f"{7 + i},{1 + s},{dates[t]},{sales.values[i, s, t]:g}" for i, s, t in places]
        (tmp_path / "weekly_sales.csv").write_text("\n".join(["item_nbr,store_nbr,date,unit_sales", *rows]))
    data = ["--data", str(tmp_path)]
    words = [
        "favorita_21_stores",
        *data,
        "--policy",
        "data_driven",
        "--normalize",
        "--steps",
        "3",
        "--eval-every",
        "1",
    ]
    assert run("train", *words, "--out", str(tmp_path / "runs"), "--json") == 0
    final = json.loads(capsys.readouterr().out.splitlines()[-1])
    policy, setting = load_policy(Path(final["directory"])), load_setting("favorita_21_stores", data=sales)
    costs = evaluate(policy, setting.draw("test"), ignore=16)
    assert len(costs) == 5
    assert final["cost"] == pytest.approx(float(costs.mean()), rel=1e-5)
    assert run("eval", final["directory"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["cost"] == pytest.approx(final["cost"], rel=1e-5)
    other = torch.from_numpy(look_alike(items=5, seed=4).values)
    torch.save(other, tmp_path / "weekly_sales.pt")  # is found before a table
    assert run("resume", final["directory"]) == 1
    assert "the setting changed since the run began" in capsys.readouterr().err


def test_weights_of_three_stores_are_measured_on_six(tmp_path, capsys):
    words = [
        "one_warehouse_lost_demand",
        "--set",
        "stores=3",
        "--policy",
        "gnn",
        "--hidden",
        "8",
        "8",
        *SMALL,
    ]
    assert run("train", *words, "--out", str(tmp_path), "--json") == 0
    directory = json.loads(capsys.readouterr().out.splitlines()[-1])["directory"]
    assert run("eval", directory, "--set", "stores=6", "--paths", "20", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == {"stores": 6}
    assert found["scenarios"] == 20
    setting = load_setting("one_warehouse_lost_demand", stores=6).resized(test=20, periods={"test": 60})
    test = setting.draw("test")
    policy = load_policy(Path(directory)).moved(setting.network, DemandFacts.of(setting, test))
    want = evaluate(policy, test, ignore=setting.splits["test"].ignore, feasibility="raise").mean()
    assert found["cost"] == pytest.approx(float(want))
    assert (
        run(
            "train",
            "one_warehouse_lost_demand",
            "--policy",
            "mlp_network",
            *SMALL,
            "--out",
            str(tmp_path),
            "-q",
        )
        == 0
    )
    dense = next(tmp_path.glob("hdpo/*demand-v1/seed0*"))
    assert run("eval", str(dense), "--set", "stores=6") == 1
    assert "fits no other network" in capsys.readouterr().err


def test_the_other_train_command_points_here(capsys):
    assert main(["train", "hdpo", "--dataset", "builtin:double-pendulum-demo"]) == 1
    assert "offrl inventory train" in capsys.readouterr().err


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


@pytest.mark.parametrize("more", [["--test-scenarios", "1"], ["--lr", "1e30"]])
def test_training_that_ends_without_error_or_cost_says_null(tmp_path, capsys, more):
    words = ["one_store_lost", "--policy", "mlp_one_store", *SMALL, *more, "--out", str(tmp_path)]
    diverged = more[0] == "--lr"
    assert run("train", *words, "--json") == int(diverged)
    told = capsys.readouterr()
    final = json.loads(told.out.splitlines()[-1], parse_constant=refuse)
    assert final["standard_error"] is None
    assert (final["cost"] is None) == diverged
    assert ("training has diverged" in told.err) == diverged


def test_one_path_has_no_standard_error(capsys):
    words = ["--setting", "one_store_backlogged", "--with", "levels=29.59", "--paths", "1", "--json"]
    assert run("eval", "base_stock", *words) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert facts["scenarios"] == 1
    assert facts["standard_error"] is None
    assert facts["gap"]["standard_error"] is None

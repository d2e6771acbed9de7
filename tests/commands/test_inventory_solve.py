"""``offrl inventory solve`` as a user types it."""

import json

import numpy as np
import pytest

from offrl.cli import main
from offrl.commands.inventory_solve import PROBLEMS, SETTINGS, problem_of
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.lost_sales import LostSales, evaluate

SMALL = ["--demand", "pmf:.3,.4,.3", "--lead-time", "2", "--penalty", "5"]


def solve(*typed: str) -> int:
    return main(["inventory", "solve", *typed])


def record(capsys, *typed: str) -> dict:
    assert solve(*typed, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_setting_is_solved_and_options_replace_its_own(capsys):
    """The published optima, and what is typed after the name."""
    assert record(capsys, "one_store_backlogged")["cost"] == pytest.approx(6.2769, abs=5e-5)
    assert record(capsys, "one_store_backlogged", "--penalty", "19")["cost"] == pytest.approx(
        7.3779, abs=1e-4
    )
    lost = record(capsys, "one_store_lost", "--lead-time", "2", "--penalty", "4", "--optimal-only")
    assert lost["cost"] == pytest.approx(4.3953, abs=5e-5)
    assert [row["policy"] for row in lost["policies"]] == ["optimal"]
    assert record(capsys, "serial_system")["cost"] == pytest.approx(10.734, abs=5e-4)
    centre = record(capsys, "transshipment_backlogged")
    assert centre["cost"] == pytest.approx(5.2964, abs=5e-5)
    assert (centre["meaning"], centre["upper"]) == ("lower bound per store", None)
    assert centre["policy"]["order up to, whole system"] == pytest.approx(158.13, abs=5e-3)


def test_every_setting_and_problem_is_known():
    for name in SETTINGS:
        assert type(problem_of(name, [])) in PROBLEMS.values()


def test_a_table_of_policies_and_the_bracket(capsys):
    assert solve("lost-sales", *SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lost-sales: penalty 5, demand pmf:.3,.4,.3, lead time 2, holding 1")
    assert lines[1].startswith("optimal cost")
    assert "proven: " in lines[1]
    names = [line[:20].strip() for line in lines[6:13]]
    assert names[:3] == ["optimal", "myopic-2", "capped base-stock"]
    assert sorted(names[3:]) == ["base-stock", "constant order", "myopic", "vector base-stock"]
    gaps = {line[:20].strip(): float(line[31:39]) for line in lines[6:13]}
    assert gaps["optimal"] == 0
    assert min(gaps.values()) == 0


@pytest.mark.parametrize(("lead_time", "parts"), [(1, 6), (3, 4), (4, 2)])
def test_continuous_demand_is_rounded_as_far_as_the_table_stays_small(lead_time, parts):
    typed = ["--demand", "gamma:5,2", "--penalty", "9", "--lead-time", str(lead_time)]
    demand = problem_of("lost-sales", typed).parsed()
    assert demand.step == pytest.approx(2 / parts)
    assert problem_of("lost-sales", [*typed, "--step", ".5"]).parsed().step == 0.5
    assert problem_of("base-stock", typed).parsed().step == 2 / 400


def test_the_grid_of_continuous_demand_is_said(capsys):
    typed = ["--demand", "normal:3,2", "--penalty", "4", "--lead-time", "1", "--optimal-only"]
    policy = record(capsys, "lost-sales", *typed)["policy"]
    assert policy["grid step"] == pytest.approx(1 / 3)
    assert "grid step" not in record(capsys, "lost-sales", *SMALL, "--optimal-only")["policy"]


def test_the_policy_can_be_kept(tmp_path, capsys):
    """The arrays of an .npz are a policy: played again as a chain, they cost the optimum."""
    table, page = tmp_path / "policy.npz", tmp_path / "new" / "found.json"
    found = record(capsys, "lost-sales", *SMALL, "--optimal-only", "--out", str(table))
    with np.load(table) as arrays:
        pipelines, orders = arrays["pipelines"], arrays["orders"]
    assert pipelines.shape == (len(orders), 2)
    problem = LostSales(demand=parse_demand("pmf:.3,.4,.3"), lead_time=2, holding=1, penalty=5)
    top = int(pipelines.sum(axis=1).max())
    again = evaluate(problem, orders.astype(np.int64), top, "read")
    assert again.cost == pytest.approx(found["cost"], abs=1e-6)
    printed = record(capsys, "serial_system", "--out", str(page))
    assert json.loads(page.read_text()) == printed


def test_infinite_levels_are_unlimited_and_null(capsys):
    typed = [
        "serial",
        "--demand",
        "poisson:5",
        "--lead-times",
        "1",
        "1",
        "--holdings",
        "1",
        "1",
        "--penalty",
        "9",
    ]
    assert solve(*typed) == 0
    assert "unlimited" in capsys.readouterr().out
    assert record(capsys, *typed)["policy"]["echelon levels"][1] is None


def test_fixed_cost_prints_both_levels(capsys):
    assert solve("fixed-cost", *SMALL, "--fixed", "10") == 0
    page = capsys.readouterr().out
    assert "reorder point s" in page
    assert "order up to S" in page


@pytest.mark.parametrize("name", [None, *PROBLEMS])
def test_help_teaches(capsys, name):
    assert solve(*([name] if name else []), "--help") == 0
    page = capsys.readouterr().out
    if name:
        assert f"Example: offrl inventory solve {name} --" in page
    else:
        assert all(f"  {known}" in page for known in (*PROBLEMS, *SETTINGS))
        assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["base-stok"], 2, "unknown problem 'base-stok'; did you mean 'base-stock'?"),
        (["base-stock", "--demand", "poisson:5", "--penalty", "9"], 2, "missing: --lead-time"),
        (["lost-sales", *SMALL, "--penlty", "3"], 2, "unknown option --penlty; did you mean --penalty?"),
        (["lost-sales", *SMALL, "--lead-time", "0"], 1, "1 period or more"),
        (["lost-sales", *SMALL, "--tolerance", "0"], 1, "tolerance must be above 1e-11, got 0"),
        (["base-stock", *SMALL, "--out", "level.txt"], 1, "level.txt must end in .json or .npz"),
        (["base-stock", *SMALL, "--demand", "nrmal:5,1"], 1, "unknown demand 'nrmal:5,1'"),
    ],
)
def test_mistakes_are_one_line(capsys, typed, code, words):
    assert solve(*typed) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1

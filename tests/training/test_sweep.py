"""The grid of a sweep: which cells there are, what makes one another cell, what the tables say."""

import csv
import json
from pathlib import Path

import pytest

from offrl.errors import ConfigError
from offrl.training.sweep import COLUMNS, Data, Entry, entries, parse_grid, write_tables

OPTIONS = {"steps": 10}
DATA = [Data("tiny.npz", "tiny", "1"), Data("builtin:b", "zoo/b", "2")]


def cells(**changes) -> list[Entry]:
    chosen = {
        "algorithms": ["td3_bc", "bc"],
        "datasets": DATA,
        "seeds": (0, 3),
        "grid": {},
        "options": OPTIONS,
    }
    return entries(**chosen | changes)


def test_every_combination_is_a_cell_once():
    listed = cells(grid=parse_grid(["alpha=1,2.5,5", "lr=1e-3,3e-4"]))
    facts = [
        (e.training.algorithm, e.training.dataset, e.training.seed, tuple(e.varied.items())) for e in listed
    ]
    assert len(set(facts)) == len(facts) == 2 * 2 * (6 + 2)
    assert {v for e in listed for v in e.varied} == {"alpha", "lr"}
    assert all("alpha" not in e.varied for e in listed if e.training.algorithm == "bc")
    alphas = {e.varied["alpha"] for e in listed if "alpha" in e.varied}
    assert alphas == {1.0, 2.5, 5.0}
    assert {type(alpha) for alpha in alphas} == {float}, "1 and 1.0 are one setting"
    assert len({e.name for e in listed}) == len(listed)
    assert listed[0].name.startswith("td3_bc-tiny-")
    assert "bc-zoo-b-lr=0.001-seed3-" in " ".join(e.name for e in listed)


def test_values_have_the_kind_of_the_setting():
    (entry,) = cells(
        algorithms=["td3_bc"], datasets=[Data("a", "a", "1")], seeds=(0,),
        grid=parse_grid(["hidden=64", "normalize-observations=false"]),
    )  # fmt: skip
    assert entry.varied == {"hidden": 64, "normalize_observations": False}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["alpha"], "SETTING=VALUE,VALUE"),
        (["alpha="], "SETTING=VALUE,VALUE"),
        (["=1"], "SETTING=VALUE,VALUE"),
        (["alpha=1,,2"], "SETTING=VALUE,VALUE"),
        (["alpha=1,1"], "different values"),
        (["alpha=1", "alpha=2"], "names 'alpha' twice"),
        (["alhpa=1"], "none of td3_bc, bc has a setting 'alhpa'"),
        (["hidden=wide"], "hidden is 'wide', it must be of the kind of its default 256"),
        (["normalize_observations=3"], "normalize_observations is 3"),
        (["lr=-1"], "lr"),
        (["alpha=1,1.0"], "each be named once"),
    ],
)
def test_an_impossible_grid_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        cells(grid=parse_grid(given))


def test_cells_named_twice_are_refused():
    with pytest.raises(ConfigError, match="named once"):
        cells(seeds=(1, 1))


@pytest.mark.parametrize(
    "change", [{"options": {"steps": 11}}, {"datasets": [Data("tiny.npz", "tiny", "9")]}]
)
def test_another_run_is_another_cell(change):
    """A finished cell is kept by its name alone, so the name must change with anything that the run depends on."""
    assert cells()[0].name != cells(**change)[0].name
    assert cells()[0].name == cells()[0].name


def test_presets_come_from_the_dataset_and_the_grid_wins():
    listed = cells(
        algorithms=["iql"],
        datasets=[Data("u", "antmaze-umaze-v2", "1")],
        grid={"expectile": ("0.5",)},
        presets=True,
    )
    assert listed[0].training.preset == "antmaze-umaze-v2"
    assert listed[0].varied == {"expectile": 0.5}
    with pytest.raises(ConfigError, match="no preset for 'tiny'"):
        cells(algorithms=["iql"], presets=True)


def finish(entry: Entry, out: Path, returns: list[list[float]], reference=None) -> None:
    config = {"algorithm": entry.training.algorithm, "dataset_name": entry.training.dataset}
    config |= {"seed": entry.training.seed, "reference_returns": reference}
    evaluations = [{"step": k, "returns": r} for k, r in enumerate(returns)]
    raw = {"config": config, "evaluations": evaluations, "median_steps_per_second": 7.0}
    entry.result(out).parent.mkdir(exist_ok=True)
    entry.result(out).write_text(json.dumps(raw))


def test_the_tables_hold_what_the_cells_scored(tmp_path):
    listed = cells(
        algorithms=["bc"],
        datasets=[Data("a", "a", "1"), Data("b", "b", "2")],
        grid={"lr": ("0.1",)},
        seeds=(0, 1),
    )
    finish(listed[0], tmp_path, [[9.0], [1.0, 3.0]])
    finish(listed[1], tmp_path, [[0.0]] + [[float(k)] for k in (1, 2, 3, 4, 6)])
    finish(listed[2], tmp_path, [[10.0]], reference=[0.0, 20.0])
    write_tables(listed, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)
    shown = [
        [row[k] for k in ("dataset", "seed", "unit", "last", "best", "mean_last_5", "episodes")]
        for row in rows
    ]
    assert shown == [
        ["a", "0", "return", "2.0", "9.0", "5.5", "2"],
        ["a", "1", "return", "6.0", "6.0", "3.2", "1"],
        ["b", "0", "normalized score", "50.0", "50.0", "50.0", "1"],
    ]
    assert (tmp_path / "results.md").read_text().splitlines() == [
        "3 of 4 runs are finished. Last evaluation: mean +- standard deviation (seeds).",
        "",
        "| algorithm | a (return) | b (normalized score) |",
        "|---|---|---|",
        "| bc lr=0.1 | 4.0 +- 2.8 (2) | 50.0 (1) |",
    ]


def test_a_run_without_evaluation_has_empty_cells(tmp_path):
    listed = cells(algorithms=["bc"], datasets=[Data("a", "a", "1")], seeds=(0,))
    finish(listed[0], tmp_path, [])
    (row,) = write_tables(listed, tmp_path)
    assert "last" not in row
    assert (tmp_path / "results.md").read_text().endswith("| bc |  |\n")

"""The grid of a sweep: which cells there are, what makes one another cell, what the tables say."""

import csv
import json
import re
from pathlib import Path

import pytest

from offrl.errors import ConfigError
from offrl.training import sweep as sweep_module
from offrl.training.sweep import COLUMNS, Data, Entry, entries, parse_grid, plan_cells, write_tables

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


def test_two_datasets_of_one_name_are_refused():
    """Tables and choices go by the name: runs on both would count as seeds on one."""
    twins = [Data("one/data.hdf5", "data", "1"), Data("other/data.hdf5", "data", "2")]
    with pytest.raises(ConfigError, match=r"one/data.hdf5 and other/data.hdf5 are both called 'data'"):
        cells(datasets=twins)


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
    shown = [[row[k] for k in ("dataset", "seed", "unit", "last", "best", *COLUMNS[-3:])] for row in rows]
    assert shown == [
        ["a", "0", "return", "2.0", "9.0", "5.5", "2", "2"],
        ["a", "1", "return", "6.0", "6.0", "3.2", "6", "1"],
        ["b", "0", "normalized score", "50.0", "50.0", "50.0", "1", "1"],
    ]
    assert (tmp_path / "results.md").read_text().splitlines() == [
        "3 of 4 runs are finished. Last evaluation: mean +- standard deviation (seeds).",
        "",
        "| algorithm | a (return) | b (normalized score) |",
        "|---|---|---|",
        "| bc lr=0.1 | 4.0 +- 2.8 (2) | 50.0 (1) |",
    ]


def test_where_success_counts_the_tables_hold_success_rates(tmp_path):
    """OGBench's single tasks pay -1 a step: a share of the return between (0, 1) would be -60 000."""
    listed = cells(algorithms=["bc"], datasets=[Data("a", "a", "1")], seeds=(0,))
    finish(listed[0], tmp_path, [[-1000.0, -200.0, -100.0, -1000.0], [-1000.0, -200.0]], reference=[0.0, 1.0])
    raw = json.loads(listed[0].result(tmp_path).read_text())
    raw["config"]["env_id"] = "antmaze-large-singletask-task2-v0"
    raw["evaluations"][0]["successes"] = [0.0, 1.0, 1.0, 1.0]
    raw["evaluations"][1]["successes"] = [0.0, 1.0]
    listed[0].result(tmp_path).write_text(json.dumps(raw))
    (row,) = write_tables(listed, tmp_path)
    assert [row[k] for k in ("unit", "last", "best", "mean_last_5")] == ["normalized score", 50.0, 75.0, 62.5]


def test_a_run_without_evaluation_has_empty_cells(tmp_path):
    listed = cells(algorithms=["bc"], datasets=[Data("a", "a", "1")], seeds=(0,))
    finish(listed[0], tmp_path, [])
    (row,) = write_tables(listed, tmp_path)
    assert "last" not in row
    assert (tmp_path / "results.md").read_text().endswith("| bc |  |\n")


def stacked(out: Path, listed, mode="stacked") -> list:
    return plan_cells(listed, out, mode)


def test_seeds_are_one_cell_where_they_stack_and_many_where_they_do_not(tmp_path, monkeypatch):
    few = {"algorithms": ["bc"], "seeds": (0, 1, 2)}
    narrow, wide = cells(**few, grid={"hidden": ("8",)}), cells(**few, grid={"hidden": ("256",)})
    assert [len(stacked(tmp_path / m, narrow, m)) for m in ("stacked", "processes")] == [2, 6]
    monkeypatch.setattr(
        sweep_module,
        "choose_mode",
        lambda *a, **k: ("stacked", "x") if a[1].hidden < 128 else ("processes", "y"),
    )
    lines: list[str] = []
    planned = plan_cells([*narrow, *wide], tmp_path / "auto", "auto", lines.append)
    assert len(planned) == 2 + 6
    assert [name.count("+2") for name in (planned[0].name, planned[2].name)] == [1, 0]
    assert lines == ["bc: seeds are stacked, x"]
    assert {path.name for path in (planned[0].result, *planned[0].more)} == {
        f"{e.name}.json" for e in narrow[:3]
    }


def test_a_stack_stays_together_and_later_seeds_join_nobody(tmp_path):
    data = {"algorithms": ["bc"], "datasets": DATA[:1]}
    first = cells(**data, seeds=(0, 1))
    (before,) = stacked(tmp_path, first)
    (again,) = stacked(tmp_path, first, "processes")
    assert (again.name, again.result, again.more) == (before.name, before.result, before.more)
    (alone,) = stacked(tmp_path, cells(**data, seeds=(1,)))
    assert alone.name == before.name, "with fewer seeds it is still the stack that goes on"
    assert len(alone.more) == 1
    grown = stacked(tmp_path, cells(**data, seeds=(0, 1, 2, 3)))
    assert [len(cell.more) for cell in grown] == [1, 1]
    assert grown[0].name == before.name
    spec = json.loads(Path(grown[1].command[-1]).read_text())
    assert sorted(spec["results"]) == ["2", "3"]
    assert spec["seed"] == 2


def test_a_cell_is_done_when_every_seed_is(tmp_path):
    (cell,) = stacked(tmp_path, cells(algorithms=["bc"], datasets=DATA[:1], seeds=(0, 1)))
    cell.result.parent.mkdir()
    cell.result.write_text("{}")
    assert not cell.done
    cell.more[0].write_text("{}")
    assert cell.done


def test_draws_are_combined_with_the_grid():
    draws = {"bc": [{"lr": 0.1}, {"lr": 0.2}], "td3_bc": [{}]}
    listed = cells(grid={"hidden": ("8", "16")}, draws=draws, seeds=(0,), datasets=DATA[:1])
    assert [e.settings for e in listed] == [
        "hidden=8", "hidden=16",
        *(f"hidden={h} lr={lr}" for h in (8, 16) for lr in (0.1, 0.2)),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="lr is in the grid and in the space"):
        cells(grid={"lr": ("0.3",)}, draws=draws)


def test_presets_where_they_are_known():
    data = [Data("u", "halfcheetah-medium-v2", "1")]
    listed = cells(algorithms=["iql", "bc"], datasets=data, seeds=(0,), presets="where known")
    assert [e.training.preset for e in listed] == ["halfcheetah-medium-v2", None]


def test_names_stay_short_enough_for_a_file():
    draw = {"bc": [{"lr": 0.1, "hidden": 8, "batch_size": 123456}]}
    (entry,) = cells(algorithms=["bc"], datasets=[Data("u", "d" * 300, "1")], seeds=(12,), draws=draw)
    assert len(entry.name) < 180
    assert re.search(r"-seed12-[0-9a-f]{8}$", entry.name)

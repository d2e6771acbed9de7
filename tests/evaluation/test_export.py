"""Runs as files for a paper."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from offrl.cli import main
from offrl.errors import ConfigError
from offrl.evaluation.diagnostics import Diagnostics, FQERecord
from offrl.evaluation.export import COLUMNS, export_runs
from offrl.evaluation.runs import read_run

PLAYED = {"q": [3.0, 5.0], "q_mean": [4.0, 6.0], "returns": [1.0, 2.0], "discounted_return": 1.5}
PLAYED |= {"tail_weight": 0.0, "visited_overestimation": 1.5, "visited_states": 7, "played_episodes": 2}
DISTANCES = {"action_distance": 0.25, "nearest_action_distance": 0.125, "rows": 100}
ERRORS = {"td_error": 0.5, "held_out_td_error": None, "held_out": None}
FOUND = Diagnostics(step=1000, discount=0.99, critics=2, seed=0, **PLAYED, **DISTANCES, **ERRORS)
FITTED = FQERecord(
    step=1000,
    discount=0.99,
    fitted_steps=10,
    dataset="toy",
    value=1.0,
    value_std=0.1,
    held_out_td_error=0.2,
    fitted_td_error=0.1,
    action_distance=0.3,
    data_value=0.9,
    episodes=5,
)


def test_scores_are_a_row_a_run(records, tmp_path):
    export_runs(records, tmp_path / "scores.csv", last_k=2)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6
    one = next(r for r in rows if r["algorithm"] == "iql" and r["seed"] == "1")
    reference = records[0].config["reference_returns"]
    low, high = reference
    assert float(one["last_return"]) == 80.0
    assert float(one["last"]) == pytest.approx(100 * (80 - low) / (high - low))
    assert float(one["mean_of_last_k"]) == pytest.approx(100 * (45 - low) / (high - low))
    assert (one["k"], one["episodes"], one["finished"]) == ("2", "3", "True")
    assert (one["success_rate"], one["overestimation"], one["fqe_value"]) == ("", "", "")


def test_scores_carry_successes_and_diagnostics(records, tmp_path):
    last = replace(records[0].evaluations[-1], successes=np.array([1.0, 0.0, 1.0, 1.0]))
    run = replace(records[0], evaluations=(last,), diagnostics=FOUND, fqe=FITTED)
    export_runs([run], tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    names = (
        "success_rate",
        "overestimation",
        "td_error",
        "held_out_td_error",
        "action_distance",
        "fqe_value",
    )
    assert [row[name] for name in names] == ["75.0", "2.5", "0.5", "", "0.25", "1.0"]


def test_the_table_has_a_row_a_dataset_and_escapes_names(records, tmp_path):
    export_runs(records, tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    low, high = records[0].config["reference_returns"]
    mean, std = 100 * (70 - low) / (high - low), 100 * 10 / (high - low)
    assert f"${mean:.1f} \\pm {std:.1f}$" in text
    assert r"other\_50\%" in text
    assert r"td3\_bc" in text
    row = next(line for line in text.splitlines() if line.startswith("other"))
    assert row.count("&") == 2
    assert "--" in row
    assert text.count(r"\begin{tabular}{lrr}") == 1


def test_the_table_says_units_seeds_and_what_is_unfinished(records, make_run, tmp_path):
    export_runs(records, tmp_path / "table.tex")
    lines = (tmp_path / "table.tex").read_text().splitlines()
    assert lines[1] == "% normalized score"
    assert lines[-1] == "% seeds: td3_bc on other_50% 1; iql on toy 2; td3_bc on toy 3"
    going = make_run(
        "going", dataset_name="new", dataset_sha256="8" * 64, finished=False, reference_returns=None
    )
    export_runs([records[0], read_run(going)], tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    assert "% new: return\n% toy: normalized score\n" in text
    assert "new & $80.0^\\dagger$ " in text
    assert text.endswith("% seeds: 1\n% dagger: no run is finished; the last evaluation so far\n")


def test_the_figures_are_a_page_a_dataset_and_the_same_bytes(records, tmp_path):
    for name in ("one.pdf", "two.pdf"):
        export_runs(records, tmp_path / name)
    one = (tmp_path / "one.pdf").read_bytes()
    assert one.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", one)) == 2
    assert one == (tmp_path / "two.pdf").read_bytes()


def test_another_suffix_is_refused(records, tmp_path):
    with pytest.raises(ConfigError, match=r"\.csv, \.tex, \.pdf"):
        export_runs(records, tmp_path / "table.docx")


def test_the_command_exports_and_the_page_compares(records, tmp_path, capsys):
    folders = [str(record.directory) for record in records]
    out = [str(tmp_path / name) for name in ("scores.csv", "table.tex")]
    assert main(["report", *folders, "--out", str(tmp_path / "r.html"), "--export", *out]) == 0
    assert "scores.csv" in capsys.readouterr().out
    assert "P(row ends above column)" in (tmp_path / "r.html").read_text()
    assert main(["report", *folders, "--out", str(tmp_path / "r.html"), "--export", "x.docx"]) == 2
    assert "an export ends in" in capsys.readouterr().err

"""Rows of other toolkits in the results table: the task's unit, labelled, with what is not known."""

from pathlib import Path

import numpy as np
import pytest

from offrl.cli import main
from offrl.evaluation.foreign import ForeignRun
from offrl.evaluation.foreign_table import foreign_rows, group_foreign
from offrl.evaluation.report import render_report
from offrl.evaluation.runs import read_run

RECORDED = Path(__file__).parent / "foreign"


def run(*values, toolkit="CORL", dataset="toy", scored=True, seed=0, episodes=10):
    return ForeignRun(
        toolkit, Path(f"run{seed}"), "TD3_BC", dataset, np.array(values, float), scored, seed, episodes
    )


def test_the_numbers_by_hand():
    """Lasts 40, 50, 60: mean and IQM 50, std 10; means of the last two 35, 45, 55; bests 40, 50, 70."""
    (group,) = group_foreign([run(30, 40), run(40, 50, seed=1), run(70, 50, 60, seed=2)])
    assert group.label == "TD3_BC (CORL, foreign)"
    (row,) = foreign_rows([group], True, None, 2)
    assert row == [
        "TD3_BC (CORL, foreign)",
        "3",
        "<strong>50.0 &plusmn; 10.0</strong>",
        "45.0 &plusmn; 10.0",
        "50.0 <small>[40.0, 60.0]</small>",
        "53.3 &plusmn; 15.3",
    ]


@pytest.mark.parametrize(
    ("scored", "into", "pair", "shown"),
    [
        (False, True, (-100.0, 100.0), "60.0"),  # a return of 20 between -100 and 100
        (True, False, (-100.0, 100.0), "-60.0"),  # a score of 20
        (False, False, None, "20.0"),
        (False, True, None, "in another unit"),
    ],
)
def test_values_are_brought_to_the_tasks_unit(scored, into, pair, shown):
    (row,) = foreign_rows(group_foreign([run(20.0, scored=scored)]), into, pair, 10)
    assert shown in row[2]


def test_unknown_seeds_and_missing_scores_are_said():
    unknown, empty = group_foreign([run(20.0, seed=None)]), group_foreign([run()])
    assert foreign_rows(unknown, True, None, 10)[0][1] == "1 <small>of unknown seed</small>"
    assert foreign_rows(empty, True, None, 10)[0][2] == "no scores in its files"


def test_only_runs_whose_scores_are_shown_are_counted():
    (group,) = group_foreign([run(20.0), run(seed=1), run(7.0, seed=2, scored=False)])
    (row,) = foreign_rows([group], True, None, 10)
    assert row[1:3] == ["1 <small>2 more without scores in this unit</small>", "<strong>20.0</strong>"]
    (row,) = foreign_rows([group], True, (0.0, 100.0), 10)
    assert row[1] == "2 <small>1 more without scores in this unit</small>"


def test_rows_stand_in_the_table_of_their_data_or_in_one_of_their_own(make_run):
    records = [read_run(make_run())]
    others = [run(20.0), run(70.0, toolkit="d3rlpy", dataset="hopper-medium-v2", seed=None, scored=False)]
    html = render_report(records, foreign=others)
    here, there = html.index("TD3_BC (CORL, foreign)"), html.index("TD3_BC (d3rlpy, foreign)")
    assert html.index("<h3>toy") < here < html.index("<h3>hopper-medium-v2<small> normalized score") < there
    assert "read from files of d3rlpy, not run or checked here; not known: environment version, seed." in html
    assert "foreign" not in render_report(records)
    score = 100 * (70 + 20.272305) / (3234.3 + 20.272305)
    assert f"<strong>{score:.2f}</strong>" in html[there:]


def test_the_command_reads_them(make_run, tmp_path, capsys):
    folder, page = make_run(dataset_name="pendulum-demo", reference_returns=None), tmp_path / "r.html"
    words = ["report", str(folder), "--out", str(page), "--with", str(RECORDED)]
    assert main(words) == 0
    assert "with 1 of other toolkits" in capsys.readouterr().out
    assert "td3_plus_bc (d3rlpy, foreign)" in page.read_text()
    assert "<strong>-224.6</strong>" in page.read_text()
    assert main([*words[:-1], str(tmp_path / "none")]) == 1
    assert "no such file or folder" in capsys.readouterr().err

"""The report shows diagnostics, fitted Q evaluation and the bandit's curve, and says what they are."""

from dataclasses import replace

import numpy as np
import pytest

from offrl.evaluation.beyond import bandit_section, candidates, diagnostics_section
from offrl.evaluation.diagnostics import Diagnostics, FQERecord, write_record
from offrl.evaluation.groups import group_runs
from offrl.evaluation.report import render_report
from offrl.evaluation.runs import read_run

FOUND = Diagnostics(
    step=1000,
    discount=0.99,
    critics=2,
    seed=0,
    q=[3.0, 5.0],
    q_mean=[4.0, 6.0],
    returns=[1.0, 2.0],
    tail_weight=0.02,
    visited_overestimation=1.25,
    visited_states=7,
    discounted_return=1.75,
    played_episodes=2,
    td_error=0.5,
    held_out_td_error=0.75,
    held_out="3 episodes of its data",
    action_distance=0.25,
    nearest_action_distance=0.125,
    rows=100,
)
CLONED = replace(
    FOUND,
    critics=0,
    q=[],
    q_mean=[],
    returns=[],
    visited_overestimation=None,
    visited_states=0,
    td_error=None,
    held_out_td_error=None,
    held_out=None,
)
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


def cells(html, name):
    """Cells of the rows called ``name``, of one table after the other."""
    rows = [row for row in html.split("<tr>")[1:] if f"> {name}</span>" in row or f'row">{name}</th>' in row]
    return [cell.split("</td>")[0] for row in rows for cell in row.split("<td>")[1:]]


def tasks(*folders):
    return group_runs([read_run(folder) for folder in folders])


def test_the_table_by_hand(make_run):
    """Two seeds: Q 4 and 6, returns 1.5 and 1.5; a method without critics has dashes."""
    one, two, bc = make_run("a"), make_run("b", seed=1), make_run("c", algorithm="bc", settings={})
    write_record(one, FOUND)
    write_record(one, FITTED)
    write_record(two, replace(FOUND, q=[5.0, 7.0], td_error=0.7))
    write_record(bc, CLONED)
    html = diagnostics_section(tasks(one, two, bc))
    assert cells(html, "td3_bc") == [
        "2",
        "5.00 &plusmn; 1.41",
        "1.50 &plusmn; 0.00",
        "3.50 &plusmn; 1.41",
        "1.25 &plusmn; 0.00",
        "0.600 &plusmn; 0.141",
        "0.750 &plusmn; 0.000",
        "2",
        "0.250 &plusmn; 0.000",
        "0.125 &plusmn; 0.000",
        "1.00<small> (1 of 2 runs)</small>",
        "1.75<small> (1 of 2 runs)</small>",
    ]
    assert cells(html, "bc") == ["1", *"------", "1", "0.250", "0.125", "-", "-"]
    assert "held out: 3 episodes of its data" in html
    assert html.count('class="chart intervals"') == 1


def test_the_chart_has_the_interval_of_each_run(make_run):
    """Gaps 2 and 3: the bootstrap interval of two values reaches from one to the other."""
    folder = make_run()
    write_record(folder, FOUND)
    assert "td3_bc seed 0: 2.5 (2 .. 3)" in diagnostics_section(tasks(folder))


@pytest.mark.parametrize(
    ("record", "note"),
    [
        (replace(FOUND, step=500), "diagnostics of step 500, the run is at 1000"),
        (replace(FITTED, step=400), "FQE of step 400, the run is at 1000"),
        (replace(FOUND, tail_weight=0.3), "time limits leave 30 % of the value unseen"),
    ],
)
def test_what_weakens_a_number_is_said(make_run, record, note):
    folder = make_run()
    write_record(folder, record)
    assert note in diagnostics_section(tasks(folder))
    write_record(folder, FOUND)
    write_record(folder, FITTED)
    assert note not in diagnostics_section(tasks(folder))


def test_fqe_stands_beside_a_return_of_its_own_discount_only(make_run):
    folder = make_run()
    write_record(folder, FOUND)
    write_record(folder, replace(FITTED, discount=0.9))
    assert cells(diagnostics_section(tasks(folder)), "td3_bc")[-2:] == ["1.00", "-"]


def test_without_diagnostics_there_is_no_section(make_run):
    folders = [make_run()]
    assert diagnostics_section(tasks(*folders)) == bandit_section(tasks(*folders)) == ""
    assert "Beyond return" not in render_report([read_run(folder) for folder in folders])


def test_candidates_are_the_finished_runs_of_an_algorithm_whatever_their_settings(make_run):
    folders = [make_run("a", (100.0,)), make_run("b", (20.0,), seed=1, settings={"alpha": 1.0})]
    folders += [make_run("c", finished=False, seed=2), make_run("d", algorithm="iql")]
    (task,) = tasks(*folders)
    found = candidates(task)
    assert list(found) == ["td3_bc"]
    assert sorted(arm.tolist() for arm in found["td3_bc"]) == [[5.0, 10.0, 15.0], [45.0, 50.0, 55.0]]


def test_the_bandit_goes_from_the_mean_of_all_runs_to_the_best(make_run):
    """Scores 50 and 10, 5 apart at most: blindly 30 on average, chosen 50 after a few pulls."""
    html = bandit_section(tasks(make_run("a", (100.0,)), make_run("b", (20.0,), seed=1)))
    row = cells(html, "td3_bc")
    assert row[:2] == ["2", "3"]
    assert float(row[2]) == pytest.approx(30.0, abs=2.5)
    np.testing.assert_allclose([float(cell) for cell in row[3:]], 50.0)
    assert "online episodes used to choose" in html


def test_returns_without_references_are_scaled_for_the_bandit_and_shown_as_returns(make_run):
    """Returns 100 and 20: 60 blindly, 100 chosen, as the same runs have 50 of 30 and 50 with references."""
    folders = [make_run("a", (100.0,), reference_returns=None)]
    folders.append(make_run("b", (20.0,), seed=1, reference_returns=None))
    row = cells(bandit_section(tasks(*folders)), "td3_bc")
    assert float(row[2]) == pytest.approx(60.0, abs=5.0)
    np.testing.assert_allclose([float(cell) for cell in row[3:]], 100.0)
    same = [make_run(f"s{i}", reference_returns=None, seed=i) for i in range(2)]
    assert set(cells(bandit_section(tasks(*same)), "td3_bc")[2:]) == {"80.0"}

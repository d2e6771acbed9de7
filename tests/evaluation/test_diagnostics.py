"""The two JSON files beside a run are checked when they are read."""

import json
from dataclasses import asdict, replace

import pytest

from offrl.errors import CheckpointError
from offrl.evaluation.diagnostics import (
    DIAGNOSTICS,
    FQE,
    Diagnostics,
    FQERecord,
    read_diagnostics,
    read_fqe,
    write_record,
)

FOUND = Diagnostics(
    step=1000,
    discount=0.99,
    critics=2,
    seed=0,
    q=[3.0, 5.0],
    q_mean=[4.0, 6.0],
    returns=[1.0, 2.0],
    tail_weight=0.0,
    visited_overestimation=1.5,
    visited_states=7,
    discounted_return=1.5,
    played_episodes=2,
    td_error=0.5,
    held_out_td_error=None,
    held_out=None,
    action_distance=0.25,
    nearest_action_distance=0.125,
    rows=100,
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


def test_what_was_written_is_read(tmp_path):
    assert read_diagnostics(tmp_path) is read_fqe(tmp_path) is None
    assert write_record(tmp_path, FOUND) == tmp_path / DIAGNOSTICS
    assert write_record(tmp_path, FITTED) == tmp_path / FQE
    assert read_diagnostics(tmp_path) == FOUND
    assert read_fqe(tmp_path) == FITTED
    assert FOUND.overestimation == [2.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "another format"),
        ({"q": [1.0]}, "differ in length"),
        ({"q": [1.0, None]}, "'q' is"),
        ({"q": "12"}, "'q' is"),
        ({"step": -1}, "'step' is"),
        ({"step": 1.5}, "'step' is"),
        ({"discount": None}, "'discount' is"),
        ({"td_error": float("nan")}, "'td_error' is"),
        ({"td_error": True}, "'td_error' is"),
        ({"held_out": 3}, "'held_out' is"),
        ({"rows": "100"}, "'rows' is"),
        ({"extra": 1}, "'extra' is missing or unknown"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, changes, message):
    (tmp_path / DIAGNOSTICS).write_text(json.dumps({"format": 1, **asdict(FOUND), **changes}))
    with pytest.raises(CheckpointError, match=f"{DIAGNOSTICS}.*{message}"):
        read_diagnostics(tmp_path)


def test_a_missing_field_and_another_kind_of_file_are_named(tmp_path):
    values = {"format": 1, **asdict(FITTED)}
    del values["value"]
    (tmp_path / FQE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="'value' is missing"):
        read_fqe(tmp_path)
    (tmp_path / FQE).write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        read_fqe(tmp_path)


def test_numbers_of_a_run_that_diverged_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="diverged"):
        write_record(tmp_path, replace(FOUND, td_error=float("inf")))
    assert list(tmp_path.iterdir()) == []

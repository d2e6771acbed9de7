"""What a sweep is expected to cost: counted by hand, measured or recorded, and close to what it then takes."""

import json
from pathlib import Path

import pytest

import offrl.sweeps.cost as cost
from offrl.data.load import load_dataset
from offrl.sweeps.cost import Rates, episodes_of, estimate, measure
from offrl.training.options import RunOptions
from offrl.training.sweep import Data, Entry, entries


@pytest.fixture
def listed(folder):
    def make(grid=None, seeds=(0, 1), uri="tiny.hdf5", **options) -> list[Entry]:
        options = {"steps": 100, "eval_every": 40, "eval_episodes": 3} | options
        grid = {"hidden": ("8",), "batch_size": ("4",)} | (grid or {})
        return entries(["bc", "td3_bc"], [Data(uri, uri, "1")], seeds, grid, options)

    return make


@pytest.mark.parametrize(
    ("options", "episodes"),
    [
        ({"steps": 100, "eval_every": 40, "eval_episodes": 3}, 9),
        ({"steps": 80, "eval_every": 40, "eval_episodes": 3, "final_episodes": 50}, 53),
        ({"steps": 100, "eval_every": 0, "eval_episodes": 3}, 3),
        ({"steps": 10, "eval_every": 40, "eval_episodes": 3}, 3),
    ],
)
def test_episodes_of_a_run(options, episodes):
    assert episodes_of(RunOptions(**options)) == episodes


def test_core_seconds_by_hand(listed, tmp_path, monkeypatch):
    """Two methods, two seeds: 100 updates of 0.01 s and 9 episodes of 20 steps of 0.001 s each, and 7 fresh ones."""
    seen = []
    monkeypatch.setattr(
        cost, "measure", lambda e, d, r: seen.append((e.algorithm, r)) or Rates(0.01, 0.001, 20, "x")
    )
    expected = estimate(listed(), tmp_path, load_dataset, chosen_episodes=7)
    assert seen == [("bc", None), ("td3_bc", None)], "seeds cost the same"
    assert expected.updates == pytest.approx(4 * 100 * 0.01)
    assert expected.episodes == pytest.approx((4 * 9 + 2 * 7) * 20 * 0.001)
    assert expected.core_hours == pytest.approx((expected.updates + expected.episodes) / 3600)
    assert len(expected.lines) == 2


def test_a_model_that_does_not_act_costs_its_updates(folder, tmp_path):
    grid, options = {"hidden": ("8",), "batch_size": ("4",)}, {"steps": 100}
    listed = entries(["cdsa"], [Data("tiny.hdf5", "tiny.hdf5", "1")], (0,), grid, options)
    expected = estimate(listed, tmp_path, load_dataset)
    assert expected.updates > 0
    assert expected.episodes == 0
    assert "updates/s" in expected.lines[0]


def finish(entry: Entry, out: Path, rate: float, stack=None) -> None:
    path = entry.result(out)
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"median_steps_per_second": rate, "config": {} if stack is None else {"stack": stack}})
    )


def test_finished_runs_give_the_rate_and_cost_nothing(listed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cost, "measure", lambda e, d, r: seen.append((e.algorithm, r)) or Rates(r or 1.0, 0.0, 0, "x")
    )
    runs = listed(seeds=(0, 1, 2))
    finish(runs[0], tmp_path, 50.0)
    finish(runs[1], tmp_path, 10.0, stack=["a", "b"])
    expected = estimate(runs, tmp_path, load_dataset)
    assert seen == [("bc", 0.05), ("td3_bc", None)], "a stack of two makes 20 of a run's updates a second"
    assert expected.updates == pytest.approx(100 * 0.05 + 300 * 1.0)


def test_widths_are_priced_apart_and_fractions_together(listed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cost, "measure", lambda e, d, r: seen.append(e.settings) or Rates(0.01, 0.0, 0, "x"))
    estimate(listed(grid={"hidden": ("8", "16"), "lr": ("0.1", "0.01")}, seeds=(0,)), tmp_path, load_dataset)
    assert len(seen) == 4, seen


def test_a_measurement_is_a_measurement(listed, folder):
    """Updates are timed, a recorded rate is taken, episodes are as long as their limit."""
    (one, *_) = listed()
    data = load_dataset("tiny.hdf5")
    rates = measure(one, data)
    assert 1e-6 < rates.update < 0.1
    assert 1e-7 < rates.step < 0.1
    assert rates.horizon == 20
    assert rates.how.startswith("measured")
    assert measure(one, data, 0.25).update == 0.25
    assert measure(listed(uri="bare.hdf5")[0], load_dataset("bare.hdf5")).step == 0.0


def test_what_cannot_be_measured_is_said_and_not_fatal(listed, tmp_path, monkeypatch):
    def fails(entry, *_):
        raise ValueError("no such thing")

    monkeypatch.setattr(cost, "measure", fails)
    expected = estimate(listed(), tmp_path, load_dataset)
    assert expected.core_hours == 0.0
    assert expected.lines[0] == (
        "bc on tiny.hdf5 (hidden=8, batch_size=4): cannot be estimated (ValueError: no such thing)"
    )

"""Runs say when a metric has long been where it should not be, once each time."""

import dataclasses
import math

import pytest
import torch

from offrl.algos import load_algorithm
from offrl.data.dataset import OfflineDataset
from offrl.training import records
from offrl.training.check import tiny_problem
from offrl.training.options import RunOptions, make_settings
from offrl.training.problem import Alarm, Problem
from offrl.training.progress import Reporter
from offrl.training.records import PATIENCE, Record
from offrl.training.runner import start


@pytest.mark.parametrize(("rewards", "limit"), [([1.0, 3.0, -5.0], 30.0), ([-2.0, -1.0, -3.0], 0.0)])
def test_q_may_not_pass_every_possible_return(rewards, limit):
    problem = dataclasses.replace(tiny_problem(rows=3), rewards=torch.tensor(rewards))
    ((name, alarm),) = problem.q_alarm(0.9).items()
    assert (name, alarm.low) == ("q_policy", -math.inf)
    assert alarm.high == pytest.approx(limit)


@pytest.mark.parametrize("name", ["td3_bc", "prdc", "rebrac", "a2pr"])
def test_who_follows_q_watches_it(name):
    _, method = load_algorithm(name)
    problem = tiny_problem()
    learner = method.learner(problem, method.config(discount=0.5))
    assert set(learner.alarms) <= set(learner.metrics)
    assert learner.alarms["q_policy"].high == pytest.approx(max(float(problem.rewards.max()), 0) * 2)
    if name == "a2pr":
        assert learner.alarms["gate_open_frac"][:2] == (0.05, 1.0)


def quiet_record(alarms):
    """The part of a record that watches."""
    made = object.__new__(Record)
    made.alarms, made.outside = alarms, records.Counter()
    return made


def test_only_what_stays_outside_is_told_and_once():
    made = quiet_record({"q": Alarm(-math.inf, 10.0, "too high"), "gate": Alarm(0.05, 1.0, "too low")})
    rows = (
        [{"q": 11.0, "gate": 0.5}] * (PATIENCE - 1)
        + [{"q": 9.0, "gate": 0.01}]
        + [{"q": 12.0, "gate": 0.01}] * 9
    )
    said = [(k, text) for k, row in enumerate(rows) for text in made.warnings(row)]
    assert [k for k, _ in said] == [2 * PATIENCE - 2, 2 * PATIENCE - 1]
    assert said[0][1] == f"gate is 0.01, for {PATIENCE} rows below 0.05: too low"
    assert said[1][1] == f"q is 12, for {PATIENCE} rows above 10: too high"


def test_limits_themselves_and_missing_metrics_are_no_alarm():
    made = quiet_record({"q": Alarm(-1.0, 1.0, "out")})
    for value in (1.0, -1.0, math.nan):
        assert not any(made.warnings({"q": value}) for _ in range(3 * PATIENCE))
    assert not any(made.warnings({}) for _ in range(3 * PATIENCE))


def test_a_run_tells_its_user(tmp_path, pendulum, capsys, monkeypatch):
    low = {"q_policy": Alarm(-math.inf, -1e9, "the critics overestimate")}
    monkeypatch.setattr(Problem, "q_alarm", lambda self, discount: low)
    monkeypatch.setattr(records, "PATIENCE", 2)
    data = OfflineDataset(
        pendulum.fields, pendulum.episode_starts, {"action_low": [-2.0], "action_high": [2.0]}
    )
    options = RunOptions(out=tmp_path, steps=12, log_every=3, eval_every=0, checkpoint_every=12)
    settings = make_settings("td3_bc", {"hidden": 8, "batch_size": 8})
    start("td3_bc", settings, options, dataset=data, reporter=Reporter("text", 12))
    out = capsys.readouterr().out
    assert out.count("for 2 rows above -1e+09: the critics overestimate") == 1

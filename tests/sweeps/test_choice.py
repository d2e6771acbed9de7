"""Choosing a configuration: by each rule, at what cost, with which episodes, resumed after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest

import offrl.sweeps.choice as choice
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.rollout import EvaluationResult, evaluate
from offrl.evaluation.sources import load_source
from offrl.fitted_q import FQEResult
from offrl.sweeps.choice import REPORT_STREAM, SEARCH_STREAM, Arm, Contest, contests, decide, judge_cells
from offrl.training.run_dir import RunDir
from offrl.training.sweep import Data, Entry, entries, run_directory


def read(path: Path):
    return json.loads(path.read_text())


def trained(out: Path) -> list[Entry]:
    """The entries of the sweep that the fixture ``sweep`` made in ``out``: two learning rates, two seeds."""
    options = {"env": None, "steps": 4, "eval_every": 0, "eval_episodes": 1, "final_episodes": 0}
    options["checkpoint_every"] = 10_000
    grid = {"hidden": ("8",), "batch_size": ("4",), "lr": ("0.1", "0.01")}
    data = [Data(str(Path("tiny.hdf5").resolve()), "tiny", load_dataset("tiny.hdf5").sha256)]
    listed = entries(["bc"], data, (0, 1), grid, options)
    assert all(entry.result(out).exists() for entry in listed)
    return listed


GRID = ("hidden=8", "batch_size=4", "lr=0.1,0.01")


@pytest.fixture
def out(sweep) -> Path:
    sweep(grid=GRID, seeds=(0, 1))
    return Path("sweep")


class Player:
    """In the place of the evaluator: an episode earns what its policy is told to; remembers how it was drawn."""

    calls: list[tuple[int, int, int]]
    worth: dict[str, float]

    def __init__(self, spec) -> None:
        self.spec = spec

    def __call__(self, policy, episodes, *, seed, stream):
        Player.calls.append((seed, stream, episodes))
        noise = np.random.default_rng([seed, stream]).normal(size=episodes)
        returns = -1500.0 + 13.5 * (Player.worth[policy] + noise)  # scores: worth + noise
        return EvaluationResult(returns, np.full(episodes, 20), None, "Pendulum-v1")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def player(monkeypatch, out):
    """Policies are the names of their cells; the second learning rate is worth more."""
    Player.calls = []
    names = {run_directory(e, out).resolve(): e.name for e in trained(out)}
    Player.worth = {e.name: 60.0 if "0.01" in e.settings else 40.0 for e in trained(out)}
    monkeypatch.setattr(choice, "Evaluator", Player)
    monkeypatch.setattr(choice, "load_policy", lambda path: names[Path(path).resolve()])
    return Player


def bandit(out: Path, budget: int = 12, seed: int = 0):
    (contest,) = contests(trained(out), out)
    (cell,) = judge_cells(contest, "bandit", out, budget=budget, steps=1, seed=seed)
    return contest, cell


def test_the_bandit_uses_its_budget_and_finds_the_better_one(out, player):
    contest, cell = bandit(out)
    choice.main(cell.command[3:])
    assert len(player.calls) == 12
    assert all(episodes == 1 for *_, episodes in player.calls)
    record = read(cell.result)
    decision = decide(contest, "bandit", out, [cell])
    assert (decision.arm, decision.online_episodes) == (1, 12)
    assert decision.how == "UCB bandit over 2 configurations, 12 online episodes"
    assert "lr=0.01" in contest.arms[decision.arm].settings
    pulled, scores = np.array(record["pulled"]), np.array(record["scores"])
    assert record["means"] == [pytest.approx(scores[pulled == k].mean()) for k in (0, 1)]
    assert record["scale"] == "normalized score"
    assert scores[pulled == 1].mean() == pytest.approx(60.0, abs=2.0)


def test_a_pull_takes_the_seeds_in_turn(out, player):
    """Of the better configuration, seed 1's policy is worth 0: a bandit of one seed would never notice."""
    last = trained(out)[-1]
    assert (last.training.seed, last.varied["lr"]) == (1, 0.01)
    player.worth[last.name] = 0.0
    contest, cell = bandit(out, budget=20)
    choice.main(cell.command[3:])
    assert decide(contest, "bandit", out, [cell]).arm == 0
    assert read(cell.result)["means"][1] == pytest.approx(30.0, abs=16.0)


def test_search_report_and_training_see_different_episodes(out, player):
    """Episodes come from (seed, stream); training's stream is the step, always below the others'."""
    _, cell = bandit(out)
    choice.main(cell.command[3:])
    search = {(seed, stream) for seed, stream, _ in player.calls}
    assert len(search) == 12, "every pull its own episode"
    player.calls.clear()
    (contest,) = contests(trained(out), out)
    for final in choice.final_cells(contest.arms[0], out, 5):
        choice.main(final.command[3:])
    report = {(seed, stream) for seed, stream, _ in player.calls}
    assert report == {(0, REPORT_STREAM), (1, REPORT_STREAM)}
    assert {stream for _, stream in search} == set(range(SEARCH_STREAM, SEARCH_STREAM + 12))
    assert search.isdisjoint(report)
    assert REPORT_STREAM + 1 < 2**32, "a word of the seed sequence each"
    assert SEARCH_STREAM // 2 < SEARCH_STREAM, "the options keep steps and budget below half of it"


def test_episodes_differ_between_streams():
    """Not only the numbers: Pendulum's start states, hence its returns, differ."""
    policy = load_source("random", "Pendulum-v1")
    returns = [
        evaluate(policy, "Pendulum-v1", episodes=3, seed=0, stream=stream, max_steps=5).returns.tolist()
        for stream in (4, SEARCH_STREAM, SEARCH_STREAM + 1, REPORT_STREAM)
    ]
    assert len({tuple(r) for r in returns}) == 4
    assert len({r for rs in returns for r in rs}) == 12


@pytest.mark.parametrize("torn", ["", "1,6"])
def test_a_killed_bandit_goes_on_with_its_pulls(out, player, torn):
    _, cell = bandit(out)
    choice.main(cell.command[3:])
    whole, pulls = cell.result.read_bytes(), cell.result.with_suffix(".pulls.csv")
    lines = pulls.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    cell.result.unlink()
    pulls.write_text("".join(lines[:7]) + torn)
    player.calls.clear()
    choice.main(cell.command[3:])
    assert [stream - SEARCH_STREAM for _, stream, _ in player.calls] == [7, 8, 9, 10, 11]
    assert cell.result.read_bytes() == whole
    assert pulls.read_text() == "".join(lines)
    cell.result.unlink()
    other = "0" if lines[0][0] == "1" else "1"
    pulls.write_text(other + "".join(lines)[1:])
    with pytest.raises(CheckpointError, match="is of another search: pull 1"):
        choice.main(cell.command[3:])


def test_another_budget_or_seed_is_another_search(out):
    names = {bandit(out, budget, seed)[1].name for budget, seed in ((12, 0), (13, 0), (12, 1))}
    assert len(names) == 3


def test_without_references_the_data_give_the_scale(sweep):
    sweep(datasets=("bare.hdf5",), env="Pendulum-v1")
    (run,) = Path("sweep").glob("runs/*/*/*/seed*")
    (low, high), what = choice._scale(RunDir(run))
    assert (low, high) == (pytest.approx(-278, abs=1), pytest.approx(-208, abs=1))
    assert what.startswith("lowest and highest return of the data")


def test_last_takes_the_highest_mean_over_the_seeds_and_counts_its_episodes(out):
    listed = trained(out)
    for entry, returns in zip(listed, ([-9.0, -1.0], [-3.0], [-8.0], [-1.0]), strict=True):
        raw = read(entry.result(out))
        raw["evaluations"] = [{"step": 1, "returns": [0.0] * 7}, {"step": 4, "returns": returns}]
        entry.result(out).write_text(json.dumps(raw))
    (contest,) = contests(listed, out)
    decision = decide(contest, "last", out, [])
    assert decision.values == (-4.0, -4.5)
    assert (decision.arm, decision.online_episodes) == (0, 5)
    assert judge_cells(contest, "last", out, budget=0, steps=1, seed=0) == []
    raw["evaluations"] = []
    listed[3].result(out).write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="was never evaluated: --select last needs an environment"):
        decide(contest, "last", out, [])


def test_where_success_counts_it_is_what_is_chosen_by(out, monkeypatch):
    """Scores are made of successes there: the returns, -42.5 against -39.75, would choose the other one."""
    listed = trained(out)
    for entry, returns, successes in zip(
        listed,
        ([-40.0, -44.0], [-43.0], [-9.0, -50.0], [-50.0]),
        ([1.0, 1.0], [1.0], [1.0, 0.0], [0.0]),
        strict=True,
    ):
        raw = read(entry.result(out))
        raw["config"]["env_id"] = "FetchPush-v4"
        raw["evaluations"] = [{"step": 4, "returns": returns, "successes": successes}]
        entry.result(out).write_text(json.dumps(raw))
    decision = decide(contests(listed, out)[0], "last", out, [])
    assert (decision.values, decision.arm, decision.online_episodes) == ((1.0, 0.25), 0, 6)
    run = RunDir(run_directory(listed[0], out))
    run.config |= {"env_id": "FetchPush-v4", "reference_returns": None}
    assert choice._scale(run) == ((0.0, 1.0), "success rate, %")


def test_fitted_q_decides_without_an_episode(out, monkeypatch):
    listed = trained(out)
    (contest,) = contests(listed, out)
    cells = judge_cells(contest, "fqe", out, budget=0, steps=7, seed=3)
    assert len(cells) == 4
    seen = []

    def fitted(policy, data, options):
        seen.append((options.steps, options.seed, data.num_episodes))
        return FQEResult(float([5, 0, 1, 3][len(seen) - 1]), 0.0, 0.1, 0.1, 0.0, 1.0, 4)

    monkeypatch.setattr(choice, "fitted_q_evaluation", fitted)
    monkeypatch.setattr(choice, "Evaluator", None)
    for cell in cells:
        choice.main(cell.command[3:])
    assert seen == [(7, 3, 4)] * 4
    decision = decide(contest, "fqe", out, cells)
    assert (decision.values, decision.arm, decision.online_episodes) == ((2.5, 2.0), 0, 0)


def test_a_configuration_counts_only_with_all_its_seeds(out):
    listed = trained(out)
    listed[1].result(out).unlink()
    (contest,) = contests(listed, out)
    assert [arm.entries[0].varied["lr"] for arm in contest.arms] == [0.01]
    assert contest.missing == 1
    decision = decide(contest, "bandit", out, [])
    assert (decision.arm, decision.online_episodes, decision.how) == (0, 0, "the only configuration")
    with pytest.raises(ConfigError, match="no configuration has finished runs of all its seeds"):
        decide(Contest("bc", "tiny", (), 2), "last", out, [])


def test_nobody_plays_where_there_is_no_environment(sweep):
    sweep(datasets=("bare.hdf5",), select="fqe", fqe_steps=2)
    record = read(next(Path("sweep").glob("raw/*.json")))
    assert record["config"]["env_id"] is None
    assert not list(Path("sweep").glob("choice/final*"))
    text = Path("sweep/results.md").read_text()
    assert "| bc | bare | hidden=8 batch_size=4 | no environment | the only configuration |" in text


def test_an_arm_is_a_configuration(out):
    (contest,) = contests(trained(out), out)
    assert [type(arm) for arm in contest.arms] == [Arm, Arm]
    assert [len(arm.entries) for arm in contest.arms] == [2, 2]

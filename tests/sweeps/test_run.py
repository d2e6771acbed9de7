"""A sweep from its options to its tables: random draws that stay, choice, fresh episodes, presets, failures, the door."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest

import offrl
from offrl.data.d4rl import write_d4rl
from offrl.errors import ConfigError, Stopped
from offrl.sweeps.cost import Estimate
from offrl.sweeps.options import SweepOptions

SPACE = {"lr": {"log_uniform": [1e-4, 1e-1]}}


def chosen(out: str = "sweep") -> list[dict[str, str]]:
    with open(Path(out) / "chosen.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_random_search_draws_once(sweep, played):
    first = sweep(random=3, space=SPACE)
    assert len(set(first.cells)) == 3
    assert len(played) == 3
    assert sweep(random=3, space=SPACE).cells == first.cells
    assert len(played) == 3, "nothing is trained again"
    more = sweep(random=4, space=SPACE)
    assert more.cells[:3] == first.cells
    assert len(played) == 4
    with pytest.raises(ConfigError, match="draws of another space, seed"):
        sweep(random=3, space=SPACE, search_seed=1)
    drawn = json.loads(Path("sweep/search.json").read_text())["draws"]["bc"]
    assert [f"lr={row['lr']}" in line["settings"] for row, line in zip(drawn, more.rows, strict=True)] == [
        True
    ] * 4


def test_draws_that_coincide_are_one_configuration(sweep, played):
    """Twenty draws of two values: both of them once, and no third run when more are drawn."""
    space = {"top_fraction": {"choice": [0.5, 1.0]}}
    result = sweep(random=20, space=space)
    assert {"top_fraction=0.5" in row["settings"] for row in result.rows} == {True, False}
    assert len(json.loads(Path("sweep/search.json").read_text())["draws"]["bc"]) == 20
    assert sweep(random=30, space=space).cells == result.cells
    assert len(result.cells) == len(played) == 2


@pytest.mark.parametrize(("select", "online"), [("bandit", 5), ("last", 4), ("fqe", 0)])
def test_the_chosen_configuration_plays_fresh_episodes(sweep, played, select, online):
    more = {"budget": 5} if select == "bandit" else {}
    given = {"grid": ("hidden=8", "batch_size=4", "lr=0.1,0.01"), "seeds": (0, 1), "select": select}
    result = sweep(**given, **more, final_episodes=3, fqe_steps=2)
    (row,) = chosen()
    assert (row["select"], row["configurations"], row["online_episodes"]) == (select, "2", str(online))
    finals = [
        json.loads(path.read_text())
        for path in Path("sweep/choice").glob("final*[0-9a-f].json")
        if "cell" not in path.name
    ]
    assert [len(record["returns"]) for record in finals] == [3, 3]
    means = [sum(record["scores"]) / 3 for record in finals]
    assert float(row["mean"]) == pytest.approx(sum(means) / 2)
    assert float(row["std"]) == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert (row["unit"], row["episodes_each"], row["seeds"]) == ("normalized score", "3", "2")
    assert result.chosen[0]["settings"] == row["settings"]
    assert result.rows[0]["episodes"] == 1, "the runs' own last evaluation is the short one"
    text = Path("sweep/results.md").read_text()
    assert "## Chosen configurations" in text
    words = {"bandit": "5 online episodes", "last": "4 online episodes", "fqe": "no online episode"}
    assert f"{words[select]} |" in text
    assert "is not an offline" in text
    before = len(played)
    assert sweep(**given, **more, final_episodes=3, fqe_steps=2).chosen == result.chosen
    assert len(played) == before


def test_what_fitted_q_evaluation_cannot_judge_is_refused_before_it_is_trained(sweep, played):
    given = {"algos": ("decision_transformer",), "select": "fqe"}
    with pytest.raises(
        ConfigError, match="--select fqe cannot choose among configurations of decision_transf"
    ):
        sweep(**given, grid=("hidden=8", "heads=1", "batch_size=4", "context=2,3"))
    assert not played
    one = sweep(**given, grid=("hidden=8", "heads=1", "batch_size=4", "context=2"), final_episodes=1)
    assert one.chosen[0]["how"] == "the only configuration"


def test_a_choice_by_episodes_needs_an_environment(sweep):
    for select in ("last", "bandit"):
        with pytest.raises(
            ConfigError, match=f"--select {select} plays episodes, and bare.hdf5 names no environment"
        ):
            sweep(datasets=("bare.hdf5",), select=select, budget=3 * (select == "bandit"))


BREAKS = """
import dataclasses
from offrl.algos.bc import ALGORITHM as BC

class Learner(BC.learner):
    def __init__(self, problem, config):
        super().__init__(problem, config)
        if config.lr > 0.05:
            raise OSError("no")

ALGORITHM = dataclasses.replace(BC, learner=Learner)
"""


def test_a_broken_configuration_is_left_out_and_reported(sweep):
    Path("breaks.py").write_text(BREAKS)
    given = {"grid": ("hidden=8", "batch_size=4", "lr=0.1,0.02,0.01"), "select": "last", "final_episodes": 1}
    with pytest.raises(ChildProcessError, match="1 of 4 cells failed 3 times: breaks-tiny-lr=0.1-"):
        sweep(algos=("breaks.py",), retries=2, **given)
    (row,) = chosen()
    assert (row["configurations"], row["left_out"], row["online_episodes"]) == ("2", "1", "2")
    text = Path("sweep/results.md").read_text()
    assert "2 of 3 runs are finished" in text
    assert "1 without finished runs left out" in text


def test_a_stop_says_so_and_chooses_nothing(sweep, monkeypatch):
    import offrl.sweeps.run as module

    whole = module.run_cells

    def interrupted(cells, logs, **rest):
        missing = whole(cells[:1], logs, **rest)
        os.kill(os.getpid(), signal.SIGTERM)
        return missing + [cell.name for cell in cells[1:]]

    monkeypatch.setattr(module, "run_cells", interrupted)
    with pytest.raises(Stopped, match="stopped with 1 of 2 runs finished; give the same command") as caught:
        sweep(grid=("hidden=8", "batch_size=4", "lr=0.1,0.01"), select="last")
    assert caught.value.exit_code == 143
    monkeypatch.setattr(module, "run_cells", whole)
    result = sweep(grid=("hidden=8", "batch_size=4", "lr=0.1,0.01"), select="last", final_episodes=2)
    assert result.chosen[0]["configurations"] == 2


def test_the_locomotion_preset_checks_scores_beside_published_ones(sweep, folder, pendulum, monkeypatch):
    """A tiny file in D4RL's layout stands in for the public one; the environment is named by hand."""
    monkeypatch.setenv("OFFRL_DATA", str(folder / "home"))
    pendulum.metadata.clear()
    write_d4rl(pendulum, folder / "home/hopper-medium-v2.hdf5")
    options = SweepOptions(algos=("bc",), preset="d4rl-locomotion")
    assert len(options.uris) == 9
    assert options.uris[0] == "d4rl:hopper-medium-v2"
    result = sweep(
        algos=("bc", "iql"),
        datasets=options.uris[:1],
        preset="d4rl-locomotion",
        env="Pendulum-v1",
        grid=("hidden=8",),
    )
    assert [row["unit"] for row in result.rows] == ["normalized score"] * 2
    configs = {r["config"]["algorithm"]: r["config"] for r in map(read, Path("sweep/raw").iterdir())}
    assert configs["iql"]["preset"] == "hopper-medium-v2"
    assert configs["iql"]["settings"]["return_range_scaling"] is True
    assert configs["bc"]["preset"] is None
    assert configs["bc"]["rows"] == "qlearning", "D4RL's own rows"
    assert "No finished run has a published score" in Path("sweep/results.md").read_text(), "hidden is varied"
    sweep(algos=("bc",), datasets=options.uris[:1], preset="d4rl-locomotion", env="Pendulum-v1", grid=())
    text = Path("sweep/results.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| bc | hopper-medium-v2 |")]
    assert "| 53.5 +- 1.8 | 48.5 .. 58.5 | outside |" in line
    assert "mujoco-py" in text


def read(path):
    return json.loads(path.read_text())


def test_the_python_door(folder, played):
    given = {"steps": 4, "eval_every": 0, "eval_episodes": 1, "progress": False, "out": "out"}
    result = offrl.sweep(
        ["bc"], ["tiny.hdf5"], grid={"hidden": [8], "batch_size": [4]}, seeds=[0, 1], **given
    )
    assert [row["seed"] for row in result.rows] == [0, 1]
    assert (Path("out") / "results.csv").exists()
    drawn = offrl.sweep(
        ["bc"], ["tiny.hdf5"], space={"hidden": {"int": [4, 8]}}, random=2, **given | {"out": "more"}
    )
    assert all(4 <= int(row["settings"].removeprefix("hidden=")) <= 8 for row in drawn.rows)
    with pytest.raises(ConfigError, match="sweep has no option 'stepz'"):
        offrl.sweep(["bc"], ["tiny.hdf5"], stepz=3)


def test_what_is_expected_is_said_first(sweep):
    lines: list[str] = []
    sweep(say=lines.append, quiet=False)
    assert lines[0].startswith("tiny: 160 transitions")
    assert lines[1].startswith(
        "expected: 1 runs (1 of algorithm, dataset and settings x 1 seeds) of 4 updates, 1 of"
    )
    assert "core-hours on this machine" in lines[3]
    assert lines[4].startswith("\n1 of 1 runs are finished")
    before = len(lines)
    sweep(say=lines.append, quiet=False)
    assert not any("core-hours" in line for line in lines[before:]), "nothing is left to do"


def test_the_price_counts_what_the_choice_plays(sweep, monkeypatch):
    import offrl.sweeps.run as module

    seen = []
    nothing = Estimate(0.0, 0.0, ())
    monkeypatch.setattr(
        module, "estimate", lambda listed, out, load, episodes: seen.append(episodes) or nothing
    )
    sweep(quiet=False, dry_run=True, select="bandit", budget=7, final_episodes=100, seeds=(0, 1))
    sweep(quiet=False, dry_run=True, final_episodes=100)
    assert seen == [207, 0]

"""Sweeps of methods that learn in an environment: the same cells, tables and reports as those that learn from data."""

import json
from pathlib import Path

import gymnasium
import pytest

pytest.importorskip("stable_baselines3")

import offrl
from offrl.algos.n_pg_igt import NPGIGT
from offrl.cli import main
from offrl.errors import ConfigError
from offrl.evaluation.runs import find_runs, read_run
from offrl.sweeps.cost import measure_online
from offrl.sweeps.options import SweepOptions
from offrl.sweeps.run import run_sweep
from offrl.sweeps.space import parse_space
from offrl.training.cells import TrainingCell, run_training_cell
from offrl.training.sweep import Data, Entry, entries, parse_grid, plan_cells

ENV = "TinyPendulum-v0"
GRID = ("hidden=8", "trajectories=2")
LEFT = ("metrics.csv", "eval.csv", "policy.safetensors", "final_returns.npz")


@pytest.fixture(autouse=True)
def _tiny():
    if ENV not in gymnasium.registry:
        entry = "gymnasium.envs.classic_control:PendulumEnv"
        gymnasium.register(ENV, entry_point=entry, max_episode_steps=20)


@pytest.fixture
def sweep(folder, played):
    def run(say=lambda line: None, space=None, **changes):
        given = {"algos": ("n_pg_igt",), "envs": (ENV,), "steps": 100, "eval_every": 40, "eval_episodes": 2}
        given |= {"grid": GRID, "quiet": True, "space": Path("in memory") if space else None}
        return run_sweep(SweepOptions(**given | changes), say, parse_space(space) if space else None)

    return run


def test_every_seed_is_a_run_in_the_table_and_is_not_run_again(sweep, played):
    result = sweep(seeds=(0, 1))
    assert [(row["algorithm"], row["dataset"], row["seed"], row["unit"]) for row in result.rows] == [
        ("n_pg_igt", ENV, seed, "return") for seed in (0, 1)
    ]
    records = [read_run(run) for run in find_runs(Path("sweep/runs").iterdir())]
    assert [[e.step for e in record.evaluations] for record in records] == [[40, 80, 100]] * 2
    assert {r.seed: r.final_returns.mean() for r in records} == {r["seed"]: r["last"] for r in result.rows}
    assert f"| algorithm | {ENV} (return) |" in Path("sweep/results.md").read_text()
    assert main(["report", *map(str, Path("sweep/runs").iterdir()), "--out", "report.html"]) == 0
    assert "n_pg_igt" in Path("report.html").read_text()
    count = len(played)
    sweep(seeds=(0, 1))
    assert len(played) == count == 2
    (alone,) = Path("sweep/runs").glob("*seed1*/*/*/*")
    for name in ("metrics.csv", "eval.csv", "policy.safetensors"):
        door = offrl.train(
            "n_pg_igt", env=ENV, seed=1, hidden=8, trajectories=2, steps=100, eval_every=40, eval_episodes=2,
            out="door", progress=False,
        ).directory  # fmt: skip
        assert (door / name).read_bytes() == (alone / name).read_bytes(), "a cell is the run of the command"


def test_data_and_environments_in_one_sweep(sweep, played):
    said: list[str] = []
    result = sweep(
        said.append, algos=("bc", "n_pg_igt"), datasets=("tiny.hdf5",), grid=("hidden=8",), steps=20, quiet=False
    )  # fmt: skip
    assert [(row["algorithm"], row["dataset"]) for row in result.rows] == [("bc", "tiny"), ("n_pg_igt", ENV)]
    assert "of 20 updates or environment steps, 2 of them to do" in said[1]
    (line,) = [line for line in said if f"n_pg_igt on {ENV} (hidden=8): " in line]
    assert "steps/s with learning (measured)" in line


def test_a_cell_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """It dies after its last checkpoint; tried again it ends as an undisturbed one."""
    options = {"steps": 200, "checkpoint_every": 40, "eval_every": 0, "eval_episodes": 1}
    training = TrainingCell("n_pg_igt", ENV, 3, options, {"hidden": 8, "trajectories": 2})
    size = NPGIGT.step_size

    def dying(self):
        if self._n_updates == 4:
            raise OSError
        return size(self)

    for name in ("whole", "dead"):
        spec = Path(training.cell(name, tmp_path / "raw", tmp_path / "runs").command[-1])
        if name == "dead":
            with monkeypatch.context() as patch, pytest.raises(OSError):
                patch.setattr(NPGIGT, "step_size", dying)
                run_training_cell(spec)
            assert not (tmp_path / "raw/dead.json").exists()
        run_training_cell(spec)
    found = [list(tmp_path.glob(f"runs/{name}/*/*/*")) for name in ("whole", "dead")]
    assert [len(of_cell) for of_cell in found] == [1, 1], "resumed, not begun again"
    runs = [of_cell[0] for of_cell in found]
    for name in LEFT:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    raws = [json.loads((tmp_path / f"raw/{name}.json").read_text()) for name in ("whole", "dead")]
    assert raws[0]["evaluations"] == raws[1]["evaluations"]


def listed(algorithm="ppo", env=ENV, grid=(), seeds=(0,), **more) -> list[Entry]:
    return entries(
        [algorithm], [Data(env, env, "", online=True)], seeds, parse_grid(grid), {"steps": 10}, **more
    )


def test_environments_can_be_varied_too():
    found = listed(grid=["num_envs=1,2", "normalize-observations=true", "lr=1e-3"])
    assert [e.varied for e in found] == [
        {"lr": 1e-3, "num_envs": n, "normalize_observations": True} for n in (1, 2)
    ]
    for wrong, message in (
        ("num_envs=0", "num_envs must be 1 or more"),
        ("steps=5", "has a setting 'steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            listed(grid=[wrong])


def test_presets_are_those_of_the_environment_and_the_number_of_steps_stays(tmp_path):
    (entry,) = listed(env="Pendulum-v1", grid=["rollout=8", "batch_size=8"], presets=True)
    assert entry.training.preset == "Pendulum-v1"
    (cell,) = plan_cells([entry], tmp_path)
    run_training_cell(Path(cell.command[-1]))
    config = json.loads(cell.result.read_text())["config"]
    assert (config["num_envs"], config["settings"]["lr"], config["steps"]) == (4, 1e-3, 10)
    with pytest.raises(ConfigError, match="no preset for 'TinyPendulum-v0'"):
        listed(presets=True)


def test_seeds_are_never_stacked(tmp_path):
    seeds = listed(seeds=(0, 1))
    assert [len(cell.more) for cell in plan_cells(seeds, tmp_path)] == [0, 0]
    with pytest.raises(ConfigError, match="ppo plays its own environments"):
        plan_cells(seeds, tmp_path, "stacked")


def test_random_search_and_the_last_evaluation_choose(sweep):
    space = {"step_size": {"log_uniform": [0.01, 0.1]}, "n_pg_igt": {"num_envs": {"int": [1, 2]}}}
    result = sweep(space=space, random=2, select="last", final_episodes=3)
    assert all("step_size=" in row["settings"] and "num_envs=" in row["settings"] for row in result.rows)
    (chosen,) = result.chosen
    best = max(result.rows, key=lambda row: row["last"])
    assert (chosen["settings"], chosen["episodes_each"]) == (best["settings"], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"envs": ()}, "name at least one algorithm, dataset"),
        ({"envs": (), "datasets": ("tiny.hdf5",)}, "n_pg_igt learns in an environment: pass --envs"),
        ({"algos": ("bc",)}, "bc learns from data: pass --datasets"),
        ({"algos": ("bc",), "datasets": ("tiny.hdf5",)}, "none of bc takes --envs"),
        ({"datasets": ("tiny.hdf5",)}, "none of n_pg_igt takes --datasets"),
        ({"select": "fqe"}, "--select fqe needs data"),
        ({"select": "bandit", "budget": 3}, "--select bandit needs data"),
        ({"envs": ("Pendlum-v1",)}, "Pendlum"),
        ({"envs": (ENV, ENV)}, "must each be named once"),
    ],
)
def test_what_makes_no_sense_is_refused(sweep, changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(**changes)


def test_a_recorded_rate_is_taken():
    (entry,) = listed("n_pg_igt", grid=GRID)
    rates = measure_online(entry, 0.25)
    assert (rates.update, rates.horizon, rates.how) == (0.25, 20, "recorded")
    assert 0 < rates.step < 0.1

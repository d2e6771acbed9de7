"""Sweeps of a tiny problem whose cells run in this process: what is tested is not the starting of processes."""

import importlib
from pathlib import Path

import pytest

import offrl.sweeps.run
from offrl.data.d4rl import write_d4rl
from offrl.sweeps.options import SweepOptions
from offrl.sweeps.run import SweepResult, run_sweep
from offrl.sweeps.space import parse_space


@pytest.fixture
def folder(tmp_path, monkeypatch, pendulum):
    """The working folder: ``tiny.hdf5`` names Pendulum-v1 and has reference returns, ``bare.hdf5`` names nothing."""
    monkeypatch.chdir(tmp_path)
    write_d4rl(pendulum, tmp_path / "tiny.hdf5")
    for key in ("env_id", "env_kwargs", "reference_returns"):
        pendulum.metadata.pop(key)
    pendulum.metadata.update(name="bare", action_low=[-2.0], action_high=[2.0])
    write_d4rl(pendulum, tmp_path / "bare.hdf5")
    return tmp_path


@pytest.fixture
def played(monkeypatch):
    """Names of the cells that ran, in order; they run in this process."""
    names: list[str] = []

    def run_cells(cells, logs, *, stop, **_):
        missing = []
        for cell in (cell for cell in cells if not cell.done):
            if stop():
                missing.append(cell.name)
                continue
            names.append(cell.name)
            try:
                importlib.import_module(cell.command[2]).main(cell.command[3:])
            except OSError:
                missing.append(cell.name)
        return missing

    monkeypatch.setattr(offrl.sweeps.run, "run_cells", run_cells)
    return names


@pytest.fixture
def sweep(folder, played):
    """Calls ``sweep(...)``: a sweep of BC on the tiny set, with any options changed."""

    def run(say=lambda line: None, space=None, **changes) -> SweepResult:
        given = {
            "algos": ("bc",),
            "datasets": ("tiny.hdf5",),
            "steps": 4,
            "eval_every": 0,
            "eval_episodes": 1,
        }
        given |= {"grid": ("hidden=8", "batch_size=4"), "quiet": True}
        given |= {"space": Path("in memory")} if space else {}
        return run_sweep(SweepOptions(**given | changes), say, parse_space(space) if space else None)

    return run

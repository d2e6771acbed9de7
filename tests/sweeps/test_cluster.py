"""Cells on a real Ray instance of this machine: a worker killed with -9, one that always fails, a stop, no Ray at all."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offrl.cli import main
from offrl.errors import MissingExtraError
from offrl.sweeps import cluster
from offrl.sweeps.cluster import run_on_ray
from offrl.training.cells import Cell, run_training_cell
from offrl.training.sweep import Data, entries, plan_cells

pytest.importorskip("ray")

KILLED = """
import dataclasses, os, signal
from pathlib import Path
from offrl.algos.bc import ALGORITHM as BC

class Learner(BC.learner):
    made = 0
    def update(self, batch):
        Learner.made += 1
        mark = Path(__file__).with_suffix(".mark")
        if Learner.made == 30 and mark.parent.name == "ray" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(batch)

ALGORITHM = dataclasses.replace(BC, learner=Learner)
"""
FAILS = "from offrl.algos.bc import ALGORITHM\nraise OSError('no luck')\n"
OPTIONS = {"env": None, "steps": 40, "eval_every": 0, "eval_episodes": 1, "checkpoint_every": 10}
GRID = {"hidden": ("8",), "batch_size": ("4",)}


def cells(folder: Path, algorithm: str, seeds: tuple[int, ...], out: str = "ray") -> list[Cell]:
    data = [Data(str(folder / "tiny.hdf5"), "tiny", "1")]
    return plan_cells(entries([algorithm], data, seeds, GRID, OPTIONS), folder / out / "out", "processes")


@pytest.mark.timeout(240)
def test_a_worker_killed_with_signal_9_is_replaced_and_the_grid_is_finished(folder):
    for name in ("ray/killed.py", "whole/killed.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(KILLED)
    killed = cells(folder, "ray/killed.py", (0, 1))
    lines: list[str] = []
    assert run_on_ray(killed, folder / "logs", jobs=2, retries=1, note=lines.append) == []
    assert (folder / "ray/killed.mark").exists(), "a worker was killed"
    assert lines[:2] == ["0 of 2 cells are done, 2 to run", "Ray: 2 cells on 2 CPUs"]
    assert run_on_ray(killed, folder / "logs", jobs=2, note=lines.append) == []
    assert lines[-1] == "2 of 2 cells are done, 0 to run", "no instance is started for nothing"
    for cell, undisturbed in zip(killed, cells(folder, "whole/killed.py", (0, 1), "whole"), strict=True):
        run_training_cell(Path(undisturbed.command[-1]))
        ours, theirs = (json.loads(path.read_text()) for path in (cell.result, undisturbed.result))
        assert ours["evaluations"] == theirs["evaluations"]
        assert ours["last_metrics"] == theirs["last_metrics"]


@pytest.mark.slow
def test_a_cell_that_fails_is_tried_again_and_reported(folder):
    (folder / "fails.py").write_text(FAILS)
    (entry,) = entries(["bc"], [Data(str(folder / "tiny.hdf5"), "tiny", "1")], (7,), GRID, OPTIONS)
    training = dataclasses.replace(entry.training, algorithm=str(folder / "fails.py"))
    (cell,) = plan_cells([dataclasses.replace(entry, training=training)], folder / "out", "processes")
    lines: list[str] = []
    assert run_on_ray([cell], folder / "logs", jobs=2, retries=2, note=lines.append) == [cell.name]
    log = folder / "logs" / f"{cell.name}.log"
    assert lines[-1] == f"{cell.name} has no result (OSError: no luck); see {log}"
    assert log.read_text().count("OSError: no luck") == 3


@pytest.mark.slow
def test_a_stopped_sweep_on_ray_leaves_checkpoints_and_goes_on(folder):
    typed = ["sweep", "-q", "--algos", "bc", "--datasets", "tiny.hdf5", "--grid", "hidden=8", "batch_size=4"]
    typed += ["--eval-every", "0", "--eval-episodes", "1", "--steps", "6000", "--checkpoint-every", "200"]
    on_ray = [*typed, "--workers", "ray", "--jobs", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "offrl.cli", *on_ray], stderr=subprocess.PIPE, text=True
    ) as sweep:
        while sweep.poll() is None and not list(folder.glob("sweep/runs/*/*/*/*/checkpoint.pt")):
            time.sleep(0.02)
        sweep.terminate()  # a fork would not do: Ray's threads do not survive one
        said = sweep.communicate()[1]
    assert sweep.returncode == 143, said
    assert said.splitlines()[-1].endswith("give the same command to go on")
    assert not list(folder.glob("sweep/raw/*"))
    assert main(on_ray) == 0
    assert len(list(folder.glob("sweep/runs/*/*/*/seed*"))) == 1
    assert main([*typed, "--out", "whole"]) == 0
    (ours,), (theirs,) = (list(folder.glob(f"{out}/raw/*.json")) for out in ("sweep", "whole"))
    assert json.loads(ours.read_text())["last_metrics"] == json.loads(theirs.read_text())["last_metrics"]


def test_without_ray_one_line_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError):
        cluster.require_ray()
    assert main(["sweep", "--algos", "bc", "--datasets", "tiny.hdf5", "--workers", "ray"]) == 1
    err = capsys.readouterr().err
    assert err == "offrl: this needs Ray, which is not installed; run: pip install 'offrl[dist]'\n"
    assert (
        main(["sweep", "-q", "--algos", "bc", "--datasets", "tiny.hdf5", "--workers", "ray", "--dry-run"])
        == 0
    )


def test_an_address_where_nobody_listens_is_refused_at_once(folder):
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at ray://127.0.0.1:1: "):
        run_on_ray(cells(folder, "bc", (0,)), folder / "logs", jobs=1, address="ray://127.0.0.1:1")


def test_a_cell_s_output_goes_to_its_log_and_ours_comes_back(tmp_path, monkeypatch, in_child):
    code = "import os\ndef main(argv):\n    print('hello', *argv)\n    os.system('echo sub')\n"
    (tmp_path / "talks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    child = in_child(
        lambda: cluster.play(["talks", "you"], str(tmp_path / "log")) or os.write(1, b"after\n") - 6
    )
    assert (child.code, child.out) == (0, "after\n")
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["hello you", "sub"]

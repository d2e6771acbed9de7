"""The runner of cells: finished ones are left alone, failed ones tried twice, a stop leaves no process behind."""

import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from offrl.errors import CheckpointError
from offrl.training.cells import (
    Cell,
    RunCells,
    TrainingCell,
    chosen_cells,
    planned,
    run_cells,
    run_training_cell,
)

LEAVES = "import sys, pathlib; print('hello'); pathlib.Path(sys.argv[1]).write_text('{}')"
WAITS = (
    "import os, sys, pathlib, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
)


def cell(folder: Path, name: str, code: str, log: Path | None = None) -> Cell:
    result = folder / f"{name}.json"
    return Cell(name, (sys.executable, "-S", "-c", code, str(result)), result, log)


def test_finished_cells_are_left_alone_and_failed_ones_tried_twice(tmp_path):
    done = cell(tmp_path, "done", "raise SystemExit(9)")
    done.result.write_text("{}")
    lines: list[str] = []
    cells = [done, cell(tmp_path, "good", LEAVES), cell(tmp_path, "bad", "raise SystemExit('no luck')")]
    assert run_cells(cells, tmp_path / "logs", jobs=2, nice=0, note=lines.append) == ["bad"]
    assert lines[0] == "1 of 3 cells are done, 2 to run"
    assert [line for line in lines if line.startswith("bad")] == [
        "bad failed with exit code 1; trying once more",
        f"bad has no result (exit code 1); see {tmp_path / 'logs' / 'bad.log'}",
    ]
    assert (tmp_path / "logs/bad.log").read_text() == "no luck\nno luck\n"
    assert (tmp_path / "logs/good.log").read_text() == "hello\n"


def test_a_cell_may_have_its_log_elsewhere(tmp_path):
    assert run_cells([cell(tmp_path, "a/b", "print(3)", tmp_path / "own.log")], tmp_path) == ["a/b"]
    assert (tmp_path / "own.log").read_text() == "3\n3\n"


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="no sessions here")
def test_a_ctrl_c_of_the_terminal_reaches_the_runner_alone(tmp_path):
    """A second signal makes a run stop at once, so a cell must get one: the runner's."""
    code = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getsid(0)))"
    one = cell(tmp_path, "session", code)
    assert run_cells([one], tmp_path, nice=0) == []
    assert int(one.result.read_text()) != os.getsid(0)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", ["stop", "deadline", "error"])
def test_a_stop_ends_what_runs_and_begins_nothing_new(tmp_path, how):
    waiting = Cell("w", (sys.executable, "-S", "-c", WAITS, str(tmp_path / "pid")), tmp_path / "never", None)
    later = cell(tmp_path, "later", LEAVES)

    def stop() -> bool:
        begun = (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != ""
        if begun and how == "error":
            raise KeyboardInterrupt
        return begun and how == "stop"

    began = time.monotonic()
    if how == "error":
        with pytest.raises(KeyboardInterrupt):
            run_cells([waiting, later], tmp_path, nice=0, stop=stop)
    else:
        deadline = 1.0 if how == "deadline" else None
        assert set(run_cells([waiting, later], tmp_path, nice=0, stop=stop, deadline=deadline)) == {
            "w",
            "later",
        }
    assert time.monotonic() - began < 30
    assert gone(int((tmp_path / "pid").read_text()))
    assert not later.result.exists()


def test_stages_run_in_turn_on_what_earlier_ones_left(tmp_path):
    lines: list[str] = []

    def cells():
        agent = LEAVES if (tmp_path / "b-model.json").exists() else "raise SystemExit('too early')"
        return [
            cell(tmp_path, "a-agent", agent),
            cell(tmp_path, "b-model", LEAVES),
            cell(tmp_path, "other", LEAVES),
        ]

    assert planned([(c, 1800.0) for c in cells()]).splitlines()[-1] == "3 cells, 1.5 core-hours expected"
    RunCells(only="-").run(cells, tmp_path / "logs", lines.append, ("-model", "-agent"))
    assert [line.split()[1] for line in lines if line.startswith("started")] == ["b-model", "a-agent"]
    assert lines[-1] == "without a result: none"
    assert not (tmp_path / "other.json").exists()
    assert planned([(c, 1800.0) for c in cells()]).splitlines()[-1] == "1 cells, 0.5 core-hours expected"
    lines.clear()
    RunCells(minutes=0.0).run(
        lambda: [cell(tmp_path, "slow", "import time; time.sleep(60)")], tmp_path / "logs", lines.append
    )
    assert lines[-1] == "without a result: slow"


def test_a_cell_waits_for_what_it_needs_and_is_given_up_where_nothing_leaves_it(tmp_path):
    lines: list[str] = []
    start = cell(tmp_path, "start", LEAVES)
    reads = f"open({str(start.result)!r}); {LEAVES}"
    (tmp_path / "there").touch()
    last = dataclasses.replace(cell(tmp_path, "last", reads), needs=(tmp_path / "there", start.result))
    lost = dataclasses.replace(cell(tmp_path, "lost", LEAVES), needs=(tmp_path / "nobody's",))
    found = run_cells([last, lost, start], tmp_path / "logs", jobs=3, nice=0, note=lines.append)
    assert found == ["lost"]
    assert [line.split()[1] for line in lines if line.startswith("started")] == ["start", "last"]
    assert lines[-1] == "not begun, because what they need is missing: lost"


def test_only_takes_several_parts_and_what_the_cells_need(tmp_path):
    start, before = cell(tmp_path, "start", LEAVES), cell(tmp_path, "before", LEAVES)
    start = dataclasses.replace(start, needs=(before.result,))
    one = dataclasses.replace(cell(tmp_path, "grpo-0", LEAVES), needs=(start.result,))
    cells = [one, cell(tmp_path, "grpo-1", LEAVES), cell(tmp_path, "ppo-1", LEAVES), start, before]
    assert [c.name for c in chosen_cells(cells, "o-0,ppo")] == ["grpo-0", "ppo-1", "start", "before"]
    assert chosen_cells(cells, "") == cells
    assert chosen_cells(cells, "nothing") == []


def test_a_method_of_ones_own_is_found_from_any_folder(tmp_path, monkeypatch):
    """A worker on another node, or a later call, has another current folder."""
    monkeypatch.chdir(tmp_path)
    for algorithm, found in (("mine.py", str(tmp_path / "mine.py")), ("bc", "bc")):
        TrainingCell(algorithm, "tiny.npz", 0).cell("one", Path("raw"), Path("work"))
        assert json.loads(Path("work/one/cell.json").read_text())["algorithm"] == found


def test_a_stack_that_lost_a_run_is_not_thrown_away(tmp_path, pendulum_npz):
    """Folders without a table are those of a cell that was killed while it made them: they go."""
    options = {"steps": 4, "eval_every": 0, "eval_episodes": 1, "env": "Pendulum-v1"}
    one = TrainingCell("bc", str(pendulum_npz), 0, options, {"hidden": 8, "batch_size": 8})
    one.stack("two", {0: "two-0", 1: "two-1"}, tmp_path / "raw", tmp_path / "work")
    spec = tmp_path / "work" / "two" / "cell.json"
    run_training_cell(spec)
    first, second = sorted(path.parent for path in spec.parent.glob("*/*/seed*/config.json"))
    shutil.rmtree(first)
    with pytest.raises(
        CheckpointError, match="was trained with others that are gone; restore them, or delete"
    ):
        run_training_cell(spec)
    assert (second / "policy.safetensors").exists()
    for table in second.glob("*.csv"):
        table.unlink()
    run_training_cell(spec)
    assert not second.exists() or (second / "timing.csv").exists()
    assert len(list(spec.parent.glob("*/*/seed*/policy.safetensors"))) == 2


def test_a_metric_that_json_has_no_word_for_is_left_empty(tmp_path, pendulum_npz):
    """A run may end with an infinite loss and a policy that plays: its cell has a result all the same."""
    training = TrainingCell(
        "bc", str(pendulum_npz), 0, {"steps": 4, "eval_episodes": 1, "env": "Pendulum-v1"}, {"hidden": 8}
    )
    made = training.cell("one", tmp_path / "raw", tmp_path / "work")
    spec = tmp_path / "work" / "one" / "cell.json"
    run_training_cell(spec)
    (table,) = spec.parent.glob("*/*/*/metrics.csv")
    header = table.read_text().splitlines()[0]
    table.write_text(f"{header}\n4{',inf' * header.count(',')}\n")
    made.result.unlink()
    run_training_cell(spec)
    metrics = json.loads(made.result.read_text())["last_metrics"]
    assert metrics.pop("step") == 4.0
    assert set(metrics.values()) == {None}

"""A resumable runner of benchmark cells: one cell is one command that leaves one JSON file of raw numbers.

A finished cell is never run again; a training cell that was interrupted resumes from its checkpoint; a failed one is
retried and then reported. Pages are made from the raw files alone.
"""

import csv
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offrl.algos import ONLINE, load_online
from offrl.errors import CheckpointError
from offrl.files import atomic_write_json
from offrl.training.run_dir import RunDir
from offrl.training.runner import RunOptions, make_settings, resume_stack, start_stack


@dataclass(frozen=True)
class Cell:
    """One unit of a benchmark.

    Args:
        name: unique within its folder; also the name of its raw file and log.
        command: argument list; it must write ``result`` (atomically) before it ends.
        result: the file that it leaves.
        log: where its output goes; default: ``NAME.log`` in the folder of logs.
        more: files that it leaves besides.
        needs: files that other cells leave, without which it does not start.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    log: Path | None = None
    more: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether all that it needs is there."""
        return all(path.exists() for path in self.needs)

    @property
    def done(self) -> bool:
        """Whether it has left all that it leaves."""
        return all(path.exists() for path in (self.result, *self.more))


@dataclass(frozen=True)
class TrainingCell:
    """A training run as a cell; ``options`` are those of a run, ``settings`` the algorithm's.

    The dataset of a method that learns in an environment is the environment's id.
    """

    algorithm: str
    dataset: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None

    def cell(self, name: str, raw: Path, work: Path) -> Cell:
        """The cell that trains this in ``work/name`` and writes ``raw/name.json``."""
        return self.stack(name, {self.seed: name}, raw, work)

    def stack(self, name: str, seeds: dict[int, str], raw: Path, work: Path) -> Cell:
        """The cell that trains ``seeds`` in one stack in ``work/name``; seed s leaves ``raw/seeds[s].json``."""
        spec = (work / name / "cell.json").resolve()
        results = {seed: (raw / f"{own}.json").resolve() for seed, own in seeds.items()}
        known = {str(seed): str(path) for seed, path in results.items()}
        own = str(Path(self.algorithm).resolve()) if self.algorithm.endswith(".py") else self.algorithm
        atomic_write_json(spec, {**dataclasses.asdict(self), "algorithm": own, "results": known})
        first, *more = results.values()
        return Cell(name, (sys.executable, "-m", "offrl.training.cells", str(spec)), first, more=tuple(more))


def run_cells(
    cells: Sequence[Cell],
    logs: Path,
    *,
    jobs: int = 1,
    deadline: float | None = None,
    nice: int = 10,
    retries: int = 1,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Run every cell whose result is missing, ``jobs`` at a time.

    Args:
        cells: what to run, in this order as far as they need nothing of each other.
        logs: folder of one log file a cell.
        jobs: processes at once.
        deadline: seconds after which no new cell starts and running ones are asked to stop (they checkpoint).
        nice: niceness of the processes.
        retries: how often a cell that fails is tried again.
        stop: asked again and again; True is as the deadline.
        note: called with a line of progress.

    Returns:
        Names of the cells that still have no result: failed, or stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: list[Running] = []
    try:
        return _run_cells(cells, logs, running, jobs, deadline, nice, retries, stop, note)
    finally:  # an error or a Ctrl-C leaves no process behind
        for entry in running:
            entry.process.terminate()
        for entry in running:
            entry.process.wait()


@dataclass(frozen=True)
class RunCells:
    """Run the cells that have no raw file yet."""

    jobs: int = 1
    """Processes at once, one thread each."""
    minutes: float | None = None
    """Stop (with checkpoints) after this long."""
    only: str = ""
    """Only cells whose name holds this, or one of several parts with commas between, and cells that these need."""

    def run(
        self,
        cells: Callable[[], Sequence[Cell]],
        logs: Path,
        note: Callable[[str], None],
        stages: Sequence[str] = ("",),
    ) -> None:
        """Run them with a line of progress each; a benchmark's ``run`` command.

        Args:
            cells: lists them; asked before each stage, because later cells may be described by earlier runs.
            logs: folder of log files.
            note: called with a line of progress.
            stages: parts of names, in the order in which cells need each other.
        """
        began, left = time.monotonic(), []
        for stage in stages:
            chosen = chosen_cells([cell for cell in cells() if stage in cell.name], self.only)
            spent = time.monotonic() - began
            deadline = None if self.minutes is None else max(60 * self.minutes - spent, 1.0)
            left += run_cells(chosen, logs, jobs=self.jobs, deadline=deadline, note=note)
        note(f"without a result: {', '.join(left) or 'none'}")


def chosen_cells(cells: Sequence[Cell], only: str) -> list[Cell]:
    """Those whose names hold one of the parts that commas separate, and those whose files they need."""
    found = [cell for cell in cells if any(part in cell.name for part in only.split(","))]
    needed = {path for cell in found for path in cell.needs}
    while more := [cell for cell in cells if cell.result in needed and cell not in found]:
        found += more
        needed = {path for cell in more for path in cell.needs}
    return [cell for cell in cells if cell in found]


def planned(cells: Sequence[tuple[Cell, float]]) -> str:
    """The cells without a result and what they cost; for a benchmark's ``plan`` command.

    Args:
        cells: each with its expected seconds on one core.
    """
    todo = [(cell, seconds) for cell, seconds in cells if not cell.done]
    lines = [f"{cell.name:40} about {seconds / 60:.0f} min" for cell, seconds in todo]
    return "\n".join([*lines, f"{len(todo)} cells, {sum(s for _, s in todo) / 3600:.1f} core-hours expected"])


@dataclass(frozen=True, eq=False)
class Running:
    """A cell's process."""

    cell: Cell
    attempt: int
    process: subprocess.Popen[bytes]
    log: Path
    since: float


def _run_cells(
    cells: Sequence[Cell],
    logs: Path,
    running: list[Running],
    jobs: int,
    deadline: float | None,
    nice: int,
    retries: int,
    stop: Callable[[], bool],
    note: Callable[[str], None],
) -> list[str]:
    waiting = [(cell, 1) for cell in cells if not cell.done]
    note(f"{len(cells) - len(waiting)} of {len(cells)} cells are done, {len(waiting)} to run")
    began, stopping = time.monotonic(), False
    missing: list[str] = []
    while waiting or running:
        late = deadline is not None and time.monotonic() - began > deadline
        if (late or stop()) and not stopping:
            stopping = True
            missing += [cell.name for cell, _ in waiting]
            waiting = []
            for entry in running:
                entry.process.terminate()
        while len(running) < jobs and (ready := [entry for entry in waiting if entry[0].ready]):
            waiting.remove(ready[0])
            running.append(_begin(*ready[0], logs, nice))
            note(f"started {running[-1].cell.name}")
        if waiting and not running:
            missing += [cell.name for cell, _ in waiting]
            note(f"not begun, because what they need is missing: {', '.join(c.name for c, _ in waiting)}")
            waiting = []
        time.sleep(0.2)
        for entry in [e for e in running if e.process.poll() is not None]:
            running.remove(entry)
            cell, code = entry.cell, entry.process.returncode
            if cell.done:
                note(f"finished {cell.name} in {time.monotonic() - entry.since:.0f} s")
            elif (left := retries + 1 - entry.attempt) > 0 and not stopping:
                again = "once more" if left == 1 else f"again, up to {left} times"
                note(f"{cell.name} failed with exit code {code}; trying {again}")
                waiting.append((cell, entry.attempt + 1))
            else:
                note(f"{cell.name} has no result (exit code {code}); see {entry.log}")
                missing.append(cell.name)
    return missing


def _begin(cell: Cell, attempt: int, logs: Path, nice: int) -> Running:
    """Start a cell's process, in a session of its own: a Ctrl-C is passed on once, by this process."""
    path = cell.log or logs / f"{cell.name}.log"
    command = ("nice", "-n", str(nice), *cell.command) if os.name == "posix" and nice else cell.command
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(path, "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    return Running(cell, attempt, process, path, time.monotonic())


def run_training_cell(spec: Path) -> list[Path]:
    """Train or resume the cell described by ``spec``, one seed or a stack; returns the raw files.

    Raises:
        PolicyError: a seed has diverged; the raw files of the others are written.
        CheckpointError: a stack has lost some of its run directories.
    """
    facts = json.loads(spec.read_text())
    results = {int(seed): Path(path) for seed, path in facts["results"].items()}
    found = _run_directories(spec)
    if len(found) < len(results):  # killed while it made a stack's folders: nothing was trained
        if trained := [directory for directory in found if (directory / "timing.csv").exists()]:
            raise CheckpointError(
                f"{trained[0]} was trained with others that are gone; restore them, or delete {spec.parent}"
            )
        for directory in found:
            shutil.rmtree(directory)
        found = []
    try:
        if facts["algorithm"] in ONLINE:
            _play(facts, spec.parent, found)
        elif found:
            resume_stack(found[-1])
        else:
            options = RunOptions(
                dataset=facts["dataset"],
                seed=facts["seed"],
                out=spec.parent,
                threads=1,
                preset=facts["preset"],
                **facts["options"],
            )
            settings = make_settings(facts["algorithm"], facts["settings"], facts["preset"])
            start_stack(facts["algorithm"], settings, options, tuple(results))
    finally:
        for run in map(RunDir, _run_directories(spec)):
            if run.finished and run.config["seed"] in results:
                atomic_write_json(results[run.config["seed"]], raw_record(run.path))
    return list(results.values())


def _play(facts: dict[str, Any], out: Path, found: Sequence[Path]) -> None:
    """Train or resume a method that learns in an environment."""
    from offrl.online import options, runner  # on stable-baselines3

    if found:
        runner.resume(found[-1])
        return
    name, given = facts["algorithm"], facts["options"] | facts["settings"]
    given |= {"env": facts["dataset"], "seed": facts["seed"], "out": out, "threads": 1}
    run, settings = options.choose(name, load_online(name), given, facts["preset"])
    runner.start(name, settings, run)


def _run_directories(spec: Path) -> list[Path]:
    return sorted(path.parent for path in spec.parent.glob("*/*/seed*/config.json"))


def main(argv: Sequence[str]) -> None:
    """Run the cell whose description ``argv`` names."""
    run_training_cell(Path(argv[0]))


def raw_record(directory: Path) -> dict[str, Any]:
    """The raw numbers of a finished run: every episode's return (and success), last metrics, settings, versions, speed.

    A run that rows were drawn from is named by its path from here.
    """
    run = RunDir(directory)
    config = run.config
    if config.get("mix"):
        config = config | {"mix": config["mix"] | {"uri": os.path.relpath(config["mix"]["uri"])}}
    evaluations: dict[int, dict[str, list[float]]] = {}
    with (directory / "eval.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            episodes = evaluations.setdefault(int(row["step"]), {"returns": []})
            episodes["returns"].append(float(row["return"]))
            if row.get("success"):
                episodes.setdefault("successes", []).append(float(row["success"]))
    header, *lines = (line.split(",") for line in (directory / "metrics.csv").read_text().splitlines())
    timing_header, *timing = (line.split(",") for line in (directory / "timing.csv").read_text().splitlines())
    rates = [float(line[timing_header.index("steps_per_second")]) for line in timing]
    return {
        "config": config,
        "versions": run.recorded_versions(),
        "evaluations": [{"step": s, **episodes} for s, episodes in evaluations.items()],
        "last_metrics": dict(zip(header, map(_number, lines[-1]), strict=True)) if lines else {},
        "seconds": float(timing[-1][timing_header.index("seconds")]) if timing else None,
        "median_steps_per_second": float(np.median(rates)) if rates else None,
    }


def _number(cell: str) -> float | None:
    """The number in a cell; None for an empty one and for what JSON has no word for (nan, inf)."""
    number = float(cell) if cell else math.nan
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    main(sys.argv[1:])

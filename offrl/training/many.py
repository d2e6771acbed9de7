"""Many seeds at once: trained together as one stack, or one process a seed."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offrl.algos import ALGORITHMS, CHUNKS, MODELS, load_algorithm
from offrl.data.dataset import OfflineDataset
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.nn.policy import JSON_NAME
from offrl.training.cells import Cell, run_cells
from offrl.training.check import stacks
from offrl.training.options import RunOptions, SeedOptions, resolve_device
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir
from offrl.training.runner import prepare, resume_stack, start, start_stack
from offrl.training.seeding import seed_globally
from offrl.training.session import RunResult, graceful_stop

LOG = "process.log"  # of a run in a process of its own
WIDE = 128  # hidden units from which a CPU is bound by products: a stack then gains nothing over one seed


def train_seeds(
    algorithm: str,
    settings: Any,
    options: RunOptions,
    many: SeedOptions,
    *,
    dataset: OfflineDataset | None = None,
    reporter: Reporter | None = None,
) -> list[RunResult]:
    """Train ``many.seeds``, each in a run directory of its own; without any, the seed of ``options``.

    Raises:
        ConfigError: the method, its data or a mirror do not allow the mode that was asked for; or as ``start``.
        ChildProcessError: a process failed twice; the message says where its log is.
        Stopped: a signal stopped it; checkpoints were written.
    """
    seeds = many.seeds or (options.seed,)
    reporter = reporter or Reporter("quiet", options.steps)
    if len(seeds) == 1:
        alone = dataclasses.replace(options, seed=seeds[0])
        return [start(algorithm, settings, alone, dataset=dataset, reporter=reporter)]
    mode, why = choose_mode(algorithm, settings, options, many, in_memory=dataset is not None)
    if mode == "stacked":
        reporter.note(f"{len(seeds)} seeds stacked in one process: {why}")
        return start_stack(algorithm, settings, options, seeds, dataset=dataset, reporter=reporter)
    plan = prepare(algorithm, settings, options, seeds)
    rows = len(plan.build(seeds[:1])[1])  # bad input fails before a folder is made
    runs = [RunDir.create(options.out, config) for config in plan.configs]
    jobs = at_once(len(runs), plan.configs[0]["threads"])
    reporter.note(f"{len(seeds)} seeds in processes of their own, {jobs} at once: {why}")
    plan.announce(reporter, rows, f"run directories {', '.join(str(run.path) for run in runs)}")
    del plan
    return _in_processes(runs, jobs, (), reporter)


def choose_mode(
    algorithm: str, settings: Any, options: RunOptions, many: SeedOptions, *, in_memory: bool
) -> tuple[str, str]:
    """``stacked`` or ``processes``, and why.

    Raises:
        ConfigError: the mode that was asked for is impossible.
    """
    obstacle = _obstacle(algorithm, options)
    if many.seed_mode == "processes" or (obstacle and many.seed_mode == "auto"):
        if in_memory:
            because = f"; they are needed because {obstacle}" if obstacle else ""
            raise ConfigError(f"data in memory cannot be handed to processes of their own{because}")
        return "processes", obstacle or "as asked"
    if many.seed_mode == "stacked":
        if obstacle:
            raise ConfigError(f"these seeds cannot be stacked: {obstacle}")
        return "stacked", "as asked"
    device, width = resolve_device(options.device), getattr(settings, "hidden", WIDE)
    if device != "cpu":
        return "stacked", f"device {device}"
    if in_memory:
        return "stacked", "the data are in memory"
    if width < WIDE:
        return "stacked", f"width {width} is below {WIDE}"
    if at_once(2, options.threads) < 2:
        return "stacked", "there are no cores for a second process"
    return "processes", f"width {width} on a CPU"


def _obstacle(algorithm: str, options: RunOptions) -> str | None:
    """Why seeds cannot be stacked, or None. A method of one's own is tried on a tiny problem."""
    if options.wandb:
        return "W&B takes one run a process"
    if (
        options.mix is not None
        and (Path(options.mix.rpartition(":")[0].removeprefix("run:")) / JSON_NAME).is_file()
    ):
        return "rows are drawn for each agent"
    if algorithm in {*ALGORITHMS, *CHUNKS, *MODELS}:
        return None  # their tests hold them to it
    name, method = load_algorithm(algorithm)
    seed_globally(0)
    try:
        wrong = stacks(method)
    except Exception as error:  # any failure of foreign code is the finding
        wrong = f"{type(error).__name__}: {error}"
    return f"{name} does not stack ({wrong})" if wrong else None


def at_once(runs: int, threads: int) -> int:
    """Processes at once: no more threads than there are cores, no more processes than runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(runs, cores // (threads or min(cores, 4))))


def resume_runs(
    directories: Sequence[Path],
    *,
    allow_inexact: bool = False,
    workers: int | None = None,
    reporter_mode: str = "quiet",
) -> list[RunResult]:
    """Resume run directories with the stacks they belong to; several go on in processes of their own.

    Raises:
        CheckpointError, ConfigError, ChildProcessError, Stopped: as ``resume`` and ``train_seeds``.
    """
    stacks_of = {run.stack()[0].path.resolve(): run for run in map(RunDir, directories)}
    for run in stacks_of.values():
        if "inventory" in run.config:
            raise CheckpointError(f"{run.path} is a run of an inventory policy: use offrl inventory resume")
    if len(stacks_of) == 1:
        return resume_stack(
            directories[0], allow_inexact=allow_inexact, workers=workers, reporter_mode=reporter_mode
        )
    runs = list(stacks_of.values())
    more = ["--allow-inexact"] if allow_inexact else []
    more += [] if workers is None else ["--workers", str(workers)]
    threads = max(run.config["threads"] for run in runs)
    return _in_processes(runs, at_once(len(runs), threads), more, Reporter(reporter_mode, 1))


class Relay:
    """Passes on the evaluations that processes write into the logs of their runs, each with its run and seed."""

    def __init__(self, runs: Sequence[RunDir], reporter: Reporter) -> None:
        self.runs, self.reporter = runs, reporter
        self.read = [self._log(run).stat().st_size if self._log(run).exists() else 0 for run in runs]

    def __call__(self) -> None:
        """Pass on what is new."""
        for k, run in enumerate(self.runs):
            if not self._log(run).exists():
                continue
            with open(self._log(run), "rb") as log:
                log.seek(self.read[k])
                whole = log.read().rpartition(b"\n")[0]
            self.read[k] += len(whole) + 1 if whole else 0
            for line in whole.splitlines():
                record = _evaluation(line)
                if record:
                    seed = {"directory": str(run.path), "seed": run.config["seed"]}
                    last = record.get("normalized_score", record["return"])
                    self.reporter.evaluation(seed | record, last, record["best"])

    def _log(self, run: RunDir) -> Path:
        return run.path / LOG


def _evaluation(line: bytes) -> dict[str, Any]:
    """What ``line`` says of an evaluation; empty for any other line."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"step", "return", "best"} <= found.keys() else {}


def _in_processes(
    runs: Sequence[RunDir], jobs: int, more: Sequence[str], reporter: Reporter
) -> list[RunResult]:
    """``offrl resume`` each run in a process of its own; a run without checkpoint begins at its beginning."""
    more = [*more, "--json"] if reporter.mode == "json" else more
    before = {own.path for run in runs for own in run.stack() if own.finished}
    relay = Relay(runs, reporter)

    def stopping() -> bool:
        relay()
        return bool(asked)

    cells = [
        Cell(
            str(run.path),
            (sys.executable, "-m", "offrl.cli", "resume", str(run.path.resolve()), *more),
            run.stack()[-1].path / "final_returns.npz",
            run.path / LOG,
        )
        for run in runs
    ]
    reporter.note(f"what they print is in the {LOG} of each run directory")
    with graceful_stop(lambda: None) as asked:
        missing = run_cells(cells, runs[0].path, jobs=jobs, nice=0, stop=stopping, note=reporter.note)
    relay()
    if missing and asked:
        raise Stopped(f"stopped; go on with: offrl resume {' '.join(missing)}", 128 + asked[0])
    if missing:
        lines = (Path(missing[0]) / LOG).read_text(errors="replace").splitlines()
        raise ChildProcessError(
            f"{len(missing)} of {len(runs)} failed; {missing[0]}: {lines[-1] if lines else 'no output'} "
            f"(see its {LOG}); go on with: offrl resume {' '.join(missing)}"
        )
    results = [result for run in runs for result in resume_stack(run.path)]
    return [dataclasses.replace(r, already_finished=r.directory in before) for r in results]

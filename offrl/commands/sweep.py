"""``offrl sweep``: algorithms x datasets x settings x seeds on the cores of this machine, in one table."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from offrl.commands.arguments import parse
from offrl.data.load import load_dataset
from offrl.errors import ConfigError, Stopped
from offrl.training.cells import run_cells
from offrl.training.many import at_once
from offrl.training.options import RunOptions
from offrl.training.session import graceful_stop
from offrl.training.sweep import Data, entries, parse_grid, write_tables

RUN = ("env", "steps", "eval_every", "eval_episodes", "final_episodes", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Train every algorithm on every dataset with every setting of a grid and every seed; one process a run.

    Give the same command again to go on where it was stopped: finished runs are kept, others resume.
    """

    algos: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ALGO ...")]
    """Algorithms: names, or paths of your own files."""
    datasets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI ...")]
    """Data, as for offrl train."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="S ...")] = (0,)
    """Seeds of each."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=V,V ...")] = ()
    """Values of settings; an algorithm that lacks a setting is not varied in it."""
    presets: bool = False
    """Start from the settings tuned for each dataset's name."""
    out: Path = Path("sweep")
    """Folder of the runs, the raw numbers and the tables."""
    jobs: int = 0
    """Processes at once; 0: one a core."""
    dry_run: bool = False
    """Print the cells and stop."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Gymnasium id to evaluate on; default: the one the data name."""
    steps: int = 1_000_000
    """Gradient updates of each run."""
    eval_every: int = 5_000
    """Updates between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    final_episodes: int = 0
    """Episodes of the evaluation after the last update; 0: as eval_episodes."""
    checkpoint_every: int = 10_000
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        if not (self.algos and self.datasets and self.seeds):
            raise ConfigError("name at least one algorithm, dataset and seed")
        if self.jobs < 0 or min(self.seeds) < 0:
            raise ConfigError("jobs and seeds must be 0 or more")
        RunOptions(**self.run)  # checks the numbers

    @property
    def run(self) -> dict[str, Any]:
        """The options of every run."""
        return {name: getattr(self, name) for name in RUN}


def main(argv: list[str]) -> int:
    """``offrl sweep ...``."""
    o = parse(SweepOptions, "offrl sweep", argv)
    say = (lambda line: None) if o.quiet else _say
    datasets = []
    for uri in o.datasets:
        data = load_dataset(uri)
        here = str(Path(uri).resolve()) if Path(uri).exists() else uri
        datasets.append(Data(here, str(data.metadata.get("name") or "data"), data.sha256))
        say(f"{datasets[-1].name}: {data.describe()}")
    listed = entries(o.algos, datasets, o.seeds, parse_grid(o.grid), o.run, presets=o.presets)
    points = len(listed) // len(o.seeds)
    jobs = o.jobs or at_once(len(listed), 1)
    say(
        f"expected: {len(listed)} cells ({points} of algorithm, dataset and settings x {len(o.seeds)} seeds) "
        f"of {o.steps:,} updates; {jobs} at once, in {o.out}"
    )
    if o.dry_run:
        for entry in listed:
            print(entry.name)
        return 0
    with graceful_stop(lambda: None) as asked:
        missing = run_cells(
            [entry.cell(o.out) for entry in listed],
            o.out / "logs",
            jobs=jobs,
            nice=0,
            stop=lambda: bool(asked),
            note=say,
        )
    rows = write_tables(listed, o.out)
    if missing and asked:
        message = f"stopped with {len(rows)} of {len(listed)} cells finished; give the same command to go on"
        raise Stopped(message, 128 + asked[0])
    say(f"\n{(o.out / 'results.md').read_text()}\nwrote {o.out / 'results.csv'} and {o.out / 'results.md'}")
    say(f"next: offrl report {o.out / 'runs'}/* --out report.html")
    if missing:
        raise ChildProcessError(
            f"{len(missing)} of {len(listed)} cells failed twice: {', '.join(missing)}; see {o.out / 'logs'}, "
            "then give the same command to try them again"
        )
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

"""A whole sweep: plan and price, train, choose, play the chosen ones, write the tables."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from offrl.algos import load_algorithm
from offrl.data.load import absolute_uri, load_dataset
from offrl.errors import ConfigError, Stopped
from offrl.evaluation.environments import env_spec, make_env
from offrl.files import atomic_write_text
from offrl.sweeps.bands import bands_section
from offrl.sweeps.choice import Contest, Decision, Select, contests, decide, final_cells, judge_cells
from offrl.sweeps.cluster import require_ray, run_on_ray
from offrl.sweeps.cost import estimate
from offrl.sweeps.options import SweepOptions
from offrl.sweeps.space import Space, different, draw, ranges_of, read_space
from offrl.training.build import dataset_env
from offrl.training.cells import Cell, run_cells
from offrl.training.many import at_once
from offrl.training.session import graceful_stop
from offrl.training.sweep import Data, Entry, entries, parse_grid, plan_cells, read_rows, write_tables

Say = Callable[[str], None]
CHOSEN_COLUMNS = (
    *("algorithm", "dataset", "settings", "select", "configurations", "left_out", "online_episodes"),
    *("seeds", "unit", "mean", "std", "episodes_each"),
)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves, besides its folder."""

    out: Path
    rows: list[dict[str, Any]]  # of results.csv, one a finished run
    chosen: list[dict[str, Any]]  # of chosen.csv, one an algorithm and dataset; empty without select
    cells: tuple[str, ...]  # names of the runs


def run_sweep(o: SweepOptions, say: Say = lambda line: None, space: Space | None = None) -> SweepResult:
    """Run it, or with ``dry_run`` only say what it would do.

    Args:
        o: what is asked for.
        say: called with a line of progress.
        space: ranges to draw from, instead of those in the file ``o.space``.

    Raises:
        ConfigError, DatasetError, MissingExtraError: what is asked for is impossible.
        ChildProcessError: some cells failed; all others are finished and in the tables.
        Stopped: a signal; the same call goes on.
    """
    if o.workers == "ray" and not o.dry_run:
        require_ray()
    listed = list_entries(o, say, space)
    jobs = o.jobs or at_once(len(listed), 1)
    _announce(o, listed, jobs, say)
    names = tuple(entry.name for entry in listed)
    if o.dry_run:
        return SweepResult(o.out, [], [], names)
    runner = _Runner(o, jobs, say)
    with graceful_stop(lambda: None) as runner.asked:
        runner.run(plan_cells(listed, o.out, o.seed_mode, say), "training")
        chosen, section = ([], "") if o.select == "none" else choose(o, listed, runner)
    sections = [section] if section else []
    if o.preset:
        sections.append(bands_section(read_rows(listed, o.out), o.steps))
    rows = write_tables(listed, o.out, sections)
    if runner.missing and runner.asked:
        message = f"stopped with {len(rows)} of {len(listed)} runs finished; give the same command to go on"
        raise Stopped(message, 128 + runner.asked[0])
    say(f"\n{(o.out / 'results.md').read_text()}\nwrote {o.out / 'results.csv'} and {o.out / 'results.md'}")
    say(f"next: offrl report {o.out} --out report.html")
    if runner.missing:
        times = "once" if not o.retries else "twice" if o.retries == 1 else f"{o.retries + 1} times"
        raise ChildProcessError(
            f"{len(runner.missing)} of {runner.total} cells failed {times}: {', '.join(runner.missing)}"
            f"{_last_line(o.out / 'logs' / f'{runner.missing[0]}.log')}; see {o.out / 'logs'}, then give the same "
            "command to try them again"
        )
    return SweepResult(o.out, rows, chosen, names)


def _last_line(log: Path) -> str:
    """What a failed cell said last, in brackets; nothing if it left no log."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({said})" if said else ""


def list_entries(o: SweepOptions, say: Say, space: Space | None = None) -> list[Entry]:
    """Every run that is asked for; random settings are drawn, or read where they were drawn before."""
    datasets = []
    for uri in o.uris:
        data = load_dataset(uri)
        here = absolute_uri(uri)
        datasets.append(Data(here, str(data.metadata.get("name") or "data"), data.sha256))
        say(f"{datasets[-1].name}: {data.describe()}")
        if o.select in ("last", "bandit") and dataset_env(data, o.env) is None:
            raise ConfigError(
                f"--select {o.select} plays episodes, and {uri} names no environment: pass --env ID"
            )
    for env in o.envs:
        spec = env_spec(env)
        make_env(spec).close()  # an unknown id fails here, not in every cell
        datasets.append(Data(spec.env_id, spec.env_id, "", online=True))
    draws = None
    if o.random:
        ranges = ranges_of(space or read_space(cast("Path", o.space)), o.algos)
        drawn = draw(ranges, o.random, o.search_seed, o.out, write=not o.dry_run)
        draws = {algorithm: different(rows) for algorithm, rows in drawn.items()}
    presets: Any = "where known" if o.preset and not o.presets else o.presets
    listed = entries(o.algos, datasets, o.seeds, parse_grid(o.grid), o.run, presets=presets, draws=draws)
    if o.select == "fqe":
        _require_judged(listed)
    return listed


def _require_judged(listed: Sequence[Entry]) -> None:
    """Refuse several configurations of a method that fitted Q evaluation cannot judge (ConfigError)."""
    for name in dict.fromkeys(entry.training.algorithm for entry in listed):
        short, method = load_algorithm(name)
        if method.windows and len({entry.settings for entry in listed if entry.algorithm == short}) > 1:
            raise ConfigError(
                f"--select fqe cannot choose among configurations of {short}, which acts on the episode so far: use "
                "last or bandit"
            )


def _announce(o: SweepOptions, listed: Sequence[Entry], jobs: int, say: Say) -> None:
    """Say how much there is to do and what it will cost; silent where nobody listens, as it takes some seconds."""
    left = sum(not entry.result(o.out).exists() for entry in listed)
    at = f"{jobs} at once" if o.address is None else f"on the cluster at {o.address}"
    say(
        f"expected: {len(listed)} runs ({len(listed) // len(o.seeds)} of algorithm, dataset and settings x "
        f"{len(o.seeds)} seeds) of {o.steps:,} {o.unit}, {left} of them to do; {at}, in {o.out}"
    )
    if o.quiet or not left:
        return
    episodes = o.budget + o.fresh_episodes * len(o.seeds)
    cost = estimate(listed, o.out, load_dataset, episodes)
    for line in cost.lines:
        say(f"  {line}")
    hours = f"{cost.core_hours:.1f}" if cost.core_hours >= 1 else f"{cost.core_hours:.4f}"
    more = " Fitted Q evaluations come on top." if o.select == "fqe" else ""
    say(
        f"expected: {hours} core-hours on this machine: {cost.updates / 3600:.4g} of updates and at most "
        f"{cost.episodes / 3600:.4g} of episodes (if all last as long as they can).{more}"
    )


class _Runner:
    """Runs cells here or on Ray and remembers what failed."""

    def __init__(self, o: SweepOptions, jobs: int, say: Say) -> None:
        self.o, self.jobs, self.say = o, jobs, say
        self.asked: list[int] = []
        self.missing: list[str] = []
        self.total = 0

    def run(self, cells: Sequence[Cell], what: str) -> bool:
        """Returns whether all of them have their results now."""
        if self.asked:
            self.missing += [cell.name for cell in cells if not cell.done]
            return False
        self.total += len(cells)
        common: dict[str, Any] = {
            "jobs": self.jobs,
            "retries": self.o.retries,
            "stop": lambda: bool(self.asked),
        }
        common["note"] = lambda line: self.say(f"{what}: {line}")
        if self.o.workers == "ray":
            missing = run_on_ray(
                cells, self.o.out / "logs", address=self.o.address, gpus=self.o.gpus, **common
            )
        else:
            missing = run_cells(cells, self.o.out / "logs", nice=0, **common)
        self.missing += missing
        return not missing


def choose(o: SweepOptions, listed: Sequence[Entry], runner: _Runner) -> tuple[list[dict[str, Any]], str]:
    """Choose a configuration for each algorithm and dataset, play it, write ``chosen.csv``; its rows and Markdown."""
    select = cast("Select", o.select)
    settings: dict[str, Any] = {"budget": o.budget, "steps": o.fqe_steps, "seed": o.search_seed}
    judged = [(c, judge_cells(c, select, o.out, **settings)) for c in contests(listed, o.out) if c.arms]
    runner.run([cell for _, cells in judged for cell in cells], "choosing")
    decided = [
        (c, decide(c, select, o.out, cells)) for c, cells in judged if all(cell.done for cell in cells)
    ]
    finals = [(c, d, final_cells(c.arms[d.arm], o.out, o.fresh_episodes)) for c, d in decided]
    runner.run([cell for *_, cells in finals for cell in cells], "fresh episodes")
    rows = [chosen_row(select, c, d, cells) for c, d, cells in finals if all(cell.done for cell in cells)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CHOSEN_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(o.out / "chosen.csv", buffer.getvalue())
    return rows, chosen_section(rows)


def chosen_row(select: Select, c: Contest, d: Decision, cells: Sequence[Cell]) -> dict[str, Any]:
    """A row of ``chosen.csv``; ``how`` says the same in words. Without an environment there is no score."""
    arm = c.arms[d.arm]
    facts: dict[str, Any] = {
        "algorithm": c.algorithm,
        "dataset": c.dataset,
        "settings": arm.settings,
        "select": select,
        "configurations": len(c.arms),
        "left_out": c.missing,
        "online_episodes": d.online_episodes,
        "seeds": len(arm.entries),
        "how": d.how + (f"; {c.missing} without finished runs left out" if c.missing else ""),
    }
    played = [json.loads(cell.result.read_text()) for cell in cells]
    if not played:
        return facts
    means = [float(np.mean(record["scores"] or record["returns"])) for record in played]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    unit = "normalized score" if played[0]["scores"] else "return"
    each = len(played[0]["returns"])
    return facts | {"unit": unit, "mean": float(np.mean(means)), "std": spread, "episodes_each": each}


def chosen_section(rows: Sequence[dict[str, Any]]) -> str:
    """The chosen configurations in Markdown."""
    lines = [
        "## Chosen configurations",
        "",
        "Mean over the seeds of fresh episodes, which took no part in the choice, +- standard deviation (seeds).",
        "The policies did: those of another training may earn less. A choice with online episodes is not an offline",
        "result.",
        "",
        "| algorithm | dataset | settings | score | how it was chosen |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        score = "no environment"
        if "mean" in row:
            spread = f" +- {row['std']:.1f}" if row["std"] is not None else ""
            episodes = f"{row['seeds']} x {row['episodes_each']} episodes"
            score = f"{row['mean']:.1f}{spread} ({row['unit']}, {episodes})"
        lines.append(
            f"| {row['algorithm']} | {row['dataset']} | {row['settings']} | {score} | {row['how']} |"
        )
    return "\n".join([*lines, ""])

"""The fine-tuning benchmark: offline runs that go on online; cells, raw files, page.

    python scripts/bench_fine_tuning.py plan       what would run, and the expected core-hours
    python scripts/bench_fine_tuning.py run --jobs 2 [--minutes 60] [--only iql]
    python scripts/bench_fine_tuning.py smoke      one cell with a hundredth of the steps, in a temporary folder
    python scripts/bench_fine_tuning.py page       benchmarks/fine_tuning.md from benchmarks/raw/fine_tuning/*.json

Needs minari:zoo/hopper-medium-v0 (scripts/make_zoo.py). A cell trains offline and goes on online; an interrupted one
resumes in whichever part it was.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import offrl
from offrl.data.reference import normalized_score, reference_returns
from offrl.files import atomic_write_json, atomic_write_text
from offrl.training.cells import Cell, RunCells, planned, raw_record
from offrl.training.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[1]
RAW, WORK = ROOT / "benchmarks/raw/fine_tuning", ROOT / "runs/bench-fine-tuning"
PAGE = ROOT / "benchmarks/fine_tuning.md"
DATASET, SEEDS = "zoo/hopper-medium", (0, 1, 2)
OFFLINE, WARMUP, PLAYED = (
    50_000,
    5_000,
    50_000,
)  # updates; steps of the environment, of which the warm-up has no updates
EPISODES, LAST = 20, 3


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    algorithm: str
    seconds: float  # a cell, rough, one core
    label: str = ""  # the algorithm's name if empty
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.label or self.algorithm


ENTRIES = (Entry("iql", 1200, "iql (scaled rewards)", {"return_range_scaling": True}),)
TRIED = (
    "Why IQL: of trials with 20 000 updates online, one seed, 10 episodes an evaluation, it alone rose (34 to 42). "
    "TD3+BC from 50 000 updates stayed where it was (34.5 to 34.8); with `--bc-end 0.02` it held 31 to 34 until three"
    " quarters, when its critics began to overestimate, and then fell to 2. ReBRAC (actor_bc_coef 0.1, normalized, "
    "from 10 000 updates) went from 32 to 26, with `--bc-end 0.05` to 23: Q still rose, and the exploring policy "
    "earned no more than the offline one. Exploring TD3+BC (noise 0.1) earned 1599 an episode while its mean action "
    "earned 1113. IQL with all its steps, below: each seed passes through far better policies than the offline one (at "
    "best 50, 100 and 105), none stays there, so the last evaluations depend on the moment."
)


@dataclass(frozen=True)
class Two:
    """A cell of two runs: offline, then online."""

    algorithm: str
    settings: dict[str, Any]
    seed: int
    work: str
    result: str
    offline: int = OFFLINE
    warmup: int = WARMUP
    played: int = PLAYED
    episodes: int = EPISODES

    def cell(self) -> Cell:
        """The cell, with its description on disk."""
        spec = Path(self.work) / "cell.json"
        atomic_write_json(spec, asdict(self))
        result = Path(self.result)
        return Cell(result.stem, (sys.executable, __file__, "cell", str(spec)), result)

    def run(self) -> None:
        """Train or resume both, then write the raw numbers."""
        work = Path(self.work)
        common = {
            "eval_every": max(self.offline // 10, 1),
            "checkpoint_every": max(self.offline // 10, 1),
            "eval_episodes": self.episodes,
            "threads": 1,
            "progress": False,
        }
        first = {"steps": self.offline, "rows": "qlearning", "seed": self.seed, "out": work / "offline"}
        before = _go_on(work / "offline") or offrl.train(
            self.algorithm, f"minari:{DATASET}-v0", **first, **common, **self.settings
        )
        second = {"from_run": before.directory, "steps": self.played - self.warmup, "out": work / "online"}
        after = _go_on(work / "online") or offrl.train(
            self.algorithm, warmup_steps=self.warmup, **second, **common
        )
        record = {"offline": raw_record(before.directory), "online": raw_record(after.directory)}
        del record["online"]["config"]["fine_tuned_from"]["run"]  # a path of this machine
        atomic_write_json(Path(self.result), record)


def _go_on(out: Path) -> Any:
    """The resumed run under ``out``, or None where none began."""
    found = sorted(out.glob("*/*/seed*/config.json"))
    return offrl.resume(RunDir(found[-1].parent).path, progress=False) if found else None


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    jobs: int = 2
    """Processes at once, one thread each."""


def cells() -> list[tuple[Cell, float]]:
    """All cells with their expected seconds; first seeds of everything come first."""
    found = []
    for seed in SEEDS:
        for e in ENTRIES:
            name = f"hopper-medium-{e.algorithm}-{seed}"
            two = Two(e.algorithm, e.settings, seed, str(WORK / name), str(RAW / f"{name}.json"))
            found.append((two.cell(), e.seconds))
    return found


def smoke() -> None:
    """One cell with few steps, its raw file read back as a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "raw.json"
        Two("iql", {}, 0, folder, str(result), offline=500, warmup=100, played=500, episodes=2).run()
        print("\n".join(_row("iql, a hundredth of the steps", [json.loads(result.read_text())])))


def page() -> str:
    """The page, from the raw files alone."""
    played = f"{PLAYED:,}".replace(",", " ")
    offline = f"{OFFLINE:,}".replace(",", " ")
    lines = [
        "# Fine-tuning benchmark",
        "",
        "Regenerate: `python scripts/bench_fine_tuning.py page`. Raw numbers: `benchmarks/raw/fine_tuning/`.",
        "",
        f"{DATASET}: {offline} updates offline, then {played} steps of Hopper-v5 (the first {WARMUP} without",
        "updates, then one a step, half of each batch offline rows), each method's settings (docs/fine_tuning.md).",
        "Scores use D4RL's reference pair on the -v5 environment. *start*: the offline policy, evaluated anew;",
        f"*last {LAST}*: mean over the last {LAST} evaluations ({EPISODES} episodes each), its std over seeds;",
        "*while playing*: return of the exploring policy's last episodes, as a score. These are online results.",
        "",
        TRIED,
        "",
        "| algorithm | seeds | start | last | last 3 (mean +- std) | while playing | best |",
        "|---|---|---|---|---|---|---|",
    ]
    seen: set[str] = set()
    curves: list[str] = []
    for entry in ENTRIES:
        paths = [RAW / f"hopper-medium-{entry.algorithm}-{seed}.json" for seed in SEEDS]
        records = [json.loads(path.read_text()) for path in paths if path.exists()]
        seen |= {_where(record["online"]) for record in records}
        lines += _row(entry.name, records)
        curves += _curves(entry.name, records)
    lines += curves
    lines += ["", "## Commits and hardware", "", *(f"* {where}" for where in sorted(seen))]
    return "\n".join(lines) + "\n"


def _curves(name: str, records: list[dict[str, Any]]) -> list[str]:
    """The scores of every evaluation, and whether the last ones are above the first."""
    if not records:
        return []
    pair = reference_returns(DATASET) or (0.0, 1.0)
    steps = [e["step"] for e in records[0]["online"]["evaluations"]]
    found = np.array([[_score(pair, e["returns"]) for e in r["online"]["evaluations"]] for r in records])
    lines = ["", f"## Curves of {name}", "", "Updates online, and scores of the mean action:", ""]
    lines += [f"| seed | {' | '.join(map(str, steps))} |", "|---" * (len(steps) + 1) + "|"]
    for record, scores in zip(records, found, strict=True):
        lines.append(f"| {record['online']['config']['seed']} | {' | '.join(f'{x:.0f}' for x in scores)} |")
    gains = found[:, -LAST:].mean(axis=1) - found[:, 0]
    limit = max(5.0, 2 * gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 5.0
    gain = float(gains.mean())
    verdict = "improved" if gain > limit else "worse" if gain < -limit else "not clearly improved"
    each = ", ".join(f"{x:+.1f}" for x in gains)
    return [
        *lines,
        "",
        f"Last {LAST} minus start, by seed: {each}; mean {gain:+.1f}, tolerance {limit:.1f}: {verdict}.",
    ]


def _row(name: str, records: list[dict[str, Any]]) -> list[str]:
    if not records:
        return [f"| {name} | 0 | not run yet | | | | |"]
    pair = reference_returns(DATASET) or (0.0, 1.0)
    curves = [[_score(pair, e["returns"]) for e in r["online"]["evaluations"]] for r in records]
    ends = np.array([np.mean(c[-LAST:]) for c in curves])
    spread = f" +- {ends.std(ddof=1):.1f}" if len(ends) > 1 else ""
    playing = [r["online"]["last_metrics"]["online_return"] for r in records]
    played = np.mean([_score(pair, [value]) for value in playing if value is not None] or [np.nan])
    start, last, best = (np.mean([f(c) for c in curves]) for f in (lambda c: c[0], lambda c: c[-1], max))
    cells = f"{start:.1f} | {last:.1f} | {ends.mean():.1f}{spread} | {played:.1f} | {best:.1f}"
    return [f"| {name} | {len(records)} | {cells} |"]


def _score(pair: tuple[float, float], returns: list[float]) -> float:
    return float(normalized_score(pair, np.array(returns)).mean())


def _where(record: dict[str, Any]) -> str:
    v = record["versions"]
    libraries = f"torch {v['torch']}, mujoco {v['mujoco']}"
    rate = record["median_steps_per_second"]
    return f"offrl {v['offrl']} ({v['commit']}), {libraries}, {v['cpu']}, {v['threads']} thread, {rate:.0f} steps/s"


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells()))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        o.run(lambda: [cell for cell, _ in cells()], WORK / "logs", print)
    elif word == "cell":
        Two(**json.loads(Path(rest[0]).read_text())).run()
    elif word == "smoke":
        smoke()
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

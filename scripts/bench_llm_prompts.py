"""What chooses prompts, on sums that a supervised start cannot do: does accuracy on long ones leave chance?

    python scripts/bench_llm_prompts.py plan                       what would run, and the expected core-hours
    python scripts/bench_llm_prompts.py run [--jobs 15] [--minutes 60] [--only NAME] [--smoke]
    python scripts/bench_llm_prompts.py show                       the tables, from benchmarks/raw/llm_prompts/*.json

These tables are a part of the page that scripts/bench_llm_agents.py writes. All arms have the same rollouts, scoring
and hinted ones included, the same pool of prompts and the same learning rate, and are measured on fresh prompts without
hints. --smoke runs everything in minutes, into runs/bench-llm-prompts-smoke, and is good for nothing else.
"""

import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from bench_llm import supervised
from torch import Tensor

from offrl.files import atomic_write_json
from offrl.llm.evaluate import evaluate
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.prompts.knapsack import allocate
from offrl.llm.prompts.outcomes import outcomes, ranked
from offrl.llm.prompts.v0 import QueryAdapter
from offrl.llm.prompts.v0 import train as train_adapter
from offrl.llm.session import accuracy_row
from offrl.llm.tasks import load_task
from offrl.training.cells import Cell, RunCells, planned
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
BASELINES = ("grpo", "dr_grpo", "reinforce")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    share: float = 1.0
    points: int = 8
    prompts: int = 512
    samples: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    raw: Path = ROOT / "benchmarks/raw/llm_prompts"
    work: Path = ROOT / "runs/bench-llm-prompts"


SMOKE_FOLDER = ROOT / "runs/bench-llm-prompts-smoke"
FULL = Sizes()
SMOKE = Sizes(0.02, 2, 16, 4, (0,), SMOKE_FOLDER / "raw", SMOKE_FOLDER / "work")


@dataclass(frozen=True)
class Arm:
    """A method with parts."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    method: str = "grpo"
    first: bool = True
    """Whether it is among those that answer a claim; others run last."""


@dataclass(frozen=True)
class Experiment:
    """A task, its supervised start, and arms."""

    name: str
    title: str
    task: str
    start: tuple[int, float, float]
    """Steps of 128 demonstrations, learning rate, noise."""
    arms: tuple[Arm, ...]
    steps: int = 360
    lr: float = 5e-4
    pool: int = 512
    seconds: float = 75.0
    """Expected of a cell, on one core."""
    hard: tuple[int, ...] = (5, 6, 7, 8)
    """Difficulties at chance after the start."""
    chance: float = 0.1
    rank: int = 0
    """Added to that of its cells: what is tried first."""


def arms(*more: Arm) -> tuple[Arm, ...]:
    """The baselines and others."""
    return (*(Arm(name, method=name) for name in BASELINES), *more)


VAS = {"sampler": "vas", "vas_every": 56}
HINTS = {"scaffold": "hints"}
STAGES = {"curriculum": "stages"}
EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "t2-hard", "t2-hard: sums of 1 to 8 digits modulo 10", "t2-hard", (500, 5e-4, 0.2),
            arms(
                Arm("vas", VAS), Arm("knapsack", {"allocator": "knapsack"}),
                Arm("knapsack-v0", {"allocator": "knapsack", "predictor": "v0"}), Arm("hints", HINTS),
                Arm("stages", STAGES), Arm("stages-replay", {**STAGES, "stage_replay": 0.2}, first=False),
                Arm("stages-falling", {**STAGES, "stage_order": "falling"}, first=False),
                Arm("vas-hints", {**VAS, **HINTS}, first=False),
            ),
        ),
        Experiment(
            "t2-cliff", "t2-cliff: the same modulo 20", "t2-cliff", (1000, 1e-3, 0.2), arms(Arm("hints", HINTS)),
            chance=0.05, hard=(7, 8), rank=4,
        ),
        Experiment(
            "gui", "gui: the next action for instructions of 1 to 6 operations", "gui", (500, 1e-3, 0.4),
            arms(Arm("stages", STAGES), Arm("stages-replay", {**STAGES, "stage_replay": 0.2})),
            hard=(5, 6), chance=0.125, rank=2,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class CellOptions:
    """One cell (called by 'run')."""

    experiment: str
    arm: str = ""
    seed: int = 0
    smoke: bool = False


def started(e: Experiment, sizes: Sizes) -> dict[str, Tensor]:
    """Weights after the supervised stage."""
    steps, lr, noise = e.start
    path = start_of(e, sizes)
    return supervised(path, load_task(e.task), max(int(sizes.share * steps), 1), lr, noise)


def start_of(e: Experiment, sizes: Sizes) -> Path:
    """The file of these weights."""
    return sizes.work / f"start-{e.name}.pt"


def train(e: Experiment, arm: Arm, seed: int, sizes: Sizes) -> dict[str, Any]:
    """Train for an equal number of rollouts, measured at equal distances of them."""
    steps = max(round(sizes.share * e.steps), sizes.points)
    method, task = load_method(arm.method), load_task(e.task)
    options = LLMOptions(
        **{"task": e.task, "prompts": 32, "group": 8, "lr": e.lr, "warmup": 20, "pool": e.pool, "seed": seed},
        **{"steps": steps, **arm.options},
    )
    policy = load_model(options.model, task, seed)
    policy.load_state_dict(started(e, sizes))
    learner = Learner(method, method.config(), task, policy, options)

    def measured(point: int) -> dict[str, float]:
        how = {"prompts": sizes.prompts, "samples": sizes.samples, "seed": seed, "name": str(point)}
        return accuracy_row(evaluate(learner.policy, task, **how), sizes.samples)

    budget = steps * options.prompts * options.group
    points: list[dict[str, float]] = [{"rollouts": 0, **measured(0)}]
    began = time.process_time()
    for k in range(1, sizes.points + 1):
        sums: dict[str, float] = {}
        number = 0
        while learner.rollouts < budget * k / sizes.points:
            for name, value in learner.update().items():
                sums[name] = sums.get(name, 0.0) + float(value)
            number += 1
        means = {name: value / max(number, 1) for name, value in sums.items()}
        row = {"rollouts": learner.rollouts, "updates": learner.updates} | means | measured(k)
        points.append({name: float(f"{value:.5g}") for name, value in row.items()})
    return {"points": points, "cpu_seconds": time.process_time() - began}


def generalist(seed: int, sizes: Sizes) -> dict[str, Any]:
    """V_0 trained on the policies of one GRPO run, asked about those of another: AUC by context and by loss."""
    e, runs = EXPERIMENTS["t2-hard"], []
    count, steps = max(int(sizes.share * 1024), 64), max(int(sizes.share * 240), 4)
    method, task = load_method("grpo"), load_task(e.task)
    for own in (seed, seed + 1000):
        options = LLMOptions(task=e.task, prompts=32, group=8, lr=e.lr, warmup=20, seed=own, steps=steps)
        policy = load_model(options.model, task, own)
        policy.load_state_dict(started(e, sizes))
        backbone = copy.deepcopy(policy)
        learner, episodes = Learner(method, method.config(), task, policy, options), []
        for step in range(steps):
            if step % max(steps // 12, 1) == 0:
                how = {"count": count, "samples": 8, "seed": own, "name": f"outcomes {step}"}
                episodes.append(outcomes(learner.policy, backbone, task, **how))
            learner.update()
        runs.append(episodes)
    seen, unseen = runs
    rows = {f"states alone, context {n}": ranked(unseen, None, n) for n in (32, 128, 256, 512)}
    for name, share in (("cross-entropy", 0.0), ("ranking", 1.0), ("both", 0.25)):
        torch.manual_seed(seed)
        adapter = QueryAdapter(seen[0].states.shape[2])
        how = {"steps": max(int(sizes.share * 300), 4), "generator": torch.Generator().manual_seed(seed)}
        train_adapter(adapter, seen, share=share, context=min(256, count // 2), **how)
        contexts = (32, 128, 256, 512) if name == "both" else (256,)
        rows |= {f"adapter by {name}, context {n}": ranked(unseen, adapter, n) for n in contexts}
    return {"auc": rows, "policies": len(unseen)}


def speed() -> dict[str, Any]:
    """Milliseconds of processor time of a budget of 8,192 over 1,024 prompts; the best and the median of 20."""
    rates = np.random.default_rng(0).uniform(size=1024)
    found = []
    for _ in range(20):
        began = time.process_time()
        allocate(rates, 8192, 2, 128)
        found.append(1e3 * (time.process_time() - began))
    return {"best_ms": min(found), "median_ms": float(np.median(found))}


def run_cell(o: CellOptions) -> None:
    """Write one raw file."""
    sizes = SMOKE if o.smoke else FULL
    torch.set_num_threads(1)
    if o.arm == "start":
        started(EXPERIMENTS[o.experiment], sizes)
        return
    if o.experiment == "speed":
        record = speed()
    elif o.experiment == "v0":
        record = generalist(o.seed, sizes)
    else:
        e = EXPERIMENTS[o.experiment]
        arm = next(arm for arm in e.arms if arm.name == o.arm)
        record = train(e, arm, o.seed, sizes)
    record |= {"cell": asdict(o), "versions": versions("cpu", 1)}
    atomic_write_json(sizes.raw / f"{cell_name(o)}.json", record)


def cell_name(o: CellOptions) -> str:
    """Of its raw file."""
    return "-".join(part for part in (o.experiment, o.arm, str(o.seed)) if part)


def cells(sizes: Sizes) -> list[tuple[int, Cell, float]]:
    """All, with ranks (the most telling ones first) and expected seconds on one core."""
    found: list[tuple[int, Cell, float]] = []

    def add(rank: int, o: CellOptions, seconds: float, needs: str) -> None:
        words = [sys.executable, str(Path(__file__).resolve()), "cell", "--experiment", o.experiment]
        words += [
            "--seed",
            str(o.seed),
            *(["--arm", o.arm] if o.arm else []),
            *(["--smoke"] if o.smoke else []),
        ]
        start = start_of(EXPERIMENTS[needs], sizes) if needs else None
        result = start if o.arm == "start" and start else sizes.raw / f"{cell_name(o)}.json"
        read = (start,) if start and result != start else ()
        found.append((rank, Cell(cell_name(o), tuple(words), result, needs=read), seconds))

    smoke = sizes is SMOKE
    for e in EXPERIMENTS.values():
        add(e.rank - 2, CellOptions(e.name, "start", 0, smoke), 40.0, e.name)
    add(2, CellOptions("speed", smoke=smoke), 5.0, "")
    for seed in sizes.seeds:
        late = 2 * (seed == FULL.seeds[-1])
        add(late, CellOptions("v0", "", seed, smoke), 160.0, "t2-hard")
        for e in EXPERIMENTS.values():
            for arm in e.arms:
                rank = e.rank + (late if arm.first else 5)
                add(rank, CellOptions(e.name, arm.name, seed, smoke), e.seconds, e.name)
    return found


# tables


def records(sizes: Sizes, e: Experiment, arm: Arm) -> list[dict[str, Any]]:
    """Of the seeds that are there."""
    paths = [sizes.raw / f"{e.name}-{arm.name}-{seed}.json" for seed in sizes.seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def hard(e: Experiment, point: dict[str, float]) -> float:
    """Mean accuracy on the difficulties that began at chance."""
    return float(np.mean([point[f"level_{k}"] for k in e.hard]))


def spread(values: list[float]) -> str:
    """Mean and range over seeds."""
    if not values:
        return "-"
    return f"{np.mean(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def table(sizes: Sizes, e: Experiment) -> list[str]:
    """Lines of Markdown: an arm a row."""
    levels = sorted(int(k.removeprefix("level_")) for k in _any_point(sizes, e) if k.startswith("level_"))
    lines = [
        "| arm | accuracy | hard ones | "
        + " | ".join(map(str, levels))
        + " | zero variance | updates | seeds |",
        "|---" * (len(levels) + 6) + "|",
    ]
    for arm in e.arms:
        found = records(sizes, e, arm)
        last = [record["points"][-1] for record in found]
        cells_ = [f"{np.mean([p[f'level_{k}'] for p in last]):.2f}" if last else "-" for k in levels]
        dead = [
            float(np.mean([p["zero_variance"] for p in r["points"][1:] if "zero_variance" in p]))
            for r in found
        ]
        updates = f"{np.mean([p['updates'] for p in last]):.0f}" if last else "-"
        lines.append(
            f"| {arm.name} | {spread([p['sampled'] for p in last])} | {spread([hard(e, p) for p in last])} | "
            f"{' | '.join(cells_)} | {spread(dead)} | {updates} | {len(found)} |"
        )
    return lines


def _any_point(sizes: Sizes, e: Experiment) -> dict[str, float]:
    for arm in e.arms:
        for record in records(sizes, e, arm):
            return record["points"][0]
    return {}


def verdicts(sizes: Sizes, e: Experiment) -> list[str]:
    """Of each arm: above all baselines in every seed on the hard ones, and above chance there."""
    best = [
        max(hard(e, r["points"][-1]) for r in found)
        for name in BASELINES
        if (found := records(sizes, e, next(a for a in e.arms if a.name == name)))
    ]
    lines = []
    for arm in e.arms:
        found = [hard(e, r["points"][-1]) for r in records(sizes, e, arm)]
        if arm.name in BASELINES or not found or not best:
            continue
        start = float(np.mean([hard(e, r["points"][0]) for r in records(sizes, e, arm)]))
        leaves = min(found) > e.chance + 0.1
        shown = leaves and min(found) > max(best)
        lines.append(
            f"* `{arm.name}`: **{'shown' if shown else 'not shown'} here**: {spread(found)} on {e.hard[0]} to "
            f"{e.hard[-1]}, from {start:.2f}; baselines at most {max(best):.2f}; chance {e.chance:g}, which it "
            f"{'leaves' if leaves else 'does not leave'} by 0.1 on every seed."
        )
    return lines


def section(sizes: Sizes = FULL) -> list[str]:
    """Lines of Markdown for the page."""
    lines = []
    for e in EXPERIMENTS.values():
        steps, lr, noise = e.start
        about = (
            f"Start: `sft`, {steps} steps of 128, learning rate {lr:g}, noise {noise:g}. Then {e.steps} x 256 "
            f"rollouts at {e.lr:g} with GRPO, or the baseline named, from a pool of {e.pool}. Accuracy on fresh "
            f"prompts, mean (range) over seeds; hard ones: {e.hard[0]} to {e.hard[-1]}."
        )
        lines += [f"## {e.title}", "", about, "", *table(sizes, e), "", *verdicts(sizes, e), ""]
    paths = [sizes.raw / f"v0-{seed}.json" for seed in sizes.seeds]
    if areas := [json.loads(path.read_text())["auc"] for path in paths if path.exists()]:
        about = (
            "Area under the curve within a policy: right prompts above wrong ones, on fresh prompts of policies "
            "from a run that the adapter never saw. The mean of a context ranks at 0.50."
        )
        lines += [
            "## V_0 on t2-hard",
            "",
            about,
            "",
            "| features | AUC, mean (range) over seeds |",
            "|---|---|",
        ]
        lines += [*(f"| {name} | {spread([a[name] for a in areas])} |" for name in areas[0]), ""]
    path = sizes.raw / "speed-0.json"
    if path.exists():
        found = json.loads(path.read_text())
        lines += [
            f"Budget of 8,192 responses over 1,024 prompts: {found['best_ms']:.1f} ms of processor time at best, "
            f"{found['median_ms']:.1f} in the median of 20.",
            "",
        ]
    return lines


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned([(cell, seconds) for _, cell, seconds in cells(FULL)]))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        sizes = SMOKE if o.smoke else FULL
        made = sorted(cells(sizes), key=lambda entry: entry[0])
        o.run(lambda: [cell for _, cell, _ in made], sizes.work / "logs", print)
    elif word == "cell":
        run_cell(tyro.cli(CellOptions, args=rest))
    elif word == "show":
        print("\n".join(section(SMOKE if "--smoke" in rest else FULL)))
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

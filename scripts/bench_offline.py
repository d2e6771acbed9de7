"""The offline benchmark: cells, raw files, page.

    python scripts/bench_offline.py plan                    what would run, and the expected core-hours
    python scripts/bench_offline.py run --jobs 2 [--minutes 60] [--d3rlpy PYTHON]
    python scripts/bench_offline.py page                    benchmarks/offline.md from benchmarks/raw/offline/*.json

Needs the sets of scripts/make_zoo.py. Cells of d3rlpy need a Python that has it (its own environment); their weights
are evaluated by offrl. Interrupted training cells resume; cells of d3rlpy start again.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from offrl.data.load import load_dataset
from offrl.data.normalize import ObservationNormalizer
from offrl.data.reference import normalized_score, reference_returns
from offrl.evaluation.rollout import Evaluator
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.policy import DeterministicPolicy
from offrl.training.build import dataset_env
from offrl.training.cells import Cell, TrainingCell, run_cells
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, WORK, PAGE = ROOT / "benchmarks/raw/offline", ROOT / "runs/bench-offline", ROOT / "benchmarks/offline.md"
EPISODES, LAST = 20, 3
TASKS = (  # dataset, steps, seeds of ours, seeds of d3rlpy, seconds a cell of ours and of d3rlpy (rough, one core)
    ("zoo/hopper-medium", 100_000, (0, 1, 2), (0, 1), 950, 1500),
    ("zoo/walker2d-mixed", 50_000, (0, 1), (0, 1), 500, 800),
)
OURS, PEERS = ("td3_bc", "iql", "prdc", "td3_bc bf16"), ("td3_bc", "iql")  # bf16: on the first dataset only


@dataclass(frozen=True)
class Run:
    """Run the cells that have no raw file yet."""

    jobs: int = 2
    """Processes at once, one thread each."""
    minutes: float | None = None
    """Stop (with checkpoints) after this long."""
    d3rlpy: Path | None = None
    """Python executable of an environment with d3rlpy; without it the peer's cells are left out."""
    only: str = ""
    """Only cells whose name holds this."""


@dataclass(frozen=True)
class PeerCell:
    """Train one peer cell and evaluate its weights (called by 'run')."""

    python: Path
    algorithm: str
    dataset: str
    steps: int
    seed: int
    result: Path


def cells(python: Path | None) -> list[tuple[Cell, float]]:
    """All cells with their expected seconds; first seeds of everything come first."""
    found: list[tuple[int, Cell, float]] = []
    for dataset, steps, seeds, peer_seeds, ours_s, peer_s in TASKS:
        short = dataset.split("/")[1]
        options = {
            "steps": steps,
            "rows": "qlearning",
            "eval_every": 10_000,
            "eval_episodes": EPISODES,
            "checkpoint_every": 5_000,
        }
        for label in OURS if dataset == TASKS[0][0] else OURS[:-1]:
            algorithm, _, precision = label.partition(" ")
            own = options | ({"precision": precision} if precision else {})
            for seed in seeds:
                cell = TrainingCell(algorithm, f"minari:{dataset}-v0", seed, own)
                name = f"{short}-{label.replace(' ', '_')}-{seed}"
                found.append((seed, cell.cell(name, RAW, WORK), ours_s))
        for algorithm in PEERS if python else ():
            for seed in peer_seeds:
                name = f"{short}-d3rlpy_{algorithm}-{seed}"
                command = ["--python", python, "--algorithm", algorithm, "--dataset", dataset]
                command += ["--steps", steps, "--seed", seed, "--result", RAW / f"{name}.json"]
                words = (sys.executable, __file__, "peer-cell", *map(str, command))
                found.append((seed, Cell(name, words, RAW / f"{name}.json"), peer_s))
    found.sort(key=lambda item: item[0])
    return [(cell, seconds) for _, cell, seconds in found]


def plan(python: Path | None) -> None:
    """Print the cells and what they cost."""
    todo = [(cell, seconds) for cell, seconds in cells(python) if not cell.result.exists()]
    for cell, seconds in todo:
        print(f"{cell.name:40} about {seconds / 60:.0f} min")
    print(f"{len(todo)} cells, {sum(s for _, s in todo) / 3600:.1f} core-hours expected")


def peer_cell(o: PeerCell) -> None:
    """Dump the rows, train d3rlpy on them in its own process, evaluate the weights, write the raw file."""
    folder = WORK / o.result.stem
    data = load_dataset(f"minari:{o.dataset}-v0")
    rows = data.transitions("qlearning")
    normalizer = ObservationNormalizer.fit(rows.observations)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "rows.npz",
        observations=data.fields["observations"],
        actions=data.fields["actions"],
        rewards=data.fields["rewards"],
        terminals=data.fields["terminated"],
        timeouts=data.fields["truncated"],
        mean=normalizer.mean.numpy(),
        std=normalizer.std.numpy(),
    )
    command = [str(o.python), str(ROOT / "scripts/peer_d3rlpy.py"), "--data", str(folder / "rows.npz")]
    command += ["--algorithm", o.algorithm, "--steps", str(o.steps), "--save-every", "10000"]
    subprocess.run([*command, "--seed", str(o.seed), "--out", str(folder)], check=True)
    facts = json.loads((folder / "facts.json").read_text())
    if facts["transitions"] != len(rows.rewards):
        raise RuntimeError(f"d3rlpy saw {facts['transitions']} transitions, offrl {len(rows.rewards)}")
    spec = dataset_env(data, None)
    evaluations = []
    with Evaluator(spec, workers=1) as evaluator:
        for step in range(o.steps - (LAST - 1) * 10_000, o.steps + 1, 10_000):
            policy = peer_policy(
                folder / f"actor-{step}.npz", normalizer if o.algorithm == "td3_bc" else None
            )
            result = evaluator(policy, EPISODES, seed=o.seed, stream=step)
            evaluations.append({"step": step, "returns": result.returns.tolist()})
    record = {
        "config": {
            "algorithm": f"d3rlpy {o.algorithm}",
            "seed": o.seed,
            "steps": o.steps,
            "dataset": o.dataset,
        },
        "versions": versions("cpu", 1) | {"d3rlpy": facts["d3rlpy"]},
        "evaluations": evaluations,
        "seconds": facts["cpu_seconds"],
    }
    atomic_write_json(o.result, record)


def peer_policy(path: Path, normalizer: ObservationNormalizer | None) -> DeterministicPolicy:
    """d3rlpy's actor (its mean action) as our policy."""
    with np.load(path, allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    head = "_fc" if "_fc.weight" in weights else "_mu"
    layers = [
        (weights[f"{n}.weight"], weights[f"{n}.bias"])
        for n in ("_encoder._layers.0", "_encoder._layers.2", head)
    ]
    ones = torch.ones(len(layers[-1][1]))
    mean, std = (normalizer.mean, normalizer.std) if normalizer else (None, None)
    return DeterministicPolicy.from_params(layers, -ones, ones, mean, std)


def page() -> str:
    """The page, from the raw files alone."""
    records: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(RAW.glob("*.json")):
        record = json.loads(path.read_text())
        dataset = str(record["config"]["dataset"]).removeprefix("minari:").removesuffix("-v0")
        label = record["config"]["algorithm"]
        label += " bf16" if record["config"].get("precision") == "bf16" else ""
        records.setdefault((dataset, label), []).append(record)
    lines = [
        "# Offline benchmark",
        "",
        "Regenerate: `python scripts/bench_offline.py page`. Raw numbers: `benchmarks/raw/offline/`.",
        "",
        "Same rows (D4RL's q-learning rule), batch 256, two hidden layers of 256, no reward scaling; d3rlpy 2.8",
        "trains in its own environment with matched settings and is evaluated by offrl. Scores use D4RL's reference",
        "pair on the -v5 environments: they are not D4RL scores. *last 3*: mean over the last 3 evaluations of 20",
        "episodes each, the mean and standard deviation over seeds. *best* is chosen with online episodes. A run",
        "counts only when it is finished.",
        "",
    ]
    for dataset, steps, *_ in TASKS:
        pair = reference_returns(dataset)
        if pair is None:
            raise RuntimeError(f"no reference returns for {dataset}")
        lines += [f"## {dataset}, {steps:,} steps".replace(",", " "), "", *_table(dataset, pair, records), ""]
    lines += ["## Commits and hardware", ""]
    seen = {_where(r) for group in records.values() for r in group}
    lines += [f"* {where}" for where in sorted(seen)]
    return "\n".join(lines) + "\n"


def _table(
    dataset: str, pair: tuple[float, float], records: dict[tuple[str, str], list[dict[str, Any]]]
) -> list[str]:
    lines = ["| algorithm | seeds | last | last 3 (mean +- std) | best |", "|---|---|---|---|---|"]
    means = {}
    for algorithm in (*(OURS if dataset == TASKS[0][0] else OURS[:-1]), *(f"d3rlpy {p}" for p in PEERS)):
        runs = records.get((dataset, algorithm), [])
        if not runs:
            lines.append(f"| {algorithm} | 0 | not run yet | | |")
            continue
        curves = [
            [normalized_score(pair, np.array(e["returns"])).mean() for e in r["evaluations"]] for r in runs
        ]
        last3 = np.array([np.mean(c[-LAST:]) for c in curves])
        means[algorithm] = last3
        spread = last3.std(ddof=1) if len(last3) > 1 else float("nan")
        best = np.mean([max(c) for c in curves])
        lines.append(
            f"| {algorithm} | {len(runs)} | {np.mean([c[-1] for c in curves]):.1f} | "
            f"{last3.mean():.1f} +- {spread:.1f} | {best:.1f} |"
        )
    pairs = [(algorithm, f"d3rlpy {algorithm}") for algorithm in PEERS]
    for algorithm, other in [*pairs, (OURS[-1], "td3_bc")] if dataset == TASKS[0][0] else pairs:
        ours, peer = means.get(algorithm), means.get(other)
        if ours is None or peer is None or min(len(ours), len(peer)) < 2:
            lines += ["", f"{algorithm} against {other}: not enough finished seeds yet."]
            continue
        gap = ours.mean() - peer.mean()
        limit = max(5.0, 2 * np.sqrt(ours.var(ddof=1) / len(ours) + peer.var(ddof=1) / len(peer)))
        verdict = "within" if abs(gap) <= limit else "OUTSIDE"
        lines += [
            "",
            f"{algorithm} against {other}: difference {gap:+.1f}, tolerance {limit:.1f}: {verdict}.",
        ]
    return lines


def _where(record: dict[str, Any]) -> str:
    v = record["versions"]
    libraries = f"torch {v['torch']}, mujoco {v['mujoco']}"
    return f"offrl {v['offrl']} ({v['commit']}), {libraries}, {v['cpu']}, {v['threads']} thread"


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        plan(Path(rest[0]) if rest else Path("d3rlpy"))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        chosen = [cell for cell, _ in cells(o.d3rlpy) if o.only in cell.name]
        deadline = None if o.minutes is None else 60 * o.minutes
        left = run_cells(
            chosen, WORK / "logs", jobs=o.jobs, deadline=deadline, note=lambda line: print(line, flush=True)
        )
        print(f"without a result: {', '.join(left) or 'none'}")
    elif word == "peer-cell":
        peer_cell(tyro.cli(PeerCell, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

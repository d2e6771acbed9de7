"""CDSA (reconstruction, not verified against the authors' code): does it make policies better, safer, nearer the data?

    python scripts/bench_cdsa.py plan                       what would run, and the expected core-hours
    python scripts/bench_cdsa.py run [--minutes 60] [--only NAME] [--smoke]
    python scripts/bench_cdsa.py page                       benchmarks/cdsa.md from benchmarks/raw/cdsa/*.json

Needs minari:zoo/hopper-mixed-v0 of scripts/make_zoo.py. Interrupted training cells resume. Settings are chosen by the
mean return of episodes of SEARCH_SEED, reported are episodes of REPORT_SEED; the two share no environment seed. --smoke
runs everything in minutes, into runs/bench-cdsa-smoke, and is good for nothing else.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from offrl.collect import collect
from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.data.neighbours import NeighbourIndex
from offrl.diffusion.adjustment import CDSAModel, CDSAPolicy
from offrl.evaluation.risk import comparison, measure_shift
from offrl.evaluation.rollout import Evaluator
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.policy import Policy, load_policy
from offrl.training.build import dataset_env
from offrl.training.cells import Cell, RunCells, TrainingCell, planned
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/cdsa.md"
DATASET = "minari:zoo/hopper-mixed-v0"
SEARCH_SEED, REPORT_SEED, SHIFT_SEED = 1_000, 2_000, 3_000
LEVEL = 0.1  # of VaR and CVaR
ALPHAS, BETAS, SIGMAS = (0.0, 0.05, 0.1, 0.3, 1.0), (0.0, 0.05), (0.1, 0.2)
BASES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> algorithm, settings
    "td3_bc": ("td3_bc", {}),
    "iql": ("iql", {}),
    "fragile-bc": ("bc", {"top_fraction": 0.01}),  # a few episodes cloned, and nothing known beside them
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    model_steps: int = 50_000
    base_steps: int = 50_000
    hidden: int = 256
    seeds: tuple[int, ...] = (0, 1)
    search_episodes: int = 10
    report_episodes: int = 50
    shift_steps: int = 2_000
    raw: Path = ROOT / "benchmarks/raw/cdsa"
    work: Path = ROOT / "runs/bench-cdsa"


FULL = Sizes()
SMOKE = Sizes(
    *(40, 40, 16, (0,), 2, 3, 100),
    raw=ROOT / "runs/bench-cdsa-smoke/raw",
    work=ROOT / "runs/bench-cdsa-smoke/work",
)


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class Adjusted:
    """Search and report for one base policy (called by 'run')."""

    base: str
    seed: int
    smoke: bool = False


def cells(sizes: Sizes, smoke: bool) -> list[tuple[Cell, float]]:
    """All cells in the order of their needs, with expected seconds on one core."""
    model = TrainingCell("cdsa", DATASET, 0, {"steps": sizes.model_steps}, {"hidden": sizes.hidden})
    found = [(model.cell("model", sizes.raw, sizes.work), 0.006 * sizes.model_steps)]
    for name, (algorithm, settings) in BASES.items():
        for seed in sizes.seeds:
            options = {"steps": sizes.base_steps, "eval_every": 0, "checkpoint_every": 10_000}
            base = TrainingCell(algorithm, DATASET, seed, options, {"hidden": sizes.hidden, **settings})
            cost = {"bc": 0.001, "td3_bc": 0.004, "iql": 0.005}[algorithm]
            cell = base.cell(f"base-{name}-{seed}", sizes.raw, sizes.work)
            found.append((cell, cost * sizes.base_steps))
    for name in BASES:
        for seed in sizes.seeds:
            command: tuple[str, ...] = (
                sys.executable,
                __file__,
                "adjusted",
                "--base",
                name,
                "--seed",
                str(seed),
            )
            command += ("--smoke",) if smoke else ()
            label = f"adjusted-{name}-{seed}"
            played = len(grid()) * sizes.search_episodes + (1 + len(ALPHAS)) * sizes.report_episodes
            found.append((Cell(label, command, sizes.raw / f"{label}.json"), 0.8 * played))
    return found


def grid() -> list[dict[str, float]]:
    """Settings tried: sigma does not matter where alpha and beta are 0."""
    return [
        {"alpha": alpha, "beta": beta, "sigma": sigma}
        for alpha in ALPHAS
        for beta in BETAS
        for sigma in (SIGMAS if alpha or beta else SIGMAS[:1])
    ]


def folder(sizes: Sizes, cell: str) -> Path:
    """The run directory of a training cell."""
    return sorted(path.parent for path in (sizes.work / cell).glob("*/*/seed*/config.json"))[-1]


def adjusted(o: Adjusted) -> None:
    """Search on SEARCH_SEED, report on REPORT_SEED, measure the shift of actions where the base goes."""
    sizes = SMOKE if o.smoke else FULL
    torch.set_num_threads(1)
    began, data = time.process_time(), load_dataset(DATASET)
    spec = dataset_env(data, None)
    assert spec is not None
    base = load_policy(folder(sizes, f"base-{o.base}-{o.seed}"))
    model = load_policy(folder(sizes, "model"))
    assert isinstance(model, CDSAModel)

    def policy(settings: dict[str, float]) -> Policy:
        return CDSAPolicy(base, model, **settings).eval()

    with Evaluator(spec) as evaluator:

        def play(settings: dict[str, float], episodes: int, seed: int) -> list[float]:
            played = evaluator(policy(settings), episodes, seed=seed + o.seed)
            return [float(x) for x in played.returns]

        search: list[dict[str, Any]] = [
            {**settings, "returns": play(settings, sizes.search_episodes, SEARCH_SEED)} for settings in grid()
        ]
        best = max(search, key=lambda row: float(np.mean(row["returns"])))
        chosen = {key: best[key] for key in ("alpha", "beta", "sigma")}
        sigma = chosen["sigma"]
        curve = [{"alpha": alpha, "beta": 0.0, "sigma": sigma} for alpha in ALPHAS]
        report = [
            {**settings, "returns": play(settings, sizes.report_episodes, REPORT_SEED)}
            for settings in [*curve, chosen]
        ]
    states = collect(spec, base, sizes.shift_steps, seed=SHIFT_SEED + o.seed).flat_observations()
    index = index_of(data, model)
    shifts = [{**s, **shift(index, model, base, policy(s), states)} for s in [*curve, chosen]]
    record = {
        "base": o.base,
        "seed": o.seed,
        "search": search,
        "chosen": chosen,
        "report": report,
        "shifts": shifts,
        "seconds": time.process_time() - began,
        "versions": versions("cpu", 1),
    }
    atomic_write_json(sizes.raw / f"adjusted-{o.base}-{o.seed}.json", record)


def index_of(data: OfflineDataset, model: CDSAModel) -> NeighbourIndex:
    """The data's standardized states and actions in half-ranges."""
    rows = data.transitions("exact")
    states = model.standardize(torch.from_numpy(rows.observations))
    return NeighbourIndex(states, (torch.from_numpy(rows.actions) - model.center) / model.half_range, 1.0)


@torch.no_grad()
def shift(
    index: NeighbourIndex, model: CDSAModel, base: Policy, policy: Policy, states: np.ndarray
) -> dict[str, float]:
    """What the adjustment does to the base's actions at ``states``."""
    observations = torch.from_numpy(states)
    before, after = ((p(observations) - model.center) / model.half_range for p in (base, policy))
    return asdict(measure_shift(index, model.standardize(observations), before, after))


def page(sizes: Sizes) -> str:
    """The page, from the raw files alone."""
    lines = [
        "# CDSA on top of other policies",
        "",
        "**A reconstruction, not verified against the authors' code.** Regenerate: `python scripts/bench_cdsa.py "
        "page`. Raw numbers: `benchmarks/raw/cdsa/`.",
        "",
        f"Data: `{DATASET}`; one model of {sizes.model_steps:,} updates for all policies; policies of "
        f"{sizes.base_steps:,} updates. The fragile policy clones the best 1 % of the episodes. alpha, beta and sigma "
        f"are those of {len(grid())} combinations with the best mean return over {sizes.search_episodes} episodes "
        f"(seed {SEARCH_SEED} + policy seed); every number below is of {sizes.report_episodes} other episodes (seed "
        f"{REPORT_SEED} + policy seed), base and adjusted policy on the same ones. VaR and CVaR are at level "
        f"{LEVEL:g}, lower tail, without interpolation. Intervals are 95 %, of paired differences: Student's t for the "
        "mean, bootstrap over episodes for the others; they hold for this policy, not for another training seed.",
        "",
        "The paper claims better returns and a significantly better VaR; its numbers could not be read and are not "
        "quoted.",
        "",
    ]
    found = [
        (name, seed, sizes.raw / f"adjusted-{name}-{seed}.json") for name in BASES for seed in sizes.seeds
    ]
    records = [(name, seed, json.loads(path.read_text())) for name, seed, path in found if path.exists()]
    if not records:
        return "\n".join([*lines, "Not run yet."]) + "\n"
    lines += [
        "## The chosen settings",
        "",
        "| policy | seed | alpha, beta, sigma | mean | difference | VaR | difference | CVaR | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [chosen_row(name, seed, record) for name, seed, record in records]
    lines += ["", *verdicts([record for *_, record in records]), "", "## Return against alpha (beta 0)", ""]
    lines += ["| policy | seed | sigma | " + " | ".join(f"{a:g}" for a in ALPHAS) + " |"]
    lines += ["|---|---|---|" + "---|" * len(ALPHAS)]
    for name, seed, record in records:
        means = [f"{np.mean(row['returns']):.0f}" for row in record["report"][: len(ALPHAS)]]
        lines.append(f"| {name} | {seed} | {record['chosen']['sigma']:g} | " + " | ".join(means) + " |")
    lines += [
        "",
        f"## Actions at {sizes.shift_steps:,} states that the base policy meets (beta 0)",
        "",
        "Mean squared distance of (state, action) to the nearest row of the data, states standardized, actions in "
        "half-ranges; the share of action components at a bound; mean length of the change.",
        "",
        "| policy | seed | alpha | distance | clipped | change |",
        "|---|---|---|---|---|---|",
    ]
    for name, seed, record in records:
        for row in record["shifts"][: len(ALPHAS)]:
            lines.append(
                f"| {name} | {seed} | {row['alpha']:g} | {row['distance_after']:.4f} | {row['clipped']:.3f} | "
                f"{row['action_change']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def compared(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Base (alpha 0) and chosen setting on the report episodes."""
    base, chosen = (np.array(record["report"][i]["returns"]) for i in (0, -1))
    return comparison(base, chosen, LEVEL)


def chosen_row(name: str, seed: int, record: dict[str, Any]) -> str:
    """A row of the table of chosen settings."""
    c = record["chosen"]
    parts = [name, str(seed), f"{c['alpha']:g}, {c['beta']:g}, {c['sigma']:g}"]
    for row in compared(record).values():
        low, high = row["interval"]
        parts += [
            f"{row['base']:.0f} -> {row['adjusted']:.0f}",
            f"{row['difference']:+.0f} ({low:+.0f} .. {high:+.0f})",
        ]
    return "| " + " | ".join(parts) + " |"


def verdicts(records: list[dict[str, Any]]) -> list[str]:
    """How often a difference has an interval above or below 0, and whether distances fall with alpha."""
    lines = []
    for name in compared(records[0]):
        rows = [compared(record)[name]["interval"] for record in records]
        up, down = sum(low > 0 for low, _ in rows), sum(high < 0 for _, high in rows)
        lines.append(
            f"* {name}: of {len(rows)} policies better {up}, worse {down}, undecided {len(rows) - up - down}."
        )
    falls = 0
    for record in records:
        distances = [row["distance_after"] for row in record["shifts"][: len(ALPHAS)]]
        falls += all(np.diff(distances) < 0)
    return [
        *lines,
        f"* The distance to the data falls with every step of alpha for {falls} of {len(records)} policies.",
    ]


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(FULL, False)))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        sizes = SMOKE if o.smoke else FULL
        stages = ("model", "base-", "adjusted-")  # later ones read earlier runs
        o.run(lambda: [cell for cell, _ in cells(sizes, o.smoke)], sizes.work / "logs", print, stages)
        if o.smoke:
            atomic_write_text(sizes.raw.parent / "page.md", page(sizes))
    elif word == "adjusted":
        adjusted(tyro.cli(Adjusted, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page(FULL))
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

"""Methods that live in the data, the context and the agent loop, against losses alone, at equal rollouts.

    python scripts/bench_llm_agents.py plan                       what would run, and the expected core-hours
    python scripts/bench_llm_agents.py run [--jobs 15] [--minutes 60] [--only NAME] [--smoke]
    python scripts/bench_llm_agents.py speed                      128 episodes at once against one at a time
    python scripts/bench_llm_agents.py page                       benchmarks/llm_agents.md from the raw files

The cells of scripts/bench_llm_prompts.py are among those that it plans and runs: both make one page. What answers a
claim with the fewest cells comes first: two seeds of the arms that are compared, then the third, then further arms.

Each arm of an experiment trains on as many rollouts as the others. Its learning rate is the better one of two on
TUNE_SEED, which is not reported, after half as many. Supervised starts are shared by the arms of a seed. --smoke runs
everything tiny, into runs/bench-llm-agents-smoke, and is good for nothing else.
"""

import csv
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_llm_prompts
import numpy as np
import torch
import tyro

from offrl.files import atomic_write_json, atomic_write_text
from offrl.llm.episodes import respond
from offrl.llm.evaluate import evaluate
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.session import resume, start
from offrl.llm.tasks import load_task, task_for
from offrl.training.cells import Cell, RunCells, planned
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/llm_agents.md"
RAW, WORK = ROOT / "benchmarks/raw/llm_agents", ROOT / "runs/bench-llm-agents"
SMOKE = ROOT / "runs/bench-llm-agents-smoke"
SEEDS, TUNE_SEED, POINTS = (0, 1, 2), 100, 5


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        method: its name.
        settings: of the method.
        options: of the run, beside those of the experiment.
        per_step: rollouts of a step.
        first: whether it is among those that answer the claim; others run last.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    per_step: int = 128
    first: bool = True


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared.

    Args:
        claim: that is tried, in words.
        metric: column of accuracy.csv, or of the cell's extra evaluations, that decides.
        ours: arms that the claim is about.
        rollouts: of each arm.
        seconds: of one step on one core, about.
        options: of all arms.
        arms: by name.
        begin: a run whose model all arms of a seed begin with: method, settings, options; None: random weights.
        begin_is: what that run is to the arms: the model that they begin with, or the actor of their task.
        extra: evaluations after training of arms with the same context: name -> options to change.
        begin_seconds: of ``begin`` on one core, about.
        rates: learning rates that are tried.
        note: on the page, below the claim.
    """

    claim: str
    metric: str
    ours: tuple[str, ...]
    rollouts: int
    seconds: float
    options: dict[str, Any]
    arms: dict[str, Arm]
    begin: tuple[str, dict[str, Any], dict[str, Any]] | None = None
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)
    begin_is: str = "model"
    begin_seconds: float = 20.0
    rates: tuple[float, float] = (3e-4, 1e-3)
    note: str = ""


BASELINES = {"grpo": Arm("grpo"), "dr_grpo": Arm("dr_grpo"), "reinforce": Arm("reinforce")}
GRID = {"prompts": 16, "group": 8, "eval_prompts": 256, "eval_samples": 4, "log_every": 5}
EXPERIMENTS: dict[str, Experiment] = {
    "t4c": Experiment(
        "on a long and sparse task entropy regularization (EPO) and modulation (EMPG) beat their base, and EPO a plain "
        "entropy bonus",
        "sampled", ("epo", "epo-alpha2", "empg"), 12_800, 0.5, {"task": "t4c", "warmup": 10, **GRID},
        BASELINES
        | {
            "grpo-bonus": Arm("grpo", {"entropy": 1e-3}),
            "epo": Arm("epo"),
            "empg": Arm("empg"),
            "epo-alpha2": Arm("epo", {"alpha": 2.0}, first=False),
            "ppo": Arm("ppo", first=False),
            "epo-ppo": Arm("epo", {"base": "ppo"}, first=False),
            "empg-weights": Arm("empg", {"zeta": 0.0}, first=False),
            "empg-bonus": Arm("empg", {"k": 0.0}, first=False),
        },
        ("sft", {"noise": 0.3}, {"task": "t4c", "prompts": 64, "group": 1, "steps": 100, "lr": 2e-3}),
    ),
    "t4b": Experiment(
        "sets keep more of the four goals than losses of single episodes, at as many successes",
        "goals_of_16", ("polychromic", "polychromic-prompt"), 12_800, 0.3,
        {"task": "t4b", **GRID, "eval_prompts": 32, "eval_samples": 16},
        BASELINES
        | {
            "ppo": Arm("ppo"),
            "polychromic": Arm("polychromic", {}, {"prompts": 5}, 5 * 24),
            "polychromic-prompt": Arm("polychromic", {"states": 0}),
        },
    ),
    "t4d": Experiment(
        "hints of a model trained on differences of returns raise success@2 above that of trying again without any",
        "success_2", ("retroformer",), 25_600, 0.25, {"task": "t4d", **GRID},
        BASELINES | {"retroformer": Arm("retroformer", {"kl": 0.01, "target": 2.0})},
        ("sft", {"noise": 0.1}, {"task": "t4d-actor", "prompts": 64, "group": 1, "steps": 200, "lr": 2e-3}),
        begin_is="actor", rates=(1e-3, 3e-3),
    ),
    "t6": Experiment(
        "summaries trained with the task (SUPO) beat a window that forgets, and more of them at test time help",
        "sampled", ("supo", "supo-dr_grpo"), 12_800, 0.6, {"task": "t6", **GRID},
        {
            "truncated": Arm("grpo", {}, {"context": "truncate", "context_window": 32}),
            "truncated-dr_grpo": Arm("dr_grpo", {}, {"context": "truncate", "context_window": 32}),
            "truncated-reinforce": Arm("reinforce", {}, {"context": "truncate", "context_window": 32}),
            "supo": Arm("grpo", {"clip_high": 0.28}, {"context": "supo", "context_window": 32, "summaries": 3}),
            "supo-dr_grpo": Arm("dr_grpo", {}, {"context": "supo", "context_window": 32, "summaries": 3}),
            "full": Arm("grpo"),
        },
        ("sft", {"noise": 0.2}, {
            "task": "t6", "prompts": 64, "group": 1, "steps": 400, "context": "supo", "context_window": 32,
            "summaries": 6, "lr": 2e-3,
        }),
        {f"summaries-{n}": {"context": "supo", "context_window": 32, "summaries": n} for n in (3, 4, 5, 6)},
        begin_seconds=120.0,
        note="These cells were run when a response could hold one token less: in the longest of the eleven lengths of"
             " a corridor the fourth question had three tries instead of four. Since then it has four.",
    ),
}  # fmt: skip
FAST = {"eval_prompts": 8, "eval_samples": 4, "eval_every": 1, "log_every": 1, "checkpoint_every": 2}


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class One:
    """One cell (called by 'run')."""

    experiment: str
    arm: str
    seed: int
    rate: float = 0.0
    """0: the better one of the tuning cells."""
    smoke: bool = False

    @property
    def name(self) -> str:
        """Of the cell."""
        kind = f"tune-{self.rate:g}-" if self.rate else "begin-" if self.arm == "begin" else ""
        return f"{kind}{self.experiment}-{self.arm}-{self.seed}"

    @property
    def raw(self) -> Path:
        """Folder of raw files."""
        return SMOKE / "raw" if self.smoke else RAW

    @property
    def result(self) -> Path:
        """The raw file."""
        return self.raw / f"{self.name}.json"

    @property
    def work(self) -> Path:
        """Folder of runs."""
        return (SMOKE / "work" if self.smoke else WORK) / self.name


def cells(smoke: bool) -> list[tuple[Cell, float]]:
    """Its own cells and those of the prompts, the most telling ones first, with expected seconds on one core."""
    found: list[tuple[int, One, float]] = []
    for name, experiment in EXPERIMENTS.items():
        seeds = (0,) if smoke else SEEDS
        if experiment.begin is not None:
            for seed in (TUNE_SEED, *seeds):
                found.append((-1, One(name, "begin", seed, smoke=smoke), experiment.begin_seconds))
        for label, arm in experiment.arms.items():
            seconds, tuned = experiment.seconds * experiment.rollouts / arm.per_step, 0 if arm.first else 4
            for rate in experiment.rates:
                found.append((tuned, One(name, label, TUNE_SEED, rate, smoke), seconds / 2))
            for seed in seeds:
                rank = 5 if not arm.first else 3 if seed == SEEDS[-1] else 1
                found.append((rank, One(name, label, seed, smoke=smoke), seconds))
    made = [(rank, cell_of(one), seconds) for rank, one, seconds in found]
    made += bench_llm_prompts.cells(bench_llm_prompts.SMOKE if smoke else bench_llm_prompts.FULL)
    return [(cell, seconds) for _, cell, seconds in sorted(made, key=lambda entry: entry[0])]


def cell_of(one: One) -> Cell:
    """Its command, and what it reads of other cells."""
    command = [sys.executable, __file__, "cell", "--experiment", one.experiment, "--arm", one.arm]
    command += ["--seed", str(one.seed), "--rate", str(one.rate), *(["--smoke"] if one.smoke else [])]
    needs, experiment = [], EXPERIMENTS[one.experiment]
    if one.arm != "begin" and experiment.begin is not None:
        needs = [One(one.experiment, "begin", one.seed, smoke=one.smoke)]
    if one.arm != "begin" and not one.rate:
        needs += [One(one.experiment, one.arm, TUNE_SEED, rate, one.smoke) for rate in experiment.rates]
    return Cell(one.name, tuple(command), one.result, needs=tuple(other.result for other in needs))


def trained(one: One, method: str, settings: dict[str, Any], options: LLMOptions) -> Path:
    """The finished run directory of a cell, resumed where it was interrupted."""
    begun = sorted(one.work.glob("*/*/seed*"))
    if begun:
        return resume(begun[-1]).directory
    return start(method, load_method(method).config(**settings), options).directory


def cell(one: One) -> None:
    """Train, evaluate, write the raw file."""
    torch.set_num_threads(1)
    began, experiment = time.process_time(), EXPERIMENTS[one.experiment]
    common: dict[str, Any] = {"seed": one.seed, "out": one.work, "device": "cpu", "checkpoint_every": 25}
    if one.arm == "begin":
        assert experiment.begin is not None
        method, settings, given = experiment.begin
        options = LLMOptions(**{"eval_every": 0, "eval_prompts": 256, "eval_samples": 4, **given, **common})
        options = replace(options, **FAST, steps=2) if one.smoke else options
        run = trained(one, method, settings, options)
        record = {"run": run.relative_to(one.work).as_posix(), "curve": rows(run / "accuracy.csv")}
    else:
        arm = experiment.arms[one.arm]
        rate = one.rate or best_rate(one)
        steps = experiment.rollouts // arm.per_step // (2 if one.rate else 1)
        given = {
            **experiment.options,
            **arm.options,
            "lr": rate,
            "steps": steps,
            "eval_every": max(steps // POINTS, 1),
        }
        if experiment.begin is not None:
            given[experiment.begin_is] = str(begin_of(one))
        options = LLMOptions(**{**given, **common})
        options = replace(options, **FAST, steps=2) if one.smoke else options
        run = trained(one, arm.method, arm.settings, options)
        extra = {
            n: o for n, o in experiment.extra.items() if o["context"] == options.context and not one.rate
        }
        record = {"rate": rate, "extra": {n: again(run, options, o) for n, o in extra.items()}}
        record |= {"curve": rows(run / "accuracy.csv"), "metrics": rows(run / "metrics.csv")}
    record |= {
        "experiment": one.experiment,
        "arm": one.arm,
        "seed": one.seed,
        "seconds": time.process_time() - began,
    }
    atomic_write_json(one.result, record | {"versions": versions("cpu", 1)})


def begin_of(one: One) -> Path:
    """The run directory of the supervised start of a seed."""
    begin = One(one.experiment, "begin", one.seed, smoke=one.smoke)
    return begin.work / json.loads(begin.result.read_text())["run"]


def best_rate(one: One) -> float:
    """The one of the rates whose tuning cell ended higher."""
    metric, found = EXPERIMENTS[one.experiment].metric, {}
    for rate in EXPERIMENTS[one.experiment].rates:
        tuned = One(one.experiment, one.arm, TUNE_SEED, rate, one.smoke)
        found[rate] = final(json.loads(tuned.result.read_text()), metric)
    return max(found, key=lambda rate: found[rate])


def rows(path: Path) -> list[dict[str, float]]:
    """A table of a run."""
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def again(run: Path, options: LLMOptions, given: dict[str, Any]) -> dict[str, float]:
    """Accuracies of a run's model under other options."""
    task = task_for(replace(options, **given))
    policy = load_model(str(run), task, options.seed)
    found = evaluate(policy, task, prompts=options.eval_prompts, samples=4, seed=options.seed, name="extra")
    return {"sampled": found.accuracy, "greedy": float(found.greedy.float().mean())}


def final(record: dict[str, Any], metric: str) -> float:
    """Mean of the last three evaluations."""
    return float(np.mean([row[metric] for row in record["curve"][-3:]]))


def records(experiment: str) -> dict[str, list[dict[str, Any]]]:
    """Arm -> finished cells of the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in EXPERIMENTS[experiment].arms:
        paths = [One(experiment, arm, seed).result for seed in SEEDS]
        found[arm] = [json.loads(path.read_text()) for path in paths if path.exists()]
    return {arm: list_ for arm, list_ in found.items() if list_}


def page() -> str:
    """The page, from the raw files alone, those of scripts/bench_llm_prompts.py among them."""
    lines = [
        "# Language-model agents: data, contexts, episodes", "",
        "Regenerate: `python scripts/bench_llm_agents.py page`; raw numbers: `benchmarks/raw/llm_agents/`. Means of "
        f"the last three evaluations (smallest .. largest of up to {len(SEEDS)} seeds), equal rollouts; "
        f"learning rate: the better one of two on another seed, after half of the rollouts.", "",
    ]  # fmt: skip
    for name, experiment in EXPERIMENTS.items():
        found = records(name)
        lines += [f"## {name}", "", f"Claim: {experiment.claim}. {experiment.rollouts:,} rollouts each.", ""]
        lines += [experiment.note, ""] if experiment.note else []
        lines += tuned(name)
        if not found:
            lines += ["The seeds have not been run yet.", ""]
            continue
        control = ["success_2_without"] if experiment.metric == "success_2" else []
        best_of = [name for name in next(iter(found.values()))[0]["curve"][0] if name.startswith("pass_at_")]
        columns = list(dict.fromkeys([experiment.metric, *control, "sampled", *best_of]))
        extra = list(experiment.extra)
        lines += [
            f"| arm | lr | at first | {' | '.join([*columns, *extra])} | turn-to-turn entropy | CPU s |"
        ]
        lines += ["|---" * (5 + len(columns) + len(extra)) + "|"]
        lines += [row(arm, list_, columns, extra) for arm, list_ in found.items()]
        lines += ["", *verdicts(experiment, found), ""]
    lines += bench_llm_prompts.section()
    if (path := RAW / "speed.json").exists():
        lines += [
            "## Speed",
            "",
            "CPU seconds of 128 episodes from random weights, one thread, the best of four.",
            "",
        ]
        lines += ["| task | at once | one by one | times faster |", "|---|---|---|---|"]
        for task, s in json.loads(path.read_text())["tasks"].items():
            lines += [f"| {task} | {s['batched']:.2f} | {s['alone']:.1f} | {s['times']:.0f} |"]
        lines += [""]
    stamps = [r["versions"] for e in EXPERIMENTS for list_ in records(e).values() for r in list_]
    if stamps:
        keys = [key for key in ("commit", "cpu", "torch", "transformers") if stamps[-1].get(key)]
        lines += ["Made with " + ", ".join(f"{key} {stamps[-1][key]}" for key in keys) + "."]
    return "\n".join(lines).rstrip() + "\n"


def tuned(name: str) -> list[str]:
    """Where the tuning cells, which have half of the rollouts, began and ended."""
    experiment, lines = EXPERIMENTS[name], []
    for arm in experiment.arms:
        paths = [One(name, arm, TUNE_SEED, rate).result for rate in experiment.rates]
        if all(path.exists() for path in paths):
            found = [json.loads(path.read_text()) for path in paths]
            ends = " | ".join(f"{final(record, experiment.metric):.3f}" for record in found)
            lines.append(f"| {arm} | {found[0]['curve'][0][experiment.metric]:.3f} | {ends} |")
    if not lines:
        return []
    rates = " | ".join(f"{experiment.metric} at {rate:g}" for rate in experiment.rates)
    return [f"| tuning seed | at first | {rates} |", "|---" * (2 + len(experiment.rates)) + "|", *lines, ""]


def row(arm: str, found: list[dict[str, Any]], columns: list[str], extra: list[str]) -> str:
    """A row of a table: what was reached, how far entropy wandered, and what it cost."""
    rates = "/".join(sorted({f"{r['rate']:g}" for r in found}))
    first = spread([r["curve"][0][columns[0]] for r in found])
    parts = [arm, rates, first, *(spread([final(r, c) for r in found]) for c in columns)]
    parts += [spread([r["extra"][name]["sampled"] for r in found if name in r["extra"]]) for name in extra]
    wandered = [np.std([m["entropy"] for m in r["metrics"]][len(r["metrics"]) // 5 :]) for r in found]
    return (
        "| " + " | ".join([*parts, spread(wandered), f"{np.mean([r['seconds'] for r in found]):.0f}"]) + " |"
    )


def spread(values: list[Any]) -> str:
    """Mean, and the extremes of several."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    return f"{np.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def verdicts(experiment: Experiment, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Shown where the worst seed of an arm is above the best of every other arm's, not shown otherwise."""
    lines = []
    if experiment.metric == "success_2":
        for arm, list_ in found.items():
            with_, control = ([final(r, c) for r in list_] for c in ("success_2", "success_2_without"))
            word = "shown" if min(with_) > max(control) else "not shown"
            lines.append(
                f"* {arm} above no reflection: **{word}** ({spread(with_)} against {spread(control)}, "
                f"seeds: {len(list_)})."
            )
        return lines
    reached = {arm: [final(r, experiment.metric) for r in list_] for arm, list_ in found.items()}
    others = {arm: x for arm, x in reached.items() if arm not in experiment.ours and arm != "full"}
    for arm in (arm for arm in experiment.ours if arm in reached and others):
        best = max(others, key=lambda other: float(np.mean(others[other])))
        word = "shown" if min(reached[arm]) > max(others[best]) else "not shown"
        lines.append(
            f"* {arm} above the best other arm ({best}) on every seed: **{word}** ({spread(reached[arm])} against "
            f"{spread(others[best])}, seeds: {len(reached[arm])})."
        )
        if experiment.extra:
            least, *_, most = experiment.extra
            few, many = ([r["extra"][name]["sampled"] for r in found[arm]] for name in (least, most))
            word = "shown" if np.subtract(many, few).min() > 0 else "not shown"
            lines.append(
                f"* {arm} with {most} above {least}: **{word}** ({spread(many)} against {spread(few)})."
            )
    return lines


def speed() -> None:
    """CPU seconds of 128 episodes of each task at once, and of 16 one by one, times 8; the best of four in turn."""
    torch.set_num_threads(1)
    found = {}
    for name in ("t4a", "t4c", "t6"):
        task = load_task(name)
        policy, prompts = (
            load_model("tiny:dense", task, 0),
            task.prompts(128, torch.Generator().manual_seed(0)),
        )
        alone = [prompts.rows(slice(i, i + 1)) for i in range(16)]
        seconds = [np.inf, np.inf]
        for _ in range(4):
            for i, parts in enumerate(([prompts], alone)):
                began = time.process_time()
                for part in parts:
                    respond(policy, task, part, generator=torch.Generator().manual_seed(1))
                spent = (time.process_time() - began) * 128 / sum(map(len, parts))
                seconds[i] = min(seconds[i], spent)
        found[name] = {"batched": seconds[0], "alone": seconds[1], "times": seconds[1] / seconds[0]}
        print(
            f"{name}: {seconds[0]:.2f} s at once, {seconds[1]:.1f} s one by one, {found[name]['times']:.0f} times"
        )
    atomic_write_json(RAW / "speed.json", {"tasks": found, "versions": versions("cpu", 1)})


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(False)))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        folder = SMOKE if o.smoke else WORK
        o.run(lambda: [c for c, _ in cells(o.smoke)], folder / "logs", print)
    elif word == "cell":
        cell(tyro.cli(One, args=rest))
    elif word == "speed":
        speed()
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

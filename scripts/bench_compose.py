"""Composed policies measured against their parents and the controls: foreign agents, and chunk policies of our own.

    python scripts/bench_compose.py plan [--agents DIR]  what would run, and the expected core-hours
    python scripts/bench_compose.py run [--agents DIR] [--minutes 60] [--only pusht] [--smoke]
    python scripts/bench_compose.py page                 benchmarks/compose.md from benchmarks/raw/compose/*.json

``--agents`` holds one folder an agent, as for scripts/make_zoo.py; without it tasks with foreign agents are left out.
Weights are searched on the episodes of seed 1, all else is played on those of seed 0, the same for all players. --smoke
runs everything in minutes, into runs/bench-compose-smoke, and is good for nothing else.
"""

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from offrl.commands.compose_check import Setting, width, wire
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.evaluation.sources import load_source
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.policy import Policy
from offrl.policies.composed import ComposedPolicy, ViewedPolicy
from offrl.policies.search import Weights, paired_gain, search_weights, simplex
from offrl.training.cells import Cell, RunCells, TrainingCell, planned
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/compose.md"
SPEED = ROOT / "benchmarks/raw/compose_speed.json"
SPEEDS = {  # of scripts/bench_compose_speed.py: what stands against what, and the aim
    "composed": ("a composed chunk against its parents' own denoising together", "at most 1.1"),
    "batch": ("32 chunks one at a time against 32 at once", "5 or more"),
    "rollouts": ("32 whole Fetch episodes one environment at a time against 32 side by side", "3 or more"),
}
REPORT, SEARCH = 0, 1  # seeds
COMMON = "second on the common levels"
POOR = 0.4  # of the better parent's result: below it a parent counts as poor
STAGES = ("-train-", "-parents", "-pair-")  # later ones read earlier runs


@dataclass(frozen=True)
class Parent:
    """A chunk policy to train."""

    algorithm: str
    view: str  # of the observations: the environment's short name
    dataset: str
    seed: int = 0
    share: float = 1.0  # of the task's updates


@dataclass(frozen=True)
class Task:
    """An environment, its policies by name, and which of them are composed."""

    env: str
    measure: str
    pairs: tuple[tuple[str, str], ...]
    parents: dict[str, Parent] = field(default_factory=dict)  # empty: foreign agents
    robot: str = ""  # in the folders' names of foreign agents
    steps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # an update; an episode of a parent, of a composition


def chunk_parents(task: str, other: str) -> dict[str, Parent]:
    """Diffusion and flow on the same observations, another seed, other observations, and one that is hardly trained."""
    data = f"builtin:{task}-demo"
    return {
        "diffusion": Parent("diffusion_policy", f"{task}-state", data),
        "flow": Parent("flow_policy", f"{task}-state", data),
        "diffusion, seed 1": Parent("diffusion_policy", f"{task}-state", data, seed=1),
        f"diffusion on {other}": Parent("diffusion_policy", f"{task}-{other}", f"{data}/{other}"),
        "diffusion, early": Parent("diffusion_policy", f"{task}-state", data, share=0.15),
    }


def chunk_pairs(other: str) -> tuple[tuple[str, str], ...]:
    """The first one with each of the others."""
    mates = ("flow", f"diffusion on {other}", "diffusion, early", "diffusion, seed 1")
    return tuple(("diffusion", mate) for mate in mates)


SETTINGS = {"hidden": 32, "lr": 1e-3}


def fetch_task(name: str) -> Task:
    """A task of the Fetch robot."""
    parents = chunk_parents(f"fetch-{name}", "positions")
    return Task(
        f"fetch-{name}-state",
        "success",
        chunk_pairs("positions"),
        parents,
        steps=2_000,
        settings=SETTINGS,
        seconds=(0.05, 0.08, 0.13),
    )


TASKS = {
    "hopper": Task(
        "Hopper-v5",
        "return",
        (("sac", "tqc"), ("ppo", "trpo"), ("a2c", "trpo")),
        robot="Hopper",
        seconds=(0, 0.1, 0.15),
    ),
    "walker2d": Task(
        "Walker2d-v5", "return", (("sac", "tqc"), ("a2c", "trpo")), robot="Walker2d", seconds=(0, 0.12, 0.2)
    ),
    "fetch": fetch_task("pick"),
    "push": fetch_task("push"),
    "pusht": Task(
        "pusht-all",
        "success",
        chunk_pairs("keypoints"),
        chunk_parents("pusht", "keypoints"),
        steps=10_000,
        settings=SETTINGS,
        seconds=(0.05, 0.3, 0.5),
    ),
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    report: int = 200
    search: int = 50  # episodes of each weight
    width: int = 50  # episodes side by side
    updates: float = 1.0  # times a task's own number
    hidden: int | None = None  # instead of a task's own
    max_steps: int | None = None
    parts: int = 10  # of the weights' grid
    raw: Path = ROOT / "benchmarks/raw/compose"
    work: Path = ROOT / "runs/bench-compose"


FULL = Sizes()
SMOKE = Sizes(
    *(4, 2, 2, 0.002, 8, 20, 3),
    raw=ROOT / "runs/bench-compose-smoke/raw",
    work=ROOT / "runs/bench-compose-smoke/work",
)


@dataclass(frozen=True)
class Agents:
    """Where the foreign agents are."""

    agents: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the agents; without it their tasks are left out."""


@dataclass(frozen=True)
class Run(RunCells, Agents):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class Play(Agents):
    """Play a task's parents, or one pair (called by 'run')."""

    task: str = ""
    pair: int = -1
    smoke: bool = False


def cells(sizes: Sizes, agents: Path | None, smoke: bool = False) -> list[tuple[Cell, float]]:
    """All cells in the order of their needs, with expected seconds on one core."""
    found: list[tuple[Cell, float]] = []
    for name, task in TASKS.items():
        if not task.parents and agents is None:
            continue
        found += [training(name, key, sizes) for key in task.parents]
        base = (sys.executable, __file__, "play", "--task", name, *(["--smoke"] if smoke else []))
        base += () if agents is None else ("--agents", str(agents.resolve()))
        _, alone, together = task.seconds
        players = len(players_of(task))
        cell = Cell(f"{name}-parents", base, sizes.raw / f"{name}-parents.json")
        found.append((cell, players * sizes.report * alone))
        candidates = len(simplex(2, sizes.parts))
        for index in range(len(task.pairs)):
            own = f"{name}-pair-{index}"
            cell = Cell(own, (*base, "--pair", str(index)), sizes.raw / f"{own}.json")
            found.append((cell, (candidates * sizes.search + 3 * sizes.report) * together))
    return sorted(found, key=lambda item: next(i for i, part in enumerate(STAGES) if part in item[0].name))


def training(task: str, key: str, sizes: Sizes) -> tuple[Cell, float]:
    """The cell that trains one parent."""
    spec, parent = TASKS[task], TASKS[task].parents[key]
    steps = max(round(spec.steps * parent.share * sizes.updates), 2)
    options = {
        "steps": steps,
        "env": parent.view,
        "eval_every": 0,
        "eval_episodes": 10,
        "checkpoint_every": 1_000,
    }
    settings = spec.settings | ({} if sizes.hidden is None else {"hidden": sizes.hidden})
    settings |= {"warmup_steps": min(500, max(steps // 4, 1))}
    cell = TrainingCell(parent.algorithm, parent.dataset, parent.seed, options, settings)
    return cell.cell(cell_name(task, key), sizes.raw, sizes.work), spec.seconds[0] * steps


def cell_name(task: str, key: str) -> str:
    """Of the cell that trains a parent."""
    return f"{task}-train-{key.replace(', ', '-').replace(' ', '-')}"


def players_of(task: Task) -> list[str]:
    """Names of all policies of a task, each once."""
    return list(task.parents) or sorted({name for pair in task.pairs for name in pair})


def load(
    task: str, names: list[str], sizes: Sizes, agents: Path | None
) -> tuple[list[Policy], dict[str, Any]]:
    """Policies, and arguments of ``ComposedPolicy`` that say what each sees of the task's environment."""
    spec = TASKS[task]
    environment = named_environment(spec.env)
    if not spec.parents:
        assert agents is not None
        sources = [f"sb3:{agents / f'{name}-{spec.robot}-v3' / 'model.zip'}" for name in names]
        return [load_source(source, environment) for source in sources], {}
    sources = [folder(sizes, cell_name(task, name)) for name in names]
    policies, setting = [load_source(source, environment) for source in sources], Setting.of(environment)
    wired = wire(sources, [], policies, setting)
    if wired.mistakes:
        raise ConfigError(wired.mistakes[0])
    return policies, {"wires": wired.wires, "obs_dim": width(setting)}


def folder(sizes: Sizes, cell: str) -> str:
    """The run directory of a training cell."""
    runs = sorted(path.parent for path in (sizes.work / cell).glob("*/*/seed*/config.json"))
    if not runs:
        raise FileNotFoundError(f"{cell} is not trained yet")
    return str(runs[-1])


def play(o: Play) -> None:
    """Outcomes of the parents, or of one pair's search, composition and controls."""
    torch.set_num_threads(1)
    sizes, task, began = SMOKE if o.smoke else FULL, TASKS[o.task], time.process_time()
    names = players_of(task) if o.pair < 0 else list(task.pairs[o.pair])
    policies, seen = load(o.task, names, sizes, o.agents)
    with Evaluator(named_environment(task.env), width=sizes.width) as evaluator:

        def outcomes(policy: Policy, episodes: int, seed: int) -> dict[str, list[float]]:
            return numbers(evaluator(policy.eval(), episodes, seed=seed, max_steps=sizes.max_steps))

        if o.pair < 0:
            seats = [Viewing(p, seen, i) for i, p in enumerate(policies)]
            found = {
                n: outcomes(seat.policy, sizes.report, REPORT) for n, seat in zip(names, seats, strict=True)
            }
            record: dict[str, Any] = {"outcomes": found}
            target = sizes.raw / f"{o.task}-parents.json"
        else:
            record = searched(task, policies, seen, sizes, outcomes)
            target = sizes.raw / f"{o.task}-pair-{o.pair}.json"
    record |= {"task": o.task, "names": names, "seconds": time.process_time() - began}
    atomic_write_json(target, record | {"versions": versions("cpu", 1)})


class Viewing:
    """A parent by itself, on what it sees of the common environment."""

    def __init__(self, policy: Policy, seen: dict[str, Any], index: int) -> None:
        self.policy = ViewedPolicy(policy, seen["wires"][index], seen["obs_dim"]) if seen else policy


def searched(
    task: Task, policies: list[Policy], seen: dict[str, Any], sizes: Sizes, outcomes: Any
) -> dict[str, Any]:
    """Outcomes of every weight on the search episodes; of the best one and the controls on the report episodes."""
    grid = simplex(2, sizes.parts)
    tried = {w: outcomes(ComposedPolicy(policies, weights=w, **seen), sizes.search, SEARCH) for w in grid}
    best = choose({w: np.array(o[task.measure]) for w, o in tried.items()}, rounds=1)[0]
    players = {
        "composition": ComposedPolicy(policies, weights=best, **seen),
        "equal weights": ComposedPolicy(policies, weights=(0.5, 0.5), **seen),
        "action average": ComposedPolicy(policies, weights=best, operator="action_average", **seen),
    }
    if best == (0.5, 0.5):
        del players["equal weights"]
    if len({getattr(policy, "family", "") for policy in policies}) > 1:  # a flow alone has other noise levels
        players[COMMON] = ComposedPolicy(policies, weights=(0.0, 1.0), **seen)
    report = {name: outcomes(player, sizes.report, REPORT) for name, player in players.items()}
    report.setdefault("equal weights", report["composition"])
    mismatch = players["composition"].mismatch
    rows = [[list(w), o] for w, o in tried.items()]
    return {"weights": best, "search": rows, "outcomes": report, "mismatch": mismatch}


def choose(tried: dict[Weights, np.ndarray], rounds: int) -> tuple[Weights, int]:
    """The best weights and the episodes that it took, of outcomes that are known already."""
    read = dict.fromkeys(tried, 0)

    def evaluate(weights: Weights, stream: int, episodes: int) -> np.ndarray:
        read[weights] += episodes
        return tried[weights][read[weights] - episodes : read[weights]]

    found = search_weights(evaluate, list(tried), len(next(iter(tried.values()))), rounds=rounds)
    return found.best, found.played


def numbers(result: EvaluationResult) -> dict[str, list[float]]:
    """Of each episode, rounded for the file."""
    out = {"return": [round(float(x), 2) for x in result.returns]}
    if result.successes is not None:
        out["success"] = [float(x) for x in result.successes]
        out["max_reward"] = [round(float(x), 4) for x in result.max_rewards]
    return out


# --- the page -------------------------------------------------------------------------------------------


def page() -> str:
    """The page, from the raw files alone."""
    lines = [
        "# Composed policies",
        "",
        "Regenerate: `python scripts/bench_compose.py page`. Raw numbers, an outcome an episode: "
        "`benchmarks/raw/compose/`.",
        "",
        f"Weights in steps of 0.1 are tried on {FULL.search} episodes each of seed {SEARCH}; everything in the tables "
        f"is played on the same {FULL.report} episodes of seed {REPORT}. Intervals are 95 %, by Student's t on the "
        "paired differences. The better parent is the one with the higher mean on the report episodes, which favours "
        "the parents. *wins* and *loses*: the interval of the gain over the better parent excludes 0; *ties*: not.",
        "",
        "Controls: equal weights without a search; the average of the actions that the parents plan each for "
        "themselves, with the composition's weights; a policy composed with another seed of itself. Foreign agents "
        "have no second seed; composed with itself a policy is itself, to the bit, which is tested. A flow beside a "
        "diffusion is asked at the diffusion's trained levels; the row w = 0, 1 is the flow alone at these.",
        "",
        *summary(),
        "",
        "## The paper's pattern",
        "",
        *pattern(),
        "",
    ]
    for name in TASKS:
        lines += [f"## {title(name)}", "", *section(name), ""]
    return "\n".join([*lines, "## Speed", "", *speed(), ""])


def speed() -> list[str]:
    """What scripts/bench_compose_speed.py measured."""
    if not SPEED.exists():
        return ["Not run yet."]
    found = json.loads(SPEED.read_text())
    lines = [
        f"`python scripts/bench_compose_speed.py`, U-Nets of {found['hidden']} channels (4.6 M parameters), one "
        f"thread, nothing else running; {machine(found['versions'])}.",
        "",
        "| | slow, ms | fast, ms | ratio | aim |",
        "|---|---|---|---|---|",
    ]
    for name, (told, aim) in SPEEDS.items():
        if row := found.get(name):
            slow, fast = (1000 * value for value in row["seconds"])
            lines.append(f"| {told} | {slow:.0f} | {fast:.0f} | {row['ratio']:.2f} | {aim} |")
    return lines


def title(name: str) -> str:
    """Of a task's section."""
    return {
        "hopper": "Hopper-v5, agents of the rl-baselines3-zoo",
        "walker2d": "Walker2d-v5, agents of the rl-baselines3-zoo",
        "fetch": "FetchPickAndPlace, chunk policies",
        "push": "FetchPush, chunk policies",
        "pusht": "PushT, chunk policies",
    }[name]


def read(name: str) -> dict[str, Any] | None:
    """A raw file, if it is there."""
    path = FULL.raw / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


@dataclass(frozen=True)
class Pair:
    """What was measured of one pair, in the task's measure."""

    task: str
    names: tuple[str, str]
    parents: tuple[np.ndarray, np.ndarray]
    composition: np.ndarray
    equal: np.ndarray
    average: np.ndarray
    weights: tuple[float, float]
    record: dict[str, Any]

    @property
    def better(self) -> int:
        """Which parent is."""
        return int(self.parents[1].mean() > self.parents[0].mean())

    @property
    def poor(self) -> bool:
        """Whether the other one is poor."""
        means = [p.mean() for p in self.parents]
        return bool(min(means) < POOR * max(means))

    @property
    def verdict(self) -> str:
        """Against the better parent."""
        gain = paired_gain(self.composition, self.parents[self.better])
        return "wins" if gain.low > 0 else "loses" if gain.high < 0 else "ties"


def measured(name: str) -> list[Pair]:
    """The pairs of a task that were played."""
    task, parents, found = TASKS[name], read(f"{name}-parents"), []
    for index, names in enumerate(task.pairs):
        record = read(f"{name}-pair-{index}")
        if parents is None or record is None:
            continue

        def values(outcomes: dict[str, Any], own: str, measure: str = task.measure) -> np.ndarray:
            return np.array(outcomes[own][measure])

        players = ("composition", "equal weights", "action average")
        found.append(
            Pair(
                name,
                names,
                (values(parents["outcomes"], names[0]), values(parents["outcomes"], names[1])),
                *(values(record["outcomes"], player) for player in players),
                (record["weights"][0], record["weights"][1]),
                record,
            )
        )
    return found


def show(task: str, value: float, sign: str = "") -> str:
    """A number in the task's measure: success in per cent, or a return."""
    return f"{100 * value:{sign}.1f}" if TASKS[task].measure == "success" else f"{value:{sign}.0f}"


def shown_gain(pair: Pair, player: np.ndarray, base: np.ndarray) -> str:
    """The gain of a player and its interval."""
    gain = paired_gain(player, base)
    low, high = show(pair.task, gain.low, "+"), show(pair.task, gain.high, "+")
    return f"{show(pair.task, gain.mean, '+')} ({low} .. {high})"


def summary() -> list[str]:
    """One line a pair: the verdicts."""
    lines = ["| task | pair | better parent | composition | gain | |", "|---|---|---|---|---|---|"]
    for name in TASKS:
        pairs = measured(name)
        if not pairs:
            lines.append(f"| {name} | not run yet | | | | |")
        for p in pairs:
            base = p.parents[p.better]
            row = (p.names[p.better], show(name, base.mean()), show(name, p.composition.mean()))
            lines.append(
                f"| {name} | {' + '.join(p.names)} | {row[0]}: {row[1]} | {row[2]} | "
                f"{shown_gain(p, p.composition, base)} | **{p.verdict}** |"
            )
    wins = [f"{p.task}, {' + '.join(p.names)}" for n in TASKS for p in measured(n) if p.verdict == "wins"]
    target = "The target, a gain over the better parent whose interval excludes 0 on at least one task"
    shown = f"is met: {'; '.join(wins)}." if wins else "is not met by what was run."
    return [*lines, "", f"{target}, {shown} Success is in per cent."]


def pattern() -> list[str]:
    """Both moderate: gain; one poor: none."""
    pairs = [p for name in TASKS for p in measured(name)]
    lines = [
        "The paper finds a gain where both parents are moderate, none where one is poor, and more weight on the better "
        f"parent. Here a parent is called poor below {POOR:g} of the better one's result.",
        "",
        "| | pairs | wins | ties | loses |",
        "|---|---|---|---|---|",
    ]
    for label, poor in (("both moderate or good", False), ("one poor", True)):
        own = [p.verdict for p in pairs if p.poor == poor]
        lines.append(
            f"| {label} | {len(own)} | {' | '.join(str(own.count(v)) for v in ('wins', 'ties', 'loses'))} |"
        )
    heavier = [p for p in pairs if p.weights[p.better] != 0.5]
    right = sum(p.weights[p.better] > 0.5 for p in heavier)
    as_told = all((p.verdict != "wins") if p.poor else (p.verdict == "wins") for p in pairs)
    return [
        *lines,
        "",
        f"The better parent has the larger weight in {right} of {len(heavier)} pairs (equal weights left out). "
        f"As published in every pair: {'shown here' if pairs and as_told else 'not shown here'}.",
    ]


def section(name: str) -> list[str]:
    """A task's settings, tables, figure."""
    task, pairs = TASKS[name], measured(name)
    if not pairs:
        return ["Not run yet."]
    lines = [settings(name), ""]
    parents = read(f"{name}-parents")
    assert parents is not None
    for p in pairs:
        lines += [f"### {' + '.join(p.names)}", "", *pair_table(p), ""]
    draw(pairs, PAGE.parent / f"compose-{name}.svg")
    hours = sum(record["seconds"] for record in [parents, *(p.record for p in pairs)]) / 60
    v = parents["versions"]
    return [
        *lines,
        f"![{task.measure} against weight](compose-{name}.svg)",
        "",
        f"Played in {hours:.0f} CPU-minutes, {FULL.width} episodes side by side; {machine(v)}.",
        *(pixels() if name == "pusht" else []),
    ]


def pixels() -> list[str]:
    """The PushT policy that sees images, trained once on a GPU."""
    r = read("pusht-pixels")
    if r is None:
        return []
    (low, high), s = r["interval"], r["settings"]
    return [
        "",
        f"A policy from pixels (96 x 96 image and agent position; ResNet-18 and U-Net, hidden {s['hidden']}, lr "
        f"{s['lr']:g}, batches of {s['batch_size']}, {r['rows']:,} steps of the bundled demonstrations drawn again, "
        f"seed {r['seed']}) was trained on a GPU for {r['steps']:,} updates, {r['seconds'] / 60:.0f} min beside other "
        f"jobs: success {100 * np.mean(r['successes']):.1f} % ({100 * low:.1f} .. {100 * high:.1f}) on "
        f"{len(r['successes'])} episodes of seed 0, mean of their largest rewards {np.mean(r['max_rewards']):.2f}; "
        f"{machine(r['versions'])}.",
    ]


def machine(v: dict[str, Any]) -> str:
    """Where it was measured."""
    return ", ".join(
        f"{key} {v[key]}" for key in ("offrl", "commit", "torch", "device", "threads") if v.get(key)
    )


def settings(name: str) -> str:
    """How the parents were made."""
    task = TASKS[name]
    if not task.parents:
        return (
            "Gaussian actors by other people, acting deterministically. Squashed ones (sac, tqc) are composed before "
            "their tanh, clipped ones (ppo, trpo, a2c) as they are, with denoisers in closed form, 10 noise levels."
        )
    own = ", ".join(f"{key} {value:g}" for key, value in task.settings.items())
    trained = []
    for key in task.parents:
        record = read(cell_name(name, key))
        if record is not None:
            seconds = "" if record["seconds"] is None else f", {record['seconds'] / 60:.0f} min"
            trained.append(f"{key} ({record['config']['steps']:,} updates{seconds})")
    return (
        f"U-Nets, {own}, batches of 64, 10 noise levels, chunks of 16 of which 8 are carried out, trained on the "
        f"bundled demonstrations: {'; '.join(trained)}."
    )


def pair_table(p: Pair) -> list[str]:
    """Parents, controls and composition of a pair."""
    base, measure = p.parents[p.better], TASKS[p.task].measure
    w = f"w = {p.weights[0]:g}, {p.weights[1]:g}"
    rows = {p.names[0]: p.parents[0], p.names[1]: p.parents[1], f"composition, {w}": p.composition}
    rows |= {"composition, w = 0.5, 0.5": p.equal, f"action average, {w}": p.average}
    if COMMON in p.record["outcomes"]:
        rows[f"{p.names[1]}, w = 0, 1"] = np.array(p.record["outcomes"][COMMON][measure])
    mean = "success %" if measure == "success" else "mean return"
    lines = [f"| | {mean} | against {p.names[p.better]} | composition against it |", "|---|---|---|---|"]
    for label, values in rows.items():
        own = "" if values is base else shown_gain(p, values, base)
        against = "" if label.startswith(f"composition, {w}") else shown_gain(p, p.composition, values)
        lines.append(f"| {label} | {show(p.task, values.mean())} | {own} | {against} |")
    tried = {(row[0][0], row[0][1]): np.array(row[1][measure]) for row in p.record["search"]}
    quick, played = choose(tried, rounds=3)
    every = sum(len(values) for values in tried.values())
    same = "the same weights" if quick == p.weights else f"w = {quick[0]:g}, {quick[1]:g}"
    return [
        *lines,
        "",
        f"Successive halving would have found {same} with {played} instead of {every} episodes.",
    ]


def draw(pairs: list[Pair], path: Path) -> None:
    """Outcome against weight on the search episodes with intervals, the parents' report outcomes at the ends."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "compose"
    measure, count = TASKS[pairs[0].task].measure, len(pairs)
    figure, grid = pyplot.subplots(1, count, figsize=(3.2 * count, 3.0), sharey=True, squeeze=False)
    for axes, p in zip(grid[0], pairs, strict=True):
        rows = [(w[0], np.array(o[measure])) for w, o in p.record["search"]]
        half = [1.96 * v.std(ddof=1) / math.sqrt(len(v)) for _, v in rows]
        axes.errorbar(
            [w for w, _ in rows], [v.mean() for _, v in rows], half, fmt="o-", capsize=2, label="search"
        )
        axes.plot([1, 0], [v.mean() for v in p.parents], "s", label="parents, report")
        axes.plot([p.weights[0]], [p.composition.mean()], "D", label="composition, report")
        axes.set(xlabel=f"weight of {p.names[0]}", title=f"+ {p.names[1]}")
        axes.title.set_fontsize(9)
    grid[0][0].set_ylabel(f"mean {measure}")
    grid[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(FULL, tyro.cli(Agents, args=rest).agents)))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        sizes = SMOKE if o.smoke else FULL
        listed = lambda: [cell for cell, _ in cells(sizes, o.agents, o.smoke)]  # noqa: E731
        o.run(listed, sizes.work / "logs", print, STAGES)
    elif word == "play":
        play(tyro.cli(Play, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE.relative_to(ROOT)}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
